package forward

import (
	"net/netip"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// origin is what a decision needs to know of the client's connection.
type origin struct {
	direction exchange.Direction
	dst       netip.AddrPort
	remote    netip.AddrPort
	client    netip.Addr // for which remote connected
	peer      string     // verified SPIFFE ID
	server    string     // of a gateway, that ended the client's TLS
	inbound   string     // name of our own application's cluster at dst's port
	http2     bool
}

// decision is where one exchange goes, complete: what follows only carries it out.
type decision struct {
	// fault is the answer to give where there is no way; everything else is then for the record.
	fault *filter.Answer

	// handler is the chain of what the route does besides; nil where it does nothing.
	handler filter.Handler

	route string // name for the access log
	// cluster has the endpoints to choose from. If nil, endpoint is the one; if that is nil too, the destination is
	// address, in plain text.
	cluster  *upstream.Cluster
	endpoint *upstream.Endpoint
	address  netip.AddrPort
	// tls and serverName are of the TLS to address; nil for plain text.
	tls        *snapshot.ClientTLS
	serverName string
	port       uint16 // at the endpoint
	asked      uint16 // the port of the cluster's service
	name       string // of the cluster
	ends       exchange.Ends

	protocol mesh.Protocol // that is declared for the port
	http2    bool          // sent as HTTP/2
}

// speaksHTTP2 reports whether a request goes to its upstream as HTTP/2: as is declared for the port, else as the client
// has sent it, which knows whom it talks to. A client from outside the mesh knows only the gateway, so what that sends is
// HTTP/1.1 (https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/#http-gateway-protocol-selection),
// except for gRPC, of which there is none in HTTP/1. A WebSocket is asked for in HTTP/1, which any server of WebSockets speaks,
// also for a client of HTTP/2.
func speaksHTTP2(declared mesh.Protocol, o *origin, grpc, upgrade bool) bool {
	switch {
	case upgrade:
		return false
	case declared == mesh.ProtocolHTTP2, declared == mesh.ProtocolGRPC:
		return true
	case !o.http2:
		return false
	}
	return grpc || declared != mesh.ProtocolHTTP && o.direction != exchange.Gateway
}

// decide is the whole of routing: a pure function of the table, the connection and the request. random chooses
// among weighted destinations.
func decide(t *table.Table, o *origin, q *route.Request, random uint64) decision {
	switch o.direction {
	case exchange.Inbound:
		return decideInbound(t, o, q)
	case exchange.Gateway:
		return decideGateway(t, o, q, random)
	default:
		return decideOutbound(t, o, q, random)
	}
}

// decideInbound delivers to our own application: always at the very address that the client dialled, in plain text, so that
// a listener on loopback alone is as unreachable as without a mesh.
func decideInbound(t *table.Table, o *origin, q *route.Request) decision {
	d := decision{route: "default", address: o.dst, port: o.dst.Port(), name: o.inbound, protocol: t.Protocol(o.dst)}
	d.ends.Source = t.Peer(o.remote.Addr(), o.peer)
	if self := t.Self(); self != nil {
		d.ends.Destination = self.Workload
	}
	if s := t.Inbound(q.Authority); s != nil {
		d.ends.Service = s.Service
	}
	return d
}

func decideOutbound(t *table.Table, o *origin, q *route.Request, random uint64) decision {
	var d decision
	if self := t.Self(); self != nil {
		d.ends.Source = self.Workload
	}
	out := t.Outbound(o.dst, q.Authority)
	if out.Workload != nil {
		d.ends.Destination = out.Workload.Workload
		if c := out.Workload.Canonical; c != nil {
			d.ends.Service = c.Service
		}
	}
	switch {
	case out.VirtualHost != nil:
		d.follow(t, o, out.VirtualHost, q, random)
	case t.BlackHole(out.Workload):
		d.route, d.name, d.fault = "block_all", table.BlackHoleCluster, &blackHole
	case out.Workload != nil:
		d.route = "default"
		d.endpoint, d.port = t.Direct(o.dst.Addr()), o.dst.Port()
		d.protocol = t.Protocol(o.dst)
		host := ""
		if c := out.Workload.Canonical; c != nil {
			host = c.Host
		}
		d.name = upstream.ClusterName("outbound", d.port, "", host)
	default:
		d.route = "allow_any"
		d.address, d.port, d.name = o.dst, o.dst.Port(), table.PassthroughCluster
	}
	return d
}

func decideGateway(t *table.Table, o *origin, q *route.Request, random uint64) decision {
	var d decision
	if self := t.Self(); self != nil {
		d.ends.Source = self.Workload
	}
	vh := t.Gateway(o.dst.Port(), o.server, q.Authority)
	if vh == nil {
		d.fault = &noRoute
		return d
	}
	d.follow(t, o, vh, q, random)
	return d
}

// follow takes the virtual host's first route that matches.
func (d *decision) follow(t *table.Table, o *origin, vh *table.VirtualHost, q *route.Request, random uint64) {
	if vh.Service != nil {
		d.ends.Service = vh.Service.Service
	}
	r := vh.Routes.Match(q)
	if r == nil {
		d.fault = &noRoute
		return
	}
	d.route = r.Name
	if d.route == "" {
		d.route = "default"
	}
	// Who answers is known once an endpoint is chosen.
	d.ends.Destination = nil
	if len(r.Destinations) == 0 {
		d.handler = r.Handler
		return
	}
	to := r.Pick(random)
	d.handler = to.Handler
	d.port = to.Port
	if d.port == 0 {
		d.port = q.Port
	}
	if s := t.Service(to.Service); s != nil {
		d.ends.Service = s.Service
		d.protocol = s.Protocol(d.port)
	}
	d.cluster = t.ClusterAt(to.Service, to.Subset, d.port)
	if d.cluster == nil {
		d.name = upstream.ClusterName("outbound", d.port, to.Subset, to.Service)
		d.fault = &noCluster
		return
	}
	d.name = d.cluster.Name(d.port)
	d.asked, d.port = d.port, t.Service(to.Service).Target(d.port)
	switch {
	case d.cluster.Passthrough():
		d.passthrough(t, o, q)
	case len(d.cluster.Endpoints) == 0:
		d.fault = &noHealthyUpstream
	}
}

// passthrough goes to the very address that the client dialled. What a gateway's client dials is the gateway itself.
func (d *decision) passthrough(t *table.Table, o *origin, q *route.Request) {
	cluster := d.cluster
	d.cluster = nil
	if o.direction != exchange.Outbound {
		d.fault = &noHealthyUpstream
		return
	}
	d.endpoint, d.address, d.port = t.Direct(o.dst.Addr()), o.dst, o.dst.Port()
	if d.tls = cluster.ClientTLS(); d.tls != nil {
		d.endpoint, d.serverName = nil, cluster.ServerName(string(table.Hostname(nil, q.Authority)))
	}
}
