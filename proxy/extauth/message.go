package extauth

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// The messages of envoy.service.auth.v3, as far as they are spoken here: what is written, and what is read, stands in this file
// by the numbers of its fields
// (https://github.com/envoyproxy/envoy/blob/main/api/envoy/service/auth/v3/attribute_context.proto, external_auth.proto).

// message is a protobuf message that is being written.
type message []byte

// text writes a string, or bytes, unless it is empty.
func (m *message) text(n protowire.Number, v string) {
	if v != "" {
		*m = protowire.AppendString(protowire.AppendTag(*m, n, protowire.BytesType), v)
	}
}

func (m *message) number(n protowire.Number, v int64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, n, protowire.VarintType), uint64(v)) //nolint:gosec // two's complement is the encoding
	}
}

// message writes one within, also if that is empty.
func (m *message) message(n protowire.Number, write func(*message)) {
	var in message
	write(&in)
	*m = protowire.AppendBytes(protowire.AppendTag(*m, n, protowire.BytesType), in)
}

// checkRequest is an envoy.service.auth.v3.CheckRequest about x, or about the connection c alone where x is nil.
func checkRequest(p *Provider, self string, c *exchange.Connection, x *filter.Exchange, body Body) []byte {
	var m message
	m.message(1, func(attributes *message) {
		attributes.message(1, func(source *message) { source.peer(c.Remote, c.Peer) })
		attributes.message(2, func(destination *message) { destination.peer(c.OriginalDst, self) })
		attributes.message(4, func(request *message) {
			if x == nil {
				request.time(time.Now())
				return
			}
			request.time(x.Record.Start)
			request.message(2, func(h *message) { h.http(p, c, x, body) })
		})
		if c.ServerName != "" {
			attributes.message(12, func(tls *message) { tls.text(1, c.ServerName) })
		}
	})
	return m
}

// peer writes an AttributeContext.Peer.
func (m *message) peer(at netip.AddrPort, principal string) {
	m.message(1, func(address *message) {
		address.message(1, func(socket *message) {
			socket.text(2, at.Addr().Unmap().String())
			socket.number(3, int64(at.Port()))
		})
	})
	m.text(4, principal)
}

func (m *message) time(t time.Time) {
	m.message(1, func(stamp *message) {
		stamp.number(1, t.Unix())
		stamp.number(2, int64(t.Nanosecond()))
	})
}

// http writes an AttributeContext.HttpRequest.
func (m *message) http(p *Provider, c *exchange.Connection, x *filter.Exchange, body Body) {
	q := &x.Request
	m.text(1, string(x.Record.RequestID))
	m.text(2, string(q.Method))
	for _, h := range headersOf(p, c, x, body) {
		m.message(3, func(entry *message) {
			entry.text(1, h.name)
			entry.text(2, h.value)
		})
	}
	m.text(4, string(q.Path))
	m.text(5, string(q.Authority))
	m.text(6, q.Scheme)
	m.number(9, sizeOf(q.Header))
	m.text(10, x.Record.Protocol)
	switch {
	case len(body.Bytes) == 0:
	case p.Body.Raw:
		m.text(12, string(body.Bytes))
	default:
		m.text(11, readable(string(body.Bytes)))
	}
}

// sizeOf is the declared length of a body, -1 where none is.
func sizeOf(h http1.Header) int64 {
	if v, ok := h.First(http1.ContentLength); ok {
		if n, ok := http1.ParseLength(v); ok {
			return n
		}
	}
	return -1
}

// headersOf are the header's fields in small letters, those of one name joined, with what HTTP/2 has as pseudo-headers.
func headersOf(p *Provider, c *exchange.Connection, x *filter.Exchange, body Body) (all []parameter) {
	q := &x.Request
	at := map[string]int{}
	put := func(name, value, separator string) {
		value = readable(value)
		if i, ok := at[name]; ok {
			all[i].value += separator + value
			return
		}
		at[name] = len(all)
		all = append(all, parameter{name, value})
	}
	put(":authority", string(q.Authority), "")
	put(":method", string(q.Method), "")
	put(":path", string(q.Path), "")
	put(":scheme", q.Scheme, "")
	for i := range q.Header {
		f := &q.Header[i]
		switch {
		case f.Hop, f.Kind == http1.Host, f.Kind == http1.ClientCert: // the last is anyone's word: source.principal is the verified one
		case f.Kind == http1.RequestID, c.Direction == exchange.Gateway && f.Kind == http1.ForwardedFor:
		case f.Kind == http1.Cookie:
			put("cookie", string(f.Value), "; ")
		case p.Body != nil && http1.EqualFold(f.Name, partialBody):
		default:
			put(strings.ToLower(string(f.Name)), string(f.Value), ",")
		}
	}
	put("x-request-id", string(x.Record.RequestID), "")
	if c.Direction == exchange.Gateway {
		forwarded := string(x.Record.XForwardedFor)
		if forwarded != "" {
			forwarded += ", "
		}
		put("x-forwarded-for", forwarded+c.Downstream().Addr().Unmap().String(), "")
	}
	if p.Body != nil {
		put(partialBody, strconv.FormatBool(body.Cut), "")
	}
	return all
}

// readable is s with what is no UTF-8 replaced: a string of protobuf may have nothing else.
func readable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// fields calls f for each field of a message that is bytes, or a varint.
func fields(b []byte, f func(n protowire.Number, in []byte, v uint64) error) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		var in []byte
		var v uint64
		switch kind {
		case protowire.BytesType:
			in, size = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			v, size = protowire.ConsumeVarint(b)
		default:
			size = protowire.ConsumeFieldValue(n, kind, b)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		b = b[size:]
		if kind == protowire.BytesType || kind == protowire.VarintType {
			if err := f(n, in, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkResponse reads an envoy.service.auth.v3.CheckResponse. Its dynamic metadata is for filters that there are none of here.
func checkResponse(b []byte) (*verdict, error) {
	v := &verdict{allowed: true, status: 403}
	err := fields(b, func(n protowire.Number, in []byte, _ uint64) error {
		switch n {
		case 1: // google.rpc.Status: 0 is consent
			return fields(in, func(n protowire.Number, _ []byte, code uint64) error {
				if n == 1 && code != 0 {
					v.allowed = false
				}
				return nil
			})
		case 2:
			return v.denied(in)
		case 3:
			return v.ok(in)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("its answer is no CheckResponse: %w", err)
	}
	if v.allowed {
		v.header = nil
	}
	return v, nil
}

// denied reads a DeniedHttpResponse.
func (v *verdict) denied(b []byte) error {
	return fields(b, func(n protowire.Number, in []byte, _ uint64) error {
		switch n {
		case 1: // envoy.type.v3.HttpStatus
			return fields(in, func(n protowire.Number, _ []byte, code uint64) error {
				if n == 1 && code >= 200 && code < 600 {
					v.status = int(code) //nolint:gosec // just bounded
				}
				return nil
			})
		case 2:
			o, err := headerOption(in)
			if err != nil {
				return err
			}
			if f, ok := field(o.name, o.value); ok {
				if o.sets(false) {
					v.header = filter.Without(v.header, strings.ToLower(o.name))
				}
				v.header = append(v.header, f)
			}
		case 3:
			v.body = string(in)
		}
		return nil
	})
}

// ok reads an OkHttpResponse.
func (v *verdict) ok(b []byte) error {
	return fields(b, func(n protowire.Number, in []byte, _ uint64) error {
		switch n {
		case 2:
			o, err := headerOption(in)
			if err != nil {
				return err
			}
			if f, ok := field(o.name, o.value); ok {
				v.upstream(o, f)
			}
		case 5:
			v.drop(string(in))
		case 6:
			o, err := headerOption(in)
			if err != nil {
				return err
			}
			if f, ok := field(o.name, o.value); ok {
				v.later = append(v.later, filter.Change{Lower: strings.ToLower(o.name), Add: !o.sets(false), Field: f})
			}
		case 7:
			var p parameter
			err := fields(in, func(n protowire.Number, in []byte, _ uint64) error {
				switch n {
				case 1:
					p.name = string(in)
				case 2:
					p.value = string(in)
				}
				return nil
			})
			if err == nil && p.name != "" {
				v.setQuery = append(v.setQuery, p)
			}
			return err
		case 8:
			v.removeQuery = append(v.removeQuery, string(in))
		}
		return nil
	})
}

// upstream notes a field of the request: one that is set replaces what there is of its name, and what was set before.
func (v *verdict) upstream(o option, f http1.Field) {
	if !o.sets(true) {
		v.extend = append(v.extend, f)
		return
	}
	lower := strings.ToLower(o.name)
	v.remove = append(v.remove, lower)
	v.set = append(filter.Without(v.set, lower), f)
}

// option is an envoy.config.core.v3.HeaderValueOption.
type option struct {
	name, value string
	appends     *bool
	action      uint64 // append_action
}

// sets reports whether the field replaces those of its name. Of a request's it does unless append says no; of a response's,
// append_action decides where append is absent, and adds by default.
func (o *option) sets(request bool) bool {
	const overwrite, overwriteOrAdd = 2, 3
	if o.appends != nil {
		return !*o.appends
	}
	switch o.action {
	case overwriteOrAdd, overwrite:
		return true
	}
	return request
}

func headerOption(b []byte) (o option, err error) {
	err = fields(b, func(n protowire.Number, in []byte, v uint64) error {
		switch n {
		case 1:
			return fields(in, func(n protowire.Number, in []byte, _ uint64) error {
				switch {
				case n == 1:
					o.name = string(in)
				case n == 2, n == 3 && len(in) > 0: // value, and raw_value
					o.value = string(in)
				}
				return nil
			})
		case 2:
			appends := false
			o.appends = &appends
			return fields(in, func(n protowire.Number, _ []byte, v uint64) error {
				appends = appends || n == 1 && v != 0
				return nil
			})
		case 3:
			o.action = v
		}
		return nil
	})
	return o, err
}
