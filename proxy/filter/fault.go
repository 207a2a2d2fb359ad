package filter

import (
	"math/rand/v2"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
)

// fault delays and aborts shares of the requests
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/fault_filter).
type fault struct {
	next       Handler
	delay      time.Duration
	delayShare snapshot.Million
	abort      *Answer
	abortShare snapshot.Million
}

const million = 1_000_000

func (b *builder) fault(s *snapshot.Fault) filter {
	if s == nil {
		return nil
	}
	f := fault{}
	if d := s.Delay; d != nil {
		f.delay, f.delayShare = time.Duration(d.Fixed), d.Share
		if d.Fixed <= 0 {
			b.refuse("fault.delay.fixed: want more than 0, got %s", f.delay)
		}
	}
	if a := s.Abort; a != nil {
		f.abortShare = a.Share
		f.abort = &Answer{Status: a.HTTPStatus, Flag: exchange.FlagFaultInjected, Details: "fault_filter_abort", Body: "fault filter abort"}
		if a.GRPCStatus != nil {
			f.abort.GRPC, f.abort.GRPCSet = *a.GRPCStatus, true
			f.abort.Status = statusOfGRPC(*a.GRPCStatus)
		}
		if f.abort.Status < 200 || f.abort.Status > 599 {
			b.refuse("fault.abort.httpStatus: want 200 to 599, got %d", a.HTTPStatus)
		}
	}
	return func(next Handler) Handler { f.next = next; return &f }
}

func (f *fault) Serve(x *Exchange) {
	if chance(f.delayShare) {
		x.Record.Flag = x.Record.Flag.With(exchange.FlagDelayInjected)
		if !x.Router.Wait(x, f.delay) {
			return
		}
	}
	if chance(f.abortShare) {
		x.Answer(f.abort)
		return
	}
	f.next.Serve(x)
}

// chance is true for a share of the calls.
func chance(share snapshot.Million) bool {
	return share > 0 && (share >= million || rand.Uint32N(million) < share)
}
