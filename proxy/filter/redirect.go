package filter

import (
	"bytes"
	"strconv"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http1"
)

// directDetails is Envoy's word for answers that a route gives by itself, redirects included.
const directDetails = "direct_response"

type redirect struct{ rule *snapshot.Redirect }

func (b *builder) redirect(s *snapshot.Redirect) filter {
	if s == nil {
		return nil
	}
	if s.Status < 300 || s.Status > 399 {
		b.refuse("redirect.status: want 301, 302, 303, 307 or 308, got %d", s.Status)
	}
	return func(Handler) Handler { return redirect{s} }
}

func (f redirect) Serve(x *Exchange) {
	x.Answer(&Answer{
		Status: f.rule.Status, Details: directDetails,
		Header: http1.Header{{Name: []byte("Location"), Value: f.location(&x.Request), Own: true}},
	})
}

func (f redirect) location(q *Request) []byte {
	r := f.rule
	scheme := q.Scheme
	if r.Scheme != "" {
		scheme = r.Scheme
	}
	host, port := cutPort(q.Authority)
	if r.Scheme != "" && r.Scheme != q.Scheme && (q.Scheme == "http" && string(port) == ":80" || q.Scheme == "https" && string(port) == ":443") {
		// The old scheme's own port is not the new one's.
		port = nil
	}
	if r.Authority != "" {
		host, port = cutPort([]byte(r.Authority))
	}
	switch {
	case r.Port != 0:
		port = portOf(scheme, r.Port)
	case r.DerivePort == snapshot.PortOfRequest:
		port = portOf(scheme, q.Port)
	case r.DerivePort == snapshot.PortOfScheme:
		port = nil
	}
	path, query := q.path()
	switch {
	case r.URI != "":
		path = []byte(r.URI)
		if bytes.IndexByte(path, '?') >= 0 {
			query = nil
		}
	case r.Prefix != "":
		path = joined([]byte(r.Prefix), path[prefixLen(q, path):])
	}
	return bytes.Join([][]byte{[]byte(scheme), []byte("://"), host, port, path, query}, nil)
}

// portOf is a port with its colon; nil where it is the scheme's own.
func portOf(scheme string, port uint16) []byte {
	if scheme == "http" && port == 80 || scheme == "https" && port == 443 {
		return nil
	}
	return strconv.AppendUint([]byte{':'}, uint64(port), 10)
}

// cutPort splits an authority into the host, and the port with its colon.
func cutPort(authority []byte) (host, port []byte) {
	if i := bytes.LastIndexByte(authority, ':'); i >= 0 && bytes.IndexByte(authority[i:], ']') < 0 {
		return authority[:i], authority[i:]
	}
	return authority, nil
}

type directResponse struct{ answer *Answer }

func (b *builder) directResponse(s *snapshot.DirectResponse) filter {
	if s == nil {
		return nil
	}
	if s.Status < 200 || s.Status > 599 {
		b.refuse("directResponse.status: want 200 to 599, got %d", s.Status)
	}
	return func(Handler) Handler {
		return directResponse{&Answer{Status: s.Status, Details: directDetails, Body: string(s.Body)}}
	}
}

func (f directResponse) Serve(x *Exchange) { x.Answer(f.answer) }
