// Package tcp passes connections as bytes: it dials where a target says, moves bytes both ways until both sides
// are done, and records the session.
package tcp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Target is where a session goes: decided before anything is dialled.
type Target struct {
	upstream.Target
	Cluster string
	Ends    exchange.Ends
	// Load is told of each connection to the target, for balancing and for bounds; nil if nobody counts.
	Load Load
	// Flag says why there is nothing to dial; empty where there is.
	Flag exchange.Flag
	// Refused says why the client may not; empty where it may.
	Refused string
}

// Load counts what is under way.
type Load interface {
	// Begin counts a connection that is to be opened, until Done. It reports false where there are too many.
	Begin() bool
	Done()
}

// Config is what a Handler needs.
type Config struct {
	// Dial connects to a target, in bounded time: with mutual TLS where it has an identity.
	Dial func(ctx context.Context, to Target) (net.Conn, error)
	// Recorder is told of each session that was opened or whose dial failed.
	Recorder exchange.Recorder
	// IdleTimeout closes a session on which neither side has sent for so long; default 1 h, Envoy's idle_timeout.
	IdleTimeout time.Duration
}

// Handler opens sessions.
type Handler struct {
	cfg Config

	mu       sync.Mutex // taken at the beginning and end of a session only
	sessions map[*Session]struct{}
	quiet    time.Duration // what Drain allows at most; 0 before
}

// New returns a handler without sessions.
func New(cfg Config) *Handler {
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = time.Hour
	}
	return &Handler{cfg: cfg, sessions: map[*Session]struct{}{}}
}

// Session is a connected pair of sides that nothing has been sent on yet.
type Session struct {
	handler  *Handler
	client   *listen.Conn
	upstream *listen.Conn
	record   exchange.Session
	load     Load
	idle     *time.Timer
	probed   bool          // the kernel probes whether the upstream is still there
	limit    time.Duration // of silence, by the target's settings; 0 is the handler's
	ended    atomic.Int32  // directions
}

// Connect dials a target for a client. A failure is recorded; then the client is to be reset.
func (h *Handler) Connect(ctx context.Context, client *listen.Conn, conn *exchange.Connection, to Target) (*Session, error) {
	s := &Session{handler: h, client: client}
	s.record = exchange.Session{Conn: conn, Start: time.Now(), Ends: to.Ends}
	s.record.Upstream = exchange.Upstream{Cluster: to.Cluster, Remote: to.Addr, TLS: to.Identity != ""}
	if to.NamesClients() {
		ctx = upstream.For(ctx, conn.Downstream(), conn.OriginalDst)
	}
	if to.Settings != nil {
		s.probed = to.Settings.KeepAlive != nil
		s.limit = time.Duration(to.Settings.SessionIdle)
	}
	up, err := h.dial(ctx, to, &s.record)
	if err != nil {
		s.record.Duration = time.Since(s.record.Start)
		h.cfg.Recorder.SessionOpened(&s.record)
		h.cfg.Recorder.SessionClosed(&s.record)
		return nil, err
	}
	s.load = to.Load
	s.upstream = listen.NewConn(up)
	s.record.Upstream.Local = listen.AddrPort(up.LocalAddr())
	return s, nil
}

// dial opens the connection, or says in the record why not.
func (h *Handler) dial(ctx context.Context, to Target, record *exchange.Session) (net.Conn, error) {
	if to.Refused != "" {
		record.Details = to.Refused
		return nil, fmt.Errorf("the client may not: %s", to.Refused)
	}
	switch to.Flag {
	case exchange.FlagNone:
	case exchange.FlagNoRoute:
		record.Flag, record.Details = to.Flag, "route_not_found"
		return nil, errors.New("no route takes it")
	case exchange.FlagNoCluster:
		record.Flag, record.Details = to.Flag, "cluster_not_found"
		return nil, fmt.Errorf("%s is not known", to.Cluster)
	default:
		record.Flag, record.Details = to.Flag, "no_healthy_upstream"
		return nil, fmt.Errorf("%s has no endpoint", to.Cluster)
	}
	if to.Load != nil && !to.Load.Begin() {
		record.Flag, record.Details = exchange.FlagUpstreamOverflow, "upstream_overflow"
		return nil, fmt.Errorf("%s: %w", to.Cluster, upstream.ErrOverflow)
	}
	up, err := h.cfg.Dial(ctx, to)
	if err != nil {
		if to.Load != nil {
			to.Load.Done()
		}
		record.Flag, record.Details, record.Upstream.Failure = exchange.FlagUpstreamConnect, "upstream_connect_failure", err.Error()
		return nil, err
	}
	return up, nil
}

// Abandon drops a session that was opened in vain; it leaves no record.
func (s *Session) Abandon() {
	s.done()
	listen.Reset(s.upstream)
}

// done says that the target has one connection less.
func (s *Session) done() {
	if s.load != nil {
		s.load.Done()
	}
}

// ServerSpokeFirst waits until a side sends something, and reports whether it was the server alone. What was sent stays
// buffered. The end of a stream counts as sending. Where both stay silent for limit, the error is
// os.ErrDeadlineExceeded; 0 is the idle timeout.
func (s *Session) ServerSpokeFirst(limit time.Duration) (bool, error) {
	if limit == 0 {
		limit = cmp.Or(s.limit, s.handler.cfg.IdleTimeout)
	}
	until := time.Now().Add(limit)
	if err := errors.Join(s.client.SetReadDeadline(until), s.upstream.SetReadDeadline(until)); err != nil {
		return false, err
	}
	server := make(chan error, 1)
	go func() {
		err := s.upstream.Fill()
		listen.Interrupt(s.client) // before the result: nobody interrupts it after the deadline is taken off
		server <- err
	}()
	clientErr := s.client.Fill()
	listen.Interrupt(s.upstream)
	serverErr := <-server
	err := errors.Join(s.client.SetReadDeadline(time.Time{}), s.upstream.SetReadDeadline(time.Time{}))
	if err == nil && isTimeout(clientErr) && arrived(s.client) {
		clientErr = s.client.Fill() // it spoke, too, and the server was only heard first
	}
	switch {
	case err != nil:
		return false, err
	case len(s.client.Buffered()) > 0:
		return false, nil // also where the server spoke at the same time
	case !isTimeout(serverErr):
		return true, nil
	case isTimeout(clientErr):
		return false, clientErr
	}
	return false, nil
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Run moves bytes until both directions have ended, then closes both sides and records the session.
func (s *Session) Run() {
	h := s.handler
	h.cfg.Recorder.SessionOpened(&s.record)
	h.add(s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.record.BytesSent = s.pipe(s.client, s.upstream)
	}()
	s.record.BytesReceived = s.pipe(s.upstream, s.client)
	<-done
	h.remove(s)
	s.done()
	s.record.Duration = time.Since(s.record.Start)
	h.cfg.Recorder.SessionClosed(&s.record)
	_ = s.client.Close() // both directions have ended
	_ = s.upstream.Close()
}

// pipe moves one direction and passes its end on: FIN for FIN, RST for anything worse. After the second both sides are
// closed anyway.
func (s *Session) pipe(dst, src *listen.Conn) int64 {
	n, err := move(dst, src)
	if err == nil && s.ended.Add(1) == 1 {
		// Where the other direction was writing and heard of a reset, this one reads an end.
		if listen.WasReset(src) {
			err = syscall.ECONNRESET
		} else {
			err = dst.CloseWrite()
		}
	}
	if err != nil {
		// A copy's error does not say which side it came from; the kernel knows which of the two was reset.
		culprit := src
		if listen.WasReset(dst) {
			culprit = dst
		}
		s.fail(culprit, err)
		listen.Reset(src) // the first: where dst broke, the other direction must not tell src of an end
		listen.Reset(dst)
	}
	return n
}

// fail notes the first failure for the access log: those after it are its echo.
func (s *Session) fail(by *listen.Conn, err error) {
	s.handler.mu.Lock()
	defer s.handler.mu.Unlock()
	switch {
	case s.record.Details != "":
	case by == s.client:
		s.record.Flag, s.record.Details = exchange.FlagDownstreamTermination, "downstream_reset"
	default:
		s.record.Flag, s.record.Details = exchange.FlagUpstreamTermination, "upstream_reset"
		s.record.Upstream.Failure = err.Error()
	}
}

// probeAfter is when the kernel begins to probe the upstream of a session. The application's own keep-alive ends here, so
// a server that is gone is to be noticed for it; most sessions are over by then and do without.
const probeAfter = 15 * time.Second

func (h *Handler) add(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sessions[s] = struct{}{}
	s.idle = time.AfterFunc(min(h.mayBeSilent(s), probeAfter), func() { h.expire(s) })
}

func (h *Handler) remove(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sessions, s)
	s.idle.Stop()
}

// expire closes s if neither side has sent for the idle timeout, else it looks again when that can be so. The
// kernel keeps the time of the last data, so that spliced bytes need no attention of ours.
func (h *Handler) expire(s *Session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, open := h.sessions[s]; !open {
		return
	}
	if !s.probed {
		s.probed = true
		probe(s.upstream)
	}
	quiet := min(lastReceived(s.client), lastReceived(s.upstream))
	if limit := h.mayBeSilent(s); quiet < limit {
		s.idle.Reset(limit - quiet)
		return
	}
	s.record.Details = "idle_timeout"
	_ = s.client.Close() // wakes both directions
	_ = s.upstream.Close()
}

// mayBeSilent is how long neither side of s need send; h.mu is held.
func (h *Handler) mayBeSilent(s *Session) time.Duration {
	limit := cmp.Or(s.limit, h.cfg.IdleTimeout)
	if h.quiet > 0 {
		return min(limit, h.quiet)
	}
	return limit
}

// Drain makes sessions end soon: whichever has been quiet on both sides for the given time is closed.
func (h *Handler) Drain(quiet time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.quiet = quiet
	for s := range h.sessions {
		s.idle.Reset(0)
	}
}

// Active is the number of sessions.
func (h *Handler) Active() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}
