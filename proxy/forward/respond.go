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
	noPath            = filter.Answer{Status: 400, Details: "path_normalization_failed", Body: "the path has a %00, where some would end it"}
	blackHole         = filter.Answer{Status: 502, Details: "direct_response", Body: "this destination is no service that the mesh knows, and a Sidecar allows only such: a ServiceEntry makes it one"}
	noCluster         = filter.Answer{Status: 503, Flag: exchange.FlagNoCluster, Details: "cluster_not_found", Body: "the route's destination is not known: no such service or subset"}
	noHealthyUpstream = filter.Answer{Status: 503, Flag: exchange.FlagNoHealthyUpstream, Details: "no_healthy_upstream", Body: "no healthy upstream", Cause: filter.NoEndpoint}
	overflow          = filter.Answer{
		Status: 503, Flag: exchange.FlagUpstreamOverflow, Details: "upstream_reset_before_response_started{overflow}", Body: resetText + "overflow",
		Header: http1.Header{http1.NewField("X-Envoy-Overloaded", "true")},
	}
	clientGone = filter.Answer{Flag: exchange.FlagDownstreamTermination, Details: "downstream_remote_disconnect", Client: true}
	// A reset of one stream of HTTP/2, by the client and for the client's fault.
	clientReset    = filter.Answer{Flag: exchange.FlagDownstreamReset, Details: "http2.remote_reset", Client: true}
	clientBroke    = filter.Answer{Flag: exchange.FlagDownstreamProtocol, Details: "http2.violation.of.messaging.rule", Client: true}
	headTimeout    = filter.Answer{Status: 408, Flag: exchange.FlagDownstreamProtocol, Details: "request_header_timeout", Body: "the request's head did not come in time", Client: true}
	requestTimeout = filter.Answer{Status: 504, Flag: exchange.FlagUpstreamTimeout, Details: "response_timeout", Body: "upstream request timeout"}
	perTryTimeout  = filter.Answer{Status: 504, Flag: exchange.FlagUpstreamTimeout, Details: "upstream_per_try_timeout", Body: "upstream request timeout", Cause: filter.PerTryTimeout}
	streamIdle     = filter.Answer{Status: 504, Flag: exchange.FlagStreamIdle, Details: "stream_idle_timeout", Body: "stream timeout"}
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

func upstreamReset() *filter.Answer {
	return &filter.Answer{
		Status: 503, Flag: exchange.FlagUpstreamReset,
		Details: "upstream_reset_before_response_started{remote_reset}",
		Cause:   filter.Reset,
		Body:    resetText + "remote reset",
	}
}

func upstreamRefused() *filter.Answer {
	return &filter.Answer{
		Status: 503, Flag: exchange.FlagUpstreamReset,
		Details: "upstream_reset_before_response_started{remote_refused_stream_reset}",
		Cause:   filter.Refused,
		Body:    resetText + "remote refused stream reset",
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

// answer sends a local answer: the one place where they are made. Its fields besides its own are those that the filters
// have left in the response. It reports whether the client's connection can go on.
func (s *server) answer(f *filter.Answer) (keep bool) {
	s.x.Flag, s.x.Details = s.x.Flag.With(f.Flag), f.Details
	if f.Status == 0 {
		return false
	}
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
	h := s.head[:0]
	more := s.f.Response.Header
	if s.x.GRPC {
		more = filter.Without(more, "content-type") // another's words, which this client does not get
	}
	if _, named := more.First(http1.ContentType); !named && (len(body) > 0 || s.x.GRPC) {
		h = append(h, http1.NewField("Content-Type", kind))
	}
	if s.x.GRPC {
		h = append(h, http1.NewField("Grpc-Status", strconv.Itoa(s.x.GRPCStatus)), http1.NewField("Grpc-Message", grpcMessage(f.Body)))
	}
	if f.Cause == filter.ConnectFailure && s.origin.direction == exchange.Inbound && s.origin.peer != "" {
		h = append(h, http1.NewField("X-Composure-Undelivered", "true"))
	}
	h = append(h, more...)
	if status == http.StatusMethodNotAllowed {
		h = append(h, http1.NewField("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE"))
	}
	s.head = h
	if string(s.req.Method) != http.MethodHead && status != http.StatusNoContent && status != http.StatusNotModified {
		s.x.BytesSent = int64(len(body))
	}
	return s.client.local(status, h, body, !f.Client)
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
