package proxy

import (
	"slices"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/telemetry"
)

// sessions records connections that are passed as bytes: the standard metrics, and what Mixer's rules want besides. Requests
// are recorded where their heads are at hand.
type sessions struct {
	*telemetry.Recorder
	s *Server
}

func (r sessions) SessionOpened(x *exchange.Session) {
	r.Recorder.SessionOpened(x)
	r.s.table.Load().Rules().Session(r.s.collector, x, false)
}

func (r sessions) SessionClosed(x *exchange.Session) {
	r.Recorder.SessionClosed(x)
	r.s.table.Load().Rules().Session(r.s.collector, x, true)
}

// report is everything counted so far, and the number of events in it.
func (s *Server) report() (*report.Report, uint64) {
	r, events := s.recorder.Report()
	metrics, observed := s.collector.Report()
	r.Metrics = slices.Concat(metrics, s.table.Load().Quotas().Report())
	return r, events + observed
}
