package extauth

import (
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// partialBody tells an authorizer whether the body that it sees is cut.
const partialBody = "x-envoy-auth-partial-body"

// httpHead is the request that p is asked by: method, path and host are those of x, and of its header it has Authorization and
// what p wants.
func (p *Provider) httpHead(x *filter.Exchange, body Body) http1.Request {
	q := &x.Request
	h := http1.Header{}
	for i := range q.Header {
		f := q.Header[i]
		lower := strings.ToLower(string(f.Name))
		if f.Hop || f.Kind == http1.Host || f.Kind == http1.ContentLength || f.Kind == http1.Expect {
			continue
		}
		if f.Kind == http1.Authorization || p.request.match(lower) {
			h = append(h, f)
		}
	}
	if p.Body != nil {
		h = append(filter.Without(h, partialBody), http1.NewField(partialBody, strconv.FormatBool(body.Cut)))
	}
	for _, f := range p.AddHeaders {
		h = append(filter.Without(h, f.Name), http1.NewField(f.Name, f.Value))
	}
	h = append(h, http1.NewField("Content-Length", strconv.Itoa(len(body.Bytes))))
	path := string(q.Path)
	if p.PathPrefix != "" {
		path = p.PathPrefix + "/" + strings.TrimPrefix(path, "/")
	}
	head := http1.Request{Method: q.Method, Path: []byte(path), Authority: q.Authority, Header: h.Clone()}
	if len(head.Authority) == 0 {
		head.Authority = []byte(p.Host)
	}
	head.Method = append([]byte(nil), q.Method...)
	head.Authority = append([]byte(nil), head.Authority...)
	return head
}

// removeHeaders is the field of an authorizer's consent that lists what the request loses.
const removeHeaders = "x-envoy-auth-headers-to-remove"

// httpVerdict: 200 is consent, and what is neither that nor an error is a refusal, which the client gets as it is.
func (q *Question) httpVerdict() *verdict {
	v := &verdict{allowed: q.reply.status == 200, status: q.reply.status}
	for i := range q.reply.header {
		name, value := strings.ToLower(string(q.reply.header[i].Name)), string(q.reply.header[i].Value)
		f, ok := field(string(q.reply.header[i].Name), value)
		if !ok {
			continue
		}
		if !v.allowed {
			if len(q.p.deny) == 0 || name == "www-authenticate" || name == "location" || f.Kind == http1.ContentType || q.p.deny.match(name) {
				v.header = append(v.header, f)
			}
			continue
		}
		if name == removeHeaders {
			for n := range strings.SplitSeq(value, ",") {
				v.drop(strings.TrimSpace(n))
			}
			continue
		}
		if q.p.up.match(name) {
			v.replace(name, f)
		}
		if q.p.allow.match(name) {
			// The first of a name takes the place of what is there, further ones stand beside it.
			v.later = append(v.later, filter.Change{Lower: name, Add: v.told(name), Field: f})
		}
	}
	if !v.allowed {
		v.body = string(q.reply.body)
	}
	return v
}

// replace sets a field of the request; further ones of the name stand beside it.
func (v *verdict) replace(lower string, f http1.Field) {
	v.remove = append(v.remove, lower)
	v.set = append(v.set, f)
}

func (v *verdict) told(lower string) bool {
	for i := range v.later {
		if v.later[i].Lower == lower {
			return true
		}
	}
	return false
}

// drop has the request lose a header, unless it frames it or says where it goes.
func (v *verdict) drop(name string) {
	if _, ok := field(name, ""); ok {
		v.remove = append(v.remove, strings.ToLower(name))
	}
}
