package compile

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
)

// View is everything that snapshots are compiled from.
type View struct {
	Intent      []*api.Object
	Facts       mesh.Facts
	TrustDomain string
}

// Problem is something in the intent that can't be done as it is written. It does not keep the rest from being
// done.
type Problem struct {
	// Code is the message's code; Severity follows from it.
	Code     Code   `json:"code"`
	Resource string `json:"resource"` // virtualservice/default/reviews
	Path     string `json:"path"`     // spec.http[0].route[0].destination.subset
	Detail   string `json:"message"`
}

// String is "<path>: <detail>", as a warning to whoever writes the object.
func (p Problem) String() string { return p.Path + ": " + p.Detail }

// Index is a View prepared for compiling many proxies' snapshots. It is not changed after New.
type Index struct {
	facts       mesh.Facts
	trustDomain string
	workloads   map[string]*mesh.Workload // by name
	sorted      []*mesh.Workload          // by name

	intent []*api.Object // as the view has it
	// In order of creation, the oldest first: where two claim the same host, the first wins.
	virtualServices  []*api.Object
	delegates        []*api.Object // VirtualServices without hosts
	destinationRules []*api.Object
	gateways         []*api.Object
	serviceEntries   []*api.Object
	sidecars         []*api.Object
}

// New prepares v.
func New(v View) *Index {
	x := &Index{facts: v.Facts, trustDomain: v.TrustDomain, intent: v.Intent, workloads: map[string]*mesh.Workload{}}
	for i := range v.Facts.Workloads {
		w := &v.Facts.Workloads[i]
		x.workloads[w.Name] = w
	}
	for _, name := range slices.Sorted(maps.Keys(x.workloads)) {
		x.sorted = append(x.sorted, x.workloads[name])
	}
	for _, o := range slices.SortedFunc(slices.Values(v.Intent), byCreation) {
		switch o.Kind.Kind {
		case "VirtualService":
			if api.IsDelegate(o.Spec.(*networking.VirtualService)) {
				x.delegates = append(x.delegates, o)
			} else {
				x.virtualServices = append(x.virtualServices, o)
			}
		case "DestinationRule":
			x.destinationRules = append(x.destinationRules, o)
		case "Gateway":
			x.gateways = append(x.gateways, o)
		case "ServiceEntry":
			x.serviceEntries = append(x.serviceEntries, o)
		case "Sidecar":
			x.sidecars = append(x.sidecars, o)
		}
	}
	return x
}

// byCreation orders objects by age. What was created within one second is ordered by name, as Istio does.
func byCreation(a, b *api.Object) int {
	return cmp.Or(a.Meta.CreationTimestamp.Compare(b.Meta.CreationTimestamp.Time),
		cmp.Compare(a.Meta.Name, b.Meta.Name), cmp.Compare(a.Meta.Namespace, b.Meta.Namespace))
}

// visible reports whether a proxy of namespace is to know o, by its exportTo
// (istio.io/docs/reference/config/networking/virtual-service/#VirtualService-export_to).
func visible(o *api.Object, namespace string) bool {
	exported, ok := o.Spec.(interface{ GetExportTo() []string })
	if !ok || len(exported.GetExportTo()) == 0 {
		return true
	}
	return slices.ContainsFunc(exported.GetExportTo(), func(to string) bool {
		return to == "*" || to == namespace || to == "." && o.Meta.Namespace == namespace
	})
}

// Workload is a workload of the facts, nil if there is none of this name.
func (x *Index) Workload(name string) *mesh.Workload { return x.workloads[name] }

// reachable are the workloads that share a network with w, itself included, by name.
func (x *Index) reachable(w *mesh.Workload) []*mesh.Workload {
	networks := map[string]bool{}
	for _, a := range w.Addresses {
		networks[a.Network] = true
	}
	var found []*mesh.Workload
	for _, other := range x.sorted {
		if other == w || slices.ContainsFunc(other.Addresses, func(a mesh.Address) bool { return networks[a.Network] }) {
			found = append(found, other)
		}
	}
	return found
}

// Selects reports whether labels hold everything that a selector asks for.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// consulSuffix ends the names of services in Istio 1.0's own Docker mode, whose files still apply.
const consulSuffix = ".service.consul"

// fqdn is the name of a service's snapshot.Service.Host. DNS knows no case.
func fqdn(name, namespace string) string {
	return strings.ToLower(mesh.FQDN(name, namespace))
}
