package mixer

import (
	"encoding/json"
	"errors"
	"math/bits"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/expression"
)

// index finds those of its rules that hold without asking each one. Most matches can hold only where an expression has a
// certain text, as destination.labels["app"] == "ratings" && …: such a rule is asked where it has that text, the others
// are always asked. A rule that is left out would not have held: where a part of a conjunction is false or fails, so does
// the whole.
type index struct {
	rules   []*rule
	always  []uint64 // a bit a rule
	lookups []lookup
}

// lookup is the rules that ask for a text of one expression, by that text.
type lookup struct {
	value *expression.Program
	rules map[string][]int
}

// condition is one that a match can't hold without: that the expression has one of the texts.
type condition struct {
	value *snapshot.Expression
	key   string // equal for equal expressions
	texts []string
}

// newIndex keeps the order of rules. Of the conditions of a rule it takes the one that the fewest rules share, and of those
// the one whose expression the most rules ask for, since each expression is evaluated once a request.
func newIndex(rules []*rule) (index, error) {
	x := index{rules: rules, always: make([]uint64, (len(rules)+63)/64)}
	type pair struct{ key, text string }
	shared, asked := map[pair]int{}, map[string]int{}
	for _, r := range rules {
		for _, c := range r.needs {
			asked[c.key]++
			for _, t := range c.texts {
				shared[pair{c.key, t}]++
			}
		}
	}
	var errs []error
	byKey := map[string]int{}
	for i, r := range rules {
		var best *condition
		least := 0
		for j := range r.needs {
			c, n := &r.needs[j], 0
			for _, t := range c.texts {
				n += shared[pair{c.key, t}]
			}
			if best == nil || n < least || n == least && asked[c.key] > asked[best.key] {
				best, least = c, n
			}
		}
		if best == nil {
			x.always[i/64] |= 1 << (i % 64)
			continue
		}
		at, ok := byKey[best.key]
		if !ok {
			p, err := expression.Compile(best.value)
			errs = append(errs, err)
			at = len(x.lookups)
			byKey[best.key] = at
			x.lookups = append(x.lookups, lookup{p, map[string][]int{}})
		}
		for _, t := range best.texts {
			x.lookups[at].rules[t] = append(x.lookups[at].rules[t], i)
		}
	}
	return x, errors.Join(errs...)
}

// conditions are what e can't be true without; none where nothing is known.
func conditions(e *snapshot.Expression) []condition {
	if e == nil || len(e.Arguments) != 2 {
		return nil
	}
	switch a, b := &e.Arguments[0], &e.Arguments[1]; e.Function {
	case "&&":
		return append(conditions(a), conditions(b)...)
	case "||":
		var out []condition
		for _, x := range conditions(a) {
			for _, y := range conditions(b) {
				if x.key == y.key {
					x.texts = append(x.texts[:len(x.texts):len(x.texts)], y.texts...)
					out = append(out, x)
				}
			}
		}
		return out
	case "==":
		if a.Constant != nil {
			a, b = b, a
		}
		if a.Type == snapshot.String && b.Type == snapshot.String && b.Constant != nil && plain(a) {
			key, err := json.Marshal(a)
			if err == nil {
				return []condition{{a, string(key), []string{*b.Constant}}}
			}
		}
	}
	return nil
}

// plain tells whether e only looks something up, so that it may be evaluated also where the match would not have come to it.
func plain(e *snapshot.Expression) bool {
	switch {
	case e.Attribute != "":
		return true
	case e.Function == "[]" || e.Function == "|":
		for i := range e.Arguments {
			if a := &e.Arguments[i]; a.Constant == nil && !plain(a) {
				return false
			}
		}
		return true
	}
	return false
}

// find makes s.matched the rules that hold, in their order.
func (x *index) find(s *scratch) {
	s.asked = append(s.asked[:0], x.always...)
	for i := range x.lookups {
		v, err := x.lookups[i].value.Eval(&s.bag)
		if err != nil {
			continue // as it would be in the match
		}
		for _, at := range x.lookups[i].rules[v.Str] {
			s.asked[at/64] |= 1 << (at % 64)
		}
	}
	s.matched = s.matched[:0]
	for i, word := range s.asked {
		for ; word != 0; word &= word - 1 {
			if r := x.rules[i*64+bits.TrailingZeros64(word)]; r.matches(&s.bag) {
				s.matched = append(s.matched, r)
			}
		}
	}
}
