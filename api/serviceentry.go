package api

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// ServiceEntry is the kind that names what is outside of the mesh
// (https://istio.io/latest/docs/reference/config/networking/service-entry/).
func ServiceEntry() *Kind {
	return networkingKind(Kind{
		Kind: "ServiceEntry", Plural: "serviceentries", Singular: "serviceentry", ShortNames: []string{"se"},
		Columns: []Column{
			{Name: "Hosts", Description: "The hosts that it names", Cell: func(o *Object) any {
				return listCell(o.Spec.(*networking.ServiceEntry).Hosts)
			}},
			{Name: "Resolution", Description: "Where their endpoints come from", Cell: func(o *Object) any {
				return o.Spec.(*networking.ServiceEntry).Resolution.String()
			}},
		},
		validate: validateServiceEntry,
	}, func() proto.Message { return &networking.ServiceEntry{} }, serviceEntryFields())
}

func serviceEntryFields() fieldSet {
	return networkingFields(slices.Concat(workloadEntryFields, []string{
		"ServiceEntry.hosts", "ServiceEntry.addresses", "ServiceEntry.ports", "ServiceEntry.location", "ServiceEntry.resolution",
		"ServiceEntry.endpoints", "ServiceEntry.workload_selector", "WorkloadSelector.labels", "ServiceEntry.subject_alt_names", "ServiceEntry.export_to",
		"ServicePort.number", "ServicePort.protocol", "ServicePort.name", "ServicePort.target_port",
	})...)
}

func validateServiceEntry(o *Object) Problems {
	se := o.Spec.(*networking.ServiceEntry)
	var ps Problems
	spec := Path{"spec"}
	if len(se.Hosts) == 0 {
		ps.required(spec.At("hosts"), "want at least one host")
	}
	none := se.Resolution == networking.ServiceEntry_NONE
	for i, host := range se.Hosts {
		switch msg := checkHostOrWildcard(host); {
		case msg != "":
			ps.invalid(spec.At("hosts", i), msg)
		case host == "*":
			ps.invalid(spec.At("hosts", i), `want a host, or "*.suffix": "*" would be everything`)
		case strings.HasPrefix(host, "*") && !none && se.Resolution != networking.ServiceEntry_STATIC && len(se.Endpoints) == 0 && se.WorkloadSelector == nil:
			ps.invalid(spec.At("hosts", i), fmt.Sprintf("want a host without wildcard, or endpoints, or resolution NONE, got %q", host))
		}
	}
	validateExportTo(&ps, o, se.ExportTo)
	for i, a := range se.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			if _, err := netip.ParsePrefix(a); err != nil {
				ps.invalid(spec.At("addresses", i), fmt.Sprintf("want an address or a CIDR, got %q", a))
			} else if !none && se.Resolution != networking.ServiceEntry_STATIC {
				ps.invalid(spec.At("addresses", i), fmt.Sprintf("want an address with resolution %s: a CIDR is for NONE and STATIC", se.Resolution))
			}
		}
	}
	names := validateServicePorts(&ps, spec.At("ports"), se)
	if i := slices.IndexFunc(se.Ports, isBytes); i >= 0 && !none && len(se.Hosts) > 1 {
		ps.invalid(spec.At("hosts"), fmt.Sprintf("want one host with ports[%d] of protocol %s, on which nothing tells hosts apart, got %d", i, cmp.Or(strings.ToUpper(se.Ports[i].GetProtocol()), "TCP"), len(se.Hosts)))
	}
	if s := se.WorkloadSelector; s != nil {
		checkSelectorLabels(&ps, spec.At("workloadSelector", "labels"), s.Labels)
		if len(se.Endpoints) > 0 {
			ps.invalid(spec.At("endpoints"), "want none beside workloadSelector, which finds them")
		}
	}
	for i, name := range se.SubjectAltNames {
		if name == "" {
			ps.invalid(spec.At("subjectAltNames", i), "want a name of a certificate")
		}
	}
	switch {
	case none:
		if len(se.Endpoints) > 0 {
			ps.invalid(spec.At("endpoints"), "want none with resolution NONE, which goes to the address that was dialled: STATIC uses them")
		}
	case se.Resolution == networking.ServiceEntry_STATIC:
		for i, e := range se.Endpoints {
			validateEndpoint(&ps, spec.At("endpoints", i), e, names, false)
		}
	case se.Resolution == networking.ServiceEntry_DNS, se.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN:
		if se.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN && len(se.Endpoints) > 1 {
			ps.invalid(spec.At("endpoints"), fmt.Sprintf("want at most one with resolution DNS_ROUND_ROBIN, got %d", len(se.Endpoints)))
		}
		for i, e := range se.Endpoints {
			validateEndpoint(&ps, spec.At("endpoints", i), e, names, true)
		}
	default:
		ps.unsupported(spec.At("resolution"), se.Resolution.String())
	}
	return ps
}

// isBytes reports whether a port carries neither HTTP nor TLS.
func isBytes(p *networking.ServicePort) bool {
	return !slices.Contains([]string{"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS"}, strings.ToUpper(p.GetProtocol()))
}

// UnusedEntry is what nothing comes of in an entry, by the path of the field: Istio accepts it and warns.
func UnusedEntry(se *networking.ServiceEntry) map[string]string {
	unused := map[string]string{}
	if len(se.Ports) == 0 {
		unused["ports"] = "there are none, so nothing is sent to the hosts by this entry"
	}
	if se.Resolution == networking.ServiceEntry_NONE {
		const dialled = "it is not used with resolution NONE, which goes to the address and the port that were dialled"
		if se.WorkloadSelector != nil {
			unused["workloadSelector"] = dialled
		}
		for i, p := range se.Ports {
			if p.GetTargetPort() != 0 {
				unused[fmt.Sprintf("ports[%d].targetPort", i)] = dialled
			}
		}
	}
	if se.Resolution == networking.ServiceEntry_STATIC && len(se.Endpoints) == 0 && se.WorkloadSelector == nil {
		unused["endpoints"] = "there are none, and no workloadSelector that finds any: requests get 503"
	}
	return unused
}

// validateServicePorts yields the ports' numbers by name.
func validateServicePorts(ps *Problems, path Path, se *networking.ServiceEntry) map[string]uint32 {
	names, numbers := map[string]uint32{}, map[uint32]bool{}
	for i, p := range se.Ports {
		if msg := checkPort(p.GetNumber()); msg != "" {
			ps.invalid(path.At(i, "number"), msg)
		} else if numbers[p.Number] {
			ps.invalid(path.At(i, "number"), fmt.Sprintf("%d is listed twice", p.Number))
		}
		numbers[p.GetNumber()] = true
		if p.GetTargetPort() != 0 {
			if msg := checkPort(p.TargetPort); msg != "" {
				ps.invalid(path.At(i, "targetPort"), msg)
			}
		}
		if msg := checkPortName(p.GetName()); msg != "" {
			ps.invalid(path.At(i, "name"), msg)
		} else if _, taken := names[p.Name]; taken {
			ps.invalid(path.At(i, "name"), fmt.Sprintf("want a name of its own, got %q again", p.Name))
		}
		names[p.GetName()] = p.GetNumber()
		switch protocol := strings.ToUpper(p.GetProtocol()); protocol {
		case "HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS", "TCP", "MONGO", "MYSQL", "REDIS", "":
		default:
			ps.invalid(path.At(i, "protocol"), fmt.Sprintf("want HTTP, HTTP2, GRPC, GRPC-WEB, HTTPS, TLS, TCP, MONGO, MYSQL or REDIS, got %q", p.GetProtocol()))
		}
	}
	return names
}

// validateEndpoint checks an endpoint, whose ports are named as those of its entry.
func validateEndpoint(ps *Problems, path Path, e *networking.WorkloadEntry, ports map[string]uint32, resolved bool) {
	validateWorkload(ps, path, e, resolved)
	for name := range e.GetPorts() {
		if _, known := ports[name]; !known {
			ps.invalid(path.At("ports", name), fmt.Sprintf("want the name of one of spec.ports, got %q", name))
		}
	}
}
