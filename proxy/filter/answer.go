package filter

import (
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// Answer is a response of this proxy's own. Status, flag, details and text are Envoy's
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/response_code_details).
type Answer struct {
	// Status is 0 where there is nobody to answer any more.
	Status  int
	Flag    exchange.Flag
	Details string
	Body    string
	// Header are fields besides Content-Type and Content-Length.
	Header http1.Header
	// GRPC is the status for a gRPC client, where GRPCSet says that it is not the one that Status stands for.
	GRPC    int
	GRPCSet bool
	// Client says that the client is to blame, or gone: its connection can't go on.
	Client bool
	// Cause is why there was no response, for retries.
	Cause Cause
}

// Cause is why an upstream gave no response.
type Cause uint8

// The causes.
const (
	NotUpstream    Cause = iota // the answer has nothing to do with an upstream
	ConnectFailure              // the request was not sent
	NoEndpoint                  // there was none to send it to
	Refused                     // the upstream has not read it, and said so: REFUSED_STREAM of HTTP/2
	Reset                       // the connection ended after the request was sent
	PerTryTimeout               // the response did not begin in time
)
