package api

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// DestinationRule is the kind that names subsets of a service and says how to send to them
// (https://istio.io/latest/docs/reference/config/networking/destination-rule/).
func DestinationRule() *Kind {
	return networkingKind(Kind{
		Kind: "DestinationRule", Plural: "destinationrules", Singular: "destinationrule", ShortNames: []string{"dr"},
		Columns: []Column{{Name: "Host", Description: "The host that the rule is for", Cell: func(o *Object) any {
			return o.Spec.(*networking.DestinationRule).Host
		}}},
		validate: validateDestinationRule,
	}, func() proto.Message { return &networking.DestinationRule{} }, destinationRuleFields())
}

func destinationRuleFields() fieldSet {
	return fields(networkingPackage,
		"DestinationRule.host", "DestinationRule.subsets", "DestinationRule.traffic_policy", "DestinationRule.export_to",
		"Subset.name", "Subset.labels", "Subset.traffic_policy",
		"TrafficPolicy.load_balancer", "LoadBalancerSettings.simple",
		"TrafficPolicy.tls", "ClientTLSSettings.mode",
	)
}

func validateDestinationRule(o *Object) Problems {
	dr := o.Spec.(*networking.DestinationRule)
	var ps Problems
	if msg := checkHostOrWildcard(dr.Host); msg != "" {
		ps.invalid(Path{"spec", "host"}, msg)
	}
	validateExportTo(&ps, dr.ExportTo)
	validateTrafficPolicy(&ps, Path{"spec", "trafficPolicy"}, dr.TrafficPolicy)
	names := map[string]int{}
	for i, subset := range dr.Subsets {
		path := Path{"spec", "subsets", i}
		if msg := checkSubset(subset.GetName()); msg != "" {
			ps.invalid(path.At("name"), msg)
		}
		if first, taken := names[subset.GetName()]; taken {
			ps.invalid(path.At("name"), fmt.Sprintf("want a name of its own, %q is that of subsets[%d]", subset.GetName(), first))
		} else {
			names[subset.GetName()] = i
		}
		checkLabels(&ps, path.At("labels"), subset.GetLabels())
		validateTrafficPolicy(&ps, path.At("trafficPolicy"), subset.GetTrafficPolicy())
	}
	return ps
}

func checkSubset(name string) string {
	if !hostLabel.MatchString(name) {
		return fmt.Sprintf("want a name of letters, digits, - and _, got %q", name)
	}
	return ""
}

func validateTrafficPolicy(ps *Problems, path Path, policy *networking.TrafficPolicy) {
	if simple := policy.GetLoadBalancer().GetSimple(); simple == networking.LoadBalancerSettings_PASSTHROUGH {
		ps.unsupported(path.At("loadBalancer", "simple"), "PASSTHROUGH")
	}
	// Mutual TLS is what this mesh does wherever the endpoint has a proxy; every other mode asks for something else.
	if tls := policy.GetTls(); tls != nil && tls.Mode != networking.ClientTLSSettings_ISTIO_MUTUAL {
		ps.unsupported(path.At("tls", "mode"), tls.Mode.String())
	}
}
