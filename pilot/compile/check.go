package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Check says what is questionable about o in the view x, of which it is part: it is valid, and does not do what it
// seems to. The writer is shown it as a warning.
func (x *Index) Check(o *api.Object) []Problem { return x.checker(o.Meta.Namespace).check(o) }

// checker has the eyes of a workload in a namespace that reaches all others.
func (x *Index) checker(namespace string) *compiler {
	workloads := make([]*mesh.Workload, len(x.facts.Workloads))
	for i := range x.facts.Workloads {
		workloads[i] = &x.facts.Workloads[i]
	}
	c := &compiler{Index: x, proxy: &mesh.Workload{Namespace: namespace}, catalog: newCatalog(namespace, workloads)}
	c.addEntries(workloads)
	c.compiled = c.services()
	return c
}

func (c *compiler) check(o *api.Object) []Problem {
	c.problems = nil // also those of making the services: they are other objects'
	switch spec := o.Spec.(type) {
	case *networking.VirtualService:
		c.checkVirtualService(o, spec)
		c.checkReachable(o, spec)
		c.checkGatewayHosts(o, spec)
	case *networking.DestinationRule:
		if host := c.catalog.resolve(spec.Host, o.Meta.Namespace); !strings.HasPrefix(host, "*") && c.service(host) == nil {
			c.report(UnknownDestinationRuleHost, o, "spec.host", "no workload serves "+host)
		}
		c.checkSubsets(o, spec)
	case *networking.Gateway:
		c.checkGateway(o, spec)
		c.checkServers(o, spec)
	}
	return c.problems
}

// CheckAll is what Check says of every object, by resource.
func (x *Index) CheckAll() []Problem {
	problems, checkers := []Problem{}, map[string]*compiler{}
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
			c.report(ReferencedResourceNotFound, o, fmt.Sprintf("spec.gateways[%d]", i), fmt.Sprintf("there is no Gateway %s", qualify(name, o.Meta.Namespace)))
		}
	}
	if bound(vs.Gateways, api.MeshGateway, o.Meta.Namespace) {
		c.checkHosts(o, vs)
	}
	for i, http := range vs.Http {
		c.checkHTTPRoute(o, fmt.Sprintf("spec.http[%d]", i), http)
	}
	for i, tls := range vs.Tls {
		for j, d := range tls.Route {
			c.checkTarget(o, fmt.Sprintf("spec.tls[%d].route[%d].destination", i, j), d.Destination)
		}
	}
	for i, tcp := range vs.Tcp {
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

func (c *compiler) checkHTTPRoute(o *api.Object, path string, r *networking.HTTPRoute) {
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
		c.report(ReferencedResourceNotFound, o, path+".delegate.name", noDelegate(o, r.Delegate))
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
			c.report(ReferencedResourceNotFound, o, path, "no workload serves "+host)
		}
		for _, other := range c.virtualServices {
			if other == o {
				break // the others are younger
			}
			spec := other.Spec.(*networking.VirtualService)
			if bound(spec.Gateways, api.MeshGateway, other.Meta.Namespace) && slices.ContainsFunc(spec.Hosts, func(h string) bool {
				return c.catalog.resolve(h, other.Meta.Namespace) == host
			}) {
				c.report(ConflictingMeshGatewayHosts, o, path, fmt.Sprintf("%s belongs to %s, which is older; the rules here are not used for it", name, other))
				break
			}
		}
	}
}

func (c *compiler) checkTarget(o *api.Object, path string, d *networking.Destination) {
	host := c.catalog.resolve(d.Host, o.Meta.Namespace)
	s := c.service(host)
	if s == nil {
		c.report(ReferencedResourceNotFound, o, path+".host", "no workload serves "+host+"; its requests get 503")
		return
	}
	if d.Port == nil && len(s.Ports) > 1 {
		c.report(DestinationPortRequired, o, path+".port", fmt.Sprintf("%s has several ports (%s): without a port here, the one that the client dialled is used", host, portList(s.Ports)))
	}
	if d.Subset == "" {
		return
	}
	i := slices.IndexFunc(s.Subsets, func(sub snapshot.Subset) bool { return sub.Name == d.Subset })
	switch {
	case i < 0:
		c.report(ReferencedResourceNotFound, o, path+".subset", fmt.Sprintf("no DestinationRule gives %s a subset %q; its requests get 503", host, d.Subset))
	case len(s.Subsets[i].Endpoints) == 0:
		c.report(SubsetSelectsNothing, o, path+".subset", fmt.Sprintf("no running workload of %s is in subset %q; its requests get 503", host, d.Subset))
	}
}

func (c *compiler) checkGateway(o *api.Object, gw *networking.Gateway) {
	var selected []*mesh.Workload
	for i := range c.facts.Workloads {
		if w := &c.facts.Workloads[i]; w.Role == mesh.RoleGateway && Selects(gw.Selector, w.Labels) {
			selected = append(selected, w)
		}
	}
	if len(selected) == 0 {
		c.report(ReferencedResourceNotFound, o, "spec.selector", "no gateway has these labels: meshctl compose inject --ingress HOSTPORT adds one with istio: ingressgateway")
		return
	}
	for i, server := range gw.Servers {
		for _, w := range selected {
			published := slices.ContainsFunc(w.Ports, func(p mesh.Port) bool {
				return uint32(p.Number) == server.Port.Number && len(p.Published) > 0
			})
			if !published {
				c.report(GatewayPortNotPublished, o, fmt.Sprintf("spec.servers[%d].port.number", i), fmt.Sprintf("gateway %s publishes no port %d: meshctl compose inject --ingress HOSTPORT:%d does", w.Name, server.Port.Number, server.Port.Number))
			}
		}
	}
}
