package api

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// WorkloadEntry is the kind that names a workload outside of Docker, which ServiceEntries select by its labels
// (https://istio.io/latest/docs/reference/config/networking/workload-entry/).
func WorkloadEntry() *Kind {
	return networkingKind(Kind{
		Kind: "WorkloadEntry", Plural: "workloadentries", Singular: "workloadentry", ShortNames: []string{"we"},
		Columns: []Column{{Name: "Address", Description: "Where the workload is", Cell: func(o *Object) any {
			return o.Spec.(*networking.WorkloadEntry).Address
		}}},
		validate: func(o *Object) Problems {
			var ps Problems
			validateWorkload(&ps, Path{"spec"}, o.Spec.(*networking.WorkloadEntry), true)
			return ps
		},
	}, func() proto.Message { return &networking.WorkloadEntry{} }, networkingFields(workloadEntryFields...))
}

// workloadEntryFields are also those of the endpoints of a ServiceEntry.
var workloadEntryFields = []string{
	"WorkloadEntry.address", "WorkloadEntry.ports", "WorkloadEntry.labels", "WorkloadEntry.weight", "WorkloadEntry.service_account", "WorkloadEntry.network",
	"WorkloadEntry.locality",
}

// TLSModeLabel says that a workload outside of Docker takes the mesh's mutual TLS, where its value is TLSModeIstio
// (https://istio.io/latest/docs/reference/config/labels/#SecurityTlsMode).
const (
	TLSModeLabel = "security.istio.io/tlsMode"
	TLSModeIstio = "istio"
)

// maxWeight is such that the sum of all weights of a service is a number of 32 bits.
const maxWeight = 1_000_000

// validateWorkload checks a workload, which may have a name for an address where that is resolved.
func validateWorkload(ps *Problems, path Path, e *networking.WorkloadEntry, resolved bool) {
	_, err := netip.ParseAddr(e.GetAddress())
	switch {
	case err == nil, e.GetAddress() == "" && e.GetNetwork() != "": // it is behind a gateway of that network
	case strings.HasPrefix(e.GetAddress(), "unix://"):
		ps.unsupported(path.At("address"), "unix://")
	case resolved:
		if msg := checkHost(e.GetAddress()); msg != "" {
			ps.invalid(path.At("address"), fmt.Sprintf("want an IP address or a name to resolve, got %q", e.GetAddress()))
		}
	default:
		ps.invalid(path.At("address"), fmt.Sprintf("want an IP address with resolution STATIC, got %q", e.GetAddress()))
	}
	for _, name := range slices.Sorted(maps.Keys(e.GetPorts())) {
		if msg := checkPortName(name); msg != "" {
			ps.invalid(path.At("ports", name), msg)
		}
		number := e.Ports[name]
		if msg := checkPort(number); msg != "" {
			ps.invalid(path.At("ports", name), msg)
		}
	}
	checkLabels(ps, path.At("labels"), e.GetLabels())
	if e.GetLocality() != "" {
		checkLocality(ps, path.At("locality"), e.Locality, false)
	}
	if e.GetWeight() > maxWeight {
		ps.invalid(path.At("weight"), fmt.Sprintf("want at most %d, got %d", maxWeight, e.Weight))
	}
	if e.GetServiceAccount() != "" {
		if !isName(e.ServiceAccount) {
			ps.invalid(path.At("serviceAccount"), fmt.Sprintf("want a name, got %q", e.ServiceAccount))
		}
	}
}

func checkPortName(name string) string {
	if !dnsLabel.MatchString(name) {
		return fmt.Sprintf("want a name of letters, digits and -, got %q", name)
	}
	return ""
}
