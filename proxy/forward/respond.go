package forward

import (
	"net/http"
	"strconv"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// fault is why an exchange ends without an answer of the upstream's own. Status, flag, details and text are Envoy's
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/response_code_details).
type fault struct {
	status  int
	flag    exchange.Flag
	details string
	text    string
	// client says that the client is to blame, or gone: its connection can't go on.
	client bool
}

var (
	noRoute           = fault{status: 404, flag: exchange.FlagNoRoute, details: "route_not_found", text: "no route for this host and path"}
	noCluster         = fault{status: 503, flag: exchange.FlagNoCluster, details: "cluster_not_found", text: "the route's destination is not known: no such service or subset"}
	noHealthyUpstream = fault{status: 503, flag: exchange.FlagNoHealthyUpstream, details: "no_healthy_upstream", text: "no healthy upstream"}
	clientGone        = fault{flag: exchange.FlagDownstreamTermination, details: "downstream_remote_disconnect", client: true}
	headTimeout       = fault{status: 408, flag: exchange.FlagDownstreamProtocol, details: "request_header_timeout", text: "the request's head did not come in time", client: true}
	streamIdle        = fault{status: 504, flag: exchange.FlagStreamIdle, details: "stream_idle_timeout", text: "stream timeout"}
)

const resetText = "upstream connect error or disconnect/reset before headers. reset reason: "

func connectFailure(err error) *fault {
	return &fault{
		status: 503, flag: exchange.FlagUpstreamConnect,
		details: "upstream_reset_before_response_started{connection_failure}",
		text:    resetText + "remote connection failure, transport failure reason: " + err.Error(),
	}
}

func upstreamClosed() *fault {
	return &fault{
		status: 503, flag: exchange.FlagUpstreamTermination,
		details: "upstream_reset_before_response_started{connection_termination}",
		text:    resetText + "connection termination",
	}
}

func upstreamProtocol(reason string) *fault {
	return &fault{
		status: 502, flag: exchange.FlagUpstreamProtocol,
		details: "upstream_reset_before_response_started{protocol_error}",
		text:    resetText + "protocol error: " + reason,
	}
}

func clientProtocol(err *http1.Error) *fault {
	return &fault{
		status: err.Status, flag: exchange.FlagDownstreamProtocol, details: "http1.codec_error",
		text: http.StatusText(err.Status) + ": " + err.Reason, client: true,
	}
}

// answer writes a local answer: the one place where they are made. It reports whether the client's connection can go on.
func (s *server) answer(f *fault, buf []byte) (keep bool) {
	s.x.Flag, s.x.Details = f.flag, f.details
	if f.status == 0 {
		return false
	}
	keep = s.mayKeep() && !f.client && s.in.Done()
	s.x.Status = f.status
	out := http1.AppendStatusLine(buf, f.status, []byte(http.StatusText(f.status)))
	out = http1.AppendField(out, "Content-Type", "text/plain")
	out = http1.AppendField(out, "Content-Length", strconv.Itoa(len(f.text)))
	if f.status == http.StatusMethodNotAllowed {
		out = http1.AppendField(out, "Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE")
	}
	out = s.appendConnection(out, keep)
	out = append(out, "\r\n"...)
	if string(s.req.Method) != http.MethodHead {
		out = append(out, f.text...)
		s.x.BytesSent = int64(len(f.text))
	}
	if err := s.write(out); err != nil {
		return false
	}
	return keep
}
