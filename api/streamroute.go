package api

import (
	"fmt"
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1"
)

// streamMatch is what matches of TCP and TLS routes have in common.
type streamMatch interface {
	GetDestinationSubnets() []string
	GetPort() uint32
	GetSourceLabels() map[string]string
	GetSourceNamespace() string
	GetGateways() []string
}

func validateTCPRoute(ps *Problems, path Path, route *networking.TCPRoute) {
	for i, m := range route.GetMatch() {
		validateStreamMatch(ps, path.At("match", i), m)
	}
	validateStreamDestinations(ps, path.At("route"), route.GetRoute())
}

func validateTLSRoute(ps *Problems, path Path, route *networking.TLSRoute, hosts []string) {
	if len(route.GetMatch()) == 0 {
		ps.required(path.At("match"), "want at least one match with sniHosts")
	}
	for i, m := range route.GetMatch() {
		at := path.At("match", i)
		validateStreamMatch(ps, at, m)
		if len(m.GetSniHosts()) == 0 {
			ps.required(at.At("sniHosts"), "want at least one host")
		}
		for j, name := range m.GetSniHosts() {
			if isAddress(name) { // which clients don't send: Check says so
				continue
			}
			if msg := checkHostOrWildcard(name); msg != "" {
				ps.invalid(at.At("sniHosts", j), msg)
			} else if !coveredByAny(name, hosts) {
				ps.invalid(at.At("sniHosts", j), fmt.Sprintf("want one of spec.hosts, or a name that one of them covers, got %q", name))
			}
		}
	}
	validateStreamDestinations(ps, path.At("route"), route.GetRoute())
}

func coveredByAny(name string, hosts []string) bool {
	for _, h := range hosts {
		suffix, wild := strings.CutPrefix(strings.ToLower(h), "*")
		if lower := strings.ToLower(name); lower == strings.ToLower(h) || wild && strings.HasSuffix(lower, suffix) {
			return true
		}
	}
	return false
}

func validateStreamMatch(ps *Problems, path Path, m streamMatch) {
	for i, text := range m.GetDestinationSubnets() {
		if _, err := netip.ParseAddr(text); err != nil {
			if _, err := netip.ParsePrefix(text); err != nil {
				ps.invalid(path.At("destinationSubnets", i), fmt.Sprintf("want an address or a CIDR, such as 10.1.0.0/16, got %q", text))
			}
		}
	}
	if p := m.GetPort(); p > 65535 {
		ps.invalid(path.At("port"), checkPort(p))
	}
	validateMatchedSource(ps, path, m)
	validateMatchGateways(ps, path.At("gateways"), m.GetGateways())
}

func validateStreamDestinations(ps *Problems, path Path, routes []*networking.RouteDestination) {
	if len(routes) == 0 {
		ps.required(path, "want at least one destination")
	}
	var sum int64
	for i, r := range routes {
		validateDestination(ps, path.At(i, "destination"), r.GetDestination())
		sum += validateWeight(ps, path.At(i, "weight"), r.GetWeight())
	}
	validateWeightSum(ps, path, len(routes), sum)
}
