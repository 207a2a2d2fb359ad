package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// virtualHosts route a sidecar's requests: first what VirtualServices claim, the oldest first, then a default for
// each service that none claims.
func (c *compiler) virtualHosts() []snapshot.VirtualHost {
	var hosts []snapshot.VirtualHost
	owner := map[string]*api.Object{} // by host
	for _, o := range c.virtualServices {
		vs := o.Spec.(*networking.VirtualService)
		if len(vs.Http) == 0 || !bound(vs.Gateways, api.MeshGateway, o.Meta.Namespace) || !visible(o, c.proxy.Namespace) {
			continue // without rules for HTTP, that goes as if there were none
		}
		routes := c.routes(o, api.MeshGateway)
		for i, name := range vs.Hosts {
			host := c.catalog.resolve(name, o.Meta.Namespace)
			if older := owner[host]; older != nil {
				c.report(analysis.ConflictingMeshGatewayHosts, o, fmt.Sprintf("spec.hosts[%d]", i), fmt.Sprintf("%s belongs to %s, which is older; the rules here are not used for it", name, older))
				continue
			}
			owner[host] = o
			hosts = append(hosts, c.virtualHost(host, name, o.Meta.Namespace, routes))
		}
	}
	for _, host := range c.catalog.hosts {
		if owner[host] != nil {
			continue
		}
		routes := []snapshot.Route{{Name: "default", Destinations: []snapshot.Destination{{Service: host, Weight: 1}}}}
		if wildcard := widest(owner, host); wildcard != "" {
			routes = c.routes(owner[wildcard], api.MeshGateway)
		}
		hosts = append(hosts, snapshot.VirtualHost{Name: host, Domains: c.catalog.domains(host), Service: host, Routes: routes})
	}
	hosts = unique(hosts)
	c.addNames(hosts)
	return hosts
}

// virtualHost is one host of a VirtualService, written there as name.
func (c *compiler) virtualHost(host, name, namespace string, routes []snapshot.Route) snapshot.VirtualHost {
	vh := snapshot.VirtualHost{Name: host, Domains: []string{host}, Routes: routes}
	if c.catalog.services[host] != nil {
		vh.Service, vh.Domains = host, c.catalog.domains(host)
	} else if name = strings.ToLower(name); !strings.Contains(name, ".") && name != "*" {
		// Nobody serves it, but its rules may lead to a service that exists.
		vh.Domains = slices.DeleteFunc(domainsOf(name, namespace), func(d string) bool { return c.catalog.aliases[d] != "" })
	}
	return vh
}

// widest is the most specific of the wildcards that cover host, "" if there is none.
func widest(owner map[string]*api.Object, host string) string {
	best := ""
	for pattern := range owner {
		if strings.HasPrefix(pattern, "*.") && covers(pattern, host) && (best == "" || moreSpecific(pattern, best)) {
			best = pattern
		}
	}
	return best
}

// unique sorts hosts by name and leaves each domain in the first virtual host that has it.
func unique(hosts []snapshot.VirtualHost) []snapshot.VirtualHost {
	taken := map[string]bool{}
	for i := range hosts {
		hosts[i].Domains = slices.DeleteFunc(hosts[i].Domains, func(d string) bool {
			again := taken[d]
			taken[d] = true
			return again
		})
	}
	hosts = slices.DeleteFunc(hosts, func(h snapshot.VirtualHost) bool { return len(h.Domains) == 0 })
	slices.SortStableFunc(hosts, func(a, b snapshot.VirtualHost) int { return cmp.Compare(a.Name, b.Name) })
	return hosts
}

// bound reports whether names, the gateways of a rule in namespace, hold gateway, which is api.MeshGateway or
// namespace/name. No names are the mesh alone.
func bound(names []string, gateway, namespace string) bool {
	if len(names) == 0 {
		return gateway == api.MeshGateway
	}
	return slices.ContainsFunc(names, func(name string) bool { return qualify(name, namespace) == gateway })
}

func qualify(gateway, namespace string) string {
	if gateway == api.MeshGateway || strings.Contains(gateway, "/") {
		return gateway
	}
	if name, rest, old := strings.Cut(gateway, "."); old { // <name>.<namespace>.svc.cluster.local of Istio 1.0
		gateway, namespace = name, rest
		if i := strings.IndexByte(rest, '.'); i >= 0 {
			namespace = rest[:i]
		}
	}
	return namespace + "/" + gateway
}

// routes are a VirtualService's rules as they concern this proxy at gateway. What follows a rule that matches
// everything can't be reached and is left out.
func (c *compiler) routes(o *api.Object, gateway string) []snapshot.Route {
	vs := o.Spec.(*networking.VirtualService)
	routes := []snapshot.Route{}
	for i, http := range vs.Http {
		path := fmt.Sprintf("spec.http[%d]", i)
		matches, applies := c.matches(http.Match, gateway, o.Meta.Namespace)
		if !applies {
			continue
		}
		if http.Delegate != nil {
			routes = append(routes, c.delegated(o, path, http, matches, gateway)...)
		} else {
			routes = append(routes, snapshot.Route{
				Name: http.Name, Matches: matches, Resource: o.String() + " " + path,
				Destinations: c.destinations(o, path, http.Route, gateway), RouteRules: c.rulesOf(o, path, http, gateway),
			})
		}
		if n := len(routes); n > 0 && routes[n-1].Matches == nil {
			break
		}
	}
	return routes
}

// matches are the conditions of a rule that are left when those about the proxy itself are decided. None left means
// that it matches everything; applies is false where it can never match here.
func (c *compiler) matches(in []*networking.HTTPMatchRequest, gateway, namespace string) (out []snapshot.Match, applies bool) {
	if len(in) == 0 {
		return nil, true
	}
	for _, m := range in {
		if !c.concerns(m, gateway, namespace) {
			continue
		}
		match := matchOf(m)
		if isEverything(match) {
			return nil, true
		}
		out = append(out, match)
	}
	return out, len(out) > 0
}

func isEverything(m snapshot.Match) bool {
	return m.URI == nil && m.Method == nil && m.Authority == nil && m.Scheme == nil && len(m.Headers) == 0 && len(m.QueryParams) == 0 && m.Port == 0
}

func matchOf(m *networking.HTTPMatchRequest) snapshot.Match {
	out := snapshot.Match{
		URI: stringMatch(m.Uri), Method: stringMatch(m.Method), Authority: stringMatch(m.Authority), Scheme: stringMatch(m.Scheme),
		IgnoreURICase: m.IgnoreUriCase, Port: uint16(m.Port), //nolint:gosec // api validates the range
	}
	headers := headerMatches(m.Headers, headerOf, false)
	headers = append(headers, headerMatches(m.WithoutHeaders, headerOf, true)...)
	headers = slices.DeleteFunc(headers, func(h snapshot.HeaderMatch) bool { return api.NotHeader(h.Name) })
	slices.SortStableFunc(headers, func(a, b snapshot.HeaderMatch) int { return cmp.Compare(a.Name, b.Name) })
	out.Headers = headers
	out.QueryParams = headerMatches(m.QueryParams, func(name string) snapshot.HeaderMatch { return snapshot.HeaderMatch{Name: name} }, false)
	return out
}

// headerOf is what a match on headers is about.
func headerOf(name string) snapshot.HeaderMatch {
	if claim, about := api.RoutingClaim(name); about {
		return snapshot.HeaderMatch{Name: name, Claim: claim}
	}
	return snapshot.HeaderMatch{Name: strings.ToLower(name)}
}

func headerMatches(in map[string]*networking.StringMatch, of func(name string) snapshot.HeaderMatch, invert bool) []snapshot.HeaderMatch {
	var out []snapshot.HeaderMatch
	for _, name := range slices.Sorted(maps.Keys(in)) {
		m := of(name)
		m.Invert = invert
		if !api.IsPresence(in[name]) {
			m.Value = stringMatch(in[name])
		}
		out = append(out, m)
	}
	slices.SortStableFunc(out, func(a, b snapshot.HeaderMatch) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func stringMatch(m *networking.StringMatch) *snapshot.StringMatch {
	if m == nil {
		return nil
	}
	return &snapshot.StringMatch{Exact: m.GetExact(), Prefix: m.GetPrefix(), Regex: m.GetRegex()}
}

// destinations are a rule's targets with their shares; one without a share is left out, and a single one has the
// whole whatever its weight.
func (c *compiler) destinations(o *api.Object, path string, in []*networking.HTTPRouteDestination, gateway string) []snapshot.Destination {
	var out []snapshot.Destination
	for i, d := range in {
		weight := uint32(d.Weight) //nolint:gosec // api validates the range
		if len(in) == 1 {
			weight = 1
		}
		if weight == 0 {
			continue
		}
		dest := c.destination(o, fmt.Sprintf("%s.route[%d].destination", path, i), d.Destination, gateway)
		dest.Weight, dest.Headers = weight, headersOf(d.Headers)
		out = append(out, dest)
	}
	return out
}

// destination is one target, as far as its own fields say it. path is that of d.
func (c *compiler) destination(o *api.Object, path string, d *networking.Destination, gateway string) snapshot.Destination {
	dest := snapshot.Destination{
		Service: c.catalog.resolve(d.Host, o.Meta.Namespace), Subset: d.Subset,
		Port: uint16(d.GetPort().GetNumber()), //nolint:gosec // api validates the range
	}
	c.checkDestination(o, path, &dest)
	if s := c.service(dest.Service); s != nil && dest.Port == 0 && gateway != api.MeshGateway {
		// The port that a gateway's client dialled is the gateway's own.
		if len(s.Ports) == 1 {
			dest.Port = s.Ports[0].Number
		} else {
			c.problem(o, path+".port.number", fmt.Sprintf("want one: %s has %d declared ports", s.Host, len(s.Ports)))
		}
	}
	return dest
}

// within says what the proxy can reach.
func (c *compiler) within() string {
	if c.proxy.Name != "" {
		return "that " + c.proxy.Name + " can reach" // on no network
	}
	var networks []string
	for _, a := range c.proxy.Addresses {
		networks = append(networks, a.Network)
	}
	return "on " + strings.Join(networks, ", ")
}

func (c *compiler) checkDestination(o *api.Object, path string, d *snapshot.Destination) {
	s := c.service(d.Service)
	if s == nil {
		c.problem(o, path+".host", fmt.Sprintf("no workload %s serves %s; its requests get 503", c.within(), d.Service))
		return
	}
	if d.Subset == "" {
		return
	}
	i := slices.IndexFunc(s.Subsets, func(sub snapshot.Subset) bool { return sub.Name == d.Subset })
	if i < 0 {
		c.problem(o, path+".subset", fmt.Sprintf("no DestinationRule gives %s a subset %q; its requests get 503", d.Service, d.Subset))
	}
}
