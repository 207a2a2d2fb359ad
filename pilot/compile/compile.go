package compile

import (
	"cmp"
	"net/netip"
	"slices"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Compile is the sealed snapshot of the proxy of the named workload, with what in the intent it could not do.
func Compile(v View, workload string) (*snapshot.Snapshot, []analysis.Problem, error) {
	return New(v).Compile(workload)
}

// Compile is the sealed snapshot of the proxy of the named workload, with what in the intent it could not do. The
// error is that there is no such workload.
func (x *Index) Compile(workload string) (*snapshot.Snapshot, []analysis.Problem, error) {
	g, err := x.Group(workload)
	if err != nil {
		return nil, nil, err
	}
	s := g.Snapshot
	s.Proxy = x.Proxy(workload)
	if s.Version, err = g.Shared.Version(&s.Proxy); err != nil {
		return nil, nil, err
	}
	return &s, g.Problems, nil
}

// Proxy is the named workload as its own proxy is to know it; the zero value if there is none.
func (x *Index) Proxy(workload string) snapshot.Workload {
	w := x.workloads[workload]
	if w == nil {
		return snapshot.Workload{}
	}
	return workloadOf(w, w)
}

// compile makes the snapshot of the proxies that viewer stands for, without what is one proxy's own.
func (x *Index) compile(viewer *mesh.Workload) *Group {
	workloads := x.reachable(viewer)
	c := &compiler{Index: x, proxy: viewer, catalog: newCatalog(viewer.Namespace, workloads), secretsNeeded: map[string]snapshot.Secret{}}
	c.addEntries(workloads)
	sidecar := c.sidecar()
	c.catalog.scope(sidecar)
	s := snapshot.Snapshot{TrustDomain: x.trustDomain}
	for _, w := range workloads {
		out := workloadOf(w, viewer)
		out.Services = c.namesakes(out.Services, w)
		s.Workloads = append(s.Workloads, out)
	}
	for _, w := range c.outsiders {
		out := workloadOf(w, viewer)
		out.Service = "" // it is known by the service that a request goes to, of which there may be several
		out.Resolve, out.ResolveFirst = c.resolved[w].name, c.resolved[w].first
		s.Workloads = append(s.Workloads, out)
	}
	slices.SortFunc(s.Workloads, func(a, b snapshot.Workload) int { return cmp.Compare(a.Name, b.Name) })
	s.Services = c.services()
	c.compiled = s.Services
	if viewer.Role == mesh.RoleGateway {
		s.Gateways = c.gatewayServers()
		s.Secrets = c.neededSecrets()
	} else {
		s.VirtualHosts = c.virtualHosts()
		s.TLSRoutes, s.TCPRoutes = c.streams()
	}
	s.RegistryOnly = sidecar.GetOutboundTrafficPolicy() != nil && sidecar.OutboundTrafficPolicy.Mode == networking.OutboundTrafficPolicy_REGISTRY_ONLY
	return &Group{Snapshot: s, Problems: c.problems}
}

// compiler is the making of one snapshot.
type compiler struct {
	*Index
	proxy    *mesh.Workload
	catalog  *catalog
	compiled []snapshot.Service // by host
	// needed are the services that a check has needed so far, by host; nil where all are compiled.
	needed map[string]*snapshot.Service
	rules  map[string]*hostRules // of the namespaces that were asked for
	// outsiders are the endpoints of ServiceEntries that are no workloads of the mesh.
	outsiders     []*mesh.Workload
	resolved      map[*mesh.Workload]resolution // of outsiders
	secretsNeeded map[string]snapshot.Secret    // by name
	problems      []analysis.Problem
	virtuals      map[string]netip.Addr // virtual addresses, by host
	taken         map[netip.Addr]bool
}

func (c *compiler) problem(o *api.Object, path, detail string) {
	c.report(analysis.SchemaWarning, o, path, detail)
}

func (c *compiler) report(code analysis.Code, o *api.Object, path, detail string) {
	p := analysis.Problem{Code: code, Resource: o.String(), Path: path, Detail: detail}
	if !slices.Contains(c.problems, p) {
		c.problems = append(c.problems, p)
	}
}

func (c *compiler) service(host string) *snapshot.Service {
	if c.needed != nil {
		if s := c.catalog.services[host]; s != nil && c.needed[host] == nil {
			found := c.problems
			out := c.serviceOf(s)
			c.needed[host], c.problems = &out, found // what it finds is other objects'
		}
		return c.needed[host]
	}
	i, ok := slices.BinarySearchFunc(c.compiled, host, func(s snapshot.Service, host string) int { return cmp.Compare(s.Host, host) })
	if !ok {
		return nil
	}
	return &c.compiled[i]
}

// workloadOf is w as the proxy of viewer needs to know it.
func workloadOf(w, viewer *mesh.Workload) snapshot.Workload {
	out := snapshot.Workload{
		Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount,
		Identity: w.Identity, PlainText: w.Identity != "" && !w.Meshed,
		Service: w.CanonicalService(), Labels: w.Labels, Addresses: addressesOf(w, viewer),
	}
	for _, name := range w.Services {
		out.Services = append(out.Services, fqdn(name, w.Namespace))
	}
	slices.Sort(out.Services)
	out.Services = slices.Compact(out.Services)
	out.Ports, out.PlainPorts = portsOf([]*mesh.Workload{w}), w.PlainPorts
	return out
}

// namesakes adds to hosts, those of w, the services of the proxy's own namespace that have a name of w's. On a network that
// two projects share, Docker's DNS gives the addresses of both for a short name; it means the proxy's own all the same.
func (c *compiler) namesakes(hosts []string, w *mesh.Workload) []string {
	if w.Namespace == c.proxy.Namespace {
		return hosts
	}
	for _, name := range w.Services {
		if own := fqdn(name, c.proxy.Namespace); c.catalog.services[own] != nil {
			hosts = append(hosts, own)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// addressesOf are w's addresses, those in a network of viewer's first, in the order of viewer's networks: the first
// can be dialled from there.
func addressesOf(w, viewer *mesh.Workload) []string {
	rank := func(a mesh.Address) int {
		i := slices.IndexFunc(viewer.Addresses, func(v mesh.Address) bool { return v.Network == a.Network })
		if i < 0 {
			return len(viewer.Addresses)
		}
		return i
	}
	sorted := slices.SortedStableFunc(slices.Values(w.Addresses), func(a, b mesh.Address) int { return cmp.Compare(rank(a), rank(b)) })
	var addresses []string
	for _, a := range sorted {
		for _, ip := range []string{a.IPv4, a.IPv6} {
			if ip != "" {
				addresses = append(addresses, ip)
			}
		}
	}
	return addresses
}
