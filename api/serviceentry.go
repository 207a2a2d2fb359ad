package api

import (
	"fmt"
	"net/netip"
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
	return networkingFields(
		"ServiceEntry.hosts", "ServiceEntry.addresses", "ServiceEntry.ports", "ServiceEntry.location", "ServiceEntry.resolution",
		"ServiceEntry.endpoints", "ServiceEntry.export_to",
		"ServicePort.number", "ServicePort.protocol", "ServicePort.name",
		"WorkloadEntry.address", "WorkloadEntry.ports", "WorkloadEntry.labels",
	)
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
		case strings.HasPrefix(host, "*") && !none:
			ps.invalid(spec.At("hosts", i), fmt.Sprintf("want a host without wildcard, or resolution NONE, got %q", host))
		}
	}
	validateExportTo(&ps, se.ExportTo)
	for i, a := range se.Addresses {
		if _, err := netip.ParseAddr(a); err != nil {
			if _, err := netip.ParsePrefix(a); err != nil {
				ps.invalid(spec.At("addresses", i), fmt.Sprintf("want an address or a CIDR, got %q", a))
			}
		}
	}
	if se.Location != networking.ServiceEntry_MESH_EXTERNAL {
		ps.unsupported(spec.At("location"), se.Location.String())
	}
	names := validateServicePorts(&ps, spec.At("ports"), se)
	switch {
	case none:
		if len(se.Endpoints) > 0 {
			ps.invalid(spec.At("endpoints"), "want none with resolution NONE, which goes to the address that was dialled: STATIC uses them")
		}
	case se.Resolution == networking.ServiceEntry_STATIC:
		if len(se.Endpoints) == 0 {
			ps.required(spec.At("endpoints"), "want at least one with resolution STATIC")
		}
		for i, e := range se.Endpoints {
			validateEndpoint(&ps, spec.At("endpoints", i), e, names)
		}
	default:
		ps.unsupported(spec.At("resolution"), se.Resolution.String())
	}
	return ps
}

// validateServicePorts yields the ports' numbers by name.
func validateServicePorts(ps *Problems, path Path, se *networking.ServiceEntry) map[string]uint32 {
	if len(se.Ports) == 0 {
		ps.required(path, "want at least one port")
	}
	names, numbers := map[string]uint32{}, map[uint32]bool{}
	for i, p := range se.Ports {
		if msg := checkPort(p.GetNumber()); msg != "" {
			ps.invalid(path.At(i, "number"), msg)
		} else if numbers[p.Number] {
			ps.invalid(path.At(i, "number"), fmt.Sprintf("%d is listed twice", p.Number))
		}
		numbers[p.GetNumber()] = true
		if p.GetName() == "" {
			ps.required(path.At(i, "name"), "want a name")
		} else if _, taken := names[p.Name]; taken {
			ps.invalid(path.At(i, "name"), fmt.Sprintf("want a name of its own, got %q again", p.Name))
		}
		names[p.GetName()] = p.GetNumber()
		switch protocol := strings.ToUpper(p.GetProtocol()); protocol {
		case "HTTP", "HTTP2", "GRPC", "HTTPS", "TLS":
		case "TCP", "":
			if len(se.Addresses) == 0 && se.Resolution != networking.ServiceEntry_NONE {
				ps.required(Path{"spec", "addresses"}, fmt.Sprintf("want the addresses that clients dial: nothing else tells connections to port %d, of protocol TCP, from others", p.GetNumber()))
			}
		default:
			ps.invalid(path.At(i, "protocol"), fmt.Sprintf("want HTTP, HTTP2, GRPC, HTTPS, TLS or TCP, got %q", p.GetProtocol()))
		}
	}
	return names
}

func validateEndpoint(ps *Problems, path Path, e *networking.WorkloadEntry, ports map[string]uint32) {
	if _, err := netip.ParseAddr(e.GetAddress()); err != nil {
		ps.invalid(path.At("address"), fmt.Sprintf("want an IP address with resolution STATIC, got %q", e.GetAddress()))
	}
	for name, number := range e.GetPorts() {
		switch of, known := ports[name]; {
		case !known:
			ps.invalid(path.At("ports", name), fmt.Sprintf("want the name of one of spec.ports, got %q", name))
		case of != number:
			ps.unsupported(path.At("ports", name), fmt.Sprintf("a port other than the service's own, %d,", of))
		}
	}
	checkLabels(ps, path.At("labels"), e.GetLabels())
}
