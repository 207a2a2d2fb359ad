package compile

import (
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
		ports := entryPorts(entry)
		var endpoints []*mesh.Workload
		for _, e := range entry.Endpoints {
			endpoints = append(endpoints, c.outside(byIP, e, ports))
		}
		for i, host := range entry.Hosts {
			host = strings.ToLower(host)
			if _, taken := c.catalog.aliases[host]; taken {
				c.problem(o, api.Path{"spec", "hosts", i}.String(), host+" is a service's already; this entry is not used for it")
				continue
			}
			c.catalog.aliases[host] = host
			c.catalog.hosts = append(c.catalog.hosts, host)
			c.catalog.services[host] = &service{
				host: host, name: host, namespace: o.Meta.Namespace, workloads: endpoints, entry: entry, ports: ports,
			}
		}
	}
	slices.Sort(c.catalog.hosts)
}

// outside is the workload at an endpoint's address. If it is none of the mesh, it is one without a proxy that has the
// endpoint's labels.
func (c *compiler) outside(byIP map[string]*mesh.Workload, e *networking.WorkloadEntry, ports []snapshot.Port) *mesh.Workload {
	ip := netip.MustParseAddr(e.Address).Unmap() // api validates it
	if w := byIP[ip.String()]; w != nil {
		return w
	}
	w := &mesh.Workload{Name: ip.String(), Role: mesh.RoleApp, Running: true, Labels: e.Labels}
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

func entryPorts(entry *networking.ServiceEntry) []snapshot.Port {
	var ports []snapshot.Port
	for _, p := range entry.Ports {
		port := snapshot.Port{Number: uint16(p.Number), Protocol: mesh.ProtocolTCP} //nolint:gosec // api validates the range
		switch strings.ToUpper(p.Protocol) {
		case "HTTP":
			port.Protocol = mesh.ProtocolHTTP
		case "HTTP2":
			port.Protocol = mesh.ProtocolHTTP2
		case "GRPC":
			port.Protocol = mesh.ProtocolGRPC
		case "HTTPS", "TLS":
			port.Protocol = mesh.ProtocolTLS
		}
		ports = append(ports, port)
	}
	slices.SortFunc(ports, func(a, b snapshot.Port) int { return int(a.Number) - int(b.Number) })
	return ports
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
			case p.Protocol == mesh.ProtocolTCP && len(s.entry.Addresses) > 0:
				route.Subnets = s.entry.Addresses
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
