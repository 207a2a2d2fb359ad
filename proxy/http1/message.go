package http1

import (
	"bytes"
	"time"
)

// Framing is how a body ends (RFC 9112 section 6.3).
type Framing uint8

// The framings.
const (
	NoBody     Framing = iota
	Length             // after Content-Length bytes
	Chunked            // with the last chunk and the trailers
	UntilClose         // with the connection; responses only
)

// Request is a parsed request head. Its slices are valid until the next message is parsed.
type Request struct {
	Method []byte
	// Path is the target in origin form, with the query, or "*".
	Path []byte
	// Authority is the target's own where that was absolute, else Host; empty only in HTTP/1.0.
	Authority []byte
	Minor     int // of the version: 0 or 1
	Header    Header
	Framing   Framing
	Length    int64 // where Framing is Length
	// KeepAlive says that the client wants the connection to stay open.
	KeepAlive bool
	// WebSocket says that this asks for an upgrade to websocket, the only one that is passed on.
	WebSocket bool
	// Continue says that the client waits for 100 (Continue) before it sends the body.
	Continue bool
}

// common is what requests and responses have alike.
type common struct {
	minor     int
	lengths   int
	length    int64
	encodings int
	chunked   bool
	hosts     int
	close     bool
	keepAlive bool
	upgrade   bool // Connection: upgrade
	websocket bool // Upgrade: websocket
	nominated bool // Connection names fields
	expect    int  // 1: 100-continue, 2: something else
	idle      time.Duration
}

// field parses one field line, without its line end, into f and notes what it means.
func (c *common) field(line []byte, f *Field) *Error {
	i, plain := 0, byte(isPlain)
	for i < len(line) && class[line[i]]&isToken != 0 {
		plain &= class[line[i]]
		i++
	}
	switch {
	case i == len(line):
		return bad("header line without colon")
	case i == 0 && (line[0] == ' ' || line[0] == '\t'):
		return bad("folded header line")
	case i == 0:
		return bad("header name is empty")
	case line[i] != ':':
		return bad("header name has a character that is not allowed")
	}
	f.Name = line[:i]
	f.Value = trim(line[i+1:])
	if !all(f.Value, isValue) {
		return bad("header value has a control character")
	}
	f.Kind = kindOf(f.Name)
	if plain == 0 && f.Kind == Other && twin(f.Name) {
		return bad("header name imitates a guarded one")
	}
	f.Hop = f.Kind.connectionSpecific()
	return c.note(f)
}

func (c *common) note(f *Field) *Error {
	switch f.Kind {
	case Host:
		c.hosts++
	case ContentLength:
		n, ok := parseLength(f.Value)
		if !ok {
			return bad("content-length is not a number")
		}
		c.lengths++
		c.length = n
		f.Value = canonicalLength(f.Value)
	case TransferEncoding:
		c.encodings++
		c.chunked = EqualFold(f.Value, "chunked")
	case Connection, ProxyConnection:
		if f.Kind == Connection {
			eachToken(f.Value, c.option)
		}
	case Upgrade:
		c.websocket = EqualFold(f.Value, "websocket")
	case TE:
		// Of all TE only "trailers" means something beyond this hop.
		f.Hop = !EqualFold(f.Value, "trailers")
	case Expect:
		c.expect = 2
		if EqualFold(f.Value, "100-continue") {
			c.expect = 1
		}
	case KeepAlive:
		eachToken(f.Value, func(t []byte) bool {
			if hasPrefixFold(t, "timeout=") {
				if n, ok := parseLength(t[len("timeout="):]); ok && n < 1<<20 {
					// At least something: 0 would mean that nothing was said.
					c.idle = max(time.Duration(n)*time.Second, time.Nanosecond)
				}
			}
			return true
		})
	}
	return nil
}

func (c *common) option(t []byte) bool {
	switch {
	case EqualFold(t, "close"):
		c.close = true
	case EqualFold(t, "keep-alive"):
		c.keepAlive = true
	case EqualFold(t, "upgrade"):
		c.upgrade = true
	case EqualFold(t, "te"):
	default:
		c.nominated = true
	}
	return true
}

// nominations marks the fields that Connection names as for this hop only.
func (c *common) nominations(h Header) *Error {
	if !c.nominated {
		return nil
	}
	for i := range h {
		if h[i].Kind != Connection {
			continue
		}
		ok := true
		eachToken(h[i].Value, func(t []byte) bool {
			ok = all(t, isToken) && !kindOf(t).endToEnd() && !twin(t)
			for j := range h {
				if ok && len(h[j].Name) == len(t) && bytes.EqualFold(h[j].Name, t) && h[j].Kind != TE {
					h[j].Hop = true
				}
			}
			return ok
		})
		if !ok {
			return bad("connection header nominates a field that is not for one hop")
		}
	}
	return nil
}

func (c *common) wantsKeepAlive() bool { return !c.close && (c.minor == 1 || c.keepAlive) }

// framing applies RFC 9112 section 6.3 and refuses what it allows to be read in two ways.
func (c *common) framing() *Error {
	switch {
	case c.lengths > 1:
		return bad("content-length is given twice")
	case c.encodings > 0 && c.lengths > 0:
		return bad("both content-length and transfer-encoding are given")
	case c.encodings > 0 && c.minor == 0:
		return bad("transfer-encoding in HTTP/1.0")
	case c.encodings > 1:
		return bad("transfer-encoding is given twice")
	case c.encodings == 1 && !c.chunked:
		return &Error{Status: 501, Reason: "transfer-encoding is not chunked"}
	}
	return nil
}

// parseLength reads 1*DIGIT of at most 18 digits, which fit in an int64.
func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// canonicalLength leaves the zeros in front out: some servers read such a number as octal.
func canonicalLength(b []byte) []byte {
	for len(b) > 1 && b[0] == '0' {
		b = b[1:]
	}
	return b
}

// parse fills q from a head, of which the last, empty line is cut off.
func (q *Request) parse(head []byte, lim *Limits) *Error {
	h := q.Header[:0]
	*q = Request{Header: h}
	line, rest := cutLine(head)
	if err := q.requestLine(line, lim); err != nil {
		return err
	}
	c := common{minor: q.Minor}
	for len(rest) > 0 {
		line, rest = cutLine(rest)
		if len(h) == lim.Fields {
			return &Error{Status: 431, Reason: "too many header fields"}
		}
		h = append(h, Field{})
		if err := c.field(line, &h[len(h)-1]); err != nil {
			q.Header = h
			return err
		}
	}
	q.Header = h
	if err := c.framing(); err != nil {
		return err
	}
	if err := c.nominations(h); err != nil {
		return err
	}
	if err := q.host(&c); err != nil {
		return err
	}
	q.KeepAlive = c.wantsKeepAlive()
	switch {
	case c.chunked:
		q.Framing = Chunked
	case c.length > 0:
		q.Framing, q.Length = Length, c.length
	}
	if c.expect == 2 {
		return &Error{Status: 417, Reason: "expectation is not 100-continue"}
	}
	q.Continue = c.expect == 1 && q.Minor == 1 && q.Framing != NoBody
	q.WebSocket = c.upgrade && c.websocket && q.Minor == 1 && q.Framing == NoBody && string(q.Method) == "GET"
	return nil
}

// host settles the authority. An absolute target wins over Host (RFC 9112 section 3.2.2), which must be there and be
// sound all the same.
func (q *Request) host(c *common) *Error {
	switch {
	case c.hosts > 1:
		return bad("host is given twice")
	case c.hosts == 0 && q.Minor == 1:
		return bad("host is missing")
	case c.hosts == 1:
		v, _ := q.Header.First(Host)
		if !validAuthority(v) {
			return bad("host is not valid")
		}
		if q.Authority == nil {
			q.Authority = v
		}
	}
	return nil
}

func (q *Request) requestLine(line []byte, lim *Limits) *Error {
	i := bytes.IndexByte(line, ' ')
	if i <= 0 || !all(line[:i], isToken) {
		return bad("method is not valid")
	}
	q.Method = line[:i]
	line = line[i+1:]
	i = bytes.IndexByte(line, ' ')
	if i <= 0 {
		return bad("request line is not method, target and version")
	}
	target, version := line[:i], line[i+1:]
	if len(target) > lim.TargetBytes {
		return &Error{Status: 414, Reason: "request target is too long"}
	}
	minor, err := parseVersion(version)
	if err != nil {
		return err
	}
	q.Minor = minor
	if string(q.Method) == "CONNECT" {
		return &Error{Status: 405, Reason: "CONNECT is not offered"}
	}
	if !all(target, isTarget) {
		return bad("request target has a character that is not allowed")
	}
	return q.target(target)
}

func (q *Request) target(t []byte) *Error {
	switch {
	case t[0] == '/':
		q.Path = t
		return nil
	case len(t) == 1 && t[0] == '*':
		if string(q.Method) != "OPTIONS" {
			return bad("request target * is for OPTIONS only")
		}
		q.Path = t
		return nil
	case hasPrefixFold(t, "http://"):
		t = t[len("http://"):]
	case hasPrefixFold(t, "https://"):
		t = t[len("https://"):]
	default:
		return bad("request target is neither a path nor an http URL")
	}
	i := bytes.IndexAny(t, "/?")
	if i < 0 {
		i = len(t)
	}
	q.Authority, q.Path = t[:i], t[i:]
	if !validAuthority(q.Authority) {
		return bad("authority of the request target is not valid")
	}
	switch {
	case len(q.Path) == 0:
		q.Path = slash
	case q.Path[0] == '?':
		return bad("request target has a query without a path")
	}
	return nil
}

var slash = []byte("/")

// validAuthority accepts uri-host [":" port] of RFC 3986 without userinfo.
func validAuthority(a []byte) bool {
	host, port := a, []byte(nil)
	if len(a) > 0 && a[0] == '[' {
		i := bytes.IndexByte(a, ']')
		if i < 0 {
			return false
		}
		for _, c := range a[1:i] {
			if class[c]&isHost == 0 && c != ':' {
				return false
			}
		}
		if rest := a[i+1:]; len(rest) > 0 {
			if rest[0] != ':' {
				return false
			}
			port = rest[1:]
		}
		return i > 1 && validPort(port)
	}
	if i := bytes.IndexByte(a, ':'); i >= 0 {
		host, port = a[:i], a[i+1:]
	}
	return len(host) > 0 && all(host, isHost) && validPort(port)
}

func validPort(p []byte) bool {
	n := 0
	for _, c := range p {
		if c < '0' || c > '9' || n > 65535 {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 65535
}

func parseVersion(v []byte) (int, *Error) {
	switch string(v) {
	case "HTTP/1.1":
		return 1, nil
	case "HTTP/1.0":
		return 0, nil
	}
	if len(v) == 8 && string(v[:5]) == "HTTP/" && v[6] == '.' && '0' <= v[5] && v[5] <= '9' && '0' <= v[7] && v[7] <= '9' {
		return 0, &Error{Status: 505, Reason: "version is neither HTTP/1.0 nor HTTP/1.1"}
	}
	return 0, bad("version is not valid")
}

// cutLine splits b after the first CRLF, which must be there.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexByte(b, '\n')
	return b[:i-1], b[i+1:]
}
