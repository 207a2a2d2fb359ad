package filter

import (
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http1"
)

// cors answers preflights and marks responses (https://fetch.spec.whatwg.org/#http-cors-protocol), as Envoy's filter
// of this name does: what the upstream says of origins is replaced where the origin is allowed.
type cors struct {
	next      Handler
	origins   []Text
	preflight http1.Header // besides the origin
	response  operations   // besides the origin
	ignore    bool
}

func (b *builder) cors(s *snapshot.CORS) filter {
	if s == nil {
		return nil
	}
	f := cors{ignore: s.IgnoreUnmatched}
	for i := range s.Origins {
		t, err := CompileText(&s.Origins[i], false)
		if err != nil {
			b.refuse("cors.origins[%d]: %w", i, err)
			continue
		}
		f.origins = append(f.origins, t)
	}
	preflight := func(name, value string) {
		if value != "" {
			f.preflight = append(f.preflight, http1.NewField(name, value))
		}
	}
	response := func(name, value string) {
		if value != "" {
			f.response.set = append(f.response.set, setField{name, http1.NewField(name, value)})
		}
	}
	credentials := ""
	if s.Credentials {
		credentials = "true"
	}
	preflight("access-control-allow-credentials", credentials)
	preflight("access-control-allow-methods", s.Methods)
	preflight("access-control-allow-headers", s.AllowHeaders)
	preflight("access-control-max-age", s.MaxAge)
	response("access-control-allow-credentials", credentials)
	response("access-control-expose-headers", s.ExposeHeaders)
	return func(next Handler) Handler { f.next = next; return &f }
}

var preflightAnswer = &Answer{Status: 200, Details: "cors_response"} //nolint:gochecknoglobals // a constant

func (f *cors) Serve(x *Exchange) {
	origin, preflight := corsRequest(&x.Request)
	allowed := len(origin) > 0 && f.allows(origin)
	switch {
	case preflight && allowed:
		x.Answer(preflightAnswer)
		x.Response.Header = append(append(x.Response.Header, allowOrigin(origin)), f.preflight...)
	case preflight && f.ignore:
		x.Answer(preflightAnswer)
	default:
		f.next.Serve(x)
		if allowed {
			x.Response.Header = Without(f.response.apply(x.Response.Header), "access-control-allow-origin")
			x.Response.Header = append(x.Response.Header, allowOrigin(origin))
		}
	}
}

func allowOrigin(origin []byte) http1.Field {
	return http1.Field{Name: []byte("access-control-allow-origin"), Value: origin, Own: true}
}

func corsRequest(q *Request) (origin []byte, preflight bool) {
	for i := range q.Header {
		switch f := &q.Header[i]; {
		case http1.EqualFold(f.Name, "origin"):
			origin = f.Value
		case http1.EqualFold(f.Name, "access-control-request-method"):
			preflight = string(q.Method) == "OPTIONS"
		}
	}
	return origin, preflight && len(origin) > 0
}

func (f *cors) allows(origin []byte) bool {
	for _, t := range f.origins {
		if t.Match(origin) {
			return true
		}
	}
	return false
}
