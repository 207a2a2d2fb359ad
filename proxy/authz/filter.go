package authz

import (
	"sync"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
)

// Filter asks the policies about what a proxy is sent.
type Filter struct{ *Policies }

var requests = sync.Pool{New: func() any { return &Request{} }} //nolint:gochecknoglobals // room, and nothing else

// Check asks about a request.
func (f *Filter) Check(x *filter.Exchange) *filter.Answer {
	r := f.request(x)
	v := f.Decide(r)
	requests.Put(r)
	v.Count()
	if v.Tried && v.TryAllowed != v.Allowed {
		x.Record.DryRun = "allowed"
		if !v.TryAllowed {
			x.Record.DryRun = v.TryRule.Answer.Details
		}
	}
	if v.Audit != nil {
		x.Record.Audit = v.Audit.Name
	}
	if v.Allowed {
		return nil
	}
	return &v.Rule.Answer
}

// request is x, in room that is given back.
func (f *Filter) request(x *filter.Exchange) *Request {
	r := requests.Get().(*Request)
	r.Reset()
	f.connection(r, x.Record.Conn)
	r.HTTP, r.Method, r.Path, r.Authority, r.Header, r.Auth = true, x.Request.Method, x.Request.Path, x.Request.Authority, x.Request.Header, x.Record.Auth
	r.Remote = x.Record.Client()
	return r
}

// CheckConnection asks about a connection that is passed as bytes; refused is why it may not be, or empty.
func (f *Filter) CheckConnection(c *exchange.Connection) (refused string) {
	if f == nil || f.Empty() {
		return ""
	}
	r := requests.Get().(*Request)
	r.Reset()
	f.connection(r, c)
	v := f.Decide(r)
	requests.Put(r)
	v.Count()
	if v.Allowed {
		return ""
	}
	return v.Rule.Answer.Details
}

func (f *Filter) connection(r *Request, c *exchange.Connection) {
	r.Peer, r.ServerName, r.Port = c.Peer, c.ServerName, c.OriginalDst.Port()
	r.Source, r.Destination = c.Remote.Addr().Unmap(), c.OriginalDst.Addr().Unmap()
	r.Remote = c.Downstream().Addr().Unmap()
}
