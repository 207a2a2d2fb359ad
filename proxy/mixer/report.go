package mixer

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/expression"
	"github.com/composure-mesh/composure/proxy/filter"
)

// metric is a metric of a prometheus handler.
type metric struct {
	*snapshot.MixerMetric
	family     *family // set by Collector.Apply, before the rules are in force
	value      *expression.Program
	dimensions []*expression.Program
}

func newMetric(s *snapshot.MixerMetric) (*metric, error) {
	m := &metric{MixerMetric: s}
	var errs []error
	var err error
	if m.value, err = expression.Compile(&s.Value); err != nil {
		errs = append(errs, fmt.Errorf("value: %w", err))
	}
	for i := range s.Dimensions {
		p, err := expression.Compile(&s.Dimensions[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("dimensions[%d]: %w", i, err))
		}
		m.dimensions = append(m.dimensions, p)
	}
	if len(s.Labels) != len(s.Dimensions) {
		errs = append(errs, fmt.Errorf("%d labels and %d dimensions, want as many of both", len(s.Labels), len(s.Dimensions)))
	}
	return m, errors.Join(errs...)
}

// entries are the log entries of one instance for one handler.
type entries struct {
	*snapshot.MixerEntries
	severity, timestamp *expression.Program // nil for none
	variables           []*expression.Program
}

func newEntries(s *snapshot.MixerEntries) (*entries, error) {
	e := &entries{MixerEntries: s}
	var errs []error
	compile := func(field string, x *snapshot.Expression) *expression.Program {
		if x == nil {
			return nil
		}
		p, err := expression.Compile(x)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", field, err))
		}
		return p
	}
	e.severity, e.timestamp = compile("severity", s.Severity), compile("timestamp", s.Timestamp)
	for i := range s.Variables {
		e.variables = append(e.variables, compile(fmt.Sprintf("variables[%d]", i), &s.Variables[i].Value))
	}
	return e, errors.Join(errs...)
}

// Exchange writes down what the rules want of an exchange that is done.
func (r *Rules) Exchange(c *Collector, record *exchange.Exchange, x *filter.Exchange) {
	if r == nil || len(r.reports.rules) == 0 {
		return
	}
	s := r.scratch()
	defer r.release(s)
	s.bag.Exchange(record, x, record.Ends, true)
	if !r.keeps {
		s.bag.ForgetResponse() // its bytes may be another's by now
	}
	r.write(c, s)
}

// Session writes down what the rules want of a connection: done is false as it begins.
func (r *Rules) Session(c *Collector, record *exchange.Session, done bool) {
	if r == nil || len(r.reports.rules) == 0 {
		return
	}
	s := r.scratch()
	defer r.release(s)
	s.bag.Session(record, done)
	r.write(c, s)
}

func (r *Rules) write(c *Collector, s *scratch) {
	r.reports.find(s)
	for _, x := range s.matched {
		for _, m := range x.metrics {
			c.observe(m, s)
		}
		for _, e := range x.entries {
			c.enter(e, s)
		}
	}
}

// number is the value of a metric as a number: a duration is in seconds.
func number(v *expression.Value) (float64, error) {
	switch v.Type {
	case snapshot.Int64:
		return float64(v.Int), nil
	case snapshot.Double:
		return v.Float, nil
	case snapshot.DurationType:
		return float64(v.Int) / 1e9, nil
	}
	return strconv.ParseFloat(v.Str, 64)
}
