package forward

import (
	"context"
	"encoding/hex"
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
	"github.com/composure-mesh/composure/proxy/mixer"
	"github.com/composure-mesh/composure/proxy/normal"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// server serves exchanges, one after the other: those of a connection of HTTP/1, or one of a connection of HTTP/2 at a
// time. Everything that an exchange needs lives here and is used again by the next. What the two versions do in
// different ways is behind client, and behind link on the other side.
type server struct {
	e      *Engine
	ctx    context.Context //nolint:containedctx // the connection's, as long as it is served
	c      *exchange.Connection
	origin *origin
	plain  *upstream.Endpoint // of origin.dst
	client client
	in     source // the client, as where the request's body comes from

	// Of the current exchange.
	req    http1.Request
	scheme []byte // that a client of HTTP/2 names
	resp   http1.Response
	head   http1.Header // the fields that are sent on
	text   []byte       // of the values in head that are made
	f      filter.Exchange
	x      exchange.Exchange
	rules  *mixer.Rules // of the table that decided
	d      decision
	a      attempt
	path   []byte // room for the path in its normal form
	broken bool   // it has none
	id     [36]byte
	madeID bool
	pump   pump
	limits limits
	// handshake is ours, for a client of HTTP/2 that asks for a WebSocket.
	handshake handshake
	active    atomic.Int64 // unix nanoseconds of the last body byte in either direction
}

func (s *server) init(ctx context.Context, e *Engine, c *exchange.Connection, o *origin, from client) {
	s.e, s.ctx, s.c, s.origin, s.client, s.in = e, ctx, c, o, from, from
	if s.pump.done == nil {
		s.pump.done = make(chan struct{}, 1)
	}
}

func originOf(c *exchange.Connection) *origin {
	o := &origin{
		direction: c.Direction,
		dst:       netip.AddrPortFrom(c.OriginalDst.Addr().Unmap(), c.OriginalDst.Port()),
		remote:    netip.AddrPortFrom(c.Remote.Addr().Unmap(), c.Remote.Port()),
		client:    c.Downstream().Addr().Unmap(),
		peer:      c.Peer,
		server:    c.TLSServer,
	}
	if c.Direction == exchange.Inbound {
		o.inbound = table.InboundCluster(o.dst.Port())
	}
	return o
}

// begin starts the record of an exchange whose head has been parsed, wholly or in part.
func (s *server) begin(protocol string) {
	q := &s.req
	path, ok := normal.Path(s.path[:0], q.Path)
	if s.broken = !ok; ok {
		if len(path) > 0 && &path[0] != &q.Path[0] {
			s.path = path
		}
		q.Path = path
	}
	s.x = exchange.Exchange{
		Conn: s.c, Start: time.Now(), GRPCStatus: -1,
		Method: q.Method, Path: q.Path, Authority: q.Authority, Protocol: protocol,
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
			s.x.GRPC = filter.IsGRPC(f.Value)
		}
	}
	s.madeID = s.x.RequestID == nil || s.origin.direction == exchange.Gateway
	if s.madeID {
		s.x.RequestID = requestID(&s.id)
	}
	s.f.Reset(&s.x, &s.a)
	s.f.Request = filter.Request{
		Method: q.Method, Path: q.Path, Authority: q.Authority, Scheme: s.reached(), Header: q.Header, Port: s.origin.dst.Port(),
	}
}
func (s *server) record() {
	s.x.Duration = time.Since(s.x.Start)
	s.e.cfg.Recorder.Exchange(&s.x)
	s.rules.Exchange(s.e.cfg.Collector, &s.x, &s.f)
}

// exchange carries one request, whose record has begun, and its response.
func (s *server) exchange() outcome {
	t := s.e.cfg.Table()
	s.rules = t.Rules()
	s.x.Trust = t.Trust(s.c)
	if told := s.told(); told != "" {
		s.f.Request.Scheme = told
	}
	d := &s.d
	s.in = s.client
	s.pump.reset()
	s.limits.reset()
	s.a = attempt{s: s, t: t, d: d, buf: http1.GetBuffer()}
	var refused *filter.Answer
	switch {
	case s.broken:
		refused = &noPath
	case s.origin.direction != exchange.Outbound:
		// Before it is routed, since it may change the head.
		if refused = s.authorize(t); refused == nil {
			refused = t.Refuse(&s.f)
		}
	}
	*d = decide(t, s.origin, &s.f.Request, rand.Uint64())
	if refused != nil {
		d.fault, d.handler = refused, nil
	}
	d.http2 = speaksHTTP2(d.protocol, s.origin, s.x.GRPC, s.req.WebSocket)
	s.x.Route, s.x.Ends, s.x.Upstream.Cluster = d.route, d.ends, d.name
	end := s.a.run()
	s.record()
	http1.PutBuffer(s.a.buf)
	s.a.buf = nil // it is another's now
	return end
}

// refuse answers a request that must not be passed on.
func (s *server) refuse(f *filter.Answer) {
	s.answer(f)
	s.rules = s.e.cfg.Table().Rules()
	s.record()
}

// requestID writes a random UUID (RFC 9562 section 5.4) to dst.
func requestID(dst *[36]byte) []byte {
	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	hex.Encode(dst[0:8], b[0:4])
	hex.Encode(dst[9:13], b[4:6])
	hex.Encode(dst[14:18], b[6:8])
	hex.Encode(dst[19:23], b[8:10])
	hex.Encode(dst[24:36], b[10:16])
	dst[8], dst[13], dst[18], dst[23] = '-', '-', '-', '-'
	return dst[:]
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
