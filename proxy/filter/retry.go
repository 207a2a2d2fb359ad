package filter

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// retry sends a request again whose try failed in a way that the route names
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/router_filter#x-envoy-retry-on).
type retry struct {
	next     Handler
	attempts uint32
	perTry   time.Duration
	base     time.Duration
	on       conditions
	statuses []int
	sameHost bool
}

// conditions is a set of reasons to retry.
type conditions uint32

const (
	onConnectFailure conditions = 1 << iota
	onReset
	on5xx
	onGatewayError
	on4xx
	onRateLimited
	onRefusedStream // of HTTP/2
	onGRPC          // and the bits above it, one for each gRPC status
)

func onGRPCStatus(status int) conditions { return onGRPC << status }

// conditionNames are Envoy's.
var conditionNames = map[string]conditions{ //nolint:gochecknoglobals // a constant
	"5xx":                    on5xx | onConnectFailure | onReset,
	"gateway-error":          onGatewayError | onConnectFailure | onReset,
	"reset":                  onReset | onConnectFailure,
	"reset-before-request":   onConnectFailure,
	"connect-failure":        onConnectFailure,
	"refused-stream":         onRefusedStream,
	"retriable-4xx":          on4xx,
	"envoy-ratelimited":      onRateLimited,
	"retriable-status-codes": 0, // the codes themselves are in Statuses
	"cancelled":              onGRPCStatus(1),
	"deadline-exceeded":      onGRPCStatus(4),
	"resource-exhausted":     onGRPCStatus(8),
	"internal":               onGRPCStatus(13),
	"unavailable":            onGRPCStatus(14),
}

// The defaults of Istio (istio.io/docs/reference/config/networking/virtual-service/#HTTPRetry), and of Envoy for the
// waits. 503 is not among the conditions: a request that an application has answered is its affair.
const (
	defaultAttempts = 2
	defaultBackoff  = 25 * time.Millisecond
	// backoffCap is how many times the base a wait may be.
	backoffCap = 10
	// awaitPause is between two tries to reach a destination that is about to come back.
	awaitPause = 100 * time.Millisecond
)

var defaultConditions = []string{"connect-failure", "refused-stream", "unavailable", "cancelled"} //nolint:gochecknoglobals // a constant

func (b *builder) retries(s *snapshot.Retries, destination *snapshot.Destination) filter {
	if destination == nil {
		return nil
	}
	if s == nil {
		s = &snapshot.Retries{Attempts: defaultAttempts}
	}
	r := retry{attempts: s.Attempts, perTry: time.Duration(s.PerTry), base: time.Duration(s.Backoff), statuses: s.Statuses, sameHost: s.SameHost}
	if r.base == 0 {
		r.base = defaultBackoff
	}
	names := s.On
	if len(names) == 0 && len(s.Statuses) == 0 {
		names = defaultConditions
	}
	for _, name := range names {
		c, known := conditionNames[name]
		if !known {
			b.refuse("retries.on: no condition %q", name)
		}
		r.on |= c
	}
	if r.perTry < 0 || r.base < 0 {
		b.refuse("retries: want no negative times")
	}
	return func(next Handler) Handler { r.next = next; return &r }
}

func (r *retry) Serve(x *Exchange) {
	x.PerTry, x.SameHost = r.perTry, r.sameHost
	x.Replay = r.attempts > 0 && (r.on&^(onConnectFailure|onRefusedStream|onGRPCStatus(1)|onGRPCStatus(14)) != 0 || len(r.statuses) > 0)
	for n := uint32(0); ; {
		r.next.Serve(x)
		if r.attempts == 0 {
			return
		}
		var pause time.Duration
		switch retriable := r.retriable(x); {
		case retriable && n < r.attempts:
			pause = r.backoff(n)
			n++
		case r.unreached(x) && x.Router.Awaits(x):
			pause = awaitPause
		case retriable:
			x.Record.Flag = x.Record.Flag.With(exchange.FlagRetryLimit)
			return
		default:
			return
		}
		if !x.Router.Again(x) || !x.Router.Wait(x, pause) {
			return
		}
	}
}

// unreached reports whether no endpoint knows of the request, where the route lets such a one be sent again. It waits for a
// destination that has only just gone: to be replaced or restarted takes an application longer than a few tries.
func (r *retry) unreached(x *Exchange) bool {
	a := x.Response.Local
	return a != nil && (a.Cause == ConnectFailure || a.Cause == NoEndpoint) && r.on&onConnectFailure != 0
}

// backoff is a wait before the retry n, counted from 0: random up to a bound that doubles, so that clients whose tries
// failed together do not come again together.
func (r *retry) backoff(n uint32) time.Duration {
	bound := r.base * backoffCap
	if n < 4 {
		bound = min(bound, r.base*(1<<(n+1)-1))
	}
	return rand.N(bound)
}

func (r *retry) retriable(x *Exchange) bool {
	if a := x.Response.Local; a != nil {
		switch a.Cause {
		case ConnectFailure:
			return r.on&onConnectFailure != 0
		case Refused:
			return r.on&(onRefusedStream|onReset) != 0
		case Reset, PerTryTimeout:
			return r.on&onReset != 0
		}
		return false
	}
	status := x.Response.Status
	switch {
	case status >= 500 && r.on&on5xx != 0,
		status >= 502 && status <= 504 && r.on&onGatewayError != 0,
		status == 409 && r.on&on4xx != 0,
		slices.Contains(r.statuses, status):
		return true
	}
	if r.on&onRateLimited != 0 && slices.ContainsFunc(x.Response.Header, func(f http1.Field) bool {
		return http1.EqualFold(f.Name, "x-envoy-ratelimited")
	}) {
		return true
	}
	if r.on >= onGRPC {
		if v, ok := x.Response.Header.First(http1.GRPCStatus); ok {
			return r.on&grpcBit(v) != 0
		}
	}
	return false
}

func grpcBit(status []byte) conditions {
	n := 0
	for _, c := range status {
		if c < '0' || c > '9' || n > 16 {
			return 0
		}
		n = n*10 + int(c-'0')
	}
	if n > 16 {
		return 0
	}
	return onGRPCStatus(n)
}
