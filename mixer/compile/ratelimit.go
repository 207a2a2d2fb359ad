package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/expression"
)

// Limit is a rate limit with what only mixer needs to know.
type Limit struct {
	snapshot.RateLimit
	// Redis is where it is counted; empty for mixer's own counter.
	Redis string
}

// RateLimit is the limit of the name that holds for the workload, or nil.
func (x *Index) RateLimit(workload, name string) *Limit {
	w := x.workloads[workload]
	if w == nil {
		return nil
	}
	x.mu.Lock()
	limits, ok := x.memo[workload]
	if !ok {
		limits, _ = x.limits(w)
		x.memo[workload] = limits
	}
	x.mu.Unlock()
	for i := range limits {
		if limits[i].Name == name {
			return &limits[i]
		}
	}
	return nil
}

// limits are those that hold for a workload, in the order in which a request is counted: RateLimits by namespace and name,
// then the quotas of config.istio.io.
func (x *Index) limits(w *mesh.Workload) ([]Limit, []analysis.Problem) {
	var limits []Limit
	var problems []analysis.Problem
	for _, o := range x.rateLimits {
		spec := o.Spec.(*api.RateLimitSpec)
		if ns := o.Meta.Namespace; ns != api.RootNamespace && ns != w.Namespace || !selects(spec.Selector, w) {
			continue
		}
		l, ps := rateLimit(o, spec)
		problems = append(problems, ps...)
		if l != nil {
			limits = append(limits, Limit{RateLimit: *l})
		}
	}
	quotas, ps := x.quotas(w)
	return append(limits, quotas...), append(problems, ps...)
}

func selects(s *api.LabelSelector, w *mesh.Workload) bool {
	return s == nil || mesh.Selects(s.MatchLabels, w.Labels)
}

// rateLimit lowers a RateLimit; nil where its expressions make no sense.
func rateLimit(o *api.Object, spec *api.RateLimitSpec) (*snapshot.RateLimit, []analysis.Problem) {
	if ps := schemaProblems(o); len(ps) > 0 {
		return nil, ps
	}
	l := &snapshot.RateLimit{
		Name: o.String(), Charge: spec.Charge, Shadow: spec.Shadow, Global: spec.Scope == "GLOBAL",
		Rate:    snapshot.Rate{Limit: spec.Limit, Window: spec.Window.Milliseconds(), Algorithm: snapshot.Algorithm(spec.Algorithm)},
		Message: fmt.Sprintf("rate limit %s exceeded", o.Meta.Name),
	}
	if l.Global {
		l.OnFailure = snapshot.OnFailure(spec.OnFailure)
	}
	l.Match, _ = lowerCEL(spec.Match, snapshot.Bool)
	for _, source := range spec.Key {
		e, _ := lowerCEL(source, plainTypes...)
		if e.Type == snapshot.String { // who leaves it out is counted, too
			nothing := ""
			e = &snapshot.Expression{Type: e.Type, Function: "|", Arguments: []snapshot.Expression{*e, {Type: e.Type, Constant: &nothing}}}
		}
		l.Key = append(l.Key, snapshot.RateLimitKey{Name: source, Value: *e})
	}
	return l, nil
}

// rateLimit checks the expressions of a RateLimit.
func (v *validator) rateLimit(spec *api.RateLimitSpec) {
	check := func(path api.Path, source string, want ...snapshot.ValueType) {
		_, err := lowerCEL(source, want...)
		v.invalid(path, err)
	}
	check(api.Path{"spec", "match"}, spec.Match, snapshot.Bool)
	for i, source := range spec.Key {
		check(api.Path{"spec", "key", i}, source, plainTypes...)
	}
}

// quotaSpec checks the attributes of a QuotaSpec.
func (v *validator) quotaSpec(spec *api.QuotaSpecSpec) {
	for i := range spec.Rules {
		for j, m := range spec.Rules[i].Match {
			_, err := lower(clauses([]api.AttributeMatch{m}), snapshot.Bool)
			v.invalid(api.Path{"spec", "rules", i, "match", j, "clause"}, err)
		}
	}
}

func lowerCEL(source string, want ...snapshot.ValueType) (*snapshot.Expression, error) {
	if source == "" {
		return nil, nil //nolint:nilnil // no expression is no error
	}
	e, err := expression.CheckCEL(source)
	if err == nil && !slices.Contains(want, e.Type) {
		err = fmt.Errorf("%s is %s, want %s", source, e.Type, want[0])
	}
	return e, err
}

// quotas are the limits that QuotaSpecs, rules and handlers make together: five objects for one limit.
func (x *Index) quotas(w *mesh.Workload) ([]Limit, []analysis.Problem) {
	var limits []Limit
	var problems []analysis.Problem
	for _, binding := range x.bindings {
		if binds(binding, w) {
			found, ps := x.bound(binding)
			limits, problems = append(limits, found...), append(problems, ps...)
		}
	}
	return limits, problems
}

// bound is what the QuotaSpecs of a binding count.
func (x *Index) bound(binding *api.Object) ([]Limit, []analysis.Problem) {
	var limits []Limit
	var problems []analysis.Problem
	for i, ref := range binding.Spec.(*api.QuotaSpecBindingSpec).QuotaSpecs {
		o := x.objects[ref.Name+".QuotaSpec."+cmp.Or(ref.Namespace, binding.Meta.Namespace)]
		if o == nil {
			problems = append(problems, problem(binding, analysis.ReferencedResourceNotFound, fmt.Sprintf("spec.quotaSpecs[%d]", i), "there is no QuotaSpec %q: nothing is counted", ref.Name))
			continue
		}
		for j := range o.Spec.(*api.QuotaSpecSpec).Rules {
			found, ps := x.quotaRule(o, j)
			limits, problems = append(limits, found...), append(problems, ps...)
		}
	}
	return limits, problems
}

// checkRateLimit says where a RateLimit counts nothing.
func (x *Index) checkRateLimit(o *api.Object, spec *api.RateLimitSpec) []analysis.Problem {
	if spec.Selector == nil {
		return nil
	}
	for _, w := range x.workloads {
		if ns := o.Meta.Namespace; (ns == api.RootNamespace || ns == w.Namespace) && selects(spec.Selector, w) {
			return nil
		}
	}
	return []analysis.Problem{problem(o, analysis.SubsetSelectsNothing, "spec.selector", "no workload has these labels: nothing is counted")}
}

// checkBinding says where the objects that make a quota together do not meet.
func (x *Index) checkBinding(o *api.Object) []analysis.Problem {
	for _, w := range x.workloads {
		if binds(o, w) {
			_, problems := x.bound(o)
			return problems
		}
	}
	return []analysis.Problem{problem(o, analysis.ReferencedResourceNotFound, "spec.services", "there is no such service: nothing is counted")}
}

// binds reports whether a QuotaSpecBinding names a service of the workload.
func binds(o *api.Object, w *mesh.Workload) bool {
	for _, s := range o.Spec.(*api.QuotaSpecBindingSpec).Services {
		if s.Service == "*" {
			return true
		}
		name, ns := s.Name, cmp.Or(s.Namespace, o.Meta.Namespace)
		if s.Service != "" {
			name, ns, _ = strings.Cut(s.Service, ".")
			ns, _, _ = strings.Cut(ns, ".")
			ns = cmp.Or(ns, o.Meta.Namespace)
		}
		if ns == w.Namespace && slices.Contains(w.Services, name) && mesh.Selects(s.Labels, w.Labels) {
			return true
		}
	}
	return false
}

// quotaRule is what a rule of a QuotaSpec counts: for each of its quotas, what the rules of Mixer give to handlers.
func (x *Index) quotaRule(o *api.Object, index int) ([]Limit, []analysis.Problem) {
	spec := &o.Spec.(*api.QuotaSpecSpec).Rules[index]
	var limits []Limit
	var problems []analysis.Problem
	for j, q := range spec.Quotas {
		path := fmt.Sprintf("spec.rules[%d].quotas[%d].quota", index, j)
		instance := x.resolve(q.Quota, o.Meta.Namespace, "quota")
		if instance == nil {
			instance = x.resolve(q.Quota, o.Meta.Namespace, "instance")
		}
		params, _ := quotaOf(instance)
		if params == nil {
			problems = append(problems, problem(o, analysis.ReferencedResourceNotFound, path, "there is no quota %q: nothing is counted", q.Quota))
			continue
		}
		match, err := lower(clauses(spec.Match), snapshot.Bool)
		if err != nil {
			problems = append(problems, problem(o, analysis.SchemaValidationError, fmt.Sprintf("spec.rules[%d].match", index), "%v", err))
			continue
		}
		found, ps := x.handled(instance, params, match, max(1, q.Charge))
		problems = append(problems, ps...)
		if len(found) == 0 && len(ps) == 0 {
			problems = append(problems, problem(o, analysis.ReferencedResourceNotFound, path, "no rule gives %s to a memquota or redisquota: nothing is counted", FullName(instance)))
		}
		limits = append(limits, found...)
	}
	return limits, problems
}

func quotaOf(o *api.Object) (*api.Quota, bool) {
	if o == nil {
		return nil, false
	}
	i, ok := o.Spec.(*api.Instance)
	if !ok {
		return nil, false
	}
	q, ok := i.Params.(*api.Quota)
	return q, ok
}

// clauses are alternatives of attributes and texts as an expression of Mixer's; empty for all.
func clauses(match []api.AttributeMatch) string {
	var alternatives []string
	for _, m := range match {
		var all []string
		names := make([]string, 0, len(m.Clause))
		for name := range m.Clause {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			t, value := m.Clause[name], fmt.Sprintf(`(%s | "")`, attributeOf(name))
			switch {
			case t.Exact != "":
				all = append(all, fmt.Sprintf("%s == %q", value, t.Exact))
			case t.Prefix != "":
				all = append(all, fmt.Sprintf("%s.startsWith(%q)", value, t.Prefix))
			default:
				all = append(all, fmt.Sprintf("%q.matches(%s)", "^(?:"+t.Regex+")$", value))
			}
		}
		if len(all) > 0 {
			alternatives = append(alternatives, "("+strings.Join(all, " && ")+")")
		}
	}
	return strings.Join(alternatives, " || ")
}

// attributeOf is the attribute of a name as clauses have it: Istio's own sample says request.http_method.
func attributeOf(name string) string {
	if name == "request.http_method" {
		return "request.method"
	}
	return name
}

// handled are the limits of the rules that give the instance to a handler that counts.
func (x *Index) handled(instance *api.Object, params *api.Quota, also *snapshot.Expression, charge int64) ([]Limit, []analysis.Problem) {
	var limits []Limit
	var problems []analysis.Problem
	for _, o := range x.rules {
		rule := o.Spec.(*api.RuleSpec)
		for i := range rule.Actions {
			a := &rule.Actions[i]
			if !slices.ContainsFunc(a.Instances, func(name string) bool {
				found, _ := x.instance(name, o.Meta.Namespace)
				return found == instance
			}) {
				continue
			}
			ho, h := x.handler(a.Handler, o.Meta.Namespace)
			if h == nil {
				continue // the rule's own check says so
			}
			quotas, redis := quotasOf(h)
			if quotas == nil {
				continue
			}
			match, err := lower(rule.Match, snapshot.Bool)
			if err != nil {
				continue // as above
			}
			if also != nil {
				if match == nil {
					match = also
				} else {
					match = &snapshot.Expression{Type: snapshot.Bool, Function: "&&", Arguments: []snapshot.Expression{*also, *match}}
				}
			}
			l, ok := quotaLimit(quotas, instance, params)
			if !ok {
				problems = append(problems, problem(ho, analysis.ReferencedResourceNotFound, "spec.quotas", "no quota is called %s, which %s gives to it: nothing is counted", FullName(instance), o))
				continue
			}
			l.Match, l.Charge, l.Redis = match, charge, redis
			l.Name = FullName(ho) + "/" + FullName(instance)
			limits = append(limits, l)
		}
	}
	return limits, problems
}

// quotasOf are what the handler counts, nil where it does not count.
func quotasOf(h *api.Handler) (quotas []api.QuotaLimit, redis string) {
	switch p := h.Params.(type) {
	case *api.MemQuota:
		return append([]api.QuotaLimit{}, p.Quotas...), ""
	case *api.RedisQuota:
		return append([]api.QuotaLimit{}, p.Quotas...), p.RedisServerURL
	}
	return nil, ""
}

// quotaLimit is the limit that is called as the instance.
func quotaLimit(quotas []api.QuotaLimit, instance *api.Object, params *api.Quota) (Limit, bool) {
	for i := range quotas {
		q := &quotas[i]
		if q.Name != FullName(instance) && q.Name != instance.Meta.Name {
			continue
		}
		algorithm := snapshot.SlidingWindow
		if q.RateLimitAlgorithm == "FIXED_WINDOW" {
			algorithm = snapshot.FixedWindow
		}
		rate := func(amount int64, window time.Duration) snapshot.Rate {
			return snapshot.Rate{Limit: amount, Window: cmp.Or(window, q.ValidDuration).Milliseconds(), Algorithm: algorithm}
		}
		l := Limit{RateLimit: snapshot.RateLimit{
			Global: true, OnFailure: snapshot.FailOpen, // as Istio 1.0's own did
			Rate: rate(q.MaxAmount, 0), Message: "RESOURCE_EXHAUSTED:Quota is exhausted for: " + instance.Meta.Name,
		}}
		names := make([]string, 0, len(params.Dimensions))
		for name := range params.Dimensions {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			e, err := lower(params.Dimensions[name], plainTypes...)
			if err != nil || e == nil {
				return Limit{}, false // the instance is refused for it
			}
			l.Key = append(l.Key, snapshot.RateLimitKey{Name: name, Value: *e})
		}
		for _, o := range q.Overrides {
			l.Overrides = append(l.Overrides, snapshot.RateOverride{Key: o.Dimensions, Rate: rate(o.MaxAmount, o.ValidDuration)})
		}
		return l, true
	}
	return Limit{}, false
}
