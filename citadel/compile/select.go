package compile

import (
	"cmp"
	"fmt"
	"slices"

	istiotype "istio.io/api/type/v1beta1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
)

// byAge are objects, the oldest first: where two say what only one can, the older holds.
func byAge(objects []*api.Object) []*api.Object {
	return slices.SortedFunc(slices.Values(objects), func(a, b *api.Object) int {
		return cmp.Or(a.Meta.CreationTimestamp.Compare(b.Meta.CreationTimestamp.Time), cmp.Compare(a.String(), b.String()))
	})
}

// Concerning is which workloads an object is for: those that serve the services of its targetRefs, which are of its own
// namespace, or those that its selector chooses. One of the root namespace chooses from all namespaces, any other from its own.
func Concerning(o *api.Object) func(*mesh.Workload) bool {
	if targets := api.Targets(o); len(targets) > 0 {
		return func(w *mesh.Workload) bool {
			return slices.ContainsFunc(targets, func(t api.Target) bool { return serves(w, o, t) })
		}
	}
	labels := api.SelectorLabels(o)
	return func(w *mesh.Workload) bool {
		return (o.Meta.Namespace == api.RootNamespace || o.Meta.Namespace == w.Namespace) && mesh.Selects(labels, w.Labels)
	}
}

func serves(w *mesh.Workload, o *api.Object, t api.Target) bool {
	return w.Namespace == o.Meta.Namespace && w.Serves(t.Service)
}

// checkScope finds an object that is for no workload that runs, or not for those that it seems to be for.
func (x *Index) checkScope(o *api.Object) (problems []analysis.Problem) {
	targets := api.Targets(o)
	for _, t := range targets {
		if !slices.ContainsFunc(x.sorted, func(w *mesh.Workload) bool { return serves(w, o, t) }) {
			path := t.Path.At("name").String()
			problems = append(problems, problem(analysis.NoMatchingWorkloads, o, path, fmt.Sprintf("no workload that runs serves %s in namespace %s", t.Service, o.Meta.Namespace)))
		}
	}
	if len(targets) > 0 || slices.ContainsFunc(x.sorted, Concerning(o)) {
		return problems
	}
	switch {
	case len(api.SelectorLabels(o)) > 0:
		return append(problems, problem(analysis.NoMatchingWorkloads, o, "spec.selector.matchLabels", "no workload that runs is meant by this"))
	case o.Meta.Namespace != api.RootNamespace:
		return append(problems, problem(analysis.NoMatchingWorkloads, o, "spec", "no workload runs in namespace "+o.Meta.Namespace))
	}
	return problems
}

// checkSelector finds a selector that selects nothing in particular.
func checkSelector(o *api.Object, spec interface {
	GetSelector() *istiotype.WorkloadSelector
},
) []analysis.Problem {
	if s := spec.GetSelector(); s == nil || len(s.MatchLabels) > 0 {
		return nil
	}
	return []analysis.Problem{problem(analysis.SchemaWarning, o, "spec.selector", "it has no labels, so this is for every workload, as without it")}
}

func problem(code analysis.Code, o *api.Object, path, detail string) analysis.Problem {
	return analysis.Problem{Code: code, Resource: o.String(), Path: path, Detail: detail}
}
