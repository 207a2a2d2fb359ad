package table

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Session is where the bytes of a connection go.
type Session struct {
	Target  upstream.Target
	Cluster string
	Ends    exchange.Ends
	// Endpoint counts the connections to a workload of the mesh; nil for what is outside.
	Endpoint *upstream.Endpoint
	// Flag says why there is no way: FlagNoCluster or FlagNoHealthyUpstream; empty where there is one.
	Flag exchange.Flag

	passthrough bool // to the address that was dialled
}

// streamRoute is a TCPRoute, or a TLSRoute if it has server names.
type streamRoute struct {
	*snapshot.TCPRoute
	names   []string
	subnets []netip.Prefix
	weights route.Weights // of Destinations
}

// streams are routes of bytes.
type streams struct {
	routes []streamRoute // those of TLS first
	tls    bool          // there are such
}

// compileStreams makes streams of the routes of a snapshot or of a gateway's port.
func compileStreams(tls []snapshot.TLSRoute, tcp []snapshot.TCPRoute) (streams, error) {
	out := streams{tls: len(tls) > 0}
	var errs []error
	add := func(object string, s *snapshot.TCPRoute, names []string) {
		r, err := compileStream(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s (%s): %w", object, s.Resource, err))
		}
		r.names = names
		out.routes = append(out.routes, r)
	}
	for i := range tls {
		object := fmt.Sprintf("tlsRoutes[%d]", i)
		if len(tls[i].ServerNames) == 0 {
			errs = append(errs, fmt.Errorf("%s (%s): serverNames: it needs one", object, tls[i].Resource))
		}
		add(object, &tls[i].TCPRoute, tls[i].ServerNames)
	}
	for i := range tcp {
		add(fmt.Sprintf("tcpRoutes[%d]", i), &tcp[i], nil)
	}
	return out, errors.Join(errs...)
}

func compileStream(s *snapshot.TCPRoute) (streamRoute, error) {
	r := streamRoute{TCPRoute: s}
	var errs []error
	for i, text := range s.Subnets {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(text); err == nil {
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("subnets[%d]: %q is neither an address nor a CIDR", i, text))
		}
		r.subnets = append(r.subnets, p)
	}
	for i := range s.Destinations {
		r.weights.Add(s.Destinations[i].Weight)
	}
	if r.weights.None() {
		errs = append(errs, errors.New("destinations: no one has a weight above 0"))
	}
	return r, errors.Join(errs...)
}

// match is the first route for a connection, or nil. The server name is empty for what is not TLS or names none; w is the
// workload at dst.
func (s *streams) match(dst netip.AddrPort, w *Workload, t *Table, tls bool, serverName string) *streamRoute {
	for i := range s.routes {
		r := &s.routes[i]
		switch {
		case r.Port != 0 && r.Port != dst.Port():
		case r.names != nil && (!tls || !r.named(serverName)):
		case r.Service != "" && !t.answers(w, r.Service):
		case len(r.subnets) > 0 && !r.holds(dst.Addr().Unmap()):
		default:
			return r
		}
	}
	return nil
}

func (r *streamRoute) named(serverName string) bool {
	return nameRank(r.names, strings.ToLower(serverName)) > unnamed
}

// Ranks of nameRank; between them are the lengths of the suffixes of wildcards.
const (
	unnamed   = -1
	exactName = 1 << 16
)

// nameRank says how precisely names, which may be wildcards, have a server name in lower case.
func nameRank(names []string, serverName string) int {
	rank := unnamed
	for _, n := range names {
		suffix, wild := strings.CutPrefix(n, "*")
		switch {
		case n == serverName:
			return exactName
		case wild && len(serverName) >= len(suffix) && strings.HasSuffix(serverName, suffix):
			rank = max(rank, len(suffix))
		}
	}
	return rank
}

func (r *streamRoute) holds(ip netip.Addr) bool {
	for _, p := range r.subnets {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// answers reports whether a workload is one of a service.
func (t *Table) answers(w *Workload, service string) bool {
	s := t.services[service]
	return w != nil && s != nil && s.members[w.Name]
}

// RoutesTLS reports whether the server name of a TLS connection that leaves the application matters.
func (t *Table) RoutesTLS() bool { return t.streams.tls }

// Session says where the bytes of an outbound connection to dst go: where a route says, else to the very address with the
// identity of the workload there, under Istio's name for the cluster. tls says that it is TLS, which names serverName.
// random chooses among weighted destinations.
func (t *Table) Session(dst netip.AddrPort, tls bool, serverName string, random uint64) Session {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	w := t.Workload(dst.Addr())
	if r := t.streams.match(dst, w, t, tls, serverName); r != nil {
		return t.follow(r, dst, random)
	}
	if IsVirtual(dst.Addr()) {
		return t.virtualSession(dst, random)
	}
	out := Session{Target: upstream.Target{Addr: dst}, Cluster: PassthroughCluster}
	out.Ends.Source = t.source()
	if t.BlackHole(w) {
		out.Cluster, out.Flag = BlackHoleCluster, exchange.FlagNoHealthyUpstream
		return out
	}
	if w == nil {
		return out
	}
	out.Ends.Destination = w.Workload
	out.Endpoint = w.endpoints[dst.Addr()]
	out.Target = out.Endpoint.Target(dst.Port())
	if s := w.Canonical; s != nil {
		out.Ends.Service = s.Service
		c := s.at("", dst.Port())
		out.Cluster = c.Name(dst.Port())
		if e := c.Member(dst.Addr()); e != nil {
			out.Endpoint, out.Target = e, e.Target(dst.Port()) // as the service's policy wants it
		}
	}
	return out
}

// virtualSession is that to a service by its virtual address: nothing else is there.
func (t *Table) virtualSession(dst netip.AddrPort, random uint64) Session {
	if vh := t.virtual[dst.Addr()]; vh != nil && vh.Service != nil {
		s := t.follow(&streamRoute{
			TCPRoute: &snapshot.TCPRoute{Destinations: []snapshot.Destination{{Service: vh.Service.Host}}}, weights: one,
		}, dst, random)
		if s.passthrough {
			s.Flag = exchange.FlagNoHealthyUpstream
		}
		return s
	}
	out := Session{Target: upstream.Target{Addr: dst}, Cluster: BlackHoleCluster, Flag: exchange.FlagNoRoute}
	out.Ends.Source = t.source()
	return out
}

// one are the weights of a single destination.
var one = func() (w route.Weights) {
	w.Add(1)
	return w
}()

// StreamRoute is the route that Session follows, nil for none: for explain.
func (t *Table) StreamRoute(dst netip.AddrPort, tls bool, serverName string) *snapshot.TCPRoute {
	if r := t.streams.match(dst, t.Workload(dst.Addr()), t, tls, serverName); r != nil {
		return r.TCPRoute
	}
	return nil
}

// GatewayStreamRoute is the route that GatewaySession follows, nil for none: for explain.
func (t *Table) GatewayStreamRoute(dst netip.AddrPort, tls bool, serverName string) *snapshot.TCPRoute {
	g := t.gateways[dst.Port()]
	if g == nil {
		return nil
	}
	if r := g.streams.match(dst, nil, t, tls, serverName); r != nil {
		return r.TCPRoute
	}
	return nil
}

// GatewaySession says where the bytes of a connection to a gateway's port go; false where no route takes it. server is the
// name of the server that has ended its TLS, empty for none.
func (t *Table) GatewaySession(dst netip.AddrPort, server string, tls bool, serverName string, random uint64) (Session, bool) {
	g := t.gateways[dst.Port()]
	if g == nil {
		return Session{}, false
	}
	from := &g.streams
	if server != "" {
		s := g.tlsServers[server]
		if s == nil {
			return Session{}, false
		}
		from = &s.streams
	}
	r := from.match(dst, nil, t, tls, serverName)
	if r == nil {
		return Session{}, false
	}
	s := t.follow(r, dst, random)
	if s.passthrough {
		s.Flag = exchange.FlagNoHealthyUpstream // what a gateway's client dials is the gateway itself
	}
	return s, true
}

func (t *Table) follow(r *streamRoute, dst netip.AddrPort, random uint64) Session {
	to, port := &r.Destinations[r.weights.Pick(random)], dst.Port()
	if to.Port != 0 {
		port = to.Port
	}
	out := Session{Cluster: upstream.ClusterName("outbound", port, to.Subset, to.Service)}
	out.Ends.Source = t.source()
	if s := t.services[to.Service]; s != nil {
		out.Ends.Service = s.Service
	}
	c := t.ClusterAt(to.Service, to.Subset, port)
	if c == nil {
		out.Flag = exchange.FlagNoCluster
		return out
	}
	out.Cluster = c.Name(port)
	if c.Passthrough() {
		out.passthrough, out.Target = true, upstream.Target{Addr: netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), TLS: c.ClientTLS(), ServerName: c.ServerName("")}
		return out
	}
	e := c.Pick(nil)
	if e == nil {
		out.Flag = exchange.FlagNoHealthyUpstream
		return out
	}
	out.Ends.Destination = e.Workload
	out.Endpoint, out.Target = e, e.Target(t.services[to.Service].Target(port))
	return out
}

func (t *Table) source() *snapshot.Workload {
	if t.self == nil {
		return nil
	}
	return t.self.Workload
}
