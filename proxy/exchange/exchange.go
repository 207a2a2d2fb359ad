// Package exchange holds the record of what passed a proxy: one Exchange for each HTTP request with its
// response, one Session for each connection that was passed as bytes. The data plane fills them in, and
// telemetry reads each exactly once, at its end.
package exchange

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Direction says which side of the application a connection came in on.
type Direction uint8

// The directions.
const (
	Inbound  Direction = iota // from the network to the application
	Outbound                  // from the application to the network
	Gateway                   // from outside the mesh
)

// Flag is an Envoy response flag: why an answer is not the upstream's own
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage#response-flags).
type Flag string

// The flags that this proxy sets.
const (
	FlagNone                  Flag = ""
	FlagNoHealthyUpstream     Flag = "UH"
	FlagUpstreamConnect       Flag = "UF"
	FlagUpstreamOverflow      Flag = "UO"
	FlagNoRoute               Flag = "NR"
	FlagNoCluster             Flag = "NC"
	FlagUpstreamTermination   Flag = "UC"
	FlagUpstreamReset         Flag = "UR"
	FlagUpstreamTimeout       Flag = "UT"
	FlagDownstreamTermination Flag = "DC"
	FlagDownstreamProtocol    Flag = "DPE"
	FlagUpstreamProtocol      Flag = "UPE"
	FlagStreamIdle            Flag = "SI"
	FlagDelayInjected         Flag = "DI"
	FlagFaultInjected         Flag = "FI"
	FlagRetryLimit            Flag = "URX"
	FlagDownstreamReset       Flag = "DR"
	FlagRateLimited           Flag = "RL"
	FlagRateLimitError        Flag = "RLSE"
	FlagUnauthorized          Flag = "UAEX" // by a check, as of Mixer or of an external authorizer
)

// flagOrder is the order in which Envoy writes several flags.
const flagOrder = "UH UT UR UF UC UO NR DI FI RL UAEX RLSE DC URX SI DPE UPE NC DR"

// With is f and more as one, in Envoy's order and separated by commas.
func (f Flag) With(more Flag) Flag {
	if f == FlagNone || more == FlagNone {
		return f + more
	}
	all := append(strings.Split(string(f), ","), string(more))
	slices.SortStableFunc(all, func(a, b string) int { return strings.Index(flagOrder, a) - strings.Index(flagOrder, b) })
	return Flag(strings.Join(slices.Compact(all), ","))
}

// Connection is what is known of the connection that a client opened.
type Connection struct {
	Direction Direction
	// OriginalDst is where the client wanted to go; for a gateway it is the local address.
	OriginalDst netip.AddrPort
	Remote      netip.AddrPort
	Local       netip.AddrPort
	// Client is who a PROXY header says has made the connection to Remote; invalid without. It is Remote's word.
	Client netip.AddrPort
	// Peer is the client's SPIFFE ID, verified by mutual TLS; empty for plain text.
	Peer string
	// ServerName is the TLS SNI, if any.
	ServerName string
	// TLSServer is the name of the gateway's server that has ended the client's TLS; empty for none.
	TLSServer string
	// ClientCert is what X-Forwarded-Client-Cert says of the certificate that the client has shown to that; nil for none.
	ClientCert []byte
	Start      time.Time
}

// Downstream is who wants something: the one that a PROXY header names, else Remote.
func (c *Connection) Downstream() netip.AddrPort {
	if c.Client.IsValid() {
		return c.Client
	}
	return c.Remote
}

// Upstream is where an exchange or a session was sent.
type Upstream struct {
	// Cluster is Istio's name of it: outbound|9080|v1|reviews.default.svc.cluster.local, inbound|9080||,
	// PassthroughCluster or InboundPassthroughCluster.
	Cluster string
	Remote  netip.AddrPort
	Local   netip.AddrPort
	// TLS says that the connection is mutual TLS of the mesh.
	TLS bool
	// Failure is the transport's error, for the access log.
	Failure string
}

// Ends is the mesh's view of both sides; nil where it is not known.
type Ends struct {
	Source      *snapshot.Workload
	Destination *snapshot.Workload
	Service     *snapshot.Service
}

// Exchange is one HTTP request and its response. Byte slices point into the connection's buffers and are valid
// until the recorder returns: it copies what it keeps.
type Exchange struct {
	Conn     *Connection
	Upstream Upstream
	Ends     Ends
	Start    time.Time
	Duration time.Duration

	Method, Path, Authority             []byte // Path with the query
	Protocol                            string // HTTP/1.1
	UserAgent, RequestID, XForwardedFor []byte
	GRPC                                bool
	// Trust is what of XForwardedFor counts.
	Trust Trust
	// Auth is of the request's token; nil where it has none.
	Auth *Auth
	// DryRun is how the policies of a dry run would have decided, where that is another way: "allowed", or the details of
	// their refusal. Audit is the rule of an AUDIT policy that matches.
	DryRun, Audit string

	Route string // name of the route
	// Status is the response's code, or 0 where the client left before there was one.
	Status  int
	Flag    Flag
	Details string // response code details, such as via_upstream or route_not_found
	// CheckCode and CheckMessage are what Mixer's checks have refused the request with: a code of google.rpc, 0 for none.
	CheckCode    int32
	CheckMessage string
	// Body bytes, without heads and framing.
	BytesReceived, BytesSent int64
	// GRPCStatus is -1 where there is none.
	GRPCStatus int
	// UpstreamTime is the time from the request's last byte sent to the response's first byte received.
	UpstreamTime time.Duration
}

// Session is one connection passed as bytes.
type Session struct {
	Conn                     *Connection
	Upstream                 Upstream
	Ends                     Ends
	Start                    time.Time
	Duration                 time.Duration
	Flag                     Flag
	Details                  string
	BytesReceived, BytesSent int64 // from the client; to the client
}

// Recorder is told of each exchange and session. It must not block.
type Recorder interface {
	Exchange(*Exchange)
	SessionOpened(*Session)
	SessionClosed(*Session)
}
