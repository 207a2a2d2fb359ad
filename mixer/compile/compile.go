// Package compile makes mixer's part of the snapshots: the configuration that people apply and the facts, compiled into
// what each proxy must know. It is pure: equal views give equal bytes. Expressions are checked here and lowered to what
// proxy/expression evaluates; references between objects are resolved, since Istio let people write them in any order.
package compile

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// View is everything that documents are compiled from.
type View struct {
	Intent      []*api.Object
	Facts       mesh.Facts
	TrustDomain string
	// Lists are the entries that mixer has got from the providers of lists, by their URLs.
	Lists map[string]List
}

// List is what a provider of a list has given.
type List struct {
	Entries []string
	// Problem says why there are none; empty where the provider has answered of late.
	Problem string
}

// Index is a View prepared for compiling many proxies' documents. But for what it remembers it is not changed after New.
type Index struct {
	workloads  map[string]*mesh.Workload // by name
	objects    map[string]*api.Object    // by full name
	rules      []*api.Object             // by namespace and name, as the rest
	bindings   []*api.Object             // of QuotaSpecs
	rateLimits []*api.Object
	lists      map[string]List

	mu   sync.Mutex
	memo map[string][]Limit // of RateLimit, by workload
}

// New prepares v.
func New(v View) *Index {
	x := &Index{workloads: map[string]*mesh.Workload{}, objects: map[string]*api.Object{}, lists: v.Lists, memo: map[string][]Limit{}}
	for i := range v.Facts.Workloads {
		w := &v.Facts.Workloads[i]
		x.workloads[w.Name] = w
	}
	for _, o := range Defaults() { // also where only files are looked at
		x.objects[FullName(o)] = o
	}
	for _, o := range v.Intent {
		x.objects[FullName(o)] = o
		switch o.Spec.(type) {
		case *api.RuleSpec:
			if !IsDefault(o) { // those say what proxies do anyway
				x.rules = append(x.rules, o)
			}
		case *api.QuotaSpecBindingSpec:
			x.bindings = append(x.bindings, o)
		case *api.RateLimitSpec:
			x.rateLimits = append(x.rateLimits, o)
		}
	}
	for _, list := range [][]*api.Object{x.rules, x.bindings, x.rateLimits} {
		slices.SortFunc(list, func(a, b *api.Object) int {
			return cmp.Or(cmp.Compare(a.Meta.Namespace, b.Meta.Namespace), cmp.Compare(a.Meta.Name, b.Meta.Name))
		})
	}
	return x
}

// Workload is a workload of the facts, nil if there is none of this name.
func (x *Index) Workload(name string) *mesh.Workload { return x.workloads[name] }

// Compile is the sealed document of the proxy of the named workload, with what in the intent it could not do. The error
// is that there is no such workload.
func (x *Index) Compile(workload string) (*snapshot.Usage, []analysis.Problem, error) {
	w := x.workloads[workload]
	if w == nil {
		return nil, nil, fmt.Errorf("workload %q is not among those that run", workload)
	}
	s := &snapshot.Usage{}
	var problems []analysis.Problem
	for _, o := range x.rules {
		// A rule concerns what its namespace's workloads take and, at a gateway, send; those of the root, everything.
		if ns := o.Meta.Namespace; ns != api.RootNamespace && ns != w.Namespace {
			continue
		}
		r, ps := x.rule(o)
		problems = append(problems, ps...)
		if r != nil {
			s.Rules = append(s.Rules, *r)
		}
	}
	limits, ps := x.limits(w)
	problems = append(problems, ps...)
	for i := range limits {
		s.RateLimits = append(s.RateLimits, limits[i].RateLimit)
	}
	if err := s.Seal(); err != nil {
		return nil, nil, err
	}
	return s, problems, nil
}

// Check is what is questionable about o: it is valid, and does not do what it seems to.
func (x *Index) Check(o *api.Object) []analysis.Problem {
	problems := schemaProblems(o)
	switch spec := o.Spec.(type) {
	case *api.RuleSpec:
		if len(problems) == 0 && !IsDefault(o) {
			_, problems = x.rule(o)
		}
	case *api.Handler:
		problems = append(problems, x.checkHandler(o, spec)...)
	case *api.RateLimitSpec:
		problems = append(problems, x.checkRateLimit(o, spec)...)
	case *api.QuotaSpecBindingSpec:
		problems = append(problems, x.checkBinding(o)...)
	case *api.AttributeManifestSpec:
		if !IsDefault(o) {
			problems = append(problems, problem(o, analysis.SchemaWarning, "spec.attributes", "adds nothing: proxies know these attributes by themselves"))
		}
	}
	return problems
}

// CheckAll is what is questionable about the whole configuration.
func (x *Index) CheckAll() []analysis.Problem {
	all := []analysis.Problem{}
	names := make([]string, 0, len(x.objects))
	for name := range x.objects {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		all = append(all, x.Check(x.objects[name])...)
	}
	return all
}

// schemaProblems are those of Validate, of an object that came from a file.
func schemaProblems(o *api.Object) []analysis.Problem {
	var out []analysis.Problem
	for _, p := range Validate(o) {
		out = append(out, problem(o, analysis.SchemaValidationError, p.Path.String(), "%s", p.Detail))
	}
	return out
}

func problem(o *api.Object, code analysis.Code, path, format string, args ...any) analysis.Problem {
	return analysis.Problem{Code: code, Resource: o.String(), Path: path, Detail: fmt.Sprintf(format, args...)}
}
