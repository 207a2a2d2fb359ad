package upstream

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http2"
)

// Endpoint is one workload as a place to send to, at any of its ports.
type Endpoint struct {
	// Workload is nil for a destination that is none of the mesh's.
	Workload *snapshot.Workload
	Addr     netip.Addr
	// Identity is what the peer must prove; empty for plain text.
	Identity string

	group int // of a preference; 0 without

	place *snapshot.Place // nil where it is the workload and no more

	state *endpointState // shared by all that stand for the same place

	// Of the cluster's policy; nil without.
	settings    *snapshot.Connections
	limits      *limits
	detector    *detector
	tls         *snapshot.ClientTLS
	serverName  string
	unreachable error // it can't be dialled as the policy wants
	mutual      bool  // the policy wants mutual TLS, whatever the endpoint's own mode
}

var errNoIdentity = errors.New("the destination's policy wants mutual tls, and the endpoint has no proxy to speak it")

// endpointState survives a change of the routing table.
type endpointState struct {
	active atomic.Int64
	pools  portMap[*pool]
	health health
	born   time.Time // when it came to others; zero for one that was there from the start
}

// NewEndpoint makes an endpoint. With old, which stands for the same place, it goes on with its connections and
// counters, and only the workload's description is new.
func NewEndpoint(w *snapshot.Workload, addr netip.Addr, identity string, old *Endpoint) *Endpoint {
	e := &Endpoint{Workload: w, Addr: addr, Identity: identity}
	if old != nil && old.samePlace(e) {
		e.state = old.state
	} else {
		e.state = &endpointState{}
	}
	return e
}

// NewPlace makes an endpoint that is more than a workload: a cluster gives it a state.
func NewPlace(w *snapshot.Workload, addr netip.Addr, identity string, p *snapshot.Place) *Endpoint {
	return &Endpoint{Workload: w, Addr: addr, Identity: identity, place: p}
}

// portFor is the port of the endpoint for one of its service.
func (e *Endpoint) portFor(port uint16) uint16 {
	if e.place != nil {
		for _, p := range e.place.Ports {
			if p.Number == port {
				return p.Target
			}
		}
	}
	return port
}

// weight is the endpoint's share of the requests, as against those of others.
func (e *Endpoint) weight() uint64 {
	if e.place == nil || e.place.Weight == 0 {
		return 1
	}
	return uint64(e.place.Weight)
}

func samePorts(a, b *snapshot.Place) bool {
	var of, with []snapshot.PlacePort
	if a != nil {
		of = a.Ports
	}
	if b != nil {
		with = b.Ports
	}
	return slices.Equal(of, with)
}

func (e *Endpoint) samePlace(other *Endpoint) bool {
	return e.Addr == other.Addr && e.Identity == other.Identity && e.mutual == other.mutual && samePorts(e.place, other.place) &&
		slices.Equal(plainPorts(e.Workload), plainPorts(other.Workload)) && sameModes(e.Workload, other.Workload)
}

func sameModes(a, b *snapshot.Workload) bool {
	if a == nil || b == nil || a.TLS == nil || b.TLS == nil {
		return (a == nil || a.TLS == nil) == (b == nil || b.TLS == nil)
	}
	return a.TLS.Mode == b.TLS.Mode && slices.Equal(a.TLS.Ports, b.TLS.Ports)
}

// plainAt reports whether a port is dialled in plain text though the endpoint has a proxy: it does not take the port, or it
// takes no mutual TLS there.
func (e *Endpoint) plainAt(port uint16) bool {
	if slices.Contains(plainPorts(e.Workload), port) {
		return true
	}
	if e.mutual || e.Workload == nil || e.Workload.TLS == nil {
		return false
	}
	mode, _ := e.Workload.TLS.At(port)
	return mode == snapshot.Disable
}

func plainPorts(w *snapshot.Workload) []uint16 {
	if w == nil {
		return nil
	}
	return w.PlainPorts
}

// Active is how many requests are under way.
func (e *Endpoint) Active() int64 { return e.state.active.Load() }

// Begin counts a request, which Done ends. It reports false, and counts nothing, where the cluster has too many.
func (e *Endpoint) Begin() bool {
	if e.limits != nil && !e.limits.begin() {
		return false
	}
	e.state.active.Add(1)
	return true
}

// Done ends what Begin began.
func (e *Endpoint) Done() {
	e.state.active.Add(-1)
	if e.limits != nil {
		e.limits.end()
	}
}

// Sessions counts connections that carry bytes, where the endpoint itself counts requests.
func (e *Endpoint) Sessions() *Sessions { return (*Sessions)(e) }

// Sessions is an endpoint that counts connections.
type Sessions Endpoint

// Begin counts a connection, which Done ends. It reports false, and counts nothing, where the cluster has too many.
func (s *Sessions) Begin() bool {
	if s.limits != nil && !s.limits.tryConnection() {
		return false
	}
	s.state.active.Add(1)
	return true
}

// Done ends what Begin began.
func (s *Sessions) Done() {
	s.state.active.Add(-1)
	if s.limits != nil {
		s.limits.release()
	}
}

// warm is the share of requests that e is to get of those of a warm endpoint
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start).
func (e *Endpoint) warm(w *snapshot.Warmup, now time.Time) float64 {
	const defaultMinimum = 10
	age := now.Sub(e.state.born)
	if e.state.born.IsZero() || age >= time.Duration(w.Duration) {
		return 1
	}
	share := math.Pow(float64(age)/float64(w.Duration), 1/cmp.Or(w.Aggression, 1))
	return max(share, cmp.Or(w.MinimumPercent, defaultMinimum)/100)
}

// Target is the endpoint at a port of its service.
func (e *Endpoint) Target(port uint16) Target {
	port = e.portFor(port)
	t := Target{Addr: netip.AddrPortFrom(e.Addr, port), Identity: e.Identity, Settings: e.settings, TLS: e.tls, ServerName: e.serverName, Unreachable: e.unreachable}
	if e.plainAt(port) {
		t.Identity = ""
	}
	return t
}

// Idle yields a connection for one HTTP/1 exchange that has carried others, or nil if there is none.
func (e *Endpoint) Idle(tr *Transport, port uint16) *Conn { return e.pool(tr, port).take() }

// Dial opens a connection for HTTP/1 exchanges.
func (e *Endpoint) Dial(ctx context.Context, tr *Transport, port uint16) (*Conn, error) {
	return e.pool(tr, port).dial(ctx)
}

// Get is Idle, or else Dial.
func (e *Endpoint) Get(ctx context.Context, tr *Transport, port uint16) (*Conn, error) {
	if c := e.Idle(tr, port); c != nil {
		return c, nil
	}
	return e.Dial(ctx, tr, port)
}

// Open begins an HTTP/2 stream with a request's head, with last also ends the request. It waits for a connection where
// there is none, and fails where one can't be opened.
func (e *Endpoint) Open(ctx context.Context, tr *Transport, port uint16, r *http2.Request, last bool) (Stream, error) {
	return e.pool(tr, port).open(ctx, r, last)
}

func (e *Endpoint) pool(tr *Transport, port uint16) *pool {
	m := &e.state.pools
	if p, ok := m.get(port); ok {
		return p
	}
	return m.add(port, &pool{transport: tr, target: e.Target(port), bounds: e.limits})
}
