package mixer

import (
	"math/bits"

	"github.com/composure-mesh/composure/proxy/filter"
)

// Asked is how many matches are evaluated for a request.
func (r *Rules) Asked(x *filter.Exchange) int {
	s := r.scratch()
	defer r.release(s)
	s.bag.Exchange(x.Record, x, r.lookup.Ends(x.Record.Conn, x.Request.Authority), false)
	r.checks.find(s)
	n := 0
	for _, word := range s.asked {
		n += bits.OnesCount64(word)
	}
	return n
}
