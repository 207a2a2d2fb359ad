package http2

import (
	"bytes"
	"strconv"
	"sync"

	"golang.org/x/net/http2/hpack"

	"github.com/composure-mesh/composure/proxy/http1"
)

// head gathers a header block as hpack decodes it. Names and values are slices of its own space.
type head struct {
	limits http1.Limits
	space  []byte
	fields http1.Header

	size    int // as RFC 9113 section 6.5.2 counts
	tooMuch bool
	err     error        // the block is malformed
	fault   *http1.Error // the block is sound, but not to be passed on: a client is told why

	method, scheme, authority, path, status, protocol []byte
	pseudo                                            bool // there were pseudo-fields
	host                                              []byte
	length                                            int64 // -1 without Content-Length
	expect, otherExpect                               bool
	cookie                                            int // 1 + index of the cookie field
}

// heads have room for one of usual size.
var heads = sync.Pool{New: func() any { return &head{space: make([]byte, 0, 512), fields: make(http1.Header, 0, 16)} }}

func newHead(l http1.Limits) *head {
	h := heads.Get().(*head)
	*h = head{limits: l, length: -1, space: h.space[:0], fields: h.fields[:0]}
	return h
}

// release gives a head back of which nothing is used any more; nil is none.
func (h *head) release() {
	if h != nil && cap(h.space) <= 8<<10 && cap(h.fields) <= 128 {
		heads.Put(h)
	}
}

func (h *head) keep(s string) []byte {
	n := len(h.space)
	h.space = append(h.space, s...)
	return h.space[n:len(h.space):len(h.space)]
}

// add takes one decoded field.
func (h *head) add(f hpack.HeaderField) {
	h.size += len(f.Name) + len(f.Value) + 32
	if !h.tooMuch && (h.size > h.limits.HeadBytes || len(h.fields) >= h.limits.Fields) {
		// Nothing of it is of use any more, and a peer that sends too much must not have it kept.
		*h = head{limits: h.limits, size: h.size, length: -1, tooMuch: true}
	}
	if h.tooMuch || h.err != nil {
		return
	}
	if len(f.Name) > 0 && f.Name[0] == ':' {
		h.addPseudo(f)
		return
	}
	for i := range len(f.Name) {
		if c := f.Name[i]; 'A' <= c && c <= 'Z' {
			h.err = malformed("field name has an upper-case letter")
			return
		}
	}
	field, err := http1.ParseField(h.keep(f.Name), h.keep(f.Value))
	switch {
	case err != nil:
		h.err = malformed(err.Error())
	case field.Hop:
		h.err = malformed("field " + f.Name + " is for HTTP/1 connections only")
	default:
		h.note(&field)
	}
}

func (h *head) addPseudo(f hpack.HeaderField) {
	if len(h.fields) > 0 || h.host != nil {
		h.err = malformed("pseudo-field after a field")
		return
	}
	h.pseudo = true
	var to *[]byte
	switch f.Name {
	case ":method":
		to = &h.method
	case ":scheme":
		to = &h.scheme
	case ":authority":
		to = &h.authority
	case ":path":
		to = &h.path
	case ":status":
		to = &h.status
	case ":protocol":
		to = &h.protocol
	default:
		h.err = malformed("pseudo-field is unknown")
		return
	}
	if *to != nil {
		h.err = malformed("pseudo-field " + f.Name + " is given twice")
		return
	}
	*to = h.keep(f.Value)
	if *to == nil {
		*to = []byte{}
	}
}

func (h *head) note(f *http1.Field) {
	switch f.Kind {
	case http1.Host:
		if h.host != nil {
			h.err = malformed("host is given twice")
		}
		h.host = f.Value
		return // it lives on as the authority
	case http1.ContentLength:
		n, ok := http1.ParseLength(f.Value)
		if !ok || h.length >= 0 {
			h.err = malformed("content-length is not one number")
			return
		}
		h.length = n
	case http1.Expect:
		h.expect = http1.EqualFold(f.Value, "100-continue")
		h.otherExpect = !h.expect
	case http1.Cookie:
		// Crumbs are put together, as HTTP/1 wants them (RFC 9113 section 8.2.3).
		if h.cookie > 0 {
			c := &h.fields[h.cookie-1]
			c.Value = append(append(c.Value[:len(c.Value):len(c.Value)], "; "...), f.Value...)
			return
		}
		h.cookie = len(h.fields) + 1
	}
	h.fields = append(h.fields, *f)
}

// request makes a request of the block (RFC 9113 section 8.3.1).
func (h *head) request(r *Request, end bool) error {
	if h.tooMuch {
		h.fault = &http1.Error{Status: 431, Reason: "header fields are too large or too many"}
		return nil
	}
	if h.err != nil {
		return h.err
	}
	if h.status != nil || !http1.ValidMethod(h.method) {
		return malformed("pseudo-fields are not those of a request")
	}
	connect := string(h.method) == "CONNECT"
	if connect && h.protocol == nil {
		h.fault = &http1.Error{Status: 405, Reason: "CONNECT is not offered"}
		return nil
	}
	if len(h.scheme) == 0 || h.protocol != nil && !connect || !http1.ValidPath(h.method, h.path) {
		return malformed("pseudo-fields are not those of a request")
	}
	if h.authority != nil && h.host != nil && !bytes.EqualFold(h.authority, h.host) {
		h.fault = &http1.Error{Status: 400, Reason: ":authority and host differ"}
	}
	if h.authority == nil {
		h.authority = h.host
	}
	switch {
	case h.fault != nil:
	case !http1.ValidAuthority(h.authority):
		h.fault = &http1.Error{Status: 400, Reason: "authority is missing or not valid"}
	case len(h.path) > h.limits.TargetBytes:
		h.fault = &http1.Error{Status: 414, Reason: "request target is too long"}
	case h.otherExpect:
		h.fault = &http1.Error{Status: 417, Reason: "expectation is not 100-continue"}
	}
	r.Scheme = h.scheme
	q := &r.Request
	q.Method, q.Path, q.Authority, q.Minor, q.Header, q.KeepAlive = h.method, h.path, h.authority, 1, h.fields, true
	q.Framing, q.Length = h.framing(end)
	q.Continue = h.expect && !end
	if end && h.length > 0 {
		return malformed("body is shorter than its content-length")
	}
	if connect {
		h.extendedConnect(q, end)
	}
	return nil
}

// extendedConnect makes of an extended CONNECT (RFC 8441 section 4) the GET that asks for an upgrade, and is held to what
// that is held to: no body. A protocol other than websocket is answered as RFC 9220 section 3 has it.
func (h *head) extendedConnect(q *http1.Request, end bool) {
	switch {
	case h.fault != nil:
	case string(h.protocol) != "websocket":
		h.fault = &http1.Error{Status: 501, Reason: "extended CONNECT is for websocket only"}
	case end, h.length >= 0, h.expect:
		h.fault = &http1.Error{Status: 400, Reason: "extended CONNECT ends with its head, or has a body"}
	}
	q.Method, q.Framing, q.Length, q.Continue, q.WebSocket = methodGet, http1.NoBody, 0, false, true
}

var methodGet = []byte("GET")

func (h *head) framing(end bool) (http1.Framing, int64) {
	switch {
	case end:
		return http1.NoBody, 0
	case h.length >= 0:
		return http1.Length, h.length
	}
	return http1.Chunked, 0
}

// response makes a response of the block (RFC 9113 section 8.3.2). bodiless says that the request was HEAD.
func (h *head) response(p *http1.Response, end, bodiless bool) error {
	if h.tooMuch {
		return malformed("header fields are too large or too many")
	}
	if h.err != nil {
		return h.err
	}
	n, err := strconv.Atoi(string(h.status))
	if len(h.status) != 3 || err != nil || n < 100 || n == 101 || h.method != nil || h.path != nil || h.scheme != nil || h.authority != nil {
		return malformed("pseudo-fields are not those of a response")
	}
	*p = http1.Response{Status: n, Minor: 1, Header: h.fields, KeepAlive: true}
	if n >= 200 && n != 204 && n != 304 && !bodiless {
		p.Framing, p.Length = h.framing(end)
	}
	if end && (n < 200 || h.length > 0 && !bodiless && n != 304) {
		return malformed("body is shorter than its content-length")
	}
	return nil
}

// trailer checks that the block may be a trailer section.
func (h *head) trailer() error {
	if h.tooMuch {
		return malformed("trailers are too large or too many")
	}
	if h.err == nil && h.pseudo {
		h.err = malformed("trailers have a pseudo-field")
	}
	for i := range h.fields {
		if h.err == nil && !h.fields[i].Kind.InTrailer() {
			h.err = malformed("trailers have a field that must stand in the head")
		}
	}
	return h.err
}
