package api

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
)

// MeshGateway is the reserved name that stands for all sidecars.
const MeshGateway = "mesh"

// VirtualService is the kind that routes requests
// (https://istio.io/latest/docs/reference/config/networking/virtual-service/).
func VirtualService() *Kind {
	return networkingKind(Kind{
		Kind: "VirtualService", Plural: "virtualservices", Singular: "virtualservice", ShortNames: []string{"vs"},
		Columns: []Column{
			{Name: "Gateways", Description: "The gateways and sidecars that apply the rules", Cell: func(o *Object) any {
				return listCell(o.Spec.(*networking.VirtualService).Gateways)
			}},
			{Name: "Hosts", Description: "The hosts that the rules are for", Cell: func(o *Object) any {
				return listCell(o.Spec.(*networking.VirtualService).Hosts)
			}},
		},
		validate: validateVirtualService,
	}, func() proto.Message { return &networking.VirtualService{} }, virtualServiceFields())
}

func virtualServiceFields() fieldSet {
	return fields(networkingPackage,
		"VirtualService.hosts", "VirtualService.gateways", "VirtualService.http",
		"HTTPRoute.name", "HTTPRoute.match", "HTTPRoute.route",
		"HTTPMatchRequest.name", "HTTPMatchRequest.uri", "HTTPMatchRequest.scheme", "HTTPMatchRequest.method",
		"HTTPMatchRequest.authority", "HTTPMatchRequest.headers", "HTTPMatchRequest.without_headers",
		"HTTPMatchRequest.port", "HTTPMatchRequest.source_labels", "HTTPMatchRequest.source_namespace",
		"HTTPMatchRequest.gateways", "HTTPMatchRequest.query_params", "HTTPMatchRequest.ignore_uri_case",
		"StringMatch.exact", "StringMatch.prefix", "StringMatch.regex",
		"HTTPRouteDestination.destination", "HTTPRouteDestination.weight",
		"Destination.host", "Destination.subset", "Destination.port", "PortSelector.number",
	)
}

func validateVirtualService(o *Object) Problems {
	vs := o.Spec.(*networking.VirtualService)
	var ps Problems
	inMesh := len(vs.Gateways) == 0
	for i, name := range vs.Gateways {
		if name == MeshGateway {
			inMesh = true
		} else if msg := checkGatewayName(name); msg != "" {
			ps.invalid(Path{"spec", "gateways", i}, msg)
		}
	}
	validateVirtualHosts(&ps, vs.Hosts, inMesh)
	if len(vs.Http) == 0 {
		ps.required(Path{"spec", "http"}, "want at least one route")
	}
	for i, route := range vs.Http {
		validateHTTPRoute(&ps, Path{"spec", "http", i}, route, vs.Gateways)
	}
	return ps
}

func validateVirtualHosts(ps *Problems, hosts []string, inMesh bool) {
	if len(hosts) == 0 {
		ps.required(Path{"spec", "hosts"}, "want at least one host")
	}
	for i, host := range hosts {
		path := Path{"spec", "hosts", i}
		if msg := checkHostOrWildcard(host); msg != "" {
			ps.invalid(path, msg)
		}
		if host == "*" && inMesh {
			ps.invalid(path, `"*" is for gateways only, since it would take the traffic of every service: name the hosts, or a gateway in spec.gateways`)
		}
		if slices.Contains(hosts[:i], host) {
			ps.invalid(path, fmt.Sprintf("%q is listed twice", host))
		}
	}
}

func validateHTTPRoute(ps *Problems, path Path, route *networking.HTTPRoute, gateways []string) {
	for i, match := range route.GetMatch() {
		validateHTTPMatch(ps, path.At("match", i), match, gateways)
	}
	if len(route.GetRoute()) == 0 {
		ps.required(path.At("route"), "want at least one destination")
	}
	var sum int64
	for i, dest := range route.GetRoute() {
		validateDestination(ps, path.At("route", i, "destination"), dest.GetDestination())
		if dest.GetWeight() < 0 {
			ps.invalid(path.At("route", i, "weight"), fmt.Sprintf("want a weight of 0 or more, got %d", dest.GetWeight()))
		}
		sum += int64(dest.GetWeight())
	}
	if len(route.GetRoute()) > 1 && sum == 0 {
		ps.invalid(path.At("route"), "the weights of several destinations are all zero, want at least one above it")
	}
	if sum > math.MaxUint32 {
		ps.invalid(path.At("route"), fmt.Sprintf("the weights add up to %d, want at most %d", sum, uint32(math.MaxUint32)))
	}
}

func validateDestination(ps *Problems, path Path, d *networking.Destination) {
	if d == nil {
		ps.required(path, "want a destination with a host")
		return
	}
	if msg := checkHost(d.Host); msg != "" {
		ps.invalid(path.At("host"), msg)
	}
	if d.Subset != "" {
		if msg := checkSubset(d.Subset); msg != "" {
			ps.invalid(path.At("subset"), msg)
		}
	}
	if d.Port != nil {
		if msg := checkPort(d.Port.Number); msg != "" {
			ps.invalid(path.At("port", "number"), msg)
		}
	}
}

func validateHTTPMatch(ps *Problems, path Path, m *networking.HTTPMatchRequest, gateways []string) {
	for _, f := range []struct {
		name  string
		match *networking.StringMatch
	}{{"uri", m.GetUri()}, {"method", m.GetMethod()}, {"authority", m.GetAuthority()}, {"scheme", m.GetScheme()}} {
		if f.match != nil {
			validateStringMatch(ps, path.At(f.name), f.match)
		}
	}
	validateHeaderMatches(ps, path.At("headers"), m.GetHeaders(), true)
	validateHeaderMatches(ps, path.At("withoutHeaders"), m.GetWithoutHeaders(), true)
	validateHeaderMatches(ps, path.At("queryParams"), m.GetQueryParams(), false)
	if m.GetPort() > math.MaxUint16 {
		ps.invalid(path.At("port"), checkPort(m.GetPort()))
	}
	checkLabels(ps, path.At("sourceLabels"), m.GetSourceLabels())
	for i, name := range m.GetGateways() {
		if name == MeshGateway {
			continue
		}
		if msg := checkGatewayName(name); msg != "" {
			ps.invalid(path.At("gateways", i), msg)
		} else if !slices.Contains(gateways, name) {
			ps.invalid(path.At("gateways", i), fmt.Sprintf("%q is not in spec.gateways, so nothing can match", name))
		}
	}
}

var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // a token of RFC 9110 section 5.6.2

func validateHeaderMatches(ps *Problems, path Path, matches map[string]*networking.StringMatch, headers bool) {
	for _, name := range slices.Sorted(maps.Keys(matches)) {
		match := matches[name]
		switch {
		case name == "":
			ps.invalid(path, "want a name")
		case headers && !headerName.MatchString(name):
			ps.invalid(path.At(name), "want a header's name")
		case headers && slices.Contains([]string{"uri", "scheme", "method", "authority"}, strings.ToLower(name)):
			ps.invalid(path.At(name), "want it beside headers, as the match's own field: Istio ignores it here")
		case !IsPresence(match):
			validateStringMatch(ps, path.At(name), match)
		}
	}
}

// IsPresence reports whether a match on a header or query parameter asks only whether it is there: {} does, and so
// does the regex "*" (istio.io/docs/reference/config/networking/virtual-service/#HTTPMatchRequest).
func IsPresence(m *networking.StringMatch) bool {
	return m.GetMatchType() == nil || m.GetRegex() == "*"
}

func validateStringMatch(ps *Problems, path Path, m *networking.StringMatch) {
	switch t := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		if t.Exact == "" {
			ps.invalid(path.At("exact"), "want a value")
		}
	case *networking.StringMatch_Prefix:
		if t.Prefix == "" {
			ps.invalid(path.At("prefix"), "want a value")
		}
	case *networking.StringMatch_Regex:
		if t.Regex == "" {
			ps.invalid(path.At("regex"), "want a value")
		} else if _, err := regexp.Compile(t.Regex); err != nil {
			ps.invalid(path.At("regex"), fmt.Sprintf("want a regular expression of RE2: %v", err))
		}
	default:
		ps.required(path, "want one of exact, prefix, regex")
	}
}
