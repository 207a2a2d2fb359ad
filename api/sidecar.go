package api

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// Sidecar is the kind that says what proxies of workloads know, and what they let out
// (https://istio.io/latest/docs/reference/config/networking/sidecar/).
func Sidecar() *Kind {
	return networkingKind(Kind{
		Kind: "Sidecar", Plural: "sidecars", Singular: "sidecar",
		Columns: []Column{{Name: "Outbound", Description: "What may be reached that nothing names", Cell: func(o *Object) any {
			return o.Spec.(*networking.Sidecar).GetOutboundTrafficPolicy().GetMode().String()
		}}},
		validate: validateSidecar,
	}, func() proto.Message { return &networking.Sidecar{} }, sidecarFields())
}

func sidecarFields() fieldSet {
	return networkingFields(
		"Sidecar.workload_selector", "WorkloadSelector.labels", "Sidecar.egress", "IstioEgressListener.hosts",
		"Sidecar.outbound_traffic_policy", "OutboundTrafficPolicy.mode",
	)
}

func validateSidecar(o *Object) Problems {
	s := o.Spec.(*networking.Sidecar)
	var ps Problems
	if w := s.WorkloadSelector; w != nil {
		checkSelectorLabels(&ps, Path{"spec", "workloadSelector", "labels"}, w.Labels)
	}
	if len(s.Egress) == 0 && s.OutboundTrafficPolicy == nil {
		ps.required(Path{"spec", "egress"}, "want hosts here, or an outboundTrafficPolicy: this says nothing")
	}
	if len(s.Egress) > 1 { // without ports of their own
		ps.invalid(Path{"spec", "egress"}, fmt.Sprintf("want one listener without port, got %d: it takes the hosts of all", len(s.Egress)))
	}
	for i, e := range s.Egress {
		path := Path{"spec", "egress", i, "hosts"}
		if len(e.GetHosts()) == 0 {
			ps.required(path, "want at least one host, as namespace/host")
		}
		for j, host := range e.GetHosts() {
			ns, name, qualified := strings.Cut(host, "/")
			switch {
			case !qualified:
				ps.invalid(path.At(j), fmt.Sprintf("want namespace/host, such as ./* or */reviews.default.svc.cluster.local, got %q", host))
			case ns != "*" && ns != "." && ns != "~" && !dnsLabel.MatchString(ns):
				ps.invalid(path.At(j), fmt.Sprintf("want a namespace, *, . or ~ before the /, got %q", host))
			case checkHostOrWildcard(name) != "":
				ps.invalid(path.At(j), checkHostOrWildcard(name))
			}
		}
	}
	return ps
}
