// Package compile makes citadel's part of the snapshots: the configuration that people apply and the facts, compiled into
// what each proxy must know. It is pure: equal views give equal bytes.
package compile

import (
	"cmp"
	"fmt"
	"slices"

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
	// MutualTLS holds where no object says whether plain text is taken; empty is PERMISSIVE.
	MutualTLS snapshot.MutualTLS
	// Keys are the JWK sets that were fetched, by URI.
	Keys map[string]Keys
	// Namespaces are those that are there although nothing runs in them.
	Namespaces []string
}

// Index is a View prepared for compiling many proxies' documents. It is not changed after New.
type Index struct {
	intent    []*api.Object             // by age
	workloads map[string]*mesh.Workload // by name
	sorted    []*mesh.Workload          // by name
	networks  []mesh.Network
	mutualTLS snapshot.MutualTLS
	keys      map[string]Keys
	peers     []peerRule
	tokens    []tokenRule
	access    []accessRule
	rbac      *rbac
	// authorizers are the external ones, by name.
	authorizers map[string]snapshot.Authorizer
	// trustedProxies stand in front of the mesh's gateways.
	trustedProxies int
	// trustDomain is the mesh's.
	trustDomain string
	// namespaces are those of workloads, of objects, and the View's.
	namespaces []string
}

// New prepares v.
func New(v View) *Index {
	x := &Index{
		intent: byAge(v.Intent), workloads: map[string]*mesh.Workload{}, networks: v.Facts.Networks,
		mutualTLS: cmp.Or(v.MutualTLS, snapshot.Permissive), keys: v.Keys, trustDomain: v.TrustDomain,
	}
	for i := range v.Facts.Workloads {
		w := &v.Facts.Workloads[i]
		x.workloads[w.Name] = w
		x.sorted = append(x.sorted, w)
		x.namespaces = append(x.namespaces, w.Namespace)
	}
	x.namespaces = append(x.namespaces, v.Namespaces...)
	for _, o := range x.intent {
		x.namespaces = append(x.namespaces, o.Meta.Namespace)
	}
	slices.Sort(x.namespaces)
	x.namespaces = slices.Compact(x.namespaces)
	slices.SortFunc(x.sorted, func(a, b *mesh.Workload) int { return cmp.Compare(a.Name, b.Name) })
	x.peers, x.tokens = peerRules(x.intent), tokenRules(x.intent)
	x.authorizers, x.trustedProxies = authorizers(x.intent), trustedProxies(x.intent)
	x.access, x.rbac = x.accessRules(x.intent), newRBAC(x.intent)
	return x
}

// Workload is a workload of the facts, nil if there is none of this name.
func (x *Index) Workload(name string) *mesh.Workload { return x.workloads[name] }

// Compile is the sealed document of the proxy of the named workload, with what in the intent it could not do. The error
// is that there is no such workload.
func (x *Index) Compile(workload string) (*snapshot.Security, []analysis.Problem, error) {
	w := x.workloads[workload]
	if w == nil {
		return nil, nil, fmt.Errorf("workload %q is not among those that run", workload)
	}
	s := &snapshot.Security{Access: x.accessOf(w), TrustedProxies: x.trustedProxies}
	s.Authorizers = x.authorizersOf(s.Access)
	var problems []analysis.Problem
	s.Authentication, problems = x.authentication(w)
	if err := s.Seal(); err != nil {
		return nil, nil, err
	}
	return s, problems, nil
}

// authentication is how w's proxy finds out who sends to it.
func (x *Index) authentication(w *mesh.Workload) (a snapshot.Authentication, problems []analysis.Problem) {
	a.TLS, a.Peers = x.serverTLS(w), x.peersOf(w)
	a.Tokens, a.TokenRequired = x.tokensOf(w)
	for i := range x.tokens {
		if r := &x.tokens[i]; r.of(w) {
			if p, ok := x.keyProblem(r); ok {
				problems = append(problems, p)
			}
		}
	}
	return a, problems
}

// Check is what is questionable about o.
func (x *Index) Check(o *api.Object) []analysis.Problem {
	return slices.Concat(x.checkPeers(o), x.checkTokens(o), x.checkAccess(o), x.checkRBAC(o), x.checkSettings(o))
}

// CheckAll is what is questionable about the whole configuration.
func (x *Index) CheckAll() []analysis.Problem {
	problems := []analysis.Problem{}
	for _, o := range x.intent {
		problems = append(problems, x.Check(o)...)
	}
	return problems
}
