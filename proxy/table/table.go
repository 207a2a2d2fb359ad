// Package table is what one proxy knows, made ready for lookups: workloads by address, virtual hosts by authority,
// clusters by service and subset. A Table is built from a snapshot as a whole or not at all, and never changes.
package table

import (
	"net/netip"
	"strings"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authn"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/extauth"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/mixer"
	"github.com/composure-mesh/composure/proxy/quota"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Table answers where to send things. It is immutable, except for the balancers and connections behind its
// clusters, which it takes over from the table before.
type Table struct {
	self         *Workload
	byIP         map[netip.Addr]*Workload
	byID         map[string]*Workload // identity, where one workload alone holds it
	services     map[string]*Service
	hosts        domains
	names        map[string]name             // what DNS answers, by domain
	virtual      map[netip.Addr]*VirtualHost // by address of mesh.VirtualNetwork
	streams      streams
	gateways     map[uint16]*gateway
	registryOnly bool
	mutual       mutual
	// trustedProxies stand in front of the mesh's gateways.
	trustedProxies int
	tokens         *authn.Filter
	access         *authz.Filter
	authorizers    []*extauth.Provider
	refuses        []filter.Check
	rules          *mixer.Rules
	quotas         *quota.Set
}

// gateway is one port of a gateway.
type gateway struct {
	protocol mesh.Protocol
	domains
	streams    streams
	tlsServers map[string]*tlsServer // by name
}

// tlsServer is a server that ends TLS.
type tlsServer struct {
	*snapshot.TLSServer
	domains
	streams streams
}

// Workload is a workload with the services it answers to.
type Workload struct {
	*snapshot.Workload
	// Canonical is the service that its Service field names; nil if the proxy does not know it.
	Canonical *Service

	protocols map[uint16]mesh.Protocol
	endpoints map[netip.Addr]*upstream.Endpoint
}

// Service is a service with its clusters.
type Service struct {
	*snapshot.Service
	// VirtualHost routes its requests; nil where there is none.
	VirtualHost *VirtualHost

	members  map[string]bool // names of the workloads that answer to it, healthy or not
	clusters map[string]*upstream.Cluster
	ports    map[lane]*upstream.Cluster // where a port has a policy, or counters, of its own
}

// lane is a subset at a port.
type lane struct {
	subset string
	port   uint16
}

// Protocol is what is declared for a port of its workloads, else ProtocolAuto.
func (s *Service) Protocol(port uint16) mesh.Protocol {
	for i := range s.Ports {
		if s.Ports[i].Number == port {
			return s.Ports[i].Protocol
		}
	}
	return mesh.ProtocolAuto
}

// Target is the port at the endpoints for a port of the service.
func (s *Service) Target(port uint16) uint16 {
	for i := range s.Ports {
		if s.Ports[i].Number == port && s.Ports[i].Target != 0 {
			return s.Ports[i].Target
		}
	}
	return port
}

// VirtualHost is a virtual host with its compiled routes.
type VirtualHost struct {
	Name string
	// Service is nil for a host that is no service.
	Service *Service
	Routes  *route.Routes
}

// BlackHole reports whether nothing may go to what stands at an address that is neither a service's nor our own.
func (t *Table) BlackHole(w *Workload) bool {
	return t.registryOnly && (w == nil || w != t.self && w.Canonical == nil)
}

// Self is the workload whose proxy this is; nil before there is a snapshot.
func (t *Table) Self() *Workload { return t.self }

// Workload is the workload that has the address, or nil.
func (t *Table) Workload(ip netip.Addr) *Workload { return t.byIP[ip.Unmap()] }

// Peer is the workload at the other end of a connection: by its address, or by its verified identity where only one
// workload holds that. The address must not contradict the identity. Nil if it is not known.
func (t *Table) Peer(remote netip.Addr, identity string) *snapshot.Workload {
	if w := t.Workload(remote); w != nil && (identity == "" || w.Identity == identity) {
		return w.Workload
	}
	if w := t.byID[identity]; w != nil {
		return w.Workload
	}
	return nil
}

// OtherFamily is the first address of our own workload that is of the other IP family than ip; invalid where ip is not
// our own or there is none.
func (t *Table) OtherFamily(ip netip.Addr) netip.Addr {
	ip = ip.Unmap()
	if t.self == nil || t.self.endpoints[ip] == nil {
		return netip.Addr{}
	}
	for _, a := range t.self.Addresses {
		if other, err := netip.ParseAddr(a); err == nil && other.Unmap().Is4() != ip.Is4() {
			return other.Unmap()
		}
	}
	return netip.Addr{}
}

// Service is the service of a fully qualified name, or nil.
func (t *Table) Service(host string) *Service { return t.services[host] }

// Cluster is the endpoints behind a service or its subset; nil if there is no such service or subset.
func (t *Table) Cluster(service, subset string) *upstream.Cluster {
	s := t.services[service]
	if s == nil {
		return nil
	}
	return s.clusters[subset]
}

// ClusterAt is Cluster for requests to a port.
func (t *Table) ClusterAt(service, subset string, port uint16) *upstream.Cluster {
	s := t.services[service]
	if s == nil {
		return nil
	}
	return s.at(subset, port)
}

func (s *Service) at(subset string, port uint16) *upstream.Cluster {
	if c := s.ports[lane{subset, port}]; c != nil {
		return c
	}
	return s.clusters[subset]
}

// Outbound is where a request that left the application for dst belongs.
type Outbound struct {
	// VirtualHost routes it. If nil, it goes to the very address it was sent to.
	VirtualHost *VirtualHost
	// Workload is the one at the destination address; nil if no workload of the mesh is there.
	Workload *Workload
}

// Outbound decides by authority and destination together; docs/adr/0001 says why. The authority is the request's, with
// or without port, in any case.
func (t *Table) Outbound(dst netip.AddrPort, authority []byte) Outbound {
	out := Outbound{Workload: t.Workload(dst.Addr())}
	vh := t.hosts.lookup(authority)
	switch {
	case vh != nil && vh.Service == nil:
		out.VirtualHost = vh
	case vh != nil && (out.Workload == nil || vh.Service.members[out.Workload.Name]):
		out.VirtualHost = vh
	case out.Workload != nil && out.Workload.Canonical != nil:
		out.VirtualHost = out.Workload.Canonical.VirtualHost
	case out.Workload == nil:
		out.VirtualHost = t.virtual[dst.Addr().Unmap()]
	}
	return out
}

// Inbound is our own service that a request names, else our canonical one; nil if there is none.
func (t *Table) Inbound(authority []byte) *Service {
	if t.self == nil {
		return nil
	}
	if vh := t.hosts.lookup(authority); vh != nil && vh.Service != nil && vh.Service.members[t.self.Name] {
		return vh.Service
	}
	return t.self.Canonical
}

// Gateway is the virtual host of a gateway's port for an authority, or nil. server is the name of the TLS server that the
// client came in by, empty for none.
func (t *Table) Gateway(port uint16, server string, authority []byte) *VirtualHost {
	g := t.gateways[port]
	switch {
	case g == nil:
		return nil
	case server == "":
		return g.lookup(authority)
	}
	if s := g.tlsServers[server]; s != nil {
		return s.lookup(authority)
	}
	return nil
}

// GatewayTLS is the server that ends the TLS of a client of a gateway's port which asks for serverName. It is nil where
// nobody has that name, and where a route of TLS that passes through has it more precisely.
func (t *Table) GatewayTLS(port uint16, serverName string) *snapshot.TLSServer {
	g := t.gateways[port]
	if g == nil {
		return nil
	}
	serverName = strings.ToLower(serverName)
	var best *snapshot.TLSServer
	rank := unnamed
	for _, s := range g.tlsServers {
		if r := nameRank(s.ServerNames, serverName); r > rank {
			best, rank = s.TLSServer, r
		}
	}
	for i := range g.streams.routes {
		if nameRank(g.streams.routes[i].names, serverName) > rank {
			return nil
		}
	}
	return best
}

// Direct is the endpoint at the very address dst, if a workload of the mesh is there, else nil: then it is dialled in
// plain text.
func (t *Table) Direct(dst netip.Addr) *upstream.Endpoint {
	if w := t.Workload(dst); w != nil {
		return w.endpoints[dst.Unmap()]
	}
	return nil
}

// Protocol is what is declared for the destination's port, else what its number implies, else ProtocolAuto.
func (t *Table) Protocol(dst netip.AddrPort) mesh.Protocol {
	if w := t.Workload(dst.Addr()); w != nil {
		if p := w.protocols[dst.Port()]; p != mesh.ProtocolAuto {
			return p
		}
	}
	if vh := t.virtual[dst.Addr().Unmap()]; vh != nil && vh.Service != nil {
		if p := vh.Service.Protocol(dst.Port()); p != mesh.ProtocolAuto {
			return p
		}
	}
	return mesh.WellKnownProtocol(dst.Port())
}

// GatewayProtocol is what a gateway's port speaks; ProtocolAuto where no Gateway names it.
func (t *Table) GatewayProtocol(port uint16) mesh.Protocol {
	if g := t.gateways[port]; g != nil {
		return g.protocol
	}
	return mesh.ProtocolAuto
}

// PassthroughCluster is Istio's name of what is outside the mesh.
const PassthroughCluster = "PassthroughCluster"

// BlackHoleCluster is Istio's name of where nothing may go.
const BlackHoleCluster = "BlackHoleCluster"

// InboundCluster is Istio's name of our own application at a port.
func InboundCluster(port uint16) string { return upstream.ClusterName("inbound", port, "", "") }
