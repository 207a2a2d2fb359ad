package forward

import (
	"strconv"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// requestHead makes the fields that go to the upstream, whatever it speaks: the client's, in their order and case, without
// what was for its hop only, and with what this proxy has to say. self is our own identity.
func (s *server) requestHead(self string) {
	q := &s.f.Request
	edge := s.origin.direction == exchange.Gateway
	// The application sees our address where it saw the client's. One of the mesh is named by its identity instead.
	named := edge || s.origin.direction == exchange.Inbound && s.origin.peer == ""
	h, text := s.head[:0], s.text[:0]
	hosted, proto := false, false
	var told []byte // of the client's certificate, by the gateway
	for i := range q.Header {
		f := &q.Header[i]
		if f.Hop {
			continue
		}
		switch f.Kind {
		case http1.Host:
			// An absolute target, or a rewrite, has won over it.
			h = append(h, http1.Field{Name: f.Name, Value: q.Authority, Kind: http1.Host})
			hosted = true
			continue
		case http1.ContentLength:
			if s.req.Framing == http1.Chunked {
				continue // as it is sent, its chunks say it
			}
		case http1.Expect:
			if !s.req.Continue {
				continue
			}
		case http1.ClientCert:
			// Only the side that verified a certificate may speak of it.
			if s.x.Trust.Gateway {
				told = f.Value
			}
			if s.origin.direction != exchange.Outbound {
				continue
			}
		case http1.ForwardedFor:
			if named && !f.Own {
				continue
			}
		case http1.RequestID, http1.EnvoyInternal, http1.ServiceTime:
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
		if s.req.WebSocket && s.origin.http2 && http1.EqualFold(f.Name, webSocketKey) {
			continue
		}
		h = append(h, *f)
	}
	if !hosted {
		h = append(h, http1.Field{Name: nameHost, Value: s.authority(), Kind: http1.Host})
	}
	if named {
		n := len(text)
		if len(s.x.XForwardedFor) > 0 {
			text = append(append(text, s.x.XForwardedFor...), ", "...)
		}
		text = s.origin.client.AppendTo(text)
		h = append(h, http1.Field{Name: nameForwardedFor, Value: text[n:], Kind: http1.ForwardedFor})
	}
	if !proto {
		n := len(text)
		text = append(text, s.f.Request.Scheme...)
		h = append(h, http1.Field{Name: nameForwardedProto, Value: text[n:], Kind: http1.ForwardedProto})
	}
	if s.madeID {
		h = append(h, http1.Field{Name: nameRequestID, Value: s.x.RequestID, Kind: http1.RequestID})
	}
	if s.origin.direction == exchange.Inbound && s.origin.peer != "" {
		n := len(text)
		if told != nil {
			text = append(append(text, told...), ',')
		}
		text = append(append(append(append(text, "By="...), self...), ";URI="...), s.origin.peer...)
		h = append(h, http1.Field{Name: nameClientCert, Value: text[n:], Kind: http1.ClientCert})
	}
	if edge && s.c.ClientCert != nil {
		h = append(h, http1.Field{Name: nameClientCert, Value: s.c.ClientCert, Kind: http1.ClientCert})
	}
	s.head, s.text = h, text
}

var (
	nameHost           = []byte("Host")
	nameForwardedFor   = []byte("X-Forwarded-For")
	nameForwardedProto = []byte("X-Forwarded-Proto")
	nameRequestID      = []byte("X-Request-Id")
	nameClientCert     = []byte("X-Forwarded-Client-Cert")
	nameServiceTime    = []byte("X-Envoy-Upstream-Service-Time")
)

// appendRequest appends the head for an upstream of HTTP/1.
func (s *server) appendRequest(out []byte) []byte {
	q := &s.f.Request
	out = appendFields(http1.AppendRequestLine(out, q.Method, q.Path), s.head)
	if s.req.Framing == http1.Chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	if s.req.WebSocket {
		out = append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n"...)
		if s.origin.http2 {
			s.handshake.make()
			out = http1.AppendField(out, "Sec-WebSocket-Key", s.handshake[:])
		}
	}
	return append(out, "\r\n"...)
}

// announcesTrailer reports whether a message says that trailers follow (RFC 9110 section 6.6.2). Where HTTP/2 has them after
// a body of a declared length, HTTP/1 has them after chunks alone.
func announcesTrailer(h http1.Header) bool {
	_, ok := h.First(http1.Trailer)
	return ok
}

func appendFields(out []byte, h http1.Header) []byte {
	for i := range h {
		out = http1.AppendField(out, h[i].Name, h[i].Value)
	}
	return out
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

// schemeOf is the request's scheme as HTTP/2 wants to be told: the client's word, where it had one.
func (s *server) schemeOf() []byte {
	if string(s.scheme) == "http" || string(s.scheme) == "https" {
		return s.scheme
	}
	return []byte(s.f.Request.Scheme)
}

// told is the scheme that trusted proxies in front of a gateway say they were reached by; empty where there are none, or they do not say
// it. Of several fields, one may be the client's own.
func (s *server) told() (scheme string) {
	if s.origin.direction != exchange.Gateway || s.x.Trust.Proxies == 0 {
		return ""
	}
	for i := range s.req.Header {
		f := &s.req.Header[i]
		switch {
		case f.Kind != http1.ForwardedProto:
		case scheme == "" && http1.EqualFold(f.Value, "https"):
			scheme = "https"
		case scheme == "" && http1.EqualFold(f.Value, "http"):
			scheme = "http"
		default:
			return ""
		}
	}
	return scheme
}

// reached is how the client reached us, as a scheme.
func (s *server) reached() string {
	if s.c.Peer != "" || s.c.ServerName != "" || s.c.TLSServer != "" {
		return "https"
	}
	return "http"
}

// responseHead makes the fields that go to the client.
func (s *server) responseHead() http1.Header {
	p := &s.resp
	h := s.head[:0]
	for i := range p.Header {
		f := &p.Header[i]
		if f.Hop || f.Kind == http1.ServiceTime || f.Kind == http1.Undelivered { // which no application may say
			continue
		}
		if f.Kind == http1.ContentLength && (p.Status == 204 || p.Status < 200 || p.Framing == http1.Chunked) {
			// RFC 9110 section 8.6, and RFC 9112 section 6.2: there it must not be.
			continue
		}
		h = append(h, *f)
	}
	if p.Status >= 200 {
		s.text = strconv.AppendInt(s.text[:0], int64(s.x.UpstreamTime/time.Millisecond), 10)
		h = append(h, http1.Field{Name: nameServiceTime, Value: s.text, Kind: http1.ServiceTime})
	}
	s.head = h
	return h
}
