package forward

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// server serves one client connection. Everything that an exchange needs lives here and is used again by the next.
type server struct {
	e      *Engine
	ctx    context.Context //nolint:containedctx // the connection's, as long as the server lives
	conn   net.Conn
	c      *exchange.Connection
	origin origin
	in     *http1.Reader

	state      atomic.Int32
	readUntil  time.Time // deadlines that are set, so as to set them seldom
	writeUntil time.Time
	plain      *upstream.Endpoint // of origin.dst

	// Of the current exchange.
	req    http1.Request
	resp   http1.Response
	f      filter.Exchange
	x      exchange.Exchange
	d      decision
	a      attempt
	id     [36]byte
	madeID bool
	pump   pump
	limits limits
	active atomic.Int64 // unix nanoseconds of the last body byte in either direction
}

// States of a connection, for Drain.
const (
	idle int32 = iota // waits for a request
	busy
)

func newServer(ctx context.Context, e *Engine, conn net.Conn, c *exchange.Connection) *server {
	limits := e.cfg.Limits
	if c.Peer != "" {
		limits = limits.Relayed()
	}
	s := &server{e: e, ctx: ctx, conn: conn, c: c, in: http1.NewReader(conn, limits)}
	s.origin = origin{
		direction: c.Direction,
		dst:       netip.AddrPortFrom(c.OriginalDst.Addr().Unmap(), c.OriginalDst.Port()),
		remote:    netip.AddrPortFrom(c.Remote.Addr().Unmap(), c.Remote.Port()),
		peer:      c.Peer,
	}
	if c.Direction == exchange.Inbound {
		s.origin.inbound = table.InboundCluster(s.origin.dst.Port())
	}
	s.pump.done = make(chan struct{}, 1)
	return s
}

// wake cuts a wait for a request short, since the engine drains.
func (s *server) wake() {
	if s.state.Load() == idle {
		_ = s.conn.SetReadDeadline(time.Now().Add(s.e.cfg.Timeouts.Drain))
	}
}

var past = time.Unix(1, 0)

// serve runs the exchanges of the connection.
func (s *server) serve() error {
	defer s.in.Release()
	for {
		f, err := s.await()
		switch {
		case err != nil:
			_ = s.conn.Close()
			return quiet(err)
		case f != nil:
			s.begin()
			s.answer(f, nil)
			s.record()
			s.linger()
			return nil
		}
		if !s.exchange() {
			return nil
		}
		if s.in.Buffered() == 0 {
			s.in.Idle()
		}
	}
}

// await waits for a request's head and parses it. A fault is the client's, to be answered; an error ends the
// connection without a word.
func (s *server) await() (*filter.Answer, error) {
	s.state.Store(idle)
	s.extendRead(time.Now(), s.e.cfg.Timeouts.Idle)
	// After the state and the deadline: Drain either finds us idle, or is seen here.
	if s.e.draining.Load() {
		s.extendRead(time.Now(), s.e.cfg.Timeouts.Drain)
	}
	head := false // its first byte has come, and its own deadline is set
	for {
		if s.in.Buffered() > 0 {
			err := s.in.ParseRequest(&s.req)
			if err == nil {
				s.state.Store(busy)
				return nil, nil
			}
			var broken *http1.Error
			if errors.As(err, &broken) {
				s.state.Store(busy)
				return clientProtocol(broken), nil
			}
			if !head && s.in.Buffered() > 0 {
				head = true
				s.state.Store(busy)
				s.readUntil = time.Time{}
				s.extendRead(time.Now(), s.e.cfg.Timeouts.Header)
			}
		}
		if err := s.in.Fill(); err != nil {
			if head && errors.Is(err, os.ErrDeadlineExceeded) {
				return &headTimeout, nil
			}
			return nil, err
		}
	}
}

// begin starts the record of an exchange whose head has been parsed, wholly or in part.
func (s *server) begin() {
	q := &s.req
	s.x = exchange.Exchange{
		Conn: s.c, Start: time.Now(), GRPCStatus: -1,
		Method: q.Method, Path: q.Path, Authority: q.Authority, Protocol: "HTTP/1.1",
	}
	if q.Minor == 0 {
		s.x.Protocol = "HTTP/1.0"
	}
	for i := range q.Header {
		f := &q.Header[i]
		switch f.Kind {
		case http1.UserAgent:
			s.x.UserAgent = f.Value
		case http1.RequestID:
			s.x.RequestID = f.Value
		case http1.ForwardedFor:
			if s.x.XForwardedFor != nil {
				// Several fields are one list (RFC 9110 section 5.3).
				s.x.XForwardedFor = slices.Concat(s.x.XForwardedFor, []byte(", "), f.Value)
				continue
			}
			s.x.XForwardedFor = f.Value
		case http1.ContentType:
			s.x.GRPC = len(f.Value) >= 16 && string(f.Value[:16]) == "application/grpc"
		}
	}
	s.madeID = s.x.RequestID == nil || s.origin.direction == exchange.Gateway
	if s.madeID {
		s.x.RequestID = requestID(&s.id)
	}
	s.f.Reset(&s.x, &s.a)
	s.f.Request = filter.Request{
		Method: q.Method, Path: q.Path, Authority: q.Authority, Scheme: s.scheme(), Header: q.Header, Port: s.origin.dst.Port(),
		Source: s.origin.remote.Addr(),
	}
}

func (s *server) record() {
	s.x.Duration = time.Since(s.x.Start)
	s.e.cfg.Recorder.Exchange(&s.x)
}

// exchange carries one request, whose head has been parsed, and its response. It reports whether the connection goes
// on; if not, it has closed it.
func (s *server) exchange() bool {
	s.begin()
	t := s.e.cfg.Table()
	s.d = decide(t, &s.origin, &s.f.Request, rand.Uint64())
	d := &s.d
	s.x.Route, s.x.Ends, s.x.Upstream.Cluster = d.route, d.ends, d.name
	s.pump.reset()
	s.limits.reset()
	buf := http1.GetBuffer()
	s.a = attempt{s: s, t: t, d: d, buf: buf}
	end := s.a.run()
	s.record()
	http1.PutBuffer(buf)
	switch end {
	case goOn:
		return true
	case lingering:
		s.linger()
	case aborted:
		listen.Reset(s.conn)
	default:
		_ = s.conn.Close()
	}
	return false
}

// outcome is what becomes of the client's connection after an exchange.
type outcome uint8

const (
	ended     outcome = iota // close it
	goOn                     // the next request
	lingering                // close it so that an answer survives what the client still sends
	aborted                  // close it so that the client can't take it for a clean end
)

func (s *server) mayKeep() bool { return s.req.KeepAlive && !s.e.draining.Load() }

// write sends to the client.
func (s *server) write(b []byte) error {
	s.extendWrite(time.Now())
	_, err := s.conn.Write(b)
	return err
}

// extendRead moves the deadline of reading from the client, unless the one that is set will do: within a tenth of what
// is wanted.
func (s *server) extendRead(now time.Time, d time.Duration) {
	if want := now.Add(d); s.readUntil.Before(want.Add(-d/10)) || s.readUntil.After(want) {
		s.readUntil = want
		_ = s.conn.SetReadDeadline(want)
	}
}

func (s *server) extendWrite(now time.Time) {
	d := s.e.cfg.Timeouts.StreamIdle
	if want := now.Add(d); s.writeUntil.Before(want.Add(-d / 10)) {
		s.writeUntil = want
		_ = s.conn.SetWriteDeadline(want)
	}
}

// lingerTime and lingerBytes bound how long what a refused client still sends is thrown away. Closing at once would
// make the kernel reset the connection, and the client could lose the answer it has not read yet.
const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

func (s *server) linger() {
	defer func() { _ = s.conn.Close() }()
	if closeWrite(s.conn) != nil || s.conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	buf := http1.GetBuffer()
	defer http1.PutBuffer(buf)
	for total := 0; total < lingerBytes; {
		n, err := s.conn.Read(buf[:])
		if total += n; err != nil {
			return
		}
	}
}

func closeWrite(conn net.Conn) error {
	if c, ok := conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// quiet hides the errors with which connections end every day.
func quiet(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || isReset(err) {
		return nil
	}
	return err
}
