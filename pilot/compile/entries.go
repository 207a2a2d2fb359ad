package compile

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// addEntries makes services of the ServiceEntries that the proxy may know, the oldest first. They are known by their hosts
// alone. workloads are those of the mesh.
func (c *compiler) addEntries(workloads []*mesh.Workload) {
	if len(c.serviceEntries) == 0 {
		return
	}
	byIP := map[string]*mesh.Workload{}
	for _, w := range workloads {
		for _, a := range w.Addresses {
			byIP[a.IPv4], byIP[a.IPv6] = w, w
		}
	}
	for _, o := range c.serviceEntries {
		if !visible(o, c.proxy.Namespace) {
			continue
		}
		entry := o.Spec.(*networking.ServiceEntry)
		m := &members{c: c, by: o, entry: entry, ports: entryPorts(entry), byIP: byIP}
		for i, e := range entry.Endpoints {
			if e.Address == "" { // checkNetwork says so
				continue
			}
			m.add("", e, o, api.Path{"spec", "endpoints", i})
		}
		if entry.WorkloadSelector != nil && !passthrough(entry) {
			m.choose(workloads)
		}
		for i, host := range entry.Hosts {
			host = strings.ToLower(host)
			if _, taken := c.catalog.aliases[host]; taken {
				c.problem(o, api.Path{"spec", "hosts", i}.String(), host+" is a service's already; this entry is not used for it")
				continue
			}
			c.catalog.aliases[host] = host
			c.catalog.hosts = append(c.catalog.hosts, host)
			of := m
			if resolves(entry) && len(entry.Endpoints) == 0 && entry.WorkloadSelector == nil { // the host is its own endpoint
				of = &members{c: c, by: o, entry: entry, ports: m.ports, byIP: byIP}
				of.add("", &networking.WorkloadEntry{Address: host}, o, nil)
			}
			c.catalog.services[host] = &service{
				host: host, name: host, namespace: o.Meta.Namespace, workloads: of.workloads, places: of.places, entry: entry, ports: of.servicePorts(),
			}
		}
	}
	slices.Sort(c.catalog.hosts)
}

// members are the endpoints of one ServiceEntry, as they are found.
type members struct {
	c     *compiler
	by    *api.Object
	entry *networking.ServiceEntry
	ports []snapshot.Port
	byIP  map[string]*mesh.Workload

	workloads []*mesh.Workload
	places    map[*mesh.Workload]place
}

// place is what a workload is as an endpoint of one service.
type place struct {
	snapshot.Place
	labels map[string]string // those that subsets select
}

// choose adds the WorkloadEntries and the workloads of the mesh that the entry selects: those of its namespace.
func (m *members) choose(workloads []*mesh.Workload) {
	labels := m.entry.WorkloadSelector.Labels
	for _, o := range m.c.workloadEntries {
		e := o.Spec.(*networking.WorkloadEntry)
		if o.Meta.Namespace != m.by.Meta.Namespace || !mesh.Selects(labels, e.Labels) {
			continue
		}
		if e.Address == "" { // as above
			continue
		}
		if _, err := netip.ParseAddr(e.Address); err != nil && !resolves(m.entry) {
			m.c.problem(m.by, "spec.resolution", fmt.Sprintf("%s has a name for an address, which is looked up with resolution DNS alone; it is not used", o))
			continue
		}
		m.add(o.Meta.Name, e, o, api.Path{"spec"})
	}
	for _, w := range workloads {
		if w.Namespace == m.by.Meta.Namespace && mesh.Selects(labels, w.Labels) && !slices.Contains(m.workloads, w) {
			m.workloads = append(m.workloads, w)
		}
	}
}

// add adds an endpoint, which at of the object o is about. name is what it is to be known by, empty for its address.
func (m *members) add(name string, e *networking.WorkloadEntry, o *api.Object, at api.Path) {
	w := m.c.outside(m.byIP, name, e, m.entry, m.ports)
	p := place{labels: e.Labels, Place: snapshot.Place{Workload: w.Name, Weight: e.Weight, Identity: m.identity(e, o, at)}}
	if len(e.Labels) == 0 {
		p.labels = w.Labels
	}
	for _, port := range m.entry.Ports {
		if n := e.Ports[port.Name]; n != 0 {
			p.Ports = append(p.Ports, snapshot.PlacePort{Number: uint16(port.Number), Target: uint16(n)}) //nolint:gosec // api validates the range
		}
	}
	slices.SortFunc(p.Ports, func(a, b snapshot.PlacePort) int { return int(a.Number) - int(b.Number) })
	if slices.Contains(m.workloads, w) {
		if slices.Equal(p.Ports, m.places[w].Ports) {
			m.c.problem(o, at.At("address").String(), fmt.Sprintf("%s is an endpoint of %s already, at the same ports; this one is not used", e.Address, m.by))
			return
		}
		if len(w.Addresses) == 0 {
			m.c.problem(o, at.At("address").String(), fmt.Sprintf("%s is an endpoint of %s already; a name can be one only once, and this one is not used", e.Address, m.by))
			return
		}
		twin := *w // a workload of its own at the same address, by which the first is told as a peer
		twin.Name, twin.Addresses, twin.Labels = m.c.freeName(cmp.Or(name, w.Name)), nil, located(e)
		p.Workload, p.Address, w = twin.Name, cmp.Or(w.Addresses[0].IPv4, w.Addresses[0].IPv6), &twin
		m.c.outsiders = append(m.c.outsiders, w)
	}
	if m.places == nil {
		m.places = map[*mesh.Workload]place{}
	}
	m.workloads, m.places[w] = append(m.workloads, w), p
}

// identity is what an endpoint outside of Docker shows by mutual TLS. As in Istio it speaks that only where a label says so, and
// in the mesh alone.
func (m *members) identity(e *networking.WorkloadEntry, o *api.Object, at api.Path) string {
	speaks := m.entry.Location == networking.ServiceEntry_MESH_INTERNAL && e.Labels[api.TLSModeLabel] == api.TLSModeIstio
	switch {
	case speaks && e.ServiceAccount != "":
		if id, err := mesh.IdentityID(m.c.trustDomain, o.Meta.Namespace, e.ServiceAccount); err == nil {
			return id.String()
		}
	case speaks && len(m.entry.SubjectAltNames) == 1:
		return m.entry.SubjectAltNames[0]
	case speaks:
		m.c.problem(o, at.At("serviceAccount").String(), "there is none, and "+m.by.String()+" has not one of subjectAltNames: whom to expect is not known, and plain text is sent")
	case e.ServiceAccount != "":
		m.c.problem(o, at.At("serviceAccount").String(), fmt.Sprintf("it is not asked for: mutual TLS takes label %s: %s, and a ServiceEntry with location MESH_INTERNAL", api.TLSModeLabel, api.TLSModeIstio))
	}
	return ""
}

// servicePorts are the ports of the service. Where endpoints have ports of their own, each has all that differ, and the
// service none that is for all.
func (m *members) servicePorts() []snapshot.Port {
	own := false
	for _, p := range m.places {
		own = own || len(p.Ports) > 0
	}
	if !own {
		return m.ports
	}
	ports := slices.Clone(m.ports)
	for i := range ports {
		n, target := ports[i].Number, ports[i].Target
		ports[i].Target = 0
		if target == 0 {
			continue
		}
		if m.places == nil {
			m.places = map[*mesh.Workload]place{}
		}
		for _, w := range m.workloads {
			p := m.places[w]
			if !slices.ContainsFunc(p.Ports, func(of snapshot.PlacePort) bool { return of.Number == n }) {
				p.Workload, p.Ports = w.Name, append(slices.Clone(p.Ports), snapshot.PlacePort{Number: n, Target: target})
				slices.SortFunc(p.Ports, func(a, b snapshot.PlacePort) int { return int(a.Number) - int(b.Number) })
				m.places[w] = p
			}
		}
	}
	return ports
}

// freeName is name where no workload has it, else one like it.
func (c *compiler) freeName(name string) string {
	taken := func(n string) bool {
		return c.workloads[n] != nil || slices.ContainsFunc(c.outsiders, func(w *mesh.Workload) bool { return w.Name == n })
	}
	for free, n := name, 2; ; n++ {
		if !taken(free) {
			return free
		}
		free = fmt.Sprintf("%s#%d", name, n)
	}
}

// resolves reports whether the endpoints of an entry may be names, whose addresses the proxies find.
func resolves(entry *networking.ServiceEntry) bool {
	return entry.Resolution == networking.ServiceEntry_DNS || entry.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN
}

// outside is the workload at an endpoint's address. If it is none of the mesh, it is one without a proxy that has the endpoint's
// labels.
func (c *compiler) outside(byIP map[string]*mesh.Workload, name string, e *networking.WorkloadEntry, entry *networking.ServiceEntry, ports []snapshot.Port) *mesh.Workload {
	ip, err := netip.ParseAddr(e.Address)
	if err != nil { // api has seen to it that it is a name
		host := strings.ToLower(e.Address)
		first := entry.Resolution == networking.ServiceEntry_DNS_ROUND_ROBIN
		key := host
		if first {
			key += " (first)"
		}
		if w := byIP[key]; w != nil {
			return w
		}
		w := &mesh.Workload{Name: c.freeName(cmp.Or(name, key)), Role: mesh.RoleApp, Running: true, Labels: located(e)}
		byIP[key] = w
		c.outsiders = append(c.outsiders, w)
		if c.resolved == nil {
			c.resolved = map[*mesh.Workload]resolution{}
		}
		c.resolved[w] = resolution{host, first}
		return w
	}
	ip = ip.Unmap()
	if w := byIP[ip.String()]; w != nil {
		return w
	}
	w := &mesh.Workload{Name: c.freeName(cmp.Or(name, ip.String())), Role: mesh.RoleApp, Running: true, Labels: located(e)}
	address := mesh.Address{IPv4: ip.String()}
	if ip.Is6() {
		address = mesh.Address{IPv6: ip.String()}
	}
	w.Addresses = []mesh.Address{address}
	for _, p := range ports {
		w.Ports = append(w.Ports, mesh.Port{Number: p.Number, Protocol: p.Protocol})
	}
	byIP[ip.String()] = w
	c.outsiders = append(c.outsiders, w)
	return w
}

// located are the labels of an endpoint outside of Docker, with its locality among them.
func located(e *networking.WorkloadEntry) map[string]string {
	if e.Locality == "" {
		return e.Labels
	}
	labels := map[string]string{}
	maps.Copy(labels, e.Labels)
	labels[snapshot.LocalityLabel] = e.Locality
	return labels
}

// resolution is the name that the proxies find the addresses of a workload by.
type resolution struct {
	name  string
	first bool
}

// passthrough reports whether what goes to an entry goes to the very address that was dialled.
func passthrough(entry *networking.ServiceEntry) bool {
	return entry.Resolution == networking.ServiceEntry_NONE
}

func entryPorts(se *networking.ServiceEntry) []snapshot.Port {
	var ports []snapshot.Port
	for _, p := range se.Ports {
		port := snapshot.Port{Number: uint16(p.Number), Protocol: entryProtocol(p)} //nolint:gosec // api validates the range
		if p.TargetPort != p.Number && !passthrough(se) {
			port.Target = uint16(p.TargetPort) //nolint:gosec // as above
		}
		ports = append(ports, port)
	}
	slices.SortFunc(ports, func(a, b snapshot.Port) int { return int(a.Number) - int(b.Number) })
	return ports
}

// entryProtocol is how a port of a ServiceEntry is served: whatever the proxy has no more to do for is bytes.
func entryProtocol(p *networking.ServicePort) mesh.Protocol {
	switch strings.ToUpper(p.GetProtocol()) {
	case "HTTP", "GRPC-WEB": // of HTTP/1.1, and no gRPC
		return mesh.ProtocolHTTP
	case "HTTP2":
		return mesh.ProtocolHTTP2
	case "GRPC":
		return mesh.ProtocolGRPC
	case "HTTPS", "TLS":
		return mesh.ProtocolTLS
	}
	return mesh.ProtocolTCP
}

// entryStreams are the routes of connections to ServiceEntries: by server name to their ports of TLS, by address to those
// of TCP. They come after those of VirtualServices.
func (c *compiler) entryStreams() (tls []snapshot.TLSRoute, tcp []snapshot.TCPRoute) {
	for _, host := range c.catalog.hosts {
		s := c.catalog.services[host]
		if s.entry == nil {
			continue
		}
		for _, p := range s.ports {
			route := snapshot.TCPRoute{Port: p.Number, Destinations: []snapshot.Destination{{Service: host, Weight: 1}}}
			switch {
			case p.Protocol == mesh.ProtocolTLS:
				tls = append(tls, snapshot.TLSRoute{ServerNames: []string{host}, TCPRoute: route})
			case p.Protocol == mesh.ProtocolTCP && len(c.dialled(s)) > 0:
				route.Subnets = c.dialled(s)
				tcp = append(tcp, route)
			}
		}
	}
	// A name goes before the wildcards that cover it, a longer one before a shorter.
	slices.SortStableFunc(tls, func(a, b snapshot.TLSRoute) int {
		switch x, y := a.ServerNames[0], b.ServerNames[0]; {
		case moreSpecific(x, y):
			return -1
		case moreSpecific(y, x):
			return 1
		}
		return 0
	})
	return tls, tcp
}
