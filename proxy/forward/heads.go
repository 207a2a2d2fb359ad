package forward

import (
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// appendRequest appends the head that goes to the upstream: the client's, in its order and case, without what was for
// its hop only, and with what this proxy has to say.
func (s *server) appendRequest(out []byte, self string) []byte {
	q := &s.f.Request
	edge := s.origin.direction == exchange.Gateway
	out = http1.AppendRequestLine(out, q.Method, q.Path)
	hosted, proto := false, false
	for i := range q.Header {
		f := &q.Header[i]
		if f.Hop {
			continue
		}
		switch f.Kind {
		case http1.Host:
			// An absolute target, or a rewrite, has won over it.
			out = http1.AppendField(out, f.Name, q.Authority)
			hosted = true
			continue
		case http1.Expect:
			if !s.req.Continue {
				continue
			}
		case http1.ClientCert:
			// Only the side that verified a certificate may speak of it.
			if s.origin.direction != exchange.Outbound {
				continue
			}
		case http1.RequestID, http1.ForwardedFor, http1.EnvoyInternal, http1.ServiceTime:
			// From outside the mesh they are anyone's word; made anew below.
			if edge && !f.Own {
				continue
			}
		case http1.ForwardedProto:
			if edge && !f.Own {
				continue
			}
			proto = true
		}
		out = http1.AppendField(out, f.Name, f.Value)
	}
	if !hosted {
		out = http1.AppendField(out, "Host", s.authority())
	}
	if s.req.Framing == http1.Chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	if s.req.WebSocket {
		out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
	}
	if edge {
		out = append(out, "X-Forwarded-For: "...)
		if len(s.x.XForwardedFor) > 0 {
			out = append(append(out, s.x.XForwardedFor...), ", "...)
		}
		out = append(s.origin.remote.Addr().AppendTo(out), "\r\n"...)
	}
	if !proto {
		out = http1.AppendField(out, "X-Forwarded-Proto", s.scheme())
	}
	if s.madeID {
		out = http1.AppendField(out, "X-Request-Id", s.x.RequestID)
	}
	if s.origin.direction == exchange.Inbound && s.origin.peer != "" {
		out = append(out, "X-Forwarded-Client-Cert: By="...)
		out = append(append(append(append(out, self...), ";URI="...), s.origin.peer...), "\r\n"...)
	}
	return append(out, "\r\n"...)
}

// authority is what goes into Host where an HTTP/1.0 client sent none: HTTP/1.1 demands one.
func (s *server) authority() []byte {
	if len(s.f.Request.Authority) > 0 {
		return s.f.Request.Authority
	}
	if s.origin.dst.Port() == 80 {
		return []byte(s.origin.dst.Addr().String())
	}
	return []byte(s.origin.dst.String())
}

// scheme is how the client reached us.
func (s *server) scheme() string {
	if s.c.Peer != "" || s.c.ServerName != "" {
		return "https"
	}
	return "http"
}

// appendResponse appends the head that goes to the client. chunked and keep say how the body and the connection
// will end.
func (s *server) appendResponse(out []byte, chunked, keep bool) []byte {
	p := &s.resp
	out = http1.AppendStatusLine(out, p.Status, p.Reason)
	for i := range p.Header {
		f := &p.Header[i]
		if f.Hop || f.Kind == http1.ServiceTime {
			continue
		}
		if f.Kind == http1.ContentLength && (p.Status == 204 || p.Status < 200) {
			// RFC 9110 section 8.6: there it must not be.
			continue
		}
		out = http1.AppendField(out, f.Name, f.Value)
	}
	switch {
	case p.WebSocket:
		return append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...)
	case p.Status < 200:
		return append(out, "\r\n"...)
	}
	if chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	out = append(out, "X-Envoy-Upstream-Service-Time: "...)
	out = strconv.AppendInt(out, int64(s.x.UpstreamTime/time.Millisecond), 10)
	out = append(out, "\r\n"...)
	out = s.appendConnection(out, keep)
	return append(out, "\r\n"...)
}

func (s *server) appendConnection(out []byte, keep bool) []byte {
	switch {
	case !keep:
		return append(out, "Connection: close\r\n"...)
	case s.req.Minor == 0:
		return append(out, "Connection: keep-alive\r\n"...)
	}
	return out
}

// requestID writes a random UUID (RFC 9562 section 5.4) to dst.
func requestID(dst *[36]byte) []byte {
	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	hex.Encode(dst[0:8], b[0:4])
	hex.Encode(dst[9:13], b[4:6])
	hex.Encode(dst[14:18], b[6:8])
	hex.Encode(dst[19:23], b[8:10])
	hex.Encode(dst[24:36], b[10:16])
	dst[8], dst[13], dst[18], dst[23] = '-', '-', '-', '-'
	return dst[:]
}
