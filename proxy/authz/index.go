package authz

import (
	"net/netip"
	"slices"
	"strings"
)

// texts finds a text among exact ones, prefixes and suffixes. What is found besides is which rules asked for it.
type texts struct {
	exact    map[string][]*rule
	prefixes affixes
	suffixes affixes
	any      bool // "*"
}

// add adds a pattern on behalf of r, which may be nil. seal must be called before the first match.
func (t *texts) add(pattern string, r *rule) {
	switch {
	case pattern == "*":
		t.any = true
	case strings.HasSuffix(pattern, "*"):
		t.prefixes.add(strings.TrimSuffix(pattern, "*"), r)
	case strings.HasPrefix(pattern, "*"):
		t.suffixes.add(reversed(pattern[1:]), r)
	default:
		if t.exact == nil {
			t.exact = map[string][]*rule{}
		}
		t.exact[pattern] = append(t.exact[pattern], r)
	}
}

func (t *texts) seal() {
	t.suffixes.back = true
	t.prefixes.seal()
	t.suffixes.seal()
}

func (t *texts) match(v string) bool {
	if t.any {
		return true
	}
	if _, ok := t.exact[v]; ok {
		return true
	}
	return t.prefixes.find(v) >= 0 || t.suffixes.find(v) >= 0
}

// collect appends the rules that asked for v.
func (t *texts) collect(v string, into []*rule) []*rule {
	into = append(into, t.exact[v]...)
	into = t.prefixes.collect(v, into)
	return t.suffixes.collect(v, into)
}

// affixes are prefixes, or suffixes, which are kept reversed. All those that a text begins with lie on one chain of parents,
// from the greatest that is not greater than the text: one binary search finds them.
type affixes struct {
	back bool
	list []affix // sorted by text
}

type affix struct {
	text   string
	parent int // the longest other one that text begins with, -1 for none
	rules  []*rule
}

func (a *affixes) add(text string, r *rule) {
	a.list = append(a.list, affix{text: text, rules: []*rule{r}})
}

func (a *affixes) seal() {
	slices.SortStableFunc(a.list, func(x, y affix) int { return strings.Compare(x.text, y.text) })
	out := a.list[:0]
	for _, e := range a.list {
		if n := len(out); n > 0 && out[n-1].text == e.text {
			out[n-1].rules = append(out[n-1].rules, e.rules...)
			continue
		}
		out = append(out, e)
	}
	a.list = out
	for i := range a.list {
		p := i - 1
		for p >= 0 && !strings.HasPrefix(a.list[i].text, a.list[p].text) {
			p = a.list[p].parent
		}
		a.list[i].parent = p
	}
}

// find is the longest affix of v, -1 for none.
func (a *affixes) find(v string) int {
	low, high := 0, len(a.list)
	for low < high { // the first that is greater than v
		mid := int(uint(low+high) >> 1)
		if a.greater(a.list[mid].text, v) {
			high = mid
		} else {
			low = mid + 1
		}
	}
	i := low - 1
	for i >= 0 && !a.begins(v, a.list[i].text) {
		i = a.list[i].parent
	}
	return i
}

func (a *affixes) collect(v string, into []*rule) []*rule {
	for i := a.find(v); i >= 0; i = a.list[i].parent {
		into = append(into, a.list[i].rules...)
	}
	return into
}

// greater reports whether text is greater than v, read from its end where a is back.
func (a *affixes) greater(text, v string) bool {
	if !a.back {
		return text > v
	}
	for i := range len(text) {
		if i == len(v) {
			return true
		}
		if c := v[len(v)-1-i]; text[i] != c {
			return text[i] > c
		}
	}
	return false
}

func (a *affixes) begins(v, text string) bool {
	if len(text) > len(v) {
		return false
	}
	if !a.back {
		return v[:len(text)] == text
	}
	for i := range len(text) {
		if text[i] != v[len(v)-1-i] {
			return false
		}
	}
	return true
}

func reversed(s string) string {
	b := []byte(s)
	slices.Reverse(b)
	return string(b)
}

// blocks finds an address among blocks of addresses.
type blocks struct {
	byPrefix map[netip.Prefix][]*rule
	bits4    []int // lengths that there are
	bits6    []int
}

func (b *blocks) add(p netip.Prefix, r *rule) {
	if b.byPrefix == nil {
		b.byPrefix = map[netip.Prefix][]*rule{}
	}
	b.byPrefix[p] = append(b.byPrefix[p], r)
	bits := &b.bits6
	if p.Addr().Is4() {
		bits = &b.bits4
	}
	if !slices.Contains(*bits, p.Bits()) {
		*bits = append(*bits, p.Bits())
	}
}

func (b *blocks) bits(ip netip.Addr) []int {
	if ip.Is4() {
		return b.bits4
	}
	return b.bits6
}

func (b *blocks) match(ip netip.Addr) bool {
	for _, n := range b.bits(ip) {
		if p, err := ip.Prefix(n); err == nil && b.byPrefix[p] != nil {
			return true
		}
	}
	return false
}

func (b *blocks) collect(ip netip.Addr, into []*rule) []*rule {
	for _, n := range b.bits(ip) {
		if p, err := ip.Prefix(n); err == nil {
			into = append(into, b.byPrefix[p]...)
		}
	}
	return into
}

// parseBlock reads an address or a block. An IPv4 address that is written as IPv6 is the IPv4 address.
func parseBlock(text string) (netip.Prefix, error) {
	if ip, err := netip.ParseAddr(text); err == nil {
		ip = ip.Unmap().WithZone("")
		return netip.PrefixFrom(ip, ip.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, err
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}
