package api

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1"
)

// PeerAuthentication is the kind that says whether workloads take plain text, mutual TLS or both
// (https://istio.io/latest/docs/reference/config/security/peer_authentication/).
func PeerAuthentication() *Kind {
	return securityKind(Kind{
		Kind: "PeerAuthentication", Plural: "peerauthentications", Singular: "peerauthentication", ShortNames: []string{"pa"},
		Columns: []Column{
			{Name: "Mode", Description: "Whether plain text is taken", Cell: func(o *Object) any {
				return o.Spec.(*security.PeerAuthentication).GetMtls().GetMode().String()
			}},
			{Name: "For", Description: "The workloads it is for", Cell: scopeCell},
		},
		validate: validatePeerAuthentication,
	}, func() proto.Message { return &security.PeerAuthentication{} }, peerAuthenticationFields())
}

func peerAuthenticationFields() fieldSet {
	return securityFields("PeerAuthentication.selector", "PeerAuthentication.mtls", "PeerAuthentication.port_level_mtls", "PeerAuthentication.MutualTLS.mode")
}

func validatePeerAuthentication(o *Object) Problems {
	p := o.Spec.(*security.PeerAuthentication)
	var ps Problems
	checkSelector(&ps, p.Selector)
	spec, _ := o.Content["spec"].(map[string]any)
	ports := Path{"spec", "portLevelMtls"}
	switch written := spec["portLevelMtls"] != nil; { // the message can't tell an empty map from an absent one
	case written && len(p.PortLevelMtls) == 0:
		ps.required(ports, "want at least one port")
	case written && len(p.GetSelector().GetMatchLabels()) == 0:
		ps.invalid(ports, "want a selector with labels besides: ports belong to workloads")
	}
	for _, port := range slices.Sorted(maps.Keys(p.PortLevelMtls)) {
		if msg := checkPort(port); msg != "" {
			ps.invalid(ports.At(fmt.Sprint(port)), msg)
		}
	}
	return ps
}
