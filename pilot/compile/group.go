package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Group is what proxies get alike: those of one namespace and role, on the same networks, of which no rule tells one from
// another by its labels. In a big mesh that is nearly all of them, so that one compilation serves them all.
type Group struct {
	// Snapshot has neither Version nor Proxy. Nobody changes it.
	Snapshot snapshot.Snapshot
	Shared   *snapshot.Shared
	Problems []analysis.Problem

	mu sync.Mutex
	// next is the group that this one was last told to have become, and change how, encoded.
	next   *Group
	change []byte
}

// Change is what turns g's snapshot into that of next, encoded: once for all proxies that have the one and are to have
// the other.
func (g *Group) Change(next *Group) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next != next {
		change, err := snapshot.Diff(&g.Snapshot, &next.Snapshot).Encode()
		if err != nil {
			return nil, err
		}
		g.next, g.change = next, change
	}
	return g.change, nil
}

// groups are those of an Index that were asked for, by key.
type groups struct {
	mu    sync.Mutex
	byKey map[string]func() (*Group, error)
}

// Group is the one of the named workload's proxy. The error is that there is no such workload. It may be called by
// several at once, which then wait for one compilation.
func (x *Index) Group(workload string) (*Group, error) {
	w := x.workloads[workload]
	if w == nil {
		return nil, fmt.Errorf("workload %q is not among those that run", workload)
	}
	viewer := x.viewer(w)
	key := viewerKey(viewer)
	x.groups.mu.Lock()
	compiled, ok := x.groups.byKey[key]
	if !ok {
		compiled = sync.OnceValues(func() (*Group, error) {
			g := x.compile(viewer)
			var err error
			g.Shared, err = g.Snapshot.Share()
			return g, err
		})
		x.groups.byKey[key] = compiled
	}
	x.groups.mu.Unlock()
	return compiled()
}

// viewer stands for all proxies that get what w's does: it has of w what compiling may depend on, and nothing else, so
// that a step which looks at more finds nothing there.
func (x *Index) viewer(w *mesh.Workload) *mesh.Workload {
	v := &mesh.Workload{Namespace: w.Namespace, Role: w.Role}
	for _, a := range w.Addresses {
		v.Addresses = append(v.Addresses, mesh.Address{Network: a.Network})
	}
	if len(w.Addresses) == 0 {
		v.Name = w.Name // it sees itself alone
	}
	for k, value := range w.Labels {
		if x.selecting()[k] {
			if v.Labels == nil {
				v.Labels = map[string]string{}
			}
			v.Labels[k] = value
		}
	}
	return v
}

func viewerKey(v *mesh.Workload) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q", v.Namespace, v.Role, v.Name)
	for _, a := range v.Addresses {
		fmt.Fprintf(&b, " %q", a.Network)
	}
	for _, k := range slices.Sorted(maps.Keys(v.Labels)) {
		fmt.Fprintf(&b, " %q=%q", k, v.Labels[k])
	}
	return b.String()
}

// selectingLabels are the keys of labels by which a rule tells proxies apart.
func (x *Index) selectingLabels() map[string]bool {
	keys := map[string]bool{}
	add := func(selector map[string]string) {
		for k := range selector {
			keys[k] = true
		}
	}
	for _, o := range x.gateways {
		add(o.Spec.(*networking.Gateway).Selector)
	}
	for _, o := range x.sidecars {
		add(o.Spec.(*networking.Sidecar).WorkloadSelector.GetLabels())
	}
	for _, o := range x.destinationRules {
		add(o.Spec.(*networking.DestinationRule).WorkloadSelector.GetMatchLabels())
	}
	for _, o := range slices.Concat(x.virtualServices, x.delegates) {
		vs := o.Spec.(*networking.VirtualService)
		for _, r := range vs.Http {
			for _, m := range r.Match {
				add(m.SourceLabels)
			}
		}
		for _, r := range vs.Tls {
			for _, m := range r.Match {
				add(m.SourceLabels)
			}
		}
		for _, r := range vs.Tcp {
			for _, m := range r.Match {
				add(m.SourceLabels)
			}
		}
	}
	return keys
}
