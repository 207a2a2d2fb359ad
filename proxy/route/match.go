package route

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// match is a conjunction of conditions.
type match struct {
	conditions []condition
	prefix     string // of the path, where the match on the uri asks for one
	path       pathKind
	text       string // that the path is to be, or to begin with
}

// pathKind is what a match asks of the path, as far as it can be looked up.
type pathKind uint8

const (
	anyPath pathKind = iota
	exactPath
	prefixPath
)

// condition is one test on a request; its String says what it wants.
type condition interface {
	holds(*Request) bool
	String() string
}

// fails is the first condition that does not hold, or nil.
func (m *match) fails(q *Request) condition {
	for _, c := range m.conditions {
		if !c.holds(q) {
			return c
		}
	}
	return nil
}

func compileMatch(s *snapshot.Match) (match, error) {
	var (
		m    match
		errs []error
	)
	add := func(field string, sm *snapshot.StringMatch, ignoreCase bool, on func(filter.Text) condition) {
		if sm == nil {
			return
		}
		t, err := filter.CompileText(sm, ignoreCase)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
			return
		}
		m.conditions = append(m.conditions, on(t))
	}
	if s.Port != 0 {
		m.conditions = append(m.conditions, portIs(s.Port))
	}
	add("method", s.Method, false, func(t filter.Text) condition { return method{t} })
	add("uri", s.URI, s.IgnoreURICase, func(t filter.Text) condition { return uri{t} })
	add("authority", s.Authority, true, func(t filter.Text) condition { return authority{t} })
	add("scheme", s.Scheme, false, func(t filter.Text) condition { return scheme{t} })
	for i := range s.Headers {
		h := &s.Headers[i]
		v, err := compileValue(h)
		if err != nil {
			errs = append(errs, fmt.Errorf("headers[%s]: %w", h.Name, err))
			continue
		}
		if len(h.Claim) > 0 {
			m.conditions = append(m.conditions, claim{h.Name, h.Claim, v, h.Invert})
			continue
		}
		m.conditions = append(m.conditions, header{strings.ToLower(h.Name), v, h.Invert})
	}
	for i := range s.QueryParams {
		p := &s.QueryParams[i]
		v, err := compileValue(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("queryParams[%s]: %w", p.Name, err))
			continue
		}
		m.conditions = append(m.conditions, queryParam{p.Name, v, p.Invert})
	}
	if s.URI != nil {
		m.prefix = s.URI.Prefix
	}
	switch {
	case s.URI == nil, s.URI.Regex != "", s.IgnoreURICase:
	case s.URI.Prefix != "":
		m.path, m.text = prefixPath, s.URI.Prefix
	default:
		m.path, m.text = exactPath, s.URI.Exact
	}
	return m, errors.Join(errs...)
}

// compileValue yields nil for a match on presence.
func compileValue(h *snapshot.HeaderMatch) (filter.Text, error) {
	if h.Name == "" {
		return nil, errors.New("name is empty")
	}
	if h.Value == nil {
		return nil, nil
	}
	return filter.CompileText(h.Value, false)
}

type portIs uint16

func (p portIs) holds(q *Request) bool { return q.Port == uint16(p) }
func (p portIs) String() string        { return fmt.Sprintf("port is %d", uint16(p)) }

type method struct{ filter.Text }

func (m method) holds(q *Request) bool { return m.Match(q.Method) }
func (m method) String() string        { return "method " + m.Text.String() }

type uri struct{ filter.Text }

func (u uri) holds(q *Request) bool {
	path, _, _ := bytes.Cut(q.Path, []byte{'?'})
	return u.Match(path)
}
func (u uri) String() string { return "uri " + u.Text.String() }

// authority is compared as Istio has it: without port, in any case.
type authority struct{ filter.Text }

func (a authority) holds(q *Request) bool {
	host := q.Authority
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return a.Match(host)
}
func (a authority) String() string { return "authority " + a.Text.String() }

type scheme struct{ filter.Text }

func (s scheme) holds(q *Request) bool { return s.Match([]byte(q.Scheme)) }
func (s scheme) String() string        { return "scheme " + s.Text.String() }

type header struct {
	name   string
	value  filter.Text // nil: presence
	invert bool
}

func (h header) holds(q *Request) bool { return h.matches(q.Header) != h.invert }

// matches compares the value; several fields of the name are one value, joined by commas (RFC 9110 section 5.3).
func (h header) matches(fields http1.Header) bool {
	var (
		value []byte
		n     int
	)
	for i := range fields {
		if !http1.EqualFold(fields[i].Name, h.name) {
			continue
		}
		if n++; n == 1 {
			value = fields[i].Value
			continue
		}
		value = append(append(value[:len(value):len(value)], ','), fields[i].Value...)
	}
	return n > 0 && (h.value == nil || h.value.Match(value))
}
func (h header) String() string { return describe("header", h.name, h.value, h.invert) }

// claim is a match on a claim of the request's verified token.
type claim struct {
	name   string // that the rule has for it
	path   []string
	value  filter.Text // nil: presence
	invert bool
}

func (c claim) holds(q *Request) bool {
	values := q.Auth.At(c.path)
	if c.value == nil {
		return (len(values) > 0) != c.invert
	}
	return slices.ContainsFunc(values, func(v string) bool { return c.value.Match([]byte(v)) }) != c.invert
}
func (c claim) String() string { return describe("claim", c.name, c.value, c.invert) }

type queryParam struct {
	name   string
	value  filter.Text
	invert bool
}

func (p queryParam) holds(q *Request) bool {
	v, ok := Param(q.Path, p.name)
	return (ok && (p.value == nil || p.value.Match(v))) != p.invert
}
func (p queryParam) String() string { return describe("query parameter", p.name, p.value, p.invert) }

// Param is the first value of a query parameter, decoded where it can be.
func Param(path []byte, name string) ([]byte, bool) {
	_, query, _ := bytes.Cut(path, []byte{'?'})
	for len(query) > 0 {
		var pair []byte
		pair, query, _ = bytes.Cut(query, []byte{'&'})
		k, v, _ := bytes.Cut(pair, []byte{'='})
		if len(pair) > 0 && string(unescape(k)) == name {
			return unescape(v), true
		}
	}
	return nil, false
}

func unescape(b []byte) []byte {
	if bytes.IndexByte(b, '%') < 0 && bytes.IndexByte(b, '+') < 0 {
		return b
	}
	s, err := url.QueryUnescape(string(b))
	if err != nil {
		return b
	}
	return []byte(s)
}

func describe(what, name string, value filter.Text, invert bool) string {
	want := "is present"
	if value != nil {
		want = value.String()
	}
	if invert {
		want = "not: " + want
	}
	return what + " " + name + " " + want
}
