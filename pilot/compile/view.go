package compile

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
)

// View is everything that snapshots are compiled from.
type View struct {
	Intent      []*api.Object
	Facts       mesh.Facts
	TrustDomain string
	// Like is the Index of a moment before, or nil: what it has made of the same facts is taken over.
	Like *Index
}

// Index is a View prepared for compiling many proxies' snapshots. What it is of is not changed after New.
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
	workloadEntries  []*api.Object
	sidecars         []*api.Object

	selecting func() map[string]bool // keys of labels by which rules tell proxies apart
	bases     *bases
	groups    groups
	secrets   map[string]*api.Object // by namespace/name
}

// New prepares v.
func New(v View) *Index {
	x := &Index{facts: v.Facts, trustDomain: v.TrustDomain, intent: v.Intent, secrets: map[string]*api.Object{}}
	if like := v.Like; like != nil && sameWorkloads(like.facts, v.Facts) {
		x.workloads, x.sorted, x.bases = like.workloads, like.sorted, like.bases
	} else {
		x.addWorkloads()
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
		case "WorkloadEntry":
			x.workloadEntries = append(x.workloadEntries, o)
		case "Secret":
			x.secrets[o.Meta.Namespace+"/"+o.Meta.Name] = o
		case "Sidecar":
			x.sidecars = append(x.sidecars, o)
		}
	}
	x.selecting, x.groups.byKey = sync.OnceValue(x.selectingLabels), map[string]func() (*Group, error){}
	return x
}

// sameWorkloads reports whether two facts share their workloads, which nobody changes.
func sameWorkloads(a, b mesh.Facts) bool {
	return len(a.Workloads) == len(b.Workloads) && len(a.Workloads) > 0 && &a.Workloads[0] == &b.Workloads[0]
}

func (x *Index) addWorkloads() {
	x.workloads, x.bases = map[string]*mesh.Workload{}, &bases{byNamespace: map[string]*catalog{}}
	for i := range x.facts.Workloads {
		w := &x.facts.Workloads[i]
		x.workloads[w.Name] = w
	}
	for _, name := range slices.Sorted(maps.Keys(x.workloads)) {
		x.sorted = append(x.sorted, x.workloads[name])
	}
}

// bases are the catalogs of all workloads, by the namespace of who looks, without ServiceEntries: nothing but facts goes
// into them, so that all Indexes of the same facts share them. Nobody changes one.
type bases struct {
	mu          sync.Mutex
	byNamespace map[string]*catalog
}

func (b *bases) catalog(namespace string, workloads []*mesh.Workload) *catalog {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.byNamespace[namespace]
	if c == nil {
		c = newCatalog(namespace, workloads)
		b.byNamespace[namespace] = c
	}
	return c
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
		// One that is stopped is in no network. Its service is still a name, of which its own project's proxies know.
		stopped := !other.Running && len(other.Addresses) == 0 && len(networks) > 0 && other.Namespace == w.Namespace
		if other.Name == w.Name || stopped || slices.ContainsFunc(other.Addresses, func(a mesh.Address) bool { return networks[a.Network] }) {
			found = append(found, other)
		}
	}
	return found
}

// consulSuffix ends the names of services in Istio 1.0's own Docker mode, whose files still apply.
const consulSuffix = ".service.consul"

// fqdn is the name of a service's snapshot.Service.Host. DNS knows no case.
func fqdn(name, namespace string) string {
	return strings.ToLower(mesh.FQDN(name, namespace))
}
