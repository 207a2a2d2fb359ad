// Package forward carries HTTP exchanges from a client's connection to an upstream and back. For each exchange it
// loads the routing table once, decides once (decide.go, a pure function), and then does what was decided.
package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Timeouts of an Engine. Zero means the default.
type Timeouts struct {
	// Header is how long a request's head may take from its first byte on; default 10 s.
	Header time.Duration
	// Idle is how long a client's connection may wait for its next request; default 1 h, as Envoy's.
	Idle time.Duration
	// StreamIdle is how long an exchange may go without a byte in either direction; default 5 min, as Envoy's.
	StreamIdle time.Duration
}

// Config configures an Engine. All fields but Limits and Timeouts are required.
type Config struct {
	// Table yields the table in force, never nil.
	Table     func() *table.Table
	Transport *upstream.Transport
	Recorder  exchange.Recorder
	Log       *slog.Logger
	Limits    http1.Limits
	Timeouts  Timeouts
}

// Engine serves HTTP connections.
type Engine struct {
	cfg Config
}

// New makes an Engine.
func New(cfg Config) *Engine { return &Engine{cfg: cfg} }

// ServeHTTP1 serves the requests of one client connection, one after the other, until either side ends it, ctx is
// cancelled or the engine drains. It closes conn. The error is nil where the connection ended as connections do.
func (e *Engine) ServeHTTP1(ctx context.Context, conn net.Conn, c *exchange.Connection) error {
	return errors.New("not yet")
}

// Drain ends every connection that waits for a request, and the others after the exchange they are in.
func (e *Engine) Drain() {}
