package upstream

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"

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

	state *endpointState // shared by all that stand for the same place
}

// endpointState survives a change of the routing table.
type endpointState struct {
	active atomic.Int64
	pools  portMap[*pool]
}

// NewEndpoint makes an endpoint. With old, which stands for the same place, it goes on with its connections and
// counters, and only the workload's description is new.
func NewEndpoint(w *snapshot.Workload, addr netip.Addr, identity string, old *Endpoint) *Endpoint {
	e := &Endpoint{Workload: w, Addr: addr, Identity: identity}
	if old != nil && old.Addr == addr && old.Identity == identity && slices.Equal(plainPorts(old.Workload), plainPorts(w)) {
		e.state = old.state
	} else {
		e.state = &endpointState{}
	}
	return e
}

func plainPorts(w *snapshot.Workload) []uint16 {
	if w == nil {
		return nil
	}
	return w.PlainPorts
}

// Active is how many requests are under way.
func (e *Endpoint) Active() int64 { return e.state.active.Load() }

// Begin counts a request; Done ends it.
func (e *Endpoint) Begin() { e.state.active.Add(1) }

// Done ends what Begin began.
func (e *Endpoint) Done() { e.state.active.Add(-1) }

// Target is the endpoint at a port.
func (e *Endpoint) Target(port uint16) Target {
	t := Target{Addr: netip.AddrPortFrom(e.Addr, port), Identity: e.Identity}
	if slices.Contains(plainPorts(e.Workload), port) {
		t.Identity = "" // its sidecar does not take this port
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
func (e *Endpoint) Open(ctx context.Context, tr *Transport, port uint16, r *http2.Request, last bool) (*Stream, error) {
	return e.pool(tr, port).open(ctx, r, last)
}

func (e *Endpoint) pool(tr *Transport, port uint16) *pool {
	m := &e.state.pools
	if p, ok := m.get(port); ok {
		return p
	}
	return m.add(port, &pool{transport: tr, target: e.Target(port)})
}
