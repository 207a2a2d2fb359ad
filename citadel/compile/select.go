package compile

import (
	"cmp"
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

// concerns reports whether an object with a selector is for w: one of the root namespace is for the workloads of all
// namespaces, any other for those of its own.
func concerns(o *api.Object, selector map[string]string, w *mesh.Workload) bool {
	return (o.Meta.Namespace == api.RootNamespace || o.Meta.Namespace == w.Namespace) && mesh.Selects(selector, w.Labels)
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
