package report

import (
	"math"
	"testing"
)

func TestTraffic(t *testing.T) {
	var sum Traffic
	for _, s := range []struct {
		code, grpc string
		requests   uint64
		failed     bool
	}{
		{"200", "", 50, false}, {"404", "", 5, false}, {"0", "", 3, false}, {"500", "", 2, true}, {"503", "", 4, true},
		{"200", "0", 7, false}, {"200", "5", 1, false}, {"200", "13", 8, true}, {"200", "14", 16, true},
	} {
		before := sum.Failures
		series := HTTPSeries{Labels: Labels{ResponseCode: s.code, GRPCStatus: s.grpc}, Requests: s.requests}
		series.Duration.Counts[0] = s.requests
		sum.Add(&series)
		if got := sum.Failures-before > 0; got != s.failed {
			t.Errorf("status %s, gRPC %q: failed is %t", s.code, s.grpc, got)
		}
	}
	if sum.Requests != 96 || sum.Failures != 30 || sum.SuccessRate() != 68.75 {
		t.Errorf("sum is %+v, %g %%", sum, sum.SuccessRate())
	}
	later := sum
	later.Add(&HTTPSeries{Labels: Labels{ResponseCode: "200"}, Requests: 4})
	if d, ok := later.Since(&sum); !ok || d.Requests != 4 || d.Failures != 0 || d.Duration.Counts[0] != 0 {
		t.Errorf("since: %+v, %t", d, ok)
	}
	if _, ok := sum.Since(&later); ok {
		t.Error("counts that fell are a difference")
	}
}

func TestQuantile(t *testing.T) {
	var h Histogram
	if got := h.Quantile(0.99); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
	h.Counts[0], h.Counts[3], h.Counts[8] = 10, 80, 10 // to 0.5 ms, 5 to 10 ms, 250 to 500 ms
	for q, want := range map[float64]float64{0.05: 0.25, 0.5: 7.5, 0.9: 10, 0.95: 375, 1: 500} {
		if got := h.Quantile(q); math.Abs(got-want) > 1e-9 {
			t.Errorf("quantile %g is %g, want %g", q, got, want)
		}
	}
	h.Counts[len(Buckets)] = 1000
	if got := h.Quantile(0.99); got != Buckets[len(Buckets)-1] {
		t.Errorf("above the last bound: %g", got)
	}
}
