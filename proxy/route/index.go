package route

import (
	"bytes"
	"slices"
)

// index finds the first match that holds without trying all: those that ask for a path, or for one prefix of it, are looked
// up by that. What is looked up is tried like any other, so the index only leaves out what can't hold.
type index struct {
	entries []entry // in the order in which they are to be tried
	exact   map[string][]int
	prefix  map[string][]int
	lengths []int // that prefixes have
	others  []int // without such a condition: other routes, regular expressions, any case
}

// entry is one match of a route, or nil for a route that takes everything.
type entry struct {
	route *Route
	match *match
}

func makeIndex(routes []*Route) index {
	x := index{exact: map[string][]int{}, prefix: map[string][]int{}}
	for _, r := range routes {
		if len(r.matches) == 0 {
			x.add(entry{r, nil})
		}
		for i := range r.matches {
			x.add(entry{r, &r.matches[i]})
		}
	}
	slices.Sort(x.lengths)
	return x
}

func (x *index) add(e entry) {
	n := len(x.entries)
	x.entries = append(x.entries, e)
	switch m := e.match; {
	case m == nil || m.path == anyPath:
		x.others = append(x.others, n)
	case m.path == exactPath:
		x.exact[m.text] = append(x.exact[m.text], n)
	default:
		x.prefix[m.text] = append(x.prefix[m.text], n)
		if !slices.Contains(x.lengths, len(m.text)) {
			x.lengths = append(x.lengths, len(m.text))
		}
	}
}

// find is the first entry that takes q, or nil.
func (x *index) find(q *Request) *entry {
	path, _, _ := bytes.Cut(q.Path, []byte{'?'})
	first := x.first(x.exact[string(path)], len(x.entries), q)
	for _, n := range x.lengths {
		if n > len(path) {
			break
		}
		first = x.first(x.prefix[string(path[:n])], first, q)
	}
	first = x.first(x.others, first, q)
	if first == len(x.entries) {
		return nil
	}
	return &x.entries[first]
}

// first is the first of the candidates that takes q and comes before the given one, else that.
func (x *index) first(candidates []int, before int, q *Request) int {
	for _, n := range candidates {
		if n >= before {
			break
		}
		if m := x.entries[n].match; m == nil || m.fails(q) == nil {
			return n
		}
	}
	return before
}
