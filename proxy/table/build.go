package table

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Build makes a table of a snapshot, which it keeps and which must not change afterwards. From old, the table in force
// so far, it takes over balancers and connections; old may be nil. The error is a refusal that names every object
// that is wrong; then nothing was built.
func Build(s *snapshot.Snapshot, old *Table) (*Table, error) {
	if old == nil {
		old = &Table{}
	}
	b := builder{
		t: &Table{
			byIP:     map[netip.Addr]*Workload{},
			byID:     map[string]*Workload{},
			services: map[string]*Service{},
			gateways: map[uint16]*gateway{},
			names:    map[string]name{},
			virtual:  map[netip.Addr]*VirtualHost{},
		},
		old:    old,
		byName: map[string]*Workload{},
	}
	b.t.registryOnly = s.RegistryOnly
	if s.Security != nil {
		b.security(s.Security)
	}
	b.usage(s.Usage)
	b.workloads(s)
	b.servicesOf(s)
	b.locate()
	for i := range s.VirtualHosts {
		b.virtualHost("virtual host "+s.VirtualHosts[i].Name, &s.VirtualHosts[i], &b.t.hosts, true)
	}
	var err error
	if b.t.streams, err = compileStreams(s.TLSRoutes, s.TCPRoutes); err != nil {
		b.refuse("%w", err)
	}
	for i := range s.Gateways {
		g := &s.Gateways[i]
		d := &gateway{protocol: g.Protocol, tlsServers: map[string]*tlsServer{}}
		if b.t.gateways[g.Port] != nil {
			b.refuse("gateway port %d: listed twice", g.Port)
		}
		b.t.gateways[g.Port] = d
		for j := range g.VirtualHosts {
			vh := &g.VirtualHosts[j]
			b.virtualHost(fmt.Sprintf("gateway port %d: virtual host %s", g.Port, vh.Name), vh, &d.domains, false)
		}
		var err error
		if d.streams, err = compileStreams(g.TLSRoutes, g.TCPRoutes); err != nil {
			b.refuse("gateway port %d: %w", g.Port, err)
		}
		for j := range g.TLSServers {
			b.tlsServer(g.Port, &g.TLSServers[j], d)
		}
	}
	if err := errors.Join(b.errs...); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", s.Version, err)
	}
	return b.t, nil
}

type builder struct {
	t, old *Table
	byName map[string]*Workload
	peers  map[string]*snapshot.Modes // of workloads that don't take mutual TLS at every port
	errs   []error
}

// security takes in citadel's part.
func (b *builder) security(s *snapshot.Security) {
	b.mutual(&s.Authentication.TLS)
	b.peers = make(map[string]*snapshot.Modes, len(s.Authentication.Peers))
	for i := range s.Authentication.Peers {
		p := &s.Authentication.Peers[i]
		b.modes("peer "+p.Workload, &p.Modes)
		b.peers[p.Workload] = &p.Modes
	}
	b.checks(s)
}

func (b *builder) refuse(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

func (b *builder) workloads(s *snapshot.Snapshot) {
	for i := range s.Workloads {
		b.workload(&s.Workloads[i], s.Proxy.Name)
	}
	if s.Proxy.Name == "" {
		return
	}
	if b.byName[s.Proxy.Name] == nil {
		b.workload(&s.Proxy, s.Proxy.Name)
	}
	b.t.self = b.byName[s.Proxy.Name]
}

func (b *builder) workload(w *snapshot.Workload, self string) {
	if b.byName[w.Name] != nil {
		b.refuse("workload %s: listed twice", w.Name)
		return
	}
	if modes := b.peers[w.Name]; modes != nil {
		known := *w
		known.TLS = modes
		w = &known
	}
	tw := &Workload{
		Workload:  w,
		protocols: make(map[uint16]mesh.Protocol, len(w.Ports)),
		endpoints: make(map[netip.Addr]*upstream.Endpoint, len(w.Addresses)),
	}
	b.byName[w.Name] = tw
	for _, p := range w.Ports {
		tw.protocols[p.Number] = p.Protocol
	}
	identity := w.Identity
	if w.PlainText || w.Name == self {
		// A call to ourselves is delivered here: no other proxy stands between.
		identity = ""
	}
	for _, a := range w.Addresses {
		ip, err := netip.ParseAddr(a)
		if err != nil {
			b.refuse("workload %s: addresses: %w", w.Name, err)
			continue
		}
		ip = ip.Unmap()
		if other := b.t.byIP[ip]; other != nil {
			b.refuse("workload %s: address %s is also workload %s's", w.Name, ip, other.Name)
			continue
		}
		b.t.byIP[ip] = tw
		tw.endpoints[ip] = upstream.NewEndpoint(w, ip, identity, b.old.Direct(ip))
	}
	if w.Identity != "" {
		if _, shared := b.t.byID[w.Identity]; shared {
			b.t.byID[w.Identity] = nil
		} else {
			b.t.byID[w.Identity] = tw
		}
	}
}

func (b *builder) servicesOf(s *snapshot.Snapshot) {
	for i := range s.Services {
		svc := &s.Services[i]
		object := "service " + svc.Host
		if b.t.services[svc.Host] != nil {
			b.refuse("%s: listed twice", object)
			continue
		}
		ts := &Service{Service: svc, members: map[string]bool{}, clusters: map[string]*upstream.Cluster{}, ports: map[lane]*upstream.Cluster{}}
		b.t.services[svc.Host] = ts
		places := b.places(object, svc)
		b.clusters(object, ts, "", b.endpoints(object, svc.Endpoints, places), svc.Policy, svc.PortPolicies)
		for _, name := range svc.Endpoints {
			ts.members[name] = true
		}
		for j := range svc.Subsets {
			sub := &svc.Subsets[j]
			of := object + ": subset " + sub.Name
			b.clusters(of, ts, sub.Name, b.endpoints(of, sub.Endpoints, places), sub.Policy, sub.PortPolicies)
		}
	}
	for _, w := range b.byName {
		for _, host := range w.Services {
			if svc := b.t.services[host]; svc != nil {
				svc.members[w.Name] = true
			}
		}
		if w.Service == "" {
			continue
		}
		for _, name := range []string{w.Service, mesh.FQDN(w.Service, w.Namespace)} {
			if svc := b.t.services[name]; svc != nil {
				w.Canonical = svc
				svc.members[w.Name] = true
				break
			}
		}
	}
}

// self is the proxy's own workload; nil before there is one.
func (b *builder) self() *snapshot.Workload {
	if b.t.self == nil {
		return nil
	}
	return b.t.self.Workload
}

// clusters are those of a service or subset: one for all ports, and one for each port that has a policy of its own. What a
// policy counts, it counts for each of the ports.
func (b *builder) clusters(object string, s *Service, subset string, endpoints []*upstream.Endpoint, policy snapshot.Policy, ports []snapshot.PortPolicy) {
	b.policy(object, &policy)
	s.clusters[subset] = upstream.NewCluster(s.Service, subset, policy, endpoints, b.old.Cluster(s.Host, subset), b.self())
	at := func(port uint16, p snapshot.Policy) {
		var old *upstream.Cluster
		if os := b.old.services[s.Host]; os != nil {
			old = os.ports[lane{subset, port}]
		}
		s.ports[lane{subset, port}] = upstream.NewCluster(s.Service, subset, p, endpoints, old, b.self())
	}
	if policy.Connections != nil || policy.Outlier != nil || policy.RetryBudget != nil {
		for _, p := range s.Ports {
			at(p.Number, policy)
		}
	}
	for i := range ports {
		b.policy(fmt.Sprintf("%s: port %d", object, ports[i].Port), &ports[i].Policy)
		at(ports[i].Port, ports[i].Policy)
	}
}

func (b *builder) policy(object string, p *snapshot.Policy) {
	switch p.LoadBalancer {
	case "", snapshot.LeastRequest, snapshot.RoundRobin, snapshot.Random, snapshot.Passthrough:
	default:
		b.refuse("%s: load balancer %q is not known, want LEAST_REQUEST, ROUND_ROBIN, RANDOM or PASSTHROUGH", object, p.LoadBalancer)
	}
	switch p.TLS {
	case "", snapshot.TLSDisable, snapshot.TLSMutual:
	default:
		b.refuse("%s: tls mode %q is not known, want DISABLE or MUTUAL", object, p.TLS)
	}
}

// places are the endpoints of a service that have a place of their own in it, by workload.
func (b *builder) places(object string, s *snapshot.Service) map[string]*upstream.Endpoint {
	if len(s.Places) == 0 {
		return nil
	}
	places := make(map[string]*upstream.Endpoint, len(s.Places))
	for i := range s.Places {
		p := &s.Places[i]
		w := b.byName[p.Workload]
		switch {
		case w == nil:
			b.refuse("%s: place %s is no workload of the snapshot", object, p.Workload)
			continue
		case p.Address == "" && len(w.Addresses) == 0:
			continue // it can't be reached
		}
		address := p.Address
		if address == "" {
			address = w.Addresses[0]
		}
		ip, err := netip.ParseAddr(address)
		if err != nil {
			b.refuse("%s: place %s: address: %w", object, p.Workload, err)
			continue
		}
		identity := p.Identity
		if at := w.endpoints[ip.Unmap()]; identity == "" && at != nil {
			identity = at.Identity
		}
		places[p.Workload] = upstream.NewPlace(w.Workload, ip.Unmap(), identity, p)
	}
	return places
}

func (b *builder) endpoints(object string, names []string, places map[string]*upstream.Endpoint) []*upstream.Endpoint {
	endpoints := make([]*upstream.Endpoint, 0, len(names))
	for _, name := range names {
		if e := places[name]; e != nil {
			endpoints = append(endpoints, e)
			continue
		}
		w := b.byName[name]
		if w == nil {
			b.refuse("%s: endpoint %s is no workload of the snapshot", object, name)
			continue
		}
		// The first address is the one to dial from here. A workload without one can't be reached.
		if len(w.Addresses) > 0 {
			if ip, err := netip.ParseAddr(w.Addresses[0]); err == nil && w.endpoints[ip.Unmap()] != nil {
				endpoints = append(endpoints, w.endpoints[ip.Unmap()])
			}
		}
	}
	return endpoints
}

func (b *builder) tlsServer(port uint16, s *snapshot.TLSServer, into *gateway) {
	object := fmt.Sprintf("gateway port %d: tls server %s", port, s.Name)
	if into.tlsServers[s.Name] != nil {
		b.refuse("%s: listed twice", object)
	}
	switch s.TLS.Mode {
	case snapshot.ServerSimple, snapshot.ServerMutual, snapshot.ServerOptionalMutual, snapshot.ServerMeshMutual:
	default:
		b.refuse("%s: tls mode %q is not known", object, s.TLS.Mode)
	}
	ts := &tlsServer{TLSServer: s}
	into.tlsServers[s.Name] = ts
	for i := range s.VirtualHosts {
		b.virtualHost(object+": virtual host "+s.VirtualHosts[i].Name, &s.VirtualHosts[i], &ts.domains, false)
	}
	var err error
	if ts.streams, err = compileStreams(nil, s.TCPRoutes); err != nil {
		b.refuse("%s: %w", object, err)
	}
}

func (b *builder) virtualHost(object string, s *snapshot.VirtualHost, into *domains, bind bool) {
	routes, err := route.Compile(s.Routes)
	if err != nil {
		b.refuse("%s: %w", object, err)
		return
	}
	vh := &VirtualHost{Name: s.Name, Routes: routes}
	if s.Service != "" {
		svc := b.t.services[s.Service]
		if svc == nil {
			b.refuse("%s: service %s is not in the snapshot", object, s.Service)
			return
		}
		vh.Service = svc
		if bind {
			if svc.VirtualHost != nil {
				b.refuse("%s: service %s has virtual host %s already", object, s.Service, svc.VirtualHost.Name)
				return
			}
			svc.VirtualHost = vh
		}
	}
	for _, domain := range s.Domains {
		if err := into.add(domain, vh); err != nil {
			b.refuse("%s: %w", object, err)
		}
	}
	if bind {
		b.names(object, s, vh)
	}
}
