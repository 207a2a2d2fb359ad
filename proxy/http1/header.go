package http1

import "bytes"

// Field is one header field as it was sent: the name's case is kept, the value is trimmed.
type Field struct {
	Name, Value []byte
	Kind        Kind
	// Hop says that the field is for this hop only and must not be forwarded.
	Hop bool
	// Own says that this proxy has made the field, so that it needs no trust.
	Own bool
}

// NewField makes a field of this proxy's own. The caller vouches for name and value.
func NewField(name, value string) Field {
	n := []byte(name)
	return Field{Name: n, Value: []byte(value), Kind: kindOf(n), Own: true}
}

// Header is the fields of a head or a trailer section, in order.
type Header []Field

// Kind tells the fields that a proxy itself looks at.
type Kind uint8

// The kinds.
const (
	Other Kind = iota
	Host
	ContentLength
	TransferEncoding
	Connection
	KeepAlive
	ProxyConnection
	TE
	Trailer
	Upgrade
	HTTP2Settings
	Expect
	UserAgent
	ContentType
	Authorization
	Cookie
	SetCookie
	RequestID
	ForwardedFor
	ForwardedProto
	ForwardedOther // any other X-Forwarded-…
	ClientCert     // X-Forwarded-Client-Cert
	ServiceTime    // X-Envoy-Upstream-Service-Time
	EnvoyInternal  // any other X-Envoy-…
	GRPCStatus
	Undelivered // X-Composure-Undelivered
	Content     // Content-Encoding, Content-Range, Date, Cache-Control and their like: never for one hop only
)

// First is the value of the first field of a kind; ok is false if there is none.
func (h Header) First(k Kind) (value []byte, ok bool) {
	for i := range h {
		if h[i].Kind == k {
			return h[i].Value, true
		}
	}
	return nil, false
}

// Clone is a copy of h that shares no bytes with it.
func (h Header) Clone() Header {
	out := make(Header, len(h))
	for i, f := range h {
		f.Name, f.Value = bytes.Clone(f.Name), bytes.Clone(f.Value)
		out[i] = f
	}
	return out
}

// EqualFold reports whether b is lower, which must be in lower case, in any case. ASCII only.
func EqualFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c != lower[i] && (c|0x20 != lower[i] || c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

func hasPrefixFold(b []byte, lower string) bool {
	return len(b) >= len(lower) && EqualFold(b[:len(lower)], lower)
}

// kindOf looks a name up, by its first letter first: most names need one or two comparisons.
func kindOf(n []byte) Kind {
	if len(n) < 2 {
		return Other
	}
	switch n[0] | 0x20 {
	case 'a':
		return pick(n, "authorization", Authorization)
	case 'c':
		return kindOfC(n)
	case 'd':
		return pick(n, "date", Content)
	case 'e':
		return pick(n, "expect", Expect)
	case 'f':
		return pick(n, "forwarded", ForwardedOther)
	case 'g':
		return pick(n, "grpc-status", GRPCStatus)
	case 'h':
		if len(n) == len("http2-settings") {
			return pick(n, "http2-settings", HTTP2Settings)
		}
		return pick(n, "host", Host)
	case 'k':
		return pick(n, "keep-alive", KeepAlive)
	case 'p':
		return pick(n, "proxy-connection", ProxyConnection)
	case 's':
		return pick(n, "set-cookie", SetCookie)
	case 't':
		switch len(n) {
		case len("te"):
			return pick(n, "te", TE)
		case len("trailer"):
			return pick(n, "trailer", Trailer)
		}
		return pick(n, "transfer-encoding", TransferEncoding)
	case 'u':
		if len(n) == len("upgrade") {
			return pick(n, "upgrade", Upgrade)
		}
		return pick(n, "user-agent", UserAgent)
	case 'x':
		return kindOfX(n)
	}
	return Other
}

func kindOfC(n []byte) Kind {
	switch {
	case EqualFold(n, "connection"):
		return Connection
	case EqualFold(n, "cookie"):
		return Cookie
	case EqualFold(n, "content-type"):
		return ContentType
	case EqualFold(n, "content-length"):
		return ContentLength
	case hasPrefixFold(n, "content-"), EqualFold(n, "cache-control"):
		return Content
	}
	return Other
}

func kindOfX(n []byte) Kind {
	switch {
	case EqualFold(n, "x-request-id"):
		return RequestID
	case hasPrefixFold(n, "x-forwarded-"):
		switch {
		case EqualFold(n, "x-forwarded-for"):
			return ForwardedFor
		case EqualFold(n, "x-forwarded-proto"):
			return ForwardedProto
		case EqualFold(n, "x-forwarded-client-cert"):
			return ClientCert
		}
		return ForwardedOther
	case EqualFold(n, "x-envoy-upstream-service-time"):
		return ServiceTime
	case hasPrefixFold(n, "x-envoy-"):
		return EnvoyInternal
	case EqualFold(n, "x-composure-undelivered"):
		return Undelivered
	}
	return Other
}

func pick(n []byte, lower string, k Kind) Kind {
	if EqualFold(n, lower) {
		return k
	}
	return Other
}

// endToEnd reports whether a field of this kind must never be taken away by a Connection header that nominates it: to
// do so would hide from the next hop who asks, for what, or where the message ends.
func (k Kind) endToEnd() bool {
	switch k {
	case Host, ContentLength, TransferEncoding, Authorization, Cookie, SetCookie, RequestID, ForwardedFor,
		ForwardedProto, ForwardedOther, ClientCert, ServiceTime, EnvoyInternal, ContentType, Content, Expect, GRPCStatus, Undelivered:
		return true
	}
	return false
}

// inTrailer reports whether a field of this kind may stand in a trailer section (RFC 9110 section 6.5.1): none that
// frames, routes or authenticates a message.
func (k Kind) inTrailer() bool {
	switch k {
	case Other, GRPCStatus, UserAgent, Content, ServiceTime:
		return true
	}
	return false
}

// twin reports whether a name is one of the guarded names for a server that folds other characters to "-" as it makes a
// variable of it: CGI and WSGI fold "_", and what stands behind some of them every character but letters and digits.
func twin(n []byte) bool {
	found := false
	var buf [32]byte
	if len(n) > len(buf) {
		return false
	}
	for i, c := range n {
		if class[c]&isPlain == 0 {
			c, found = '-', true
		}
		buf[i] = c
	}
	if !found {
		return false
	}
	k := kindOf(buf[:len(n)])
	return k.endToEnd() && k != Content && k != ContentType || k == Connection || k == Upgrade
}

// connectionSpecific reports whether the field is for one hop by its own name (RFC 9110 section 7.6.1, and RFC 7540 section
// 3.2.1).
func (k Kind) connectionSpecific() bool {
	switch k {
	case Connection, KeepAlive, ProxyConnection, Upgrade, HTTP2Settings, TransferEncoding, TE:
		return true
	}
	return false
}

// Character classes of RFC 9110 section 5.6.2 and 5.5.
const (
	isToken = 1 << iota
	isValue
	isTarget
	isHost
	isPlain // a letter, a digit or "-"
)

var class = func() (t [256]byte) {
	for c := range 256 {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			t[c] = isToken | isHost | isPlain
		}
		if c == '\t' || c >= ' ' && c != 0x7f {
			t[c] |= isValue
		}
		if c > ' ' && c != 0x7f && c != '#' {
			t[c] |= isTarget
		}
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] |= isToken
	}
	t['-'] |= isPlain
	for _, c := range "-._~%!$&'()*+;=" {
		t[c] |= isHost
	}
	return t
}()

func all(b []byte, what byte) bool {
	for _, c := range b {
		if class[c]&what == 0 {
			return false
		}
	}
	return true
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// eachToken calls f with each element of a comma-separated list, trimmed, until it returns false. Empty elements are
// left out (RFC 9110 section 5.6.1.2).
func eachToken(list []byte, f func([]byte) bool) {
	for len(list) > 0 {
		end := len(list)
		for i, c := range list {
			if c == ',' {
				end = i
				break
			}
		}
		if t := trim(list[:end]); len(t) > 0 && !f(t) {
			return
		}
		list = list[min(end+1, len(list)):]
	}
}
