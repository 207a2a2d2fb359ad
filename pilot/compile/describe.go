package compile

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Description is what pilot knows of a service or a workload, for people.
type Description struct {
	// Service is the host of the service; empty for a workload.
	Service string          `json:"service,omitempty"`
	Ports   []snapshot.Port `json:"ports,omitempty"`
	// Workloads are those behind the service, or the one that is described.
	Workloads []mesh.Workload `json:"workloads"`
	// Endpoints are the names of those that get traffic.
	Endpoints []string `json:"endpoints,omitempty"`
	// References are what the configuration says of it, and Problems what is questionable about that.
	References []Reference        `json:"references"`
	Problems   []analysis.Problem `json:"problems"`
}

// Reference is a place in an object that says something of a service or a workload.
type Reference struct {
	Resource string `json:"resource"` // virtualservice/default/reviews
	Path     string `json:"path"`
	Says     string `json:"says"`
}

// DescribeService tells about a service by a name that a rule of namespace may use; false where there is none.
func (x *Index) DescribeService(name, namespace string) (*Description, bool) {
	c := x.checker(namespace)
	host := c.catalog.resolve(name, namespace)
	s := c.catalog.services[host]
	if s == nil {
		return nil, false
	}
	compiled := c.service(host)
	d := &Description{Service: host, Ports: compiled.Ports, Endpoints: compiled.Endpoints, Workloads: []mesh.Workload{}, References: []Reference{}}
	for _, w := range s.workloads {
		d.Workloads = append(d.Workloads, *w)
	}
	for _, o := range slices.Concat(c.virtualServices, c.delegates) {
		d.References = append(d.References, c.virtualServiceAbout(o, host)...)
	}
	for _, o := range c.rulesFor(s) {
		rule := o.Spec.(*networking.DestinationRule)
		var says []string
		for _, subset := range rule.Subsets {
			says = append(says, "subset "+subset.Name)
		}
		if rule.TrafficPolicy != nil {
			says = append(says, "a traffic policy")
		}
		d.References = append(d.References, Reference{o.String(), "spec.host", "gives it " + strings.Join(says, ", ")})
	}
	for _, o := range c.serviceEntries {
		if i := slices.IndexFunc(o.Spec.(*networking.ServiceEntry).Hosts, func(h string) bool { return strings.EqualFold(h, host) }); i >= 0 {
			d.References = append(d.References, Reference{o.String(), fmt.Sprintf("spec.hosts[%d]", i), "makes it known"})
		}
	}
	d.Problems = x.problemsOf(d.References)
	return d, true
}

// virtualServiceAbout is where a VirtualService names host: as what its rules are for, and as where they lead.
func (c *compiler) virtualServiceAbout(o *api.Object, host string) (found []Reference) {
	vs := o.Spec.(*networking.VirtualService)
	at := "in the mesh"
	if len(vs.Gateways) > 0 {
		at = "at " + strings.Join(vs.Gateways, ", ")
	}
	for i, h := range vs.Hosts {
		if covers(c.catalog.resolve(h, o.Meta.Namespace), host) {
			found = append(found, Reference{o.String(), fmt.Sprintf("spec.hosts[%d]", i), "routes its requests " + at})
		}
	}
	leads := func(path string, d *networking.Destination, weight int32) {
		if d == nil || c.catalog.resolve(d.Host, o.Meta.Namespace) != host {
			return
		}
		says := "leads to it"
		if d.Subset != "" {
			says += ", subset " + d.Subset
		}
		if weight > 0 {
			says += fmt.Sprintf(", weight %d", weight)
		}
		found = append(found, Reference{o.String(), path, says})
	}
	for i, r := range vs.Http {
		for j, d := range r.Route {
			leads(fmt.Sprintf("spec.http[%d].route[%d]", i, j), d.Destination, d.Weight)
		}
		leads(fmt.Sprintf("spec.http[%d].mirror", i), r.Mirror, 0)
		for j, m := range r.Mirrors {
			leads(fmt.Sprintf("spec.http[%d].mirrors[%d]", i, j), m.Destination, 0)
		}
	}
	for i, r := range vs.Tls {
		for j, d := range r.Route {
			leads(fmt.Sprintf("spec.tls[%d].route[%d]", i, j), d.Destination, d.Weight)
		}
	}
	for i, r := range vs.Tcp {
		for j, d := range r.Route {
			leads(fmt.Sprintf("spec.tcp[%d].route[%d]", i, j), d.Destination, d.Weight)
		}
	}
	return found
}

// DescribeWorkload tells about a workload; false where there is none of this name.
func (x *Index) DescribeWorkload(name string) (*Description, bool) {
	w := x.workloads[name]
	if w == nil {
		return nil, false
	}
	d := &Description{Workloads: []mesh.Workload{*w}, References: []Reference{}}
	for _, o := range x.gateways {
		if w.Role == mesh.RoleGateway && mesh.Selects(o.Spec.(*networking.Gateway).Selector, w.Labels) {
			d.References = append(d.References, Reference{o.String(), "spec.selector", "opens ports at it"})
		}
	}
	viewer := &compiler{Index: x, proxy: w}
	if s := viewer.sidecar(); s != nil {
		for _, o := range x.sidecars {
			if o.Spec == any(s) {
				d.References = append(d.References, Reference{o.String(), "spec", "limits what its proxy knows"})
			}
		}
	}
	for _, o := range slices.Concat(x.virtualServices, x.delegates) {
		for i, r := range o.Spec.(*networking.VirtualService).Http {
			for j, m := range r.Match {
				if len(m.SourceLabels) > 0 && mesh.Selects(m.SourceLabels, w.Labels) {
					d.References = append(d.References, Reference{o.String(), fmt.Sprintf("spec.http[%d].match[%d].sourceLabels", i, j), "is for requests of its application"})
				}
			}
		}
	}
	d.Problems = x.problemsOf(d.References)
	return d, true
}

func (x *Index) problemsOf(references []Reference) []analysis.Problem {
	return slices.DeleteFunc(x.CheckAll(), func(p analysis.Problem) bool {
		return !slices.ContainsFunc(references, func(r Reference) bool { return r.Resource == p.Resource })
	})
}
