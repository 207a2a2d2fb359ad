package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Check says what is questionable about o in the view x, of which it is part: it is valid, and does not do what it
// seems to. The writer is shown it as a warning.
func (x *Index) Check(o *api.Object) []analysis.Problem { return x.checker(o.Meta.Namespace).check(o) }

// checker has the eyes of a workload in a namespace that reaches all others.
func (x *Index) checker(namespace string) *compiler {
	workloads := make([]*mesh.Workload, len(x.facts.Workloads))
	for i := range x.facts.Workloads {
		workloads[i] = &x.facts.Workloads[i]
	}
	c := &compiler{
		Index: x, proxy: &mesh.Workload{Namespace: namespace}, catalog: x.bases.catalog(namespace, workloads), secretsNeeded: map[string]snapshot.Secret{},
	}
	if len(x.serviceEntries) > 0 {
		c.catalog = c.catalog.clone()
		c.addEntries(workloads)
	}
	c.needed = map[string]*snapshot.Service{}
	return c
}

func (c *compiler) check(o *api.Object) []analysis.Problem {
	c.problems = nil
	clear(c.secretsNeeded)
	switch spec := o.Spec.(type) {
	case *networking.VirtualService:
		c.checkVirtualService(o, spec)
		c.checkReachable(o, spec)
		c.checkGatewayHosts(o, spec)
		c.checkGatewaySubsets(o, spec)
	case *networking.DestinationRule:
		if host := c.catalog.resolve(spec.Host, o.Meta.Namespace); !strings.HasPrefix(host, "*") && c.service(host) == nil {
			c.report(analysis.UnknownDestinationRuleHost, o, "spec.host", "no workload serves "+host)
		}
		c.checkClients(o, spec)
		c.checkFailover(o, spec)
		c.checkSubsets(o, spec)
		c.checkPolicies(o, spec)
		c.checkClientSecrets(o, spec)
	case *networking.ServiceEntry:
		c.checkEntry(o, spec)
		c.checkUnusedEntry(o, spec)
		c.checkEntryAddresses(o, spec)
	case *networking.WorkloadEntry:
		c.checkNetwork(o, "spec", spec)
	case *networking.Sidecar:
		c.checkSidecar(o, spec)
	case *api.Rollout:
		c.checkRollout(o, spec)
	case *networking.Gateway:
		c.checkGateway(o, spec)
		c.checkServers(o, spec)
	case *api.Secret:
		c.checkSecretObject(o)
	}
	return c.problems
}

// CheckAll is what Check says of every object, by resource.
func (x *Index) CheckAll() []analysis.Problem {
	problems, checkers := []analysis.Problem{}, map[string]*compiler{}
	for _, o := range slices.SortedFunc(slices.Values(x.intent), func(a, b *api.Object) int { return cmp.Compare(a.String(), b.String()) }) {
		c := checkers[o.Meta.Namespace]
		if c == nil {
			c = x.checker(o.Meta.Namespace)
			checkers[o.Meta.Namespace] = c
		}
		problems = append(problems, c.check(o)...)
	}
	return problems
}

func (c *compiler) checkVirtualService(o *api.Object, vs *networking.VirtualService) {
	for i, name := range vs.Gateways {
		known := slices.ContainsFunc(c.gateways, func(g *api.Object) bool {
			return g.Meta.Namespace+"/"+g.Meta.Name == qualify(name, o.Meta.Namespace)
		})
		if name != api.MeshGateway && !known {
			c.report(analysis.ReferencedResourceNotFound, o, fmt.Sprintf("spec.gateways[%d]", i), fmt.Sprintf("there is no Gateway %s", qualify(name, o.Meta.Namespace)))
		}
	}
	if bound(vs.Gateways, api.MeshGateway, o.Meta.Namespace) {
		c.checkHosts(o, vs)
	}
	for i, http := range vs.Http {
		path := fmt.Sprintf("spec.http[%d]", i)
		c.checkHTTPRoute(o, path, http)
		c.checkMatchGateways(o, path, vs, messages(http.Match))
		for j, m := range http.Match {
			if m.StatPrefix != "" {
				c.problem(o, fmt.Sprintf("%s.match[%d].statPrefix", path, j), "it is not used: telemetry has the route's name, and no figures of single matches")
			}
			c.checkHeaders(o, fmt.Sprintf("%s.match[%d].headers", path, j), m.GetHeaders())
			c.checkHeaders(o, fmt.Sprintf("%s.match[%d].withoutHeaders", path, j), m.GetWithoutHeaders())
			if bound(m.GetGateways(), api.MeshGateway, o.Meta.Namespace) && bound(vs.Gateways, api.MeshGateway, o.Meta.Namespace) && !api.IsDelegate(vs) {
				c.checkClaims(o, fmt.Sprintf("%s.match[%d]", path, j), m)
			}
		}
	}
	for i, tls := range vs.Tls {
		c.checkMatchGateways(o, fmt.Sprintf("spec.tls[%d]", i), vs, messages(tls.Match))
		c.checkServerNames(o, i, tls.Match)
		for j, d := range tls.Route {
			c.checkTarget(o, fmt.Sprintf("spec.tls[%d].route[%d].destination", i, j), d.Destination)
		}
	}
	for i, tcp := range vs.Tcp {
		c.checkMatchGateways(o, fmt.Sprintf("spec.tcp[%d]", i), vs, messages(tcp.Match))
		for j, d := range tcp.Route {
			c.checkTarget(o, fmt.Sprintf("spec.tcp[%d].route[%d].destination", i, j), d.Destination)
		}
	}
	if api.IsDelegate(vs) && !slices.ContainsFunc(c.virtualServices, func(root *api.Object) bool {
		return slices.ContainsFunc(root.Spec.(*networking.VirtualService).Http, func(r *networking.HTTPRoute) bool {
			return r.Delegate != nil && c.delegate(root, r.Delegate) == o
		})
	}) {
		c.problem(o, "spec.hosts", "there are none, and no VirtualService delegates to this one: its rules are not used")
	}
}

// checkMatchGateways finds matches on a gateway that the VirtualService is not bound to.
func (c *compiler) checkMatchGateways(o *api.Object, path string, vs *networking.VirtualService, matches []proto.Message) {
	for i, m := range matches {
		for j, name := range m.(interface{ GetGateways() []string }).GetGateways() {
			if !bound(vs.Gateways, qualify(name, o.Meta.Namespace), o.Meta.Namespace) && !api.IsDelegate(vs) {
				c.problem(o, fmt.Sprintf("%s.match[%d].gateways[%d]", path, i, j), name+" is not in spec.gateways, so nothing comes to this match by it")
			}
		}
	}
}

// checkServerNames finds addresses among the names that clients say in TLS.
func (c *compiler) checkServerNames(o *api.Object, route int, matches []*networking.TLSMatchAttributes) {
	for i, m := range matches {
		for j, name := range m.GetSniHosts() {
			if _, err := netip.ParseAddr(name); err == nil {
				c.problem(o, fmt.Sprintf("spec.tls[%d].match[%d].sniHosts[%d]", route, i, j), "no client sends an address as the server's name (RFC 6066 section 3), so nothing matches this")
			}
		}
	}
}

// checkHeaders finds what a match has fields of its own for.
func (c *compiler) checkHeaders(o *api.Object, path string, matches map[string]*networking.StringMatch) {
	for _, name := range slices.Sorted(maps.Keys(matches)) {
		if api.NotHeader(name) {
			c.problem(o, path+"."+name, "it is not used, as in Istio: the match has a field "+strings.ToLower(name)+" beside headers")
		}
	}
}

// checkClaims finds claims in a match that sidecars try: they verify the tokens of what they are sent, and route what they send.
func (c *compiler) checkClaims(o *api.Object, path string, m *networking.HTTPMatchRequest) {
	for _, f := range []struct {
		name    string
		matches map[string]*networking.StringMatch
	}{{".headers", m.GetHeaders()}, {".withoutHeaders", m.GetWithoutHeaders()}} {
		for _, name := range slices.Sorted(maps.Keys(f.matches)) {
			if _, about := api.RoutingClaim(name); about {
				c.problem(o, path+f.name+"["+name+"]", "only gateways know a request's claims, and sidecars try this match too: for them there are none; name gateways alone in spec.gateways, or in those of the match")
			}
		}
	}
}

func (c *compiler) checkHTTPRoute(o *api.Object, path string, r *networking.HTTPRoute) {
	for _, field := range api.Unsent(r) {
		c.problem(o, path+"."+field, "it is not used: this route answers by itself, and sends nothing on")
	}
	for i, d := range r.Route {
		c.checkTarget(o, fmt.Sprintf("%s.route[%d].destination", path, i), d.Destination)
	}
	if r.Mirror != nil {
		c.checkTarget(o, path+".mirror", r.Mirror)
	}
	for i, m := range r.Mirrors {
		c.checkTarget(o, fmt.Sprintf("%s.mirrors[%d].destination", path, i), m.Destination)
	}
	if r.Delegate != nil && c.delegate(o, r.Delegate) == nil {
		c.report(analysis.ReferencedResourceNotFound, o, path+".delegate.name", noDelegate(o, r.Delegate))
	}
	if r.MirrorPercentage != nil && r.Mirror == nil {
		c.problem(o, path+".mirrorPercentage", "it is not used: there is no mirror, and each of mirrors has a percentage of its own")
	}
	if d := r.GetFault().GetDelay(); d != nil && d.HttpDelayType == nil {
		c.problem(o, path+".fault.delay", "no request is delayed: there is no fixedDelay")
	}
	if a := r.Fault.GetAbort(); a != nil && a.ErrorType == nil {
		c.problem(o, path+".fault.abort", "no request is aborted: there is neither httpStatus nor grpcStatus")
	}
	for _, condition := range api.UnmetConditions(r.Retries) {
		c.problem(o, path+".retries.retryOn", condition+" is never met: nothing says the headers that it asks for, and the proxies speak no HTTP/3")
	}
	f := faultOf(r.Fault)
	if f != nil && f.Delay != nil && f.Delay.Share == 0 {
		c.problem(o, path+".fault.delay.percentage", "no request is delayed: a percentage that is missing is 0")
	}
	if f != nil && f.Abort != nil && f.Abort.Share == 0 {
		c.problem(o, path+".fault.abort.percentage", "no request is aborted: a percentage that is missing is 0")
	}
}

func noDelegate(o *api.Object, d *networking.Delegate) string {
	return fmt.Sprintf("there is no VirtualService %s without hosts to delegate to; this rule is left out", delegateName(o, d))
}

func (c *compiler) checkHosts(o *api.Object, vs *networking.VirtualService) {
	for i, name := range vs.Hosts {
		path := fmt.Sprintf("spec.hosts[%d]", i)
		host := c.catalog.resolve(name, o.Meta.Namespace)
		if c.service(host) == nil && strings.HasSuffix(host, "."+mesh.DomainSuffix) && !strings.HasPrefix(host, "*") {
			c.problem(o, path, "no workload serves "+host)
		}
		c.checkConflict(o, path, name, host)
	}
}

// checkConflict finds another VirtualService for a host of o, where a namespace sees both. The oldest holds.
func (c *compiler) checkConflict(o *api.Object, path, name, host string) {
	oldest := true
	for _, other := range c.virtualServices { // by age
		if other.String() == o.String() {
			oldest = false
			continue
		}
		spec := other.Spec.(*networking.VirtualService)
		if !bound(spec.Gateways, api.MeshGateway, other.Meta.Namespace) || !seenTogether(o, other) || !slices.ContainsFunc(spec.Hosts, func(h string) bool {
			return c.catalog.resolve(h, other.Meta.Namespace) == host
		}) {
			continue
		}
		if oldest {
			c.report(analysis.ConflictingMeshGatewayHosts, o, path, fmt.Sprintf("%s belongs to %s, which is older; the rules here are not used for it", name, other))
		} else {
			c.report(analysis.ConflictingMeshGatewayHosts, o, path, fmt.Sprintf("%s is in %s too, which is younger: the rules here hold, those there are not used for it", name, other))
		}
		return
	}
}

// seenTogether reports whether a namespace sees both objects, by their exportTo.
func seenTogether(a, b *api.Object) bool {
	exported := a.Spec.(*networking.VirtualService).ExportTo
	return len(exported) == 0 || slices.ContainsFunc(exported, func(to string) bool {
		if to == "." {
			to = a.Meta.Namespace
		}
		return to == "*" || visible(b, to)
	})
}

func (c *compiler) checkTarget(o *api.Object, path string, d *networking.Destination) {
	if d.GetHost() == "" {
		return // it is not valid
	}
	host := c.catalog.resolve(d.Host, o.Meta.Namespace)
	s := c.service(host)
	if s == nil {
		c.report(analysis.ReferencedResourceNotFound, o, path+".host", "no workload serves "+host+"; its requests get 503")
		return
	}
	if d.Port == nil && len(s.Ports) > 1 {
		c.report(analysis.DestinationPortRequired, o, path+".port", fmt.Sprintf("%s has several ports (%s): without a port here, the one that the client dialled is used", host, portList(s.Ports)))
	}
	if d.Subset == "" {
		return
	}
	i := slices.IndexFunc(s.Subsets, func(sub snapshot.Subset) bool { return sub.Name == d.Subset })
	switch {
	case i < 0:
		c.report(analysis.ReferencedResourceNotFound, o, path+".subset", fmt.Sprintf("no DestinationRule gives %s a subset %q; its requests get 503", host, d.Subset))
	case len(s.Subsets[i].Endpoints) == 0:
		c.report(analysis.SubsetSelectsNothing, o, path+".subset", fmt.Sprintf("no running workload of %s is in subset %q; its requests get 503", host, d.Subset))
	}
}

func (c *compiler) checkGateway(o *api.Object, gw *networking.Gateway) {
	var selected []*mesh.Workload
	for i := range c.facts.Workloads {
		if w := &c.facts.Workloads[i]; w.Role == mesh.RoleGateway && mesh.Selects(gw.Selector, w.Labels) {
			selected = append(selected, w)
		}
	}
	if len(selected) == 0 {
		c.report(analysis.ReferencedResourceNotFound, o, "spec.selector", "no gateway has these labels: meshctl compose inject --ingress HOSTPORT adds one with istio: ingressgateway, --egress one with istio: egressgateway")
		return
	}
	for i, server := range gw.Servers {
		if server.Tls != nil {
			unused := api.UnusedTLS(server.Tls)
			for _, field := range slices.Sorted(maps.Keys(unused)) {
				c.problem(o, fmt.Sprintf("spec.servers[%d].tls.%s", i, field), unused[field])
			}
		}
		for _, w := range selected {
			if api.TerminatesTLS(server) {
				at := *c
				at.proxy = w
				at.serverTLS(o, fmt.Sprintf("spec.servers[%d].tls", i), server.Tls)
				at.checkExpiry(o, fmt.Sprintf("spec.servers[%d].tls.credentialName", i), server.Tls.CredentialName)
				c.problems = at.problems
			}
			number := uint16(server.GetPort().GetNumber())
			public := slices.ContainsFunc(w.Ports, func(p mesh.Port) bool { return len(p.Published) > 0 })
			reached := slices.ContainsFunc(w.Ports, func(p mesh.Port) bool {
				return p.Number == number && (len(p.Published) > 0 || !public)
			})
			switch at := fmt.Sprintf("spec.servers[%d].port.number", i); {
			case reached || number == 0:
			case len(w.Ports) > 0 && !public: // the workloads of the mesh are who it is for
				c.report(analysis.GatewayPortNotPublished, o, at, fmt.Sprintf("gateway %s, which publishes none, has no port %d: want one of %s", w.Name, number, portNumbers(w.Ports)))
			default:
				c.report(analysis.GatewayPortNotPublished, o, at, fmt.Sprintf("gateway %s publishes no port %d: meshctl compose inject --ingress HOSTPORT:%d does", w.Name, number, number))
			}
		}
	}
}

func portNumbers(ports []mesh.Port) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = strconv.Itoa(int(p.Number))
	}
	return strings.Join(list, ", ")
}
