package mixer

import (
	"fmt"
	"math"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/mesh/report"
)

const (
	maxNameBytes  = 253 // of a workload or an instance
	maxLabelBytes = 512 // of one label's value
	// maxCount is where float64, which is what Prometheus keeps, stops counting by one.
	maxCount = 1 << 53
)

// identityError says that a proxy reports what only another may report.
type identityError struct {
	field string
	got   string
	want  spiffeid.ID
}

func (e *identityError) Error() string {
	return fmt.Sprintf("%s is %q, but the reporter is %s: a proxy reports its own side of an exchange only", e.field, e.got, e.want)
}

// validate checks a report that comes from the proxy which has proven to be id.
func validate(id spiffeid.ID, r *report.Report) error {
	if r.Workload == "" || len(r.Workload) > maxNameBytes {
		return fmt.Errorf("workload: %d bytes, want 1 to %d", len(r.Workload), maxNameBytes)
	}
	if r.Instance == "" || len(r.Instance) > maxNameBytes {
		return fmt.Errorf("instance: %d bytes, want 1 to %d", len(r.Instance), maxNameBytes)
	}
	if r.Dropped > maxCount {
		return fmt.Errorf("dropped: %d, want at most %d", r.Dropped, maxCount)
	}
	if err := validateMetrics(r.Metrics); err != nil {
		return err
	}
	seen := make(map[report.Labels]bool, len(r.HTTP))
	for i := range r.HTTP {
		if err := validateHTTP(id, &r.HTTP[i], seen); err != nil {
			return fmt.Errorf("http[%d].%w", i, err)
		}
	}
	clear(seen)
	for i := range r.TCP {
		if err := validateTCP(id, &r.TCP[i], seen); err != nil {
			return fmt.Errorf("tcp[%d].%w", i, err)
		}
	}
	return nil
}

func validateHTTP(id spiffeid.ID, s *report.HTTPSeries, seen map[report.Labels]bool) error {
	if err := validateLabels(id, &s.Labels, seen); err != nil {
		return err
	}
	if s.Requests > maxCount {
		return fmt.Errorf("requests: %d, want at most %d", s.Requests, maxCount)
	}
	for _, h := range []struct {
		field string
		*report.Histogram
	}{{"duration", &s.Duration}, {"requestBytes", &s.RequestBytes}, {"responseBytes", &s.ResponseBytes}} {
		for i, n := range h.Counts {
			if n > maxCount {
				return fmt.Errorf("%s.counts[%d]: %d, want at most %d", h.field, i, n, maxCount)
			}
		}
		if h.Sum < 0 || math.IsNaN(h.Sum) || math.IsInf(h.Sum, 0) {
			return fmt.Errorf("%s.sum: %g, want a finite number that is not negative", h.field, h.Sum)
		}
	}
	return nil
}

func validateTCP(id spiffeid.ID, s *report.TCPSeries, seen map[report.Labels]bool) error {
	if err := validateLabels(id, &s.Labels, seen); err != nil {
		return err
	}
	for _, c := range []struct {
		field string
		n     uint64
	}{{"opened", s.Opened}, {"closed", s.Closed}, {"sent", s.Sent}, {"received", s.Received}} {
		if c.n > maxCount {
			return fmt.Errorf("%s: %d, want at most %d", c.field, c.n, maxCount)
		}
	}
	return nil
}

func validateLabels(id spiffeid.ID, l *report.Labels, seen map[report.Labels]bool) error {
	if seen[*l] {
		return fmt.Errorf("labels: the same as an earlier series' of this report, want each once")
	}
	seen[*l] = true
	own, field := &l.Source, "source"
	switch l.Reporter {
	case report.ReporterSource:
	case report.ReporterDestination:
		own, field = &l.Destination, "destination"
	default:
		return fmt.Errorf("labels.reporter: %q, want %q or %q", l.Reporter, report.ReporterSource, report.ReporterDestination)
	}
	if p := own.Principal; p != "" && p != report.Unknown && p != id.String() {
		return &identityError{field: "labels." + field + ".principal", got: p, want: id}
	}
	for _, v := range labelValues(l) {
		if len(v) > maxLabelBytes {
			return fmt.Errorf("labels: a value of %d bytes (%.40q…), want at most %d", len(v), v, maxLabelBytes)
		}
	}
	return nil
}

func labelValues(l *report.Labels) []string {
	peer := func(p *report.Peer) []string {
		return []string{p.Workload, p.Namespace, p.Principal, p.App, p.Version, p.Cluster, p.CanonicalService, p.CanonicalRevision}
	}
	values := append(peer(&l.Source), peer(&l.Destination)...)
	return append(values, l.Service, l.ServiceName, l.ServiceNamespace, l.SecurityPolicy, l.ResponseFlags,
		l.RequestProtocol, l.ResponseCode, l.GRPCStatus)
}
