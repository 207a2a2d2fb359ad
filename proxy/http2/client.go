package http2

import (
	"errors"
	"net"
	"os"

	"golang.org/x/net/http2"

	"github.com/composure-mesh/composure/proxy/http1"
)

// ClientConn is a connection to a server. It carries many streams at once.
type ClientConn struct {
	c *conn
}

// NewClientConn prepares nc, on which nothing has been sent.
func NewClientConn(nc net.Conn, cfg Config) *ClientConn {
	c := newConn(nc, cfg, false)
	c.out = append(c.out, http2.ClientPreface...)
	c.writeSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(c.cfg.Limits.HeadBytes)},
	)
	if more := c.cfg.ConnWindow - specWindow; more > 0 {
		c.writeWindow(0, more)
	}
	return &ClientConn{c}
}

// Run carries the connection to its end and closes it. The error is a *ConnError where the server has broken the protocol.
func (c *ClientConn) Run() error { return c.c.run() }

// Drain lets the streams that are open end, begins none, and closes.
func (c *ClientConn) Drain() { c.c.drain() }

// Load is how many streams are open, and how many more may be opened; none where the connection drains or is gone.
func (c *ClientConn) Load() (open, room int) {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	if c.c.err != nil || c.c.draining || c.c.lastID >= maxWindow-2 {
		return c.c.active, 0
	}
	return c.c.active, max(0, int(min(c.c.maxStreams, maxWindow))-c.c.active)
}

// Ended reports whether no stream can be opened any more, nor ever will be.
func (c *ClientConn) Ended() bool {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	return c.c.err != nil || c.c.draining
}

// Close ends the connection and its streams at once.
func (c *ClientConn) Close() { c.c.fail(net.ErrClosed) }

// ClientStream is one request and its response.
type ClientStream struct {
	*stream
	bodiless  bool // HEAD
	final     bool // the final response's head has come
	responses []http1.Response
	space     [1]http1.Response // for responses: mostly there is one
}

// maxInformational bounds the 1xx responses before the final one.
const maxInformational = 16

// Open begins a stream with a request's head, with last also ends the request. ErrUnavailable means that nothing was sent
// and another connection should be tried.
func (c *ClientConn) Open(r *Request, last bool) (*ClientStream, error) {
	k := c.c
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil || k.draining || uint32(k.active) >= k.maxStreams || k.lastID >= maxWindow-2 || len(k.out) >= hardOut/2 {
		return nil, ErrUnavailable
	}
	if k.lastID == 0 {
		k.lastID = 1
	} else {
		k.lastID += 2
	}
	cs := &struct {
		ClientStream
		own stream
	}{}
	s := &cs.own
	k.initStream(s, k.lastID)
	cs.stream, cs.bodiless, s.client = s, string(r.Method) == "HEAD", &cs.ClientStream
	cs.responses = cs.space[:0]
	k.streams[s.id] = s
	k.active++
	k.enc.buf.Reset()
	k.enc.write(":method", r.Method, false)
	k.enc.write(":scheme", r.Scheme, false)
	k.enc.write(":authority", r.Authority, false)
	k.enc.write(":path", r.Path, len(r.Path) > 128)
	k.enc.header(r.Header)
	k.writeBlock(s.id, last)
	if last {
		s.endSend()
	}
	return &cs.ClientStream, nil
}

// Response waits for the next response head: one below 200 is followed by another.
func (s *ClientStream) Response() (http1.Response, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for len(s.responses) == 0 {
		switch {
		case s.err != nil:
			return http1.Response{}, s.err
		case s.late():
			return http1.Response{}, os.ErrDeadlineExceeded
		}
		s.readers.Wait()
	}
	r := s.responses[0]
	s.responses = s.responses[1:]
	return r, nil
}

// Close gives the stream up: if it has not ended in both directions it is reset, with NO_ERROR after a whole response.
func (s *ClientStream) Close() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.err == nil && (!s.recvEnd || !s.sendEnd) {
		code := Cancel
		if s.recvEnd {
			code = NoError
		}
		s.reset(&StreamError{Code: code, Reason: errClosed.Reason})
	}
	s.silence()
	s.body.release()
}

// Release is Close by whoever uses the stream, and nobody else: of its heads and trailers nothing may be used any more.
func (s *ClientStream) Release() {
	s.Close()
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.releaseHeads()
}

var errManyInformational = errors.New("too many informational responses")

// responseCame takes a response's head.
func (c *conn) responseCame(s *stream, h *head, end bool) error {
	var p http1.Response
	err := h.response(&p, end, s.client.bodiless)
	if err == nil && len(s.client.responses) >= maxInformational {
		err = errManyInformational
	}
	if err != nil {
		return c.refuse(s.id, asStream(err))
	}
	s.client.responses = append(s.client.responses, p)
	if s.client.final = p.Status >= 200; s.client.final {
		s.head = h
	}
	s.moved = c.lastRead
	switch {
	case !s.client.final:
	case s.client.bodiless, p.Status == 304, p.Status == 204:
		s.declared = 0 // there must not be any (RFC 9110 section 6.4.1)
	default:
		s.declared = h.length
	}
	s.readers.Broadcast()
	if end {
		s.read = true
		s.endRecv()
	}
	return nil
}
