package api

import (
	"cmp"
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
	return networkingFields(
		"VirtualService.hosts", "VirtualService.gateways", "VirtualService.http", "VirtualService.export_to",
		"VirtualService.tls", "VirtualService.tcp",
		"TLSRoute.match", "TLSRoute.route", "TLSMatchAttributes.sni_hosts", "TLSMatchAttributes.destination_subnets", "TLSMatchAttributes.port",
		"TLSMatchAttributes.source_labels", "TLSMatchAttributes.source_namespace", "TLSMatchAttributes.gateways",
		"TCPRoute.match", "TCPRoute.route", "L4MatchAttributes.destination_subnets", "L4MatchAttributes.port",
		"L4MatchAttributes.source_labels", "L4MatchAttributes.source_namespace", "L4MatchAttributes.gateways",
		"RouteDestination.destination", "RouteDestination.weight",
		"HTTPRoute.name", "HTTPRoute.match", "HTTPRoute.route", "HTTPRoute.redirect", "HTTPRoute.direct_response",
		"HTTPRoute.delegate", "HTTPRoute.rewrite", "HTTPRoute.timeout", "HTTPRoute.retries", "HTTPRoute.fault",
		"HTTPRoute.mirror", "HTTPRoute.mirrors", "HTTPRoute.mirror_percentage",
		"HTTPRoute.cors_policy", "HTTPRoute.headers",
		"HTTPMatchRequest.name", "HTTPMatchRequest.uri", "HTTPMatchRequest.scheme", "HTTPMatchRequest.method",
		"HTTPMatchRequest.authority", "HTTPMatchRequest.headers", "HTTPMatchRequest.without_headers",
		"HTTPMatchRequest.port", "HTTPMatchRequest.source_labels", "HTTPMatchRequest.source_namespace",
		"HTTPMatchRequest.gateways", "HTTPMatchRequest.query_params", "HTTPMatchRequest.ignore_uri_case", "HTTPMatchRequest.stat_prefix",
		"StringMatch.exact", "StringMatch.prefix", "StringMatch.regex",
		"HTTPRouteDestination.destination", "HTTPRouteDestination.weight", "HTTPRouteDestination.headers",
		"Destination.host", "Destination.subset", "Destination.port", "PortSelector.number",
		"HTTPRedirect.uri", "HTTPRedirect.authority", "HTTPRedirect.port", "HTTPRedirect.derive_port", "HTTPRedirect.scheme",
		"HTTPRedirect.redirect_code", "HTTPRedirect.prefix_rewrite",
		"HTTPDirectResponse.status", "HTTPDirectResponse.body", "HTTPBody.string", "HTTPBody.bytes",
		"Delegate.name", "Delegate.namespace",
		"HTTPRewrite.uri", "HTTPRewrite.authority", "HTTPRewrite.uri_regex_rewrite", "RegexRewrite.match", "RegexRewrite.rewrite",
		"HTTPRetry.attempts", "HTTPRetry.per_try_timeout", "HTTPRetry.retry_on", "HTTPRetry.retry_remote_localities",
		"HTTPRetry.retry_ignore_previous_hosts", "HTTPRetry.backoff",
		"HTTPFaultInjection.delay", "HTTPFaultInjection.abort",
		"HTTPFaultInjection.Delay.fixed_delay", "HTTPFaultInjection.Delay.percentage", "HTTPFaultInjection.Abort.http_status",
		"HTTPFaultInjection.Abort.grpc_status", "HTTPFaultInjection.Abort.percentage", "Percent.value",
		"HTTPMirrorPolicy.destination", "HTTPMirrorPolicy.percentage",
		"CorsPolicy.allow_origins", "CorsPolicy.allow_methods", "CorsPolicy.allow_headers",
		"CorsPolicy.expose_headers", "CorsPolicy.max_age", "CorsPolicy.allow_credentials", "CorsPolicy.unmatched_preflights",
		"Headers.request", "Headers.response", "Headers.HeaderOperations.set", "Headers.HeaderOperations.add",
		"Headers.HeaderOperations.remove",
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
	if IsDelegate(vs) && len(vs.Http)+len(vs.Tls)+len(vs.Tcp) > 0 {
		validateDelegateTarget(&ps, o)
	} else {
		validateVirtualHosts(&ps, vs.Hosts, inMesh)
	}
	validateExportTo(&ps, o, vs.ExportTo)
	if len(vs.Http)+len(vs.Tls)+len(vs.Tcp) == 0 {
		ps.required(Path{"spec", "http"}, "want at least one route, here or in tls or tcp")
	}
	for i, route := range vs.Http {
		validateHTTPRoute(&ps, Path{"spec", "http", i}, route)
	}
	for i, route := range vs.Tls {
		validateTLSRoute(&ps, Path{"spec", "tls", i}, route, vs.Hosts)
	}
	for i, route := range vs.Tcp {
		validateTCPRoute(&ps, Path{"spec", "tcp", i}, route)
	}
	return ps
}

// IsDelegate reports whether others hand requests to vs: it has no hosts of its own
// (istio.io/docs/reference/config/networking/virtual-service/#Delegate).
func IsDelegate(vs *networking.VirtualService) bool { return len(vs.Hosts) == 0 }

// validateDelegateTarget checks what a VirtualService without hosts may not have: it is bound where its root is.
func validateDelegateTarget(ps *Problems, o *Object) {
	vs := o.Spec.(*networking.VirtualService)
	if len(vs.Gateways) > 0 {
		ps.required(Path{"spec", "hosts"}, "want at least one host, or no gateways: a VirtualService without hosts is delegated to, and bound where the one that delegates is")
	}
	for _, f := range []struct {
		name string
		n    int
	}{{"tls", len(vs.Tls)}, {"tcp", len(vs.Tcp)}} {
		if f.n > 0 {
			ps.required(Path{"spec", "hosts"}, fmt.Sprintf("want at least one host: %s routes can't be delegated", f.name))
		}
	}
	for i, route := range vs.Http {
		path := Path{"spec", "http", i}
		if route.Delegate != nil {
			ps.invalid(path.At("delegate"), "want no delegate in a VirtualService that has no hosts, and so is itself delegated to: only one level is allowed")
		}
		for j, m := range route.Match {
			if len(m.GetSourceLabels()) > 0 || m.GetSourceNamespace() != "" || len(m.GetGateways()) > 0 {
				ps.invalid(path.At("match", j), "want no sourceLabels, sourceNamespace or gateways in a VirtualService without hosts: they belong to the one that delegates")
			}
		}
	}
}

// validateExportTo checks who may see o: ".", its own namespace, "*" or namespaces; "~" for a ServiceEntry.
func validateExportTo(ps *Problems, o *Object, exportTo []string) {
	own := o.Meta.Namespace
	_, entry := o.Spec.(*networking.ServiceEntry)
	for i, ns := range exportTo {
		path := Path{"spec", "exportTo", i}
		switch {
		case ns == "*" && len(exportTo) > 1:
			ps.invalid(path, `want "*", everybody, to stand alone`)
		case ns == "." || ns == "*":
		case ns == "~" && !entry:
			ps.invalid(path, `want ".", "*" or a namespace: "~", nobody, is for a ServiceEntry`)
		case ns == "~":
			if len(exportTo) > 1 {
				ps.invalid(path, `want "~", nobody, to stand alone`)
			}
		case !dnsLabel.MatchString(ns):
			ps.invalid(path, fmt.Sprintf(`want ".", "*" or a namespace, got %q`, ns))
		}
		named := func(other string) bool {
			return cmp.Or(strings.TrimPrefix(other, "."), own) == cmp.Or(strings.TrimPrefix(ns, "."), own)
		}
		if slices.ContainsFunc(exportTo[:i], named) {
			ps.invalid(path, fmt.Sprintf("%q is listed twice", ns))
		}
	}
}

func validateVirtualHosts(ps *Problems, hosts []string, inMesh bool) {
	if len(hosts) == 0 {
		ps.required(Path{"spec", "hosts"}, "want at least one host")
	}
	for i, host := range hosts {
		path := Path{"spec", "hosts", i}
		if msg := checkHostOrWildcard(host); msg != "" && !isAddress(host) {
			ps.invalid(path, msg)
			continue
		}
		if host == "*" && inMesh {
			ps.invalid(path, `"*" is for gateways only, since it would take the traffic of every service: name the hosts, or a gateway in spec.gateways`)
		}
		if slices.Contains(hosts[:i], host) {
			ps.invalid(path, fmt.Sprintf("%q is listed twice", host))
		} else if j := slices.IndexFunc(hosts, func(other string) bool { return other != host && coveredByAny(host, []string{other}) }); j >= 0 && (!inMesh || hosts[j] != "*") {
			ps.invalid(path, fmt.Sprintf("want no host that %q takes in already, got %q", hosts[j], host))
		}
	}
}

func validateDestination(ps *Problems, path Path, d *networking.Destination) {
	if d == nil {
		ps.required(path, "want a destination with a host")
		return
	}
	if msg := checkHostOrWildcard(d.Host); msg != "" {
		ps.invalid(path.At("host"), msg)
	} else if d.Host == "*" {
		ps.invalid(path.At("host"), `want a host, or the "*.suffix" of a ServiceEntry: "*" is everything`)
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

func validateHTTPMatch(ps *Problems, path Path, m *networking.HTTPMatchRequest) {
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
	validateMatchedSource(ps, path, m)
	validateMatchGateways(ps, path.At("gateways"), m.GetGateways())
}

// validateMatchedSource checks what a match says of the workload that sends.
func validateMatchedSource(ps *Problems, path Path, m interface {
	GetSourceLabels() map[string]string
	GetSourceNamespace() string
},
) {
	checkLabels(ps, path.At("sourceLabels"), m.GetSourceLabels())
	if ns := m.GetSourceNamespace(); ns != "" && !dnsLabel.MatchString(ns) {
		ps.invalid(path.At("sourceNamespace"), fmt.Sprintf("want a namespace, got %q", ns))
	}
}

func validateMatchGateways(ps *Problems, path Path, gateways []string) {
	for i, name := range gateways {
		if msg := checkGatewayName(name); name != MeshGateway && msg != "" {
			ps.invalid(path.At(i), msg)
		}
	}
}

// NotHeader reports whether a match on headers is none for this name: Istio ignores these, which a match has fields for.
func NotHeader(name string) bool {
	return slices.Contains([]string{"uri", "scheme", "method", "authority"}, strings.ToLower(name))
}

// RoutingClaim is the claim that a match on headers is about, as the names that lead to it: those of
// @request.auth.claims.a.b or @request.auth.claims[a][b]. Names that have dots themselves need the brackets. about is false
// where the match is about a header; no names are a name that is written wrong
// (https://istio.io/latest/docs/tasks/security/authentication/jwt-route/).
func RoutingClaim(name string) (names []string, about bool) {
	rest, about := strings.CutPrefix(name, "@"+AttributeRequestClaims)
	switch {
	case !about:
		return nil, false
	case strings.HasPrefix(rest, "."):
		names = strings.Split(rest[1:], ".")
	case strings.HasPrefix(rest, "[") && strings.HasSuffix(rest, "]"):
		names = strings.Split(rest[1:len(rest)-1], "][")
	}
	if slices.ContainsFunc(names, func(n string) bool { return n == "" || strings.ContainsAny(n, "[]") }) {
		return nil, true
	}
	return names, true
}

var headerName = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$") // a token of RFC 9110 section 5.6.2

func validateHeaderMatches(ps *Problems, path Path, matches map[string]*networking.StringMatch, headers bool) {
	for _, name := range slices.Sorted(maps.Keys(matches)) {
		match := matches[name]
		claim, about := RoutingClaim(name)
		switch {
		case name == "":
			ps.invalid(path, "want a name")
		case headers && about && len(claim) == 0:
			ps.invalid(path.At(name), "want the name of a claim, as @request.auth.claims.group, @request.auth.claims.realm.role or @request.auth.claims[realm][role]")
		case headers && !about && !headerName.MatchString(name):
			ps.invalid(path.At(name), "want a header's name")
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
		if msg := checkRegex(t.Regex); msg != "" {
			ps.regexp(path.At("regex"), msg)
		}
	default:
		ps.required(path, "want one of exact, prefix, regex")
	}
}

// maxRegex is Istio's bound of a regular expression.
const maxRegex = 1024

func checkRegex(text string) string {
	_, err := regexp.Compile(text)
	switch {
	case text == "":
		return "want a regular expression"
	case len(text) > maxRegex:
		return fmt.Sprintf("want a regular expression of at most %d characters, got %d", maxRegex, len(text))
	case err != nil:
		return fmt.Sprintf("want a regular expression of RE2: %v", err)
	}
	return ""
}
