package authz

import (
	"errors"
	"fmt"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// set is the rules of all policies of one action.
type set struct {
	rules []*rule
	index index
}

// rule matches where one of from, one of to and all of when do. An option without conditions matches.
type rule struct {
	*Rule
	order    int
	from, to []option
	when     option
}

// option is conditions that all must hold.
type option []condition

func (o option) match(r *Request) bool {
	for _, c := range o {
		if !c.match(r) {
			return false
		}
	}
	return true
}

func anyOf(options []option, r *Request) bool {
	for _, o := range options {
		if o.match(r) {
			return true
		}
	}
	return len(options) == 0
}

func (l *rule) match(r *Request) bool {
	return anyOf(l.to, r) && anyOf(l.from, r) && l.when.match(r)
}

// match is the first rule that matches, in the order of policies and their rules; nil for none.
func (s *set) match(r *Request) *Rule {
	if s == nil {
		return nil
	}
	r.candidates = s.index.collect(r, r.candidates[:0])
	var best *rule
	for _, list := range [2][]*rule{s.index.always, r.candidates} {
		for _, l := range list {
			if (best == nil || l.order < best.order) && l.match(r) {
				best = l
			}
		}
	}
	if best == nil {
		return nil
	}
	return best.Rule
}

// index finds the rules that may match by one value of a request: each rule stands under those values of one of its fields
// that the fewest others have.
type index struct {
	always          []*rule // those without such a field
	texts           []*dimension
	literal, folded texts
	hosts           texts
	addresses       [addressCount]blocks
}

// dimension is one attribute.
type dimension struct {
	attribute
	loose bool
	texts
}

func (x *index) dimension(a attribute, loose bool) *dimension {
	for _, d := range x.texts {
		if d.key() == a.key() {
			return d
		}
	}
	d := &dimension{attribute: a, loose: loose}
	x.texts = append(x.texts, d)
	return d
}

// collect appends the rules that may match besides those of always.
func (x *index) collect(r *Request, into []*rule) []*rule {
	for _, d := range x.texts {
		r.values = d.values(r, d.loose, r.values[:0])
		for _, v := range r.values {
			into = d.collect(v, into)
		}
	}
	if r.count > 0 {
		into = x.paths(r, into)
		into = x.hosts.collect(r.host, into)
	}
	for a := range x.addresses {
		into = x.addresses[a].collect(address(a).of(r), into)
	}
	return into
}

// paths looks up every reading; which spelling rules stand under is theirs to know.
func (x *index) paths(r *Request, into []*rule) []*rule {
	into = x.literal.collect(r.readings[0], into)
	if r.lower[0] != r.readings[0] {
		into = x.literal.collect(r.lower[0], into)
	}
	for i := 1; i < r.count; i++ {
		into = x.folded.collect(r.lower[i], into)
	}
	return into
}

// seal builds the index: first it is counted how many rules stand at each value, then each takes its place.
func (s *set) seal() {
	if s == nil {
		return
	}
	count := map[string]int{}
	for _, l := range s.rules {
		l.eachCondition(func(c condition) {
			for _, k := range c.keys() {
				count[k]++
			}
		})
	}
	for i, l := range s.rules {
		l.order = i
		anchors := l.anchors(count)
		if anchors == nil {
			s.index.always = append(s.index.always, l)
		}
		for _, c := range anchors {
			c.anchor(&s.index, l)
		}
	}
	x := &s.index
	x.literal.seal()
	x.folded.seal()
	x.hosts.seal()
	for _, d := range x.texts {
		d.seal()
	}
}

func (l *rule) eachCondition(f func(condition)) {
	for _, options := range [][]option{l.from, l.to, {l.when}} {
		for _, o := range options {
			for _, c := range o {
				f(c)
			}
		}
	}
}

// anchors are conditions of which one holds wherever the rule matches, and that others share the least; nil where there are
// none.
func (l *rule) anchors(count map[string]int) []condition {
	var best []condition
	weight := 0
	consider := func(options []option) {
		if len(options) == 0 {
			return
		}
		var chosen []condition
		worst := 0
		for _, o := range options {
			c, w := o.lightest(count)
			if c == nil {
				return
			}
			chosen, worst = append(chosen, c), max(worst, w)
		}
		if best == nil || worst < weight {
			best, weight = chosen, worst
		}
	}
	consider(l.to)
	consider(l.from)
	if len(l.when) > 0 {
		consider([]option{l.when})
	}
	return best
}

// lightest is the condition whose values the fewest rules share.
func (o option) lightest(count map[string]int) (best condition, weight int) {
	for _, c := range o {
		keys := c.keys()
		if keys == nil {
			continue
		}
		w := 0
		for _, k := range keys {
			w = max(w, count[k])
		}
		if best == nil || w < weight {
			best, weight = c, w
		}
	}
	return best, weight
}

// compiler makes rules of policies.
type compiler struct {
	// loose is for what refuses, or is only told of; see condition.
	loose bool
	// bytes is for connections that are no HTTP. Fields that only HTTP has are then left out of what refuses, which refuses
	// the more; what allows does not match with one
	// (https://istio.io/latest/docs/tasks/security/authorization/authz-tcp/).
	bytes   bool
	counter *Counter
	errs    []error
}

func (c *compiler) policy(p *snapshot.AccessPolicy, into *set) error {
	for i := range p.Rules {
		s := &p.Rules[i]
		l := &rule{Rule: newRule(p, i, c.counter)}
		for j := range s.From {
			c.option(&l.from, fmt.Sprintf("rules[%d].from[%d]", i, j), sourceFields(&s.From[j]))
		}
		for j := range s.To {
			c.option(&l.to, fmt.Sprintf("rules[%d].to[%d]", i, j), operationFields(&s.To[j]))
		}
		var when []option
		c.option(&when, fmt.Sprintf("rules[%d].when", i), conditionFields(s.When))
		possible := (len(s.From) == 0 || len(l.from) > 0) && (len(s.To) == 0 || len(l.to) > 0) && len(when) > 0
		if possible {
			l.when = when[0]
			into.rules = append(into.rules, l)
		}
	}
	return errors.Join(c.errs...)
}

// field is one field of a policy: the attribute that it is about, and its values.
type field struct {
	attribute string
	names     []string
	values    []string
	negate    bool
}

func sourceFields(s *snapshot.AccessSource) []field {
	return []field{
		{"source.principal", nil, s.Principals, false}, {"source.principal", nil, s.NotPrincipals, true},
		{"request.auth.principal", nil, s.RequestPrincipals, false}, {"request.auth.principal", nil, s.NotRequestPrincipals, true},
		{"source.namespace", nil, s.Namespaces, false}, {"source.namespace", nil, s.NotNamespaces, true},
		{"source.serviceAccount", nil, s.ServiceAccounts, false}, {"source.serviceAccount", nil, s.NotServiceAccounts, true},
		{"source.trustDomain", nil, s.TrustDomains, false}, {"source.trustDomain", nil, s.NotTrustDomains, true},
		{"source.ip", nil, s.IPBlocks, false}, {"source.ip", nil, s.NotIPBlocks, true},
		{"remote.ip", nil, s.RemoteIPBlocks, false}, {"remote.ip", nil, s.NotRemoteIPBlocks, true},
	}
}

func operationFields(o *snapshot.AccessOperation) []field {
	return []field{
		{"destination.port", nil, o.Ports, false}, {"destination.port", nil, o.NotPorts, true},
		{"request.method", nil, o.Methods, false}, {"request.method", nil, o.NotMethods, true},
		{requestPath, nil, o.Paths, false}, {requestPath, nil, o.NotPaths, true},
		{requestHost, nil, o.Hosts, false}, {requestHost, nil, o.NotHosts, true},
	}
}

// What operations are about besides attributes.
const (
	requestPath = "request.path"
	requestHost = "request.host"
)

func conditionFields(when []snapshot.AccessCondition) []field {
	fields := make([]field, 0, 2*len(when))
	for i := range when {
		w := &when[i]
		fields = append(fields, field{w.Attribute, w.Names, w.Values, false}, field{w.Attribute, w.Names, w.NotValues, true})
	}
	return fields
}

// option appends the option that the fields are, unless it can never match.
func (c *compiler) option(into *[]option, at string, fields []field) {
	o := option{}
	for _, f := range fields {
		if len(f.values) == 0 {
			continue
		}
		condition, http, err := c.condition(f)
		switch {
		case err != nil:
			c.errs = append(c.errs, fmt.Errorf("%s: %s: %w", at, f.attribute, err))
		case !http || !c.bytes:
			o = append(o, condition)
		case !c.loose:
			return
		}
	}
	*into = append(*into, o)
}

func (c *compiler) condition(f field) (made condition, http bool, err error) {
	m := mode{loose: c.loose != f.negate, negate: f.negate}
	if a, ok := addresses[f.attribute]; ok {
		made, err = newAddress(a, f.values, m)
		return made, false, err
	}
	switch f.attribute {
	case requestPath:
		return newPath(f.values, m), true, nil
	case requestHost:
		made, err = newHost(f.values, m)
		return made, true, err
	}
	a, err := newAttribute(f.attribute, f.names)
	if err != nil {
		return nil, false, err
	}
	return newText(a, f.values, m), a.http, nil
}
