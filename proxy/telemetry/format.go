package telemetry

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/composure-mesh/composure/proxy/exchange"
)

const timeFormat = "2006-01-02T15:04:05.000Z"

// appendText appends Istio's default line
// (https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format). A value that is
// not there is "-".
func appendText(b []byte, x *exchange.Exchange) []byte {
	b = append(b, '[')
	b = x.Start.UTC().AppendFormat(b, timeFormat)
	b = append(b, `] "`...)
	b = textField(b, x.Method)
	b = append(b, ' ')
	b = textField(b, x.Path)
	b = append(b, ' ')
	b = textField(b, x.Protocol)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(x.Status), 10)
	b = append(b, ' ')
	b = textField(b, x.Flag)
	b = append(b, ' ')
	b = textField(b, x.Details)
	b = append(b, ` - "`...) // connection termination details
	b = textField(b, x.Upstream.Failure)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, x.BytesReceived, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, x.BytesSent, 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, x.Duration.Milliseconds(), 10)
	b = append(b, ' ')
	if x.UpstreamTime > 0 {
		b = strconv.AppendInt(b, x.UpstreamTime.Milliseconds(), 10)
	} else {
		b = append(b, '-')
	}
	for _, f := range [...][]byte{x.XForwardedFor, x.UserAgent, x.RequestID, x.Authority} {
		b = append(b, ` "`...)
		b = textField(b, f)
		b = append(b, '"')
	}
	b = append(b, ` "`...)
	b = textAddr(b, x.Upstream.Remote)
	b = append(b, `" `...)
	b = textField(b, x.Upstream.Cluster)
	b = append(b, ' ')
	b = textAddr(b, x.Upstream.Local)
	b = append(b, ' ')
	b = textAddr(b, downstreamLocal(x.Conn))
	b = append(b, ' ')
	b = textAddr(b, x.Conn.Downstream())
	b = append(b, ' ')
	b = textField(b, x.Conn.ServerName)
	b = append(b, ' ')
	return textField(b, x.Route)
}

// downstreamLocal is where the client believes to be connected: the original destination, as in Envoy.
func downstreamLocal(c *exchange.Connection) netip.AddrPort {
	if c.OriginalDst.IsValid() {
		return c.OriginalDst
	}
	return c.Local
}

// textField appends what came from outside in one word of printable ASCII without quotes, so that a line is a line
// and a field a field whatever the client sends.
func textField[T ~string | ~[]byte](b []byte, s T) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	const hex = "0123456789abcdef"
	for i := range len(s) {
		c := s[i]
		switch {
		case c < ' ', c >= 0x7f, c == '"', c == '\\':
			b = append(b, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

func textAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, '-')
	}
	return a.AppendTo(b)
}

// appendJSON appends the same fields as one object with Istio's keys; a value that is not there is null. What
// policies of a dry run and of AUDIT have to say comes besides.
func appendJSON(b []byte, x *exchange.Exchange) []byte {
	b = append(b, `{"start_time":"`...)
	b = x.Start.UTC().AppendFormat(b, timeFormat)
	b = append(b, '"')
	b = jsonField(b, "method", x.Method)
	b = jsonField(b, "path", x.Path)
	b = jsonField(b, "protocol", x.Protocol)
	b = jsonNumber(b, "response_code", int64(x.Status))
	b = jsonField(b, "response_flags", x.Flag)
	b = jsonField(b, "response_code_details", x.Details)
	b = jsonField(b, "connection_termination_details", "")
	b = jsonField(b, "upstream_transport_failure_reason", x.Upstream.Failure)
	b = jsonNumber(b, "bytes_received", x.BytesReceived)
	b = jsonNumber(b, "bytes_sent", x.BytesSent)
	b = jsonNumber(b, "duration", x.Duration.Milliseconds())
	b = jsonDuration(b, "upstream_service_time", x.UpstreamTime)
	b = jsonField(b, "x_forwarded_for", x.XForwardedFor)
	b = jsonField(b, "user_agent", x.UserAgent)
	b = jsonField(b, "request_id", x.RequestID)
	b = jsonField(b, "authority", x.Authority)
	b = jsonAddr(b, "upstream_host", x.Upstream.Remote)
	b = jsonField(b, "upstream_cluster", x.Upstream.Cluster)
	b = jsonAddr(b, "upstream_local_address", x.Upstream.Local)
	b = jsonAddr(b, "downstream_local_address", downstreamLocal(x.Conn))
	b = jsonAddr(b, "downstream_remote_address", x.Conn.Downstream())
	b = jsonField(b, "requested_server_name", x.Conn.ServerName)
	b = jsonField(b, "route_name", x.Route)
	if x.DryRun != "" {
		b = jsonField(b, "access_dry_run", x.DryRun)
	}
	if x.Audit != "" {
		b = jsonField(b, "access_audit", x.Audit)
	}
	return append(b, '}')
}

func jsonKey(b []byte, key string) []byte {
	b = append(b, `,"`...)
	b = append(b, key...)
	return append(b, `":`...)
}

func jsonNumber(b []byte, key string, n int64) []byte {
	return strconv.AppendInt(jsonKey(b, key), n, 10)
}

func jsonDuration(b []byte, key string, d time.Duration) []byte {
	if d <= 0 {
		return append(jsonKey(b, key), "null"...)
	}
	return jsonNumber(b, key, d.Milliseconds())
}

func jsonAddr(b []byte, key string, a netip.AddrPort) []byte {
	b = jsonKey(b, key)
	if !a.IsValid() {
		return append(b, "null"...)
	}
	b = append(b, '"')
	b = a.AppendTo(b)
	return append(b, '"')
}

func jsonField[T ~string | ~[]byte](b []byte, key string, s T) []byte {
	b = jsonKey(b, key)
	if len(s) == 0 {
		return append(b, "null"...)
	}
	b = append(b, '"')
	var tmp [utf8.UTFMax]byte
	for i := 0; i < len(s); {
		n := copy(tmp[:], s[i:])
		r, size := utf8.DecodeRune(tmp[:n])
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, `\ufffd`...)
		case r == '"', r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ', r >= 0x7f && r < 0xa0, r == '\u2028', r == '\u2029':
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			b = append(b, tmp[:size]...)
		}
		i += size
	}
	return append(b, '"')
}
