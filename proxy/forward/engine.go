// Package forward carries HTTP exchanges from a client's connection to an upstream and back. For each exchange it
// loads the routing table once, decides once (decide.go, a pure function), and then does what was decided.
//
// An exchange is the same whatever it came as and goes out as: a server serves it and an attempt sends it, which know of
// versions only a client (client.go: http1.go, http2.go) and a link (link.go), and of bodies only a source.
package forward

import (
	"context"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/mixer"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Timeouts of an Engine. Zero means the default.
type Timeouts struct {
	// First is how long a client's connection of HTTP/1 may wait for its first request; default 1 min. One of HTTP/2 has
	// Header for its preface.
	First time.Duration
	// Header is how long a request's head may take from its first byte on; default 10 s.
	Header time.Duration
	// Idle is how long it may wait for the next one; default 1 h, as Envoy's.
	Idle time.Duration
	// StreamIdle is how long an exchange may go without a byte in either direction; default 5 min, as Envoy's.
	StreamIdle time.Duration
	// Drain is how long a connection without a request may still bring one once the engine drains; default 1 s. Closed
	// at once, it would meet the request of a client that has just sent one and may not send it again.
	Drain time.Duration
	// Comeback is for how long requests wait for a destination whose last endpoint has gone; default 3 s.
	Comeback time.Duration
}

// Config configures an Engine. All fields but Limits, Timeouts and HTTP2 are required.
type Config struct {
	// Table yields the table in force, never nil.
	Table     func() *table.Table
	Transport *upstream.Transport
	Recorder  exchange.Recorder
	// Collector takes what the rules of Mixer write down.
	Collector *mixer.Collector
	Log       *slog.Logger
	// Limits bound the heads of requests, of either version.
	Limits   http1.Limits
	Timeouts Timeouts
	// HTTP2 configures connections of HTTP/2, except for Limits and Timeouts.
	HTTP2 http2.Config
}

// Engine serves HTTP connections.
type Engine struct {
	cfg      Config
	draining atomic.Bool
	shadows  chan struct{} // a token for each copy under way

	mu    sync.Mutex // taken as a connection opens and closes, not by exchanges
	conns map[waker]struct{}
}

// waker is a client's connection.
type waker interface {
	// wake tells it that the engine drains.
	wake()
}

// New makes an Engine.
func New(cfg Config) *Engine {
	t := &cfg.Timeouts
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&t.First, time.Minute}, {&t.Header, 10 * time.Second}, {&t.Idle, time.Hour}, {&t.StreamIdle, 5 * time.Minute}, {&t.Drain, time.Second}, {&t.Comeback, 3 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
	return &Engine{cfg: cfg, conns: map[waker]struct{}{}, shadows: make(chan struct{}, maxMirrors)}
}

// ServeHTTP1 serves the requests of one client connection, one after the other, until either side ends it, ctx is
// cancelled or the engine drains. It closes conn. The error says what ended a connection that did not end as
// connections do; exchanges are told of in the record, not here.
func (e *Engine) ServeHTTP1(ctx context.Context, conn net.Conn, c *exchange.Connection) error {
	k := newClient1(ctx, e, conn, c)
	defer e.rescue(&k.server)
	e.add(k)
	defer e.remove(k)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	return k.serve()
}

// ServeHTTP2 is ServeHTTP1 for HTTP/2: conn begins with the client's preface, and each stream carries one exchange.
func (e *Engine) ServeHTTP2(ctx context.Context, conn net.Conn, c *exchange.Connection) error {
	k := newConn2(ctx, e, conn, c)
	e.add(k)
	defer e.remove(k)
	if e.draining.Load() {
		k.wake() // Drain either finds us in the list, or is seen here
	}
	return quiet(k.http2.Serve(ctx))
}

// rescue ends an exchange that broke an invariant of ours, with the connection or the stream it is on, and no other.
func (e *Engine) rescue(s *server) {
	if r := recover(); r != nil {
		e.cfg.Log.Error("panic in an http exchange", "remote", s.origin.remote, "original_destination", s.origin.dst, "panic", r, "stack", string(debug.Stack()))
		s.client.abort()
	}
}

func (e *Engine) add(k waker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.conns[k] = struct{}{}
}

func (e *Engine) remove(k waker) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.conns, k)
}

// Connections is how many are served.
func (e *Engine) Connections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.conns)
}

// Drain ends every connection after the exchange it is in or the next one, whose response says Connection: close, and
// those that bring no request any more after Timeouts.Drain. It returns at once.
func (e *Engine) Drain() {
	e.draining.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	for k := range e.conns {
		k.wake()
	}
}
