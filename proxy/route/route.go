// Package route chooses a route for a request: the compiled form of a snapshot's routes. It is pure.
package route

import (
	"errors"
	"fmt"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/filter"
)

// Request is what routes look at.
type Request = filter.Request

// Routes are the routes of one virtual host, in order.
type Routes struct {
	list  []*Route
	index index
}

// Route is one compiled route.
type Route struct {
	Name     string
	Resource string
	// Destinations are those with a weight; none where the route answers by itself.
	Destinations []Destination
	// Handler serves the requests of a route without destinations.
	Handler filter.Handler
	// Rules are what the handlers were made of.
	Rules *snapshot.RouteRules

	matches []match
	weights Weights
}

// Destination is one target.
type Destination struct {
	Service, Subset string
	Port            uint16 // 0: the port that the client dialled
	Weight          uint32
	// Handler serves the requests that go there. It was made of the route's rules and Headers.
	Handler filter.Handler
	Headers *snapshot.Headers
}

// Compile makes Routes of a virtual host's. The error names every rule that is wrong.
func Compile(routes []snapshot.Route) (*Routes, error) {
	rs := &Routes{list: make([]*Route, 0, len(routes))}
	var errs []error
	for i := range routes {
		r, err := compile(&routes[i])
		if err != nil {
			object := fmt.Sprintf("routes[%d]", i)
			if routes[i].Resource != "" {
				object += " (" + routes[i].Resource + ")"
			}
			errs = append(errs, fmt.Errorf("%s: %w", object, err))
			continue
		}
		rs.list = append(rs.list, r)
	}
	rs.index = makeIndex(rs.list)
	return rs, errors.Join(errs...)
}

func compile(s *snapshot.Route) (*Route, error) {
	r := &Route{Name: s.Name, Resource: s.Resource, Rules: &s.RouteRules}
	for i := range s.Matches {
		m, err := compileMatch(&s.Matches[i])
		if err != nil {
			return nil, fmt.Errorf("matches[%d].%w", i, err)
		}
		r.matches = append(r.matches, m)
	}
	if s.Redirect != nil || s.DirectResponse != nil {
		var err error
		r.Handler, err = filter.Chain(s, nil)
		return r, err
	}
	for i := range s.Destinations {
		d := &s.Destinations[i]
		if d.Weight == 0 {
			continue
		}
		h, err := filter.Chain(s, d)
		if err != nil {
			return nil, err
		}
		r.weights.Add(d.Weight)
		r.Destinations = append(r.Destinations, Destination{Service: d.Service, Subset: d.Subset, Port: d.Port, Weight: d.Weight, Handler: h, Headers: d.Headers})
	}
	if r.weights.None() {
		return nil, errors.New("destinations: no one has a weight above 0")
	}
	return r, nil
}

// Match is the first route that matches, or nil. It notes in q what of the path a prefix has matched.
func (rs *Routes) Match(q *Request) *Route {
	e := rs.index.find(q)
	if e == nil {
		return nil
	}
	if e.match != nil {
		q.Prefix = e.match.prefix
	}
	return e.route
}

// Pick chooses a destination by weight, of which there must be one. random is uniform in [0, 2^64).
func (r *Route) Pick(random uint64) *Destination { return &r.Destinations[r.weights.Pick(random)] }

// Step tells how one route fared with a request.
type Step struct {
	Route   *Route
	Matched bool
	// Reasons are, one for each of the route's matches, the first condition that did not hold.
	Reasons []string
}

// Explain does what Match does, and tells how each route up to the one that matches fared.
func (rs *Routes) Explain(q *Request) []Step {
	var steps []Step
	for _, r := range rs.list {
		s := Step{Route: r, Matched: len(r.matches) == 0}
		for _, m := range r.matches {
			c := m.fails(q)
			if c == nil {
				s.Matched, s.Reasons = true, nil
				q.Prefix = m.prefix
				break
			}
			s.Reasons = append(s.Reasons, c.String())
		}
		steps = append(steps, s)
		if s.Matched {
			break
		}
	}
	return steps
}
