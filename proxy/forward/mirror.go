package forward

import (
	"bytes"
	"context"
	"io"
	"slices"
	"time"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/upstream"
)

const (
	// maxMirrors is how many copies may be under way; more are not sent, so that a slow mirror costs the proxy little.
	maxMirrors = 128
	// mirrorTime is how long a copy may take with its response.
	mirrorTime = 15 * time.Second
)

// mirror sends the copies that the route wants, now that the whole of the request is here. Nobody waits for what becomes
// of them. A body that was too long to keep has no copy.
func (a *attempt) mirror() {
	s := a.s
	if len(s.f.Mirrors) == 0 || !s.in.Done() || s.pump.spilled.Load() || a.out == nil {
		return
	}
	for _, to := range s.f.Mirrors {
		port := to.Port
		if port == 0 {
			port = s.f.Request.Port
		}
		cluster := a.t.ClusterAt(to.Service, to.Subset, port)
		if cluster == nil {
			continue
		}
		endpoint := cluster.Pick(nil)
		if endpoint == nil {
			continue
		}
		s.e.shadow(context.WithoutCancel(s.ctx), endpoint, port, a.copied())
	}
	s.f.Mirrors = s.f.Mirrors[:0]
}

// copied is an attempt of its own at the same request, for a host that says it is a copy. Nothing of it is shared.
func (a *attempt) copied() *attempt {
	s := a.s
	self := ""
	if w := a.t.Self(); w != nil {
		self = w.Identity
	}
	authority := s.f.Request.Authority
	s.f.Request.Authority = shadowed(s.authority())
	defer func() { s.f.Request.Authority = authority }()
	s.requestHead(self)
	d := *a.d
	c := &attempt{s: &server{e: s.e, c: s.c}, d: &d}
	c.s.req = http1.Request{Method: slices.Clone(s.req.Method), Framing: s.req.Framing}
	c.s.in = ended{cloned(s.in.Trailer())}
	if d.http2 {
		q := &c.opening
		q.Method, q.Path = c.s.req.Method, slices.Clone(s.f.Request.Path)
		q.Authority, q.Header, q.Scheme = s.f.Request.Authority, cloned(s.head), slices.Clone(s.schemeOf())
	} else {
		c.out = s.appendRequest(nil)
	}
	first := a.first
	if !a.pumped {
		first = a.out[a.head:]
	}
	c.out = append(append(c.out, first...), s.pump.kept...)
	return c
}

func cloned(h http1.Header) http1.Header {
	h = slices.Clone(h)
	for i := range h {
		h[i].Name, h[i].Value = slices.Clone(h[i].Name), slices.Clone(h[i].Value)
	}
	return h
}

// ended is a body that has been read, of which only the trailers are left.
type ended struct{ trailer http1.Header }

func (ended) Read([]byte) (int, error) { return 0, io.EOF }
func (ended) Done() bool               { return true }
func (ended) Ready() bool              { return true }
func (e ended) Trailer() http1.Header  { return e.trailer }

// shadowed is an authority with "-shadow" behind the host, as Envoy has it.
func shadowed(authority []byte) []byte {
	host, port := authority, []byte(nil)
	if i := bytes.LastIndexByte(authority, ':'); i >= 0 && bytes.IndexByte(authority[i:], ']') < 0 {
		host, port = authority[:i], authority[i:]
	}
	return bytes.Join([][]byte{host, []byte("-shadow"), port}, nil)
}

// shadow makes an attempt in the background, if not too many are under way.
func (e *Engine) shadow(ctx context.Context, to *upstream.Endpoint, port uint16, a *attempt) {
	select {
	case e.shadows <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-e.shadows }()
		ctx, cancel := context.WithTimeout(ctx, mirrorTime)
		defer cancel()
		if !to.Begin() {
			return
		}
		defer to.Done()
		a.s.ctx, a.endpoint, a.d.port = ctx, to, port
		up, err := a.dial(false)
		if err != nil {
			return // fire and forget: the mirror's own proxy tells what it gets
		}
		stop := context.AfterFunc(ctx, func() { _ = up.Close() })
		ok := a.swallow(up)
		if !stop() || !ok {
			up.discard()
			return
		}
		up.keep(a.s.resp.IdleTimeout)
	}()
}

// swallow sends the request and reads the response to its end. It reports whether both went well, and the connection can
// go on.
func (a *attempt) swallow(up link) bool {
	if up.request(a, true) != nil {
		return false
	}
	resp := &a.s.resp
	for resp.Status < 200 {
		if up.response(resp) != nil || resp.Status == 101 {
			return false
		}
	}
	buf := http1.GetBuffer()
	defer http1.PutBuffer(buf)
	for more := resp.Framing != http1.NoBody; more; {
		switch _, err := up.Read(buf[:]); {
		case isEOF(err):
			more = false
		case err != nil:
			return false
		}
	}
	return resp.KeepAlive
}

var _ filter.Router = (*attempt)(nil)
