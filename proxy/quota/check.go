package quota

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/composure-mesh/composure/proxy/attribute"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// Lookup tells who stands at the ends of a request that is not routed yet.
type Lookup interface {
	// Ends are those of a request that a connection has brought.
	Ends(c *exchange.Connection, authority []byte) exchange.Ends
}

// Check counts the requests that a table lets come this far.
type Check struct {
	Set    *Set
	Lookup Lookup
}

// bench is what one request needs while it is counted, used again for others.
type bench struct {
	bag attribute.Bag
	Scratch
}

var benches = sync.Pool{New: func() any { return new(bench) }}

// Check implements filter.Check: 429 with Retry-After (RFC 9110 section 10.2.3) and the fields of
// draft-ietf-httpapi-ratelimit-headers.
func (c *Check) Check(x *filter.Exchange) *filter.Answer {
	b := benches.Get().(*bench)
	defer func() {
		b.bag = attribute.Bag{} // it must not hold on to what it has seen
		benches.Put(b)
	}()
	b.bag.Exchange(x.Record, x, c.Lookup.Ends(x.Record.Conn, x.Request.Authority), false)
	refusal, refused := c.Set.Take(&b.bag, time.Now(), &b.Scratch)
	if !refused {
		return nil
	}
	return refusal.answer()
}

// resourceExhausted is the status for clients of gRPC
// (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto).
const resourceExhausted = 8

func (r *Refusal) answer() *filter.Answer {
	if r.Failed {
		// As Envoy, where its rate limit service fails and failure_mode_deny is set.
		return &filter.Answer{
			Status: http.StatusInternalServerError, Flag: exchange.FlagRateLimitError, Details: "rate_limiter_error",
			Body: "rate limit " + r.Limit.Name + " is closed, as mixer does not answer",
		}
	}
	seconds := strconv.FormatInt(max(1, int64((r.Wait+time.Second-1)/time.Second)), 10)
	name := strconv.Quote(r.Limit.Name)
	window := strconv.FormatInt(max(1, (r.Rate.Window+999)/1000), 10)
	return &filter.Answer{
		Status: http.StatusTooManyRequests, Flag: exchange.FlagRateLimited, Details: "request_rate_limited", Body: r.Limit.Message,
		GRPC: resourceExhausted, GRPCSet: true,
		Header: http1.Header{
			http1.NewField("Retry-After", seconds),
			http1.NewField("RateLimit-Policy", name+";q="+strconv.FormatInt(r.Rate.Limit, 10)+";w="+window),
			http1.NewField("RateLimit", name+";r=0;t="+seconds),
		},
	}
}
