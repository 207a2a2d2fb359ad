// Package mixer does in a proxy what the rules of config.istio.io say: it refuses requests and connections, changes
// headers, and makes of exchanges the observations of metrics and the log entries that mixer's handlers get. Nothing here
// waits for mixer.
package mixer

import (
	"errors"
	"fmt"
	"sync"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/attribute"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/expression"
)

// Lookup tells who stands at the ends of a request that is not routed yet.
type Lookup interface {
	// Ends are those of a request that a connection has brought.
	Ends(c *exchange.Connection, authority []byte) exchange.Ends
}

// Rules are the rules made ready. They never change.
type Rules struct {
	lookup  Lookup
	checks  index // of rules with checks or header operations
	reports index // of rules that have something to write down

	keeps bool // something asks for the header of responses
	bags  sync.Pool
}

type rule struct {
	name     string
	match    *expression.Program // nil: always
	needs    []condition         // of the match
	checks   []check
	request  []operation
	response []operation
	metrics  []*metric
	entries  []*entries
}

// New makes rules ready; nil where there are none. The error names every rule that a
// snapshot must not have.
func New(u *snapshot.Usage, lookup Lookup) (*Rules, error) {
	if u == nil || len(u.Rules) == 0 {
		return nil, nil //nolint:nilnil // no rules is no error
	}
	r := &Rules{lookup: lookup}
	r.bags.New = func() any { return new(scratch) }
	var errs []error
	var checks, reports []*rule
	for i := range u.Rules {
		s := &u.Rules[i]
		x := &rule{}
		if err := x.compile(s); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.Name, err))
		}
		if len(x.checks)+len(x.request)+len(x.response) > 0 {
			checks = append(checks, x)
		}
		if len(x.metrics)+len(x.entries) > 0 {
			reports = append(reports, x)
		}
		r.keeps = r.keeps || asksForResponse(s)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var err error
	if r.checks, err = newIndex(checks); err != nil {
		return nil, err
	}
	if r.reports, err = newIndex(reports); err != nil {
		return nil, err
	}
	return r, nil
}

// KeepsResponse reports whether the header of a response is to be kept until the exchange is over.
func (r *Rules) KeepsResponse() bool { return r != nil && r.keeps }

// asksForResponse looks for the attributes that come from the header of a response.
func asksForResponse(s *snapshot.MixerRule) bool {
	var asks func(e *snapshot.Expression) bool
	asks = func(e *snapshot.Expression) bool {
		if e == nil {
			return false
		}
		for i := range e.Arguments {
			if asks(&e.Arguments[i]) {
				return true
			}
		}
		return e.Attribute == "response.headers" || e.Attribute == "response.grpc_message"
	}
	if asks(s.Match) {
		return true
	}
	for i := range s.Metrics {
		for j := range s.Metrics[i].Dimensions {
			if asks(&s.Metrics[i].Dimensions[j]) {
				return true
			}
		}
		if asks(&s.Metrics[i].Value) {
			return true
		}
	}
	for i := range s.Entries {
		for j := range s.Entries[i].Variables {
			if asks(&s.Entries[i].Variables[j].Value) {
				return true
			}
		}
	}
	return false
}

func (r *rule) compile(s *snapshot.MixerRule) error {
	r.name = s.Name
	var errs []error
	var err error
	if s.Match != nil {
		if r.match, err = expression.Compile(s.Match); err != nil {
			errs = append(errs, fmt.Errorf("match: %w", err))
		}
		r.needs = conditions(s.Match)
	}
	for i := range s.Checks {
		c, err := newCheck(&s.Checks[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("checks[%d]: %w", i, err))
		}
		r.checks = append(r.checks, c)
	}
	if r.request, err = operations(s.RequestHeaders); err != nil {
		errs = append(errs, fmt.Errorf("requestHeaders: %w", err))
	}
	if r.response, err = operations(s.ResponseHeaders); err != nil {
		errs = append(errs, fmt.Errorf("responseHeaders: %w", err))
	}
	for i := range s.Metrics {
		m, err := newMetric(&s.Metrics[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("metrics[%d]: %w", i, err))
		}
		r.metrics = append(r.metrics, m)
	}
	for i := range s.Entries {
		e, err := newEntries(&s.Entries[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("entries[%d]: %w", i, err))
		}
		r.entries = append(r.entries, e)
	}
	return errors.Join(errs...)
}

// matches is false where an attribute is missing, too: as in Istio, such a rule does not hold.
func (r *rule) matches(a expression.Attributes) bool {
	if r.match == nil {
		return true
	}
	v, err := r.match.Eval(a)
	return err == nil && v.True()
}

// scratch is what one exchange needs while it is looked at, used again for others.
type scratch struct {
	bag     attribute.Bag
	text    []byte
	asked   []uint64 // of an index: a bit a rule
	matched []*rule
}

func (r *Rules) scratch() *scratch { return r.bags.Get().(*scratch) }

// release gives s back; it must not hold on to what it has seen.
func (r *Rules) release(s *scratch) {
	s.bag = attribute.Bag{}
	s.text, s.matched = s.text[:0], s.matched[:0]
	if cap(s.text) <= maxScratch {
		r.bags.Put(s)
	}
}

// maxScratch is how much room for text is kept.
const maxScratch = 16 << 10
