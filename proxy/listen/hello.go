package listen

import "slices"

// Hello is what a ClientHello tells about the connection it opens.
type Hello struct {
	ServerName string
	Protocols  []string // ALPN, in the client's order
}

// Offers reports whether the client offers one of the given ALPN protocols.
func (h *Hello) Offers(protocols ...string) bool {
	return h != nil && slices.ContainsFunc(h.Protocols, func(p string) bool { return slices.Contains(protocols, p) })
}

// Numbers of RFC 8446 sections 4, 4.2 and 5.1, RFC 6066 section 3 and RFC 7301.
const (
	recordHandshake      = 22
	handshakeClientHello = 1
	extensionServerName  = 0
	extensionALPN        = 16
)

// classifyTLS looks at the record headers: a handshake record of SSL 3.0 to TLS 1.3 with a ClientHello in it.
func classifyTLS(b []byte) (Kind, bool) {
	if len(b) > 1 && b[1] != 3 || len(b) > 2 && b[2] > 4 {
		return TCP, false
	}
	msg, complete, ok := handshakeMessage(b)
	if !ok || len(msg) > 0 && msg[0] != handshakeClientHello {
		return TCP, false
	}
	return TLS, !complete
}

// handshakeMessage joins the fragments of the first handshake message, which may be spread over records. The
// message is as much of it as b holds; ok is false where b can't be a handshake.
func handshakeMessage(b []byte) (msg []byte, complete, ok bool) {
	var joined []byte
	for records := 0; ; records++ {
		if len(b) < 5 {
			return joined, false, true
		}
		n := int(b[3])<<8 | int(b[4])
		if b[0] != recordHandshake || b[1] != 3 || n == 0 || n > 1<<14 {
			return joined, false, false
		}
		fragment := b[5:min(5+n, len(b))]
		switch records {
		case 0:
			joined = fragment // the usual case: one record, no copy
		case 1:
			joined = append(slices.Clip(joined), fragment...)
		default:
			joined = append(joined, fragment...)
		}
		if len(joined) >= 4 {
			if want := 4 + (int(joined[1])<<16 | int(joined[2])<<8 | int(joined[3])); len(joined) >= want {
				return joined[:want], true, true
			}
		}
		if len(b) < 5+n {
			return joined, false, true
		}
		b = b[5+n:]
	}
}

// ParseHello reads the ClientHello that b begins with; false where it is not whole or not sound.
func ParseHello(b []byte) (*Hello, bool) {
	msg, complete, ok := handshakeMessage(b)
	if !ok || !complete || msg[0] != handshakeClientHello {
		return nil, false
	}
	r := reader{b: msg[4:]}
	r.skip(2 + 32)       // legacy_version, random
	r.skip(int(r.u8()))  // legacy_session_id
	r.skip(int(r.u16())) // cipher_suites
	r.skip(int(r.u8()))  // legacy_compression_methods
	h := &Hello{}
	if len(r.b) == 0 && !r.bad {
		return h, true // no extensions
	}
	extensions := reader{b: r.take(int(r.u16()))}
	for len(extensions.b) > 0 && !extensions.bad {
		typ := extensions.u16()
		body := reader{b: extensions.take(int(extensions.u16()))}
		switch typ {
		case extensionServerName:
			h.ServerName = serverName(&body)
		case extensionALPN:
			h.Protocols = protocols(&body)
		}
		extensions.bad = extensions.bad || body.bad
	}
	return h, !r.bad && !extensions.bad
}

func serverName(r *reader) string {
	list := reader{b: r.take(int(r.u16()))}
	for len(list.b) > 0 && !list.bad {
		typ := list.u8()
		name := list.take(int(list.u16()))
		if typ == 0 { // host_name
			return string(name)
		}
	}
	r.bad = r.bad || list.bad
	return ""
}

func protocols(r *reader) []string {
	list := reader{b: r.take(int(r.u16()))}
	var out []string
	for len(list.b) > 0 && !list.bad {
		out = append(out, string(list.take(int(list.u8()))))
	}
	r.bad = r.bad || list.bad
	return out
}

// reader takes big-endian fields off a slice; bad says that it ran out.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.b, r.bad = nil, true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) skip(n int) { r.take(n) }

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return uint16(b[0])<<8 | uint16(b[1])
	}
	return 0
}
