package http2

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"

	"golang.org/x/net/http2"

	"github.com/composure-mesh/composure/proxy/http1"
)

// Request is a request head in the form of HTTP/1, so that what decides on it need not know how it came. Host is not
// among the fields: it is the Authority. Cookies are one field. An extended CONNECT for a WebSocket (RFC 8441) is a GET that
// asks for that upgrade: without a body, though the stream goes on.
type Request struct {
	http1.Request
	Scheme []byte
}

// ServerStream is one request and its response.
type ServerStream struct {
	*stream
	Request Request
	// Fault says that the request must not be passed on, with the status to answer; else nil.
	Fault *http1.Error
}

// ServerConn is a client's connection.
type ServerConn struct {
	c *conn
}

// NewServerConn prepares to serve nc, whose next bytes are the client's preface. handler is called in a goroutine of its
// own for each request and must answer it: a stream that it leaves open is reset. Neither the stream nor what the request's
// head and trailers hold may be used after it has returned.
func NewServerConn(nc net.Conn, cfg Config, handler func(*ServerStream)) *ServerConn {
	c := newConn(nc, cfg, true)
	c.accept = func(s *stream) {
		c.work.Go(func() {
			defer c.finish(s)
			handler(s.server)
		})
	}
	c.writeSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: c.cfg.Streams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.cfg.Limits.HeadBytes)},
		http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1},
	)
	if more := c.cfg.ConnWindow - specWindow; more > 0 {
		c.writeWindow(0, more)
	}
	return &ServerConn{c}
}

// Serve serves the connection to its end and closes it, also when ctx ends. The error is a *ConnError where the client
// has broken the protocol, and nil where the connection ended as connections do.
func (s *ServerConn) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.c.fail(ctx.Err()) })
	defer stop()
	return s.c.run()
}

// Drain tells the client to begin no further stream, and ends the connection after those that are open.
func (s *ServerConn) Drain() { s.c.drain() }

// requestCame starts the handler of a new stream.
func (c *conn) requestCame(h *head, id uint32, end bool) error {
	if c.draining {
		return nil // it is above the last stream of GOAWAY
	}
	if uint32(c.active) >= c.cfg.Streams {
		return c.refuse(id, &StreamError{Code: RefusedStream, Reason: "too many streams"})
	}
	ss := &struct {
		ServerStream
		own stream
	}{}
	s := &ss.own
	c.initStream(s, id)
	ss.stream, s.server, s.head = s, &ss.ServerStream, h
	if err := h.request(&ss.Request, end); err != nil {
		return c.refuse(id, asStream(err))
	}
	ss.Fault = h.fault
	s.declared = h.length
	s.recvEnd, s.read = end, end
	c.streams[id] = s
	c.active++
	c.accept(s)
	return nil
}

// Tunnel says that the stream carries another protocol from now on, which may be silent for as long as it likes.
func (s *ServerStream) Tunnel() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.tunnel = true
}

// finish follows a handler's return.
func (c *conn) finish(s *stream) {
	if p := recover(); p != nil {
		c.fail(fmt.Errorf("http2: a handler panicked: %v\n%s", p, debug.Stack()))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.err != nil:
	case !s.sendEnd:
		s.reset(&StreamError{Code: InternalError, Reason: "not answered"})
	case !s.recvEnd:
		// The answer is whole; the rest of the request is not wanted (RFC 9113 section 8.1).
		s.reset(&StreamError{Code: NoError, Reason: "answered"})
	}
	s.silence()
	s.body.release()
	s.releaseHeads()
	if c.active--; c.active == 0 && c.draining {
		c.failLocked(errDrained)
	}
}

// Respond sends the response's head, with last also its end. Fields for this hop only are left out.
func (s *ServerStream) Respond(status int, h http1.Header, last bool) error {
	return s.writeHead(func(e *encoder) {
		e.status(status)
		e.header(h)
	}, last)
}
