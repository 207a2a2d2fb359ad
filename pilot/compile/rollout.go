package compile

import (
	"fmt"
	"slices"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
)

// SubsetWorkloads are the names of the workloads of a service, by a name that a rule of namespace may use, that are in a
// subset, running or not.
func (x *Index) SubsetWorkloads(name, subset, namespace string) ([]string, error) {
	c := x.checker(namespace)
	host := c.catalog.resolve(name, namespace)
	s := c.catalog.services[host]
	if s == nil {
		return nil, fmt.Errorf("no workload serves %s", host)
	}
	for _, o := range c.rulesFor(s) {
		for _, sub := range o.Spec.(*networking.DestinationRule).Subsets {
			if sub.Name != subset {
				continue
			}
			var names []string
			for _, w := range s.workloads {
				if mesh.Selects(sub.Labels, w.Labels) {
					names = append(names, w.Name)
				}
			}
			if names == nil {
				return nil, fmt.Errorf("no workload of %s has the labels of subset %q", host, subset)
			}
			return names, nil
		}
	}
	return nil, fmt.Errorf("no DestinationRule gives %s a subset %q", host, subset)
}

func (c *compiler) checkRollout(o *api.Object, r *api.Rollout) {
	if !slices.ContainsFunc(slices.Concat(c.virtualServices, c.delegates), func(vs *api.Object) bool {
		return vs.Meta.Namespace == o.Meta.Namespace && vs.Meta.Name == r.VirtualService
	}) {
		c.report(analysis.ReferencedResourceNotFound, o, "spec.virtualService", fmt.Sprintf("there is no VirtualService %s/%s", o.Meta.Namespace, r.VirtualService))
	}
	for _, f := range []struct{ field, subset string }{{"stable", r.Stable}, {"canary", r.Canary}} {
		if _, err := c.SubsetWorkloads(r.Host, f.subset, o.Meta.Namespace); err != nil {
			c.report(analysis.ReferencedResourceNotFound, o, "spec."+f.field, err.Error())
		}
	}
}
