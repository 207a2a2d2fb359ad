package report

import "slices"

// Traffic is what came of the requests to some workloads, as their clients saw it: mixer's answer to GET /v1/traffic.
type Traffic struct {
	Requests uint64 `json:"requests"`
	// Failures are those that the server is to blame for: a status of 500 and above, or such a gRPC status.
	Failures uint64    `json:"failures"`
	Duration Histogram `json:"duration"` // milliseconds
}

// serverFaults are the gRPC statuses UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS, which are the
// server's fault (opentelemetry.io/docs/specs/semconv/rpc/grpc).
var serverFaults = []string{"2", "4", "12", "13", "14", "15"}

// Add counts a series.
func (t *Traffic) Add(s *HTTPSeries) {
	t.Requests += s.Requests
	if len(s.Labels.ResponseCode) == 3 && s.Labels.ResponseCode >= "500" || slices.Contains(serverFaults, s.Labels.GRPCStatus) {
		t.Failures += s.Requests
	}
	for i, n := range s.Duration.Counts {
		t.Duration.Counts[i] += n
	}
	t.Duration.Sum += s.Duration.Sum
}

// Since is what has come since earlier; false where counts have fallen, as when mixer has started anew.
func (t *Traffic) Since(earlier *Traffic) (Traffic, bool) {
	d := *t
	if t.Requests < earlier.Requests || t.Failures < earlier.Failures {
		return Traffic{}, false
	}
	d.Requests -= earlier.Requests
	d.Failures -= earlier.Failures
	for i, n := range earlier.Duration.Counts {
		if d.Duration.Counts[i] < n {
			return Traffic{}, false
		}
		d.Duration.Counts[i] -= n
	}
	d.Duration.Sum -= earlier.Duration.Sum
	return d, true
}

// SuccessRate is the share of requests that did not fail, in percent.
func (t *Traffic) SuccessRate() float64 {
	if t.Requests == 0 {
		return 100
	}
	return 100 * float64(t.Requests-t.Failures) / float64(t.Requests)
}

// Quantile is the value below which a share q of the values lies, between 0 and 1: within the bucket that holds it as if its values
// were spread evenly, as Prometheus' histogram_quantile has it. Above the last bound, that bound.
func (h *Histogram) Quantile(q float64) float64 {
	var total uint64
	for _, n := range h.Counts {
		total += n
	}
	rank, below := q*float64(total), 0.0
	for i, n := range h.Counts {
		if n > 0 && below+float64(n) >= rank {
			if i == len(Buckets) {
				break
			}
			lower := 0.0
			if i > 0 {
				lower = Buckets[i-1]
			}
			return lower + (Buckets[i]-lower)*(rank-below)/float64(n)
		}
		below += float64(n)
	}
	if total == 0 {
		return 0
	}
	return Buckets[len(Buckets)-1]
}
