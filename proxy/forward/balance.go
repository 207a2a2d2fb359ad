package forward

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// balance chooses an endpoint of the decision's cluster, nil where all are out. Where the request has a key, that decides, also
// at further tries.
func (a *attempt) balance(c *upstream.Cluster) *upstream.Endpoint {
	if h := c.Hash(); h != nil {
		if !a.keyed {
			a.key, a.keyed = a.keyOf(h)
		}
		if a.keyed {
			return c.PickKey(a.key)
		}
	}
	if a.s.f.SameHost {
		return c.Pick(nil)
	}
	return c.Pick(a.tried[:a.fails])
}

// keyOf is the hash of what the cluster wants to be chosen by; false where the request does not have it.
func (a *attempt) keyOf(h *snapshot.Hash) (uint64, bool) {
	q := &a.s.f.Request
	switch {
	case h.Header != "":
		for i := range q.Header {
			if http1.EqualFold(q.Header[i].Name, h.Header) {
				return upstream.HashKey(q.Header[i].Value), true
			}
		}
	case h.QueryParam != "":
		if v, ok := route.Param(q.Path, h.QueryParam); ok {
			return upstream.HashKey(v), true
		}
	case h.SourceIP:
		ip := a.s.x.Client().As16()
		return upstream.HashKey(ip[:]), true
	case h.Cookie != nil:
		if v, ok := cookieOf(q.Header, h.Cookie.Name); ok {
			return upstream.HashKey(v), true
		}
		if h.Cookie.TTL != nil {
			value := strconv.AppendUint(nil, rand.Uint64(), 16)
			a.cookie = setCookie(h.Cookie, value)
			return upstream.HashKey(value), true
		}
	}
	return 0, false
}

// cookieOf finds a cookie of the request (RFC 6265 section 4.2.1).
func cookieOf(h http1.Header, name string) ([]byte, bool) {
	for i := range h {
		if !http1.EqualFold(h[i].Name, "cookie") {
			continue
		}
		for rest := h[i].Value; len(rest) > 0; {
			var pair []byte
			pair, rest, _ = bytes.Cut(rest, []byte{';'})
			if k, v, ok := bytes.Cut(bytes.TrimSpace(pair), []byte{'='}); ok && string(k) == name {
				return bytes.Trim(v, `"`), true
			}
		}
	}
	return nil, false
}

// setCookie is the value of a Set-Cookie field. Scripts have no use for it.
func setCookie(c *snapshot.Cookie, value []byte) []byte {
	out := append(append([]byte(c.Name), '='), value...)
	if *c.TTL > 0 {
		out = strconv.AppendInt(append(out, "; Max-Age="...), int64(time.Duration(*c.TTL)/time.Second), 10)
	}
	if c.Path != "" {
		out = append(append(out, "; Path="...), c.Path...)
	}
	for _, attribute := range c.Attributes {
		out = append(append(out, "; "...), attribute...)
	}
	return append(out, "; HttpOnly"...)
}

func (a *attempt) withCookie(h http1.Header) http1.Header {
	if a.cookie == nil {
		return h
	}
	return append(h, http1.Field{Name: []byte("Set-Cookie"), Value: a.cookie, Own: true})
}

// report tells the endpoint's cluster how a try ended, for the detection of outliers. f is nil for a response.
func (a *attempt) report(f *filter.Answer) {
	if a.endpoint == nil || a.d.cluster == nil {
		return
	}
	switch {
	case f == nil && a.s.x.GRPC:
		status := a.s.resp.Status
		if v, ok := a.s.resp.Header.First(http1.GRPCStatus); ok {
			status = filter.StatusOfGRPC(v)
		}
		a.endpoint.Report(status)
	case f == nil:
		a.endpoint.Report(a.s.resp.Status)
	case f.Cause != filter.NotUpstream && f.Cause != filter.NoEndpoint || f == &requestTimeout:
		a.endpoint.Report(0)
	}
}

// mayRetry counts a retry among those of the cluster, until the exchange's end.
func (a *attempt) mayRetry() bool {
	if a.retrying || a.d.cluster == nil {
		return true
	}
	a.retrying = a.d.cluster.BeginRetry()
	return a.retrying
}
