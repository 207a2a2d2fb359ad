package forward

import (
	"net/http"
	"strconv"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

var (
	noRoute           = filter.Answer{Status: 404, Flag: exchange.FlagNoRoute, Details: "route_not_found", Body: "no route for this host and path"}
	noCluster         = filter.Answer{Status: 503, Flag: exchange.FlagNoCluster, Details: "cluster_not_found", Body: "the route's destination is not known: no such service or subset"}
	noHealthyUpstream = filter.Answer{Status: 503, Flag: exchange.FlagNoHealthyUpstream, Details: "no_healthy_upstream", Body: "no healthy upstream"}
	clientGone        = filter.Answer{Flag: exchange.FlagDownstreamTermination, Details: "downstream_remote_disconnect", Client: true}
	headTimeout       = filter.Answer{Status: 408, Flag: exchange.FlagDownstreamProtocol, Details: "request_header_timeout", Body: "the request's head did not come in time", Client: true}
	requestTimeout    = filter.Answer{Status: 504, Flag: exchange.FlagUpstreamTimeout, Details: "response_timeout", Body: "upstream request timeout"}
	perTryTimeout     = filter.Answer{Status: 504, Flag: exchange.FlagUpstreamTimeout, Details: "upstream_per_try_timeout", Body: "upstream request timeout", Cause: filter.PerTryTimeout}
	streamIdle        = filter.Answer{Status: 504, Flag: exchange.FlagStreamIdle, Details: "stream_idle_timeout", Body: "stream timeout"}
)

const resetText = "upstream connect error or disconnect/reset before headers. reset reason: "

func connectFailure(err error) *filter.Answer {
	return &filter.Answer{
		Status: 503, Flag: exchange.FlagUpstreamConnect,
		Details: "upstream_reset_before_response_started{connection_failure}",
		Cause:   filter.ConnectFailure,
		Body:    resetText + "remote connection failure, transport failure reason: " + err.Error(),
	}
}

func upstreamClosed() *filter.Answer {
	return &filter.Answer{
		Status: 503, Flag: exchange.FlagUpstreamTermination,
		Details: "upstream_reset_before_response_started{connection_termination}",
		Cause:   filter.Reset,
		Body:    resetText + "connection termination",
	}
}

func upstreamProtocol(reason string) *filter.Answer {
	return &filter.Answer{
		Status: 502, Flag: exchange.FlagUpstreamProtocol,
		Details: "upstream_reset_before_response_started{protocol_error}",
		Cause:   filter.Reset,
		Body:    resetText + "protocol error: " + reason,
	}
}

func clientProtocol(err *http1.Error) *filter.Answer {
	return &filter.Answer{
		Status: err.Status, Flag: exchange.FlagDownstreamProtocol, Details: "http1.codec_error",
		Body: http.StatusText(err.Status) + ": " + err.Reason, Client: true,
	}
}

// answer writes a local answer: the one place where they are made. Its fields besides its own are those that the filters
// have left in the response. It reports whether the client's connection can go on.
func (s *server) answer(f *filter.Answer, buf []byte) (keep bool) {
	s.x.Flag, s.x.Details = s.x.Flag.With(f.Flag), f.Details
	if f.Status == 0 {
		return false
	}
	keep = s.mayKeep() && !f.Client && s.in.Done()
	status, kind, body := f.Status, "text/plain", f.Body
	if s.x.GRPC {
		// A gRPC client looks for the status in the trailers, which may come as the only head
		// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses).
		status, kind, body = http.StatusOK, "application/grpc", ""
		s.x.GRPCStatus = filter.GRPCOf(f.Status)
		if f.GRPCSet {
			s.x.GRPCStatus = f.GRPC
		}
	}
	s.x.Status = status
	out := http1.AppendStatusLine(buf, status, []byte(http.StatusText(status)))
	if len(body) > 0 || s.x.GRPC {
		out = http1.AppendField(out, "Content-Type", kind)
	}
	if status >= 200 && status != http.StatusNoContent {
		out = http1.AppendField(out, "Content-Length", strconv.Itoa(len(body)))
	}
	if s.x.GRPC {
		out = http1.AppendField(out, "Grpc-Status", strconv.Itoa(s.x.GRPCStatus))
		out = http1.AppendField(out, "Grpc-Message", grpcMessage(f.Body))
	}
	for i := range s.f.Response.Header {
		h := &s.f.Response.Header[i]
		out = http1.AppendField(out, h.Name, h.Value)
	}
	if status == http.StatusMethodNotAllowed {
		out = http1.AppendField(out, "Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
	}
	out = s.appendConnection(out, keep)
	out = append(out, "\r\n"...)
	if string(s.req.Method) != http.MethodHead && status != http.StatusNoContent && status != http.StatusNotModified {
		out = append(out, body...)
		s.x.BytesSent = int64(len(body))
	}
	if err := s.write(out); err != nil {
		return false
	}
	return keep
}

// grpcMessage percent-encodes what may not stand in a gRPC message.
func grpcMessage(text string) string {
	const hex = "0123456789ABCDEF"
	out := make([]byte, 0, len(text))
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', hex[c>>4], hex[c&15])
		} else {
			out = append(out, c)
		}
	}
	return string(out)
}
