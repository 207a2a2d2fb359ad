package compile

import (
	"cmp"
	"fmt"
	"slices"

	security "istio.io/api/security/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// scope is for whom a peerRule is; a narrower one holds.
type scope int

const (
	meshWide scope = iota
	ofNamespace
	ofWorkloads
)

func (s scope) String() string {
	return [...]string{"the mesh", "the namespace", "the same workloads"}[s]
}

// peerRule is what a PeerAuthentication, or a policy of Istio 1.0, says of mutual TLS.
type peerRule struct {
	object *api.Object
	scope  scope
	of     func(*mesh.Workload) bool
	mode   snapshot.MutualTLS            // empty: what the wider scope says
	ports  map[uint16]snapshot.MutualTLS // not empty
}

// peerRules are those of objects, which are by age.
func peerRules(objects []*api.Object) (rules []peerRule) {
	for _, o := range objects {
		switch spec := o.Spec.(type) {
		case *security.PeerAuthentication:
			rules = append(rules, peerRuleOf(o, spec))
		case *api.AuthenticationPolicy:
			rules = append(rules, oldPeerRules(o, spec)...)
		}
	}
	return rules
}

func peerRuleOf(o *api.Object, spec *security.PeerAuthentication) peerRule {
	namespace, selector := o.Meta.Namespace, spec.GetSelector().GetMatchLabels()
	r := peerRule{object: o, mode: modeOf(spec.GetMtls()), ports: map[uint16]snapshot.MutualTLS{}}
	switch {
	case len(selector) > 0:
		// One of the root namespace is for that namespace's workloads alone, unlike other kinds of policies
		// (https://istio.io/latest/docs/reference/config/security/peer_authentication/).
		r.scope = ofWorkloads
		r.of = func(w *mesh.Workload) bool { return w.Namespace == namespace && mesh.Selects(selector, w.Labels) }
	case namespace == api.RootNamespace:
		r.scope, r.of = meshWide, func(*mesh.Workload) bool { return true }
	default:
		r.scope, r.of = ofNamespace, func(w *mesh.Workload) bool { return w.Namespace == namespace }
	}
	for port, m := range spec.PortLevelMtls {
		if mode := modeOf(m); mode != "" {
			r.ports[uint16(port)] = mode //nolint:gosec // checked when it was decoded
		}
	}
	return r
}

func modeOf(m *security.PeerAuthentication_MutualTLS) snapshot.MutualTLS {
	if m.GetMode() == security.PeerAuthentication_MutualTLS_UNSET {
		return ""
	}
	return snapshot.MutualTLS(m.GetMode().String())
}

// oldPeerRules are those of a policy of Istio 1.0. One that wants no mutual TLS took plain text, which clients without a
// proxy go on to send; those with one need not stop to encrypt.
func oldPeerRules(o *api.Object, spec *api.AuthenticationPolicy) []peerRule {
	mode, namespace := snapshot.Permissive, o.Meta.Namespace
	if spec.MutualTLS {
		mode = snapshot.Strict
	}
	switch {
	case o.Kind.Kind == "MeshPolicy":
		return []peerRule{{object: o, scope: meshWide, mode: mode, of: func(*mesh.Workload) bool { return true }}}
	case len(spec.Targets) == 0:
		return []peerRule{{object: o, scope: ofNamespace, mode: mode, of: func(w *mesh.Workload) bool { return w.Namespace == namespace }}}
	}
	var rules []peerRule
	for _, t := range spec.Targets {
		r := peerRule{object: o, scope: ofWorkloads, mode: mode, ports: map[uint16]snapshot.MutualTLS{}}
		r.of = func(w *mesh.Workload) bool { return w.Namespace == namespace && w.Serves(t.Name) }
		if len(t.Ports) > 0 {
			r.mode = ""
		}
		for _, p := range t.Ports {
			r.ports[p] = mode
		}
		rules = append(rules, r)
	}
	return rules
}

// Modes are those of w's ports: of the narrowest scope that says one, and of the oldest object there.
func (x *Index) Modes(w *mesh.Workload) snapshot.Modes {
	var m snapshot.Modes
	for scope := ofWorkloads; scope >= meshWide; scope-- {
		for i := range x.peers {
			r := &x.peers[i]
			if r.scope != scope || !r.of(w) {
				continue
			}
			if r.mode != "" && m.Mode == "" {
				m.Mode, m.Source = r.mode, r.object.String()
			}
			for port, mode := range r.ports {
				if !slices.ContainsFunc(m.Ports, func(p snapshot.PortMode) bool { return p.Port == port }) {
					m.Ports = append(m.Ports, snapshot.PortMode{Port: port, Mode: mode, Source: r.object.String()})
				}
			}
		}
	}
	if m.Mode == "" {
		m.Mode, m.Source = x.mutualTLS, "the mesh's default"
	}
	slices.SortFunc(m.Ports, func(a, b snapshot.PortMode) int { return cmp.Compare(a.Port, b.Port) })
	return m
}

// serverTLS is what w's own listeners take, with what tells a neighbour from the outside world.
func (x *Index) serverTLS(w *mesh.Workload) snapshot.ServerTLS {
	if w.Role == mesh.RoleGateway {
		return snapshot.ServerTLS{} // its listeners are the way in from outside
	}
	s := snapshot.ServerTLS{Modes: x.Modes(w)}
	if s.Mode != snapshot.Strict && !slices.ContainsFunc(s.Ports, func(p snapshot.PortMode) bool { return p.Mode == snapshot.Strict }) {
		return s
	}
	for _, p := range w.Ports {
		if len(p.Published) > 0 {
			s.Published = append(s.Published, p.Number)
		}
	}
	for _, n := range x.networks {
		if slices.ContainsFunc(w.Addresses, func(a mesh.Address) bool { return a.Network == n.Name }) {
			s.Subnets, s.Gateways = append(s.Subnets, n.Subnets...), append(s.Gateways, n.Gateways...)
		}
	}
	for _, list := range []*[]string{&s.Subnets, &s.Gateways} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	slices.Sort(s.Published)
	return s
}

// peersOf are the workloads that w's proxy may dial and that take plain text alone at some port.
func (x *Index) peersOf(w *mesh.Workload) (peers []snapshot.PeerTLS) {
	for _, other := range x.sorted {
		if other == w || !other.Meshed || !neighbours(w, other) {
			continue
		}
		m := x.Modes(other)
		if m.Mode == snapshot.Disable || slices.ContainsFunc(m.Ports, func(p snapshot.PortMode) bool { return p.Mode == snapshot.Disable }) {
			peers = append(peers, snapshot.PeerTLS{Workload: other.Name, Modes: m})
		}
	}
	return peers
}

// neighbours reports whether two workloads share a network.
func neighbours(a, b *mesh.Workload) bool {
	return slices.ContainsFunc(a.Addresses, func(x mesh.Address) bool {
		return slices.ContainsFunc(b.Addresses, func(y mesh.Address) bool { return x.Network == y.Network })
	})
}

// checkPeers is what is questionable about the rules of o.
func (x *Index) checkPeers(o *api.Object) (problems []analysis.Problem) {
	if spec, ok := o.Spec.(*security.PeerAuthentication); ok {
		problems = checkSelector(o, spec)
		if modeOf(spec.GetMtls()) == "" && len(spec.GetPortLevelMtls()) == 0 {
			problems = append(problems, problem(analysis.SchemaWarning, o, "spec.mtls", "there is no mode, so this changes nothing"))
		}
	}
	for i := range x.peers {
		r := &x.peers[i]
		if r.object.String() != o.String() {
			continue
		}
		if r.scope == ofWorkloads && !slices.ContainsFunc(x.sorted, r.of) {
			problems = append(problems, problem(analysis.NoMatchingWorkloads, o, selectorPath(o), "no workload that runs is meant by this"))
		}
		for j := range x.peers[:i] {
			older := &x.peers[j]
			if older.object.String() != o.String() && older.scope == r.scope && older.mode != "" && r.mode != "" && slices.ContainsFunc(x.sorted, func(w *mesh.Workload) bool { return older.of(w) && r.of(w) }) {
				problems = append(problems, problem(analysis.SchemaWarning, o, "spec", fmt.Sprintf("%s is older and for %s too: it holds, this does not", older.object, r.scope)))
				break
			}
		}
	}
	return problems
}

func selectorPath(o *api.Object) string {
	if _, old := o.Spec.(*api.AuthenticationPolicy); old {
		return "spec.targets"
	}
	return "spec.selector.matchLabels"
}
