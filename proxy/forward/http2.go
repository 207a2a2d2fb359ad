package forward

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// conn2 is a client's connection of HTTP/2.
type conn2 struct {
	e      *Engine
	ctx    context.Context //nolint:containedctx // the connection's, as long as it is served
	c      *exchange.Connection
	origin *origin
	plain  *upstream.Endpoint // of origin.dst, for all streams
	http2  *http2.ServerConn
}

func newConn2(ctx context.Context, e *Engine, conn net.Conn, c *exchange.Connection) *conn2 {
	k := &conn2{e: e, ctx: ctx, c: c, origin: originOf(c)}
	k.origin.http2 = true
	k.plain = e.cfg.Transport.Plain(k.origin.dst)
	cfg := e.cfg.HTTP2
	cfg.Limits = e.cfg.Limits
	if c.Peer != "" {
		cfg.Limits = cfg.Limits.Relayed()
	}
	t := e.cfg.Timeouts
	cfg.Timeouts.Header, cfg.Timeouts.Idle = t.Header, t.Idle
	// Later than what waits for the upstream: that has an answer to give.
	cfg.Timeouts.StreamIdle = t.StreamIdle + max(t.StreamIdle/4, 5*time.Second)
	k.http2 = http2.NewServerConn(conn, cfg, k.serve)
	return k
}

func (k *conn2) wake() { k.http2.Drain() }

// clients keeps what one stream needs for the next.
var clients = sync.Pool{New: func() any {
	c := &client2{leaves: make(chan struct{}, 1), told: make(chan struct{}, 1)}
	c.onReset = c.reset
	return c
}}

// serve carries the exchange of one stream.
func (k *conn2) serve(st *http2.ServerStream) {
	c := clients.Get().(*client2)
	c.ServerStream, c.n, c.ended, c.flushed, c.code = st, 0, false, false, http2.InternalError
	c.way.Store(nil)
	defer k.e.rescue(&c.server)
	c.init(k.ctx, k.e, k.c, k.origin, c)
	c.plain = k.plain
	c.req, c.scheme = st.Request.Request, st.Request.Scheme
	c.begin("HTTP/2")
	st.OnReset(c.onReset)
	switch {
	case st.Fault != nil:
		f := clientProtocol(st.Fault)
		f.Details = "http2.codec_error"
		c.refuse(f)
	case c.exchange() == cut:
		st.Reset(c.code)
	}
	if !st.Forget() {
		<-c.told // it was told of a reset, and must not be in the midst of it
	}
	select {
	case <-c.leaves:
	default:
	}
	c.ServerStream, c.req, c.scheme = nil, http1.Request{}, nil // their room is the stream's
	clients.Put(c)
}

// client2 is a stream of HTTP/2.
type client2 struct {
	*http2.ServerStream
	server

	// Of the response.
	n       int // bytes gathered in the attempt's buffer
	ended   bool
	flushed bool // its end, too
	trailer http1.Header
	code    http2.Code // for a response that can't be ended

	onReset func(error)
	leaves  chan struct{} // a token when the client has left
	told    chan struct{} // a token when onReset is through
	way     atomic.Pointer[filter.Answer]

	mu sync.Mutex // of up
	up link
}

// reset is called when the client resets the stream, or is gone with its connection.
func (c *client2) reset(err error) {
	c.mu.Lock()
	c.way.Store(departure(err))
	if c.up != nil {
		_ = c.up.Close()
	}
	c.mu.Unlock()
	c.leaves <- struct{}{}
	c.told <- struct{}{}
}

// departure is how a client left, by the error that its stream ended with.
func departure(err error) *filter.Answer {
	var e *http2.StreamError
	switch {
	case errors.Is(err, http2.ErrStreamIdle):
		return &streamIdle
	case errors.As(err, &e) && !e.Remote:
		return &clientBroke
	case errors.As(err, &e) && !e.Lost:
		return &clientReset
	}
	return &clientGone
}

func (c *client2) hold(up link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = up
	if up != nil && c.way.Load() != nil {
		_ = up.Close()
	}
}

func (c *client2) prompt(bool) bool      { return false } // what has arrived is Ready
func (c *client2) abort()                { c.Reset(http2.InternalError) }
func (c *client2) tells() bool           { return true }
func (c *client2) left() <-chan struct{} { return c.leaves }
func (c *client2) gone() *filter.Answer  { return c.way.Load() }
func (c *client2) watch() bool           { return false }

func (c *client2) inform(p *http1.Response, h http1.Header) error {
	return c.Respond(p.Status, h, false)
}

func (c *client2) respond(p *http1.Response, h http1.Header) error {
	return c.Respond(p.Status, h, p.Framing == http1.NoBody)
}

func (c *client2) take(src source) (int, error) {
	n, err := src.Read(c.a.buf[c.n:])
	c.n += n
	if isEOF(err) {
		c.ended, c.trailer = true, src.Trailer()
	}
	return n, err
}

func (c *client2) gathered() bool { return c.n > 0 || c.ended && !c.flushed }
func (c *client2) full() bool     { return len(c.a.buf)-c.n < 1<<10 }

func (c *client2) flush() error {
	n := c.n
	c.n, c.flushed = 0, c.ended
	last := c.ended && len(c.trailer) == 0
	if n > 0 || last {
		if err := c.Write(c.a.buf[:n], last); err != nil || last {
			return err
		}
	}
	if c.ended {
		return c.WriteTrailer(c.trailer)
	}
	return nil
}

// Done is the stream's, but for one that asks for a tunnel: what comes on it is no body.
func (c *client2) Done() bool { return c.req.WebSocket || c.ServerStream.Done() }

// upgrade answers an extended CONNECT: 200 is what 101 is in HTTP/1 (RFC 8441 section 5.1).
func (c *client2) upgrade(first []byte) (to end, early []byte, err error) {
	c.hold(nil) // the tunnel sees to it that a reset is passed on as one
	c.Tunnel()
	c.x.Status = http.StatusOK
	err = c.Respond(http.StatusOK, filter.Without(c.responseHead(), webSocketAccept), false)
	if err == nil && len(first) > 0 {
		err = c.Write(first, false)
	}
	return streamEnd{c.ServerStream}, nil, err
}

func (c *client2) local(status int, h http1.Header, body string, _ bool) bool {
	if string(c.req.Method) == "HEAD" || status == 204 || status == 304 {
		body = ""
	}
	if c.Respond(status, h, body == "") == nil && body != "" {
		_ = c.Write([]byte(body), true) // whoever does not take it is gone
	}
	return true
}

// SetReadDeadline is the stream's, of which the pump is the only user.
func (c *client2) SetReadDeadline(t time.Time) error { return c.ServerStream.SetReadDeadline(t) }
