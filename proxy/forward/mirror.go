package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
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
	if len(s.f.Mirrors) == 0 || !s.in.Done() || s.pump.spilled.Load() || a.out == nil || a.informed && a.pumped {
		return
	}
	for _, to := range s.f.Mirrors {
		cluster := a.t.Cluster(to.Service, to.Subset)
		if cluster == nil || len(cluster.Endpoints) == 0 {
			continue
		}
		port := to.Port
		if port == 0 {
			port = s.f.Request.Port
		}
		s.e.shadow(context.WithoutCancel(s.ctx), cluster.Pick(nil), port, a.copied(), string(s.req.Method) == "HEAD")
	}
	s.f.Mirrors = s.f.Mirrors[:0]
}

// copied is the request as it was sent, for a host that says it is a copy.
func (a *attempt) copied() []byte {
	s := a.s
	self := ""
	if w := a.t.Self(); w != nil {
		self = w.Identity
	}
	authority := s.f.Request.Authority
	s.f.Request.Authority = shadowed(s.authority())
	out := s.appendRequest(make([]byte, 0, len(a.out)+len(s.pump.kept)+16), self)
	s.f.Request.Authority = authority
	return append(append(out, a.out[a.head:]...), s.pump.kept...)
}

// shadowed is an authority with "-shadow" behind the host, as Envoy has it.
func shadowed(authority []byte) []byte {
	host, port := authority, []byte(nil)
	if i := bytes.LastIndexByte(authority, ':'); i >= 0 && bytes.IndexByte(authority[i:], ']') < 0 {
		host, port = authority[:i], authority[i:]
	}
	return bytes.Join([][]byte{host, []byte("-shadow"), port}, nil)
}

// shadow sends a copy in the background, if not too many are under way.
func (e *Engine) shadow(ctx context.Context, to *upstream.Endpoint, port uint16, request []byte, head bool) {
	select {
	case e.shadows <- struct{}{}:
	default:
		return
	}
	go func() {
		defer func() { <-e.shadows }()
		ctx, cancel := context.WithTimeout(ctx, mirrorTime)
		defer cancel()
		to.Begin()
		defer to.Done()
		up, err := to.Get(ctx, e.cfg.Transport, port)
		if err != nil {
			return // fire and forget: the mirror's own proxy tells what it gets
		}
		if deadline, ok := ctx.Deadline(); ok {
			_ = up.SetDeadline(deadline)
		}
		var resp http1.Response
		if !swallow(up, request, head, &resp) || !resp.KeepAlive {
			up.Discard()
			return
		}
		_ = up.SetDeadline(time.Time{})
		up.Keep(resp.IdleTimeout)
	}()
}

// swallow sends a request and reads the response to its end. It reports whether both went well.
func swallow(up *upstream.Conn, request []byte, head bool, resp *http1.Response) bool {
	if _, err := up.Write(request); err != nil {
		return false
	}
	for resp.Status < 200 {
		err := up.Reader.ParseResponse(resp, head)
		if errors.Is(err, http1.ErrIncomplete) {
			err = up.Reader.Fill()
		}
		if err != nil || resp.Status == 101 {
			return false
		}
	}
	buf := http1.GetBuffer()
	defer http1.PutBuffer(buf)
	for !up.Reader.Done() {
		if _, err := up.Reader.Read(buf[:]); err != nil && !errors.Is(err, io.EOF) {
			return false
		}
	}
	return true
}

var _ filter.Router = (*attempt)(nil)
