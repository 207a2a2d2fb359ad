package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	security "istio.io/api/security/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// accessRule is an object that says who may do what with the workloads that it is for.
type accessRule struct {
	object *api.Object
	of     func(*mesh.Workload) bool
	policy snapshot.AccessPolicy
}

// accessRules are those of objects.
func (x *Index) accessRules(objects []*api.Object) (rules []accessRule) {
	for _, o := range objects {
		if spec, ok := o.Spec.(*security.AuthorizationPolicy); ok {
			rules = append(rules, accessRule{object: o, of: Concerning(o), policy: x.accessPolicy(o, spec)})
		}
	}
	slices.SortStableFunc(rules, func(a, b accessRule) int {
		return cmp.Or(cmp.Compare(a.policy.Namespace, b.policy.Namespace), cmp.Compare(a.policy.Name, b.policy.Name))
	})
	return rules
}

// accessOf are the policies that hold for w.
func (x *Index) accessOf(w *mesh.Workload) (policies []snapshot.AccessPolicy) {
	for i := range x.access {
		if r := &x.access[i]; r.of(w) {
			policies = append(policies, r.policy)
		}
	}
	old := x.rbac.policies(w)
	for i := range old {
		for j := range old[i].Rules {
			for k := range old[i].Rules[j].From {
				source := &old[i].Rules[j].From[k]
				source.Principals = x.principals(source.Principals)
			}
		}
	}
	return append(policies, old...)
}

func (x *Index) accessPolicy(o *api.Object, spec *security.AuthorizationPolicy) snapshot.AccessPolicy {
	p := snapshot.AccessPolicy{
		Namespace: o.Meta.Namespace, Name: o.Meta.Name, Action: snapshot.AccessAction(spec.GetAction().String()), DryRun: api.DryRun(o),
		Provider: spec.GetProvider().GetName(),
	}
	for _, r := range spec.GetRules() {
		rule := snapshot.AccessRule{}
		for _, f := range r.GetFrom() {
			rule.From = append(rule.From, x.accessSource(o.Meta.Namespace, f.GetSource()))
		}
		for _, t := range r.GetTo() {
			op := t.GetOperation()
			rule.To = append(rule.To, snapshot.AccessOperation{
				Hosts: op.GetHosts(), NotHosts: op.GetNotHosts(), Ports: op.GetPorts(), NotPorts: op.GetNotPorts(),
				Methods: op.GetMethods(), NotMethods: op.GetNotMethods(), Paths: op.GetPaths(), NotPaths: op.GetNotPaths(),
			})
		}
		for _, c := range r.GetWhen() {
			rule.When = append(rule.When, x.accessCondition(o.Meta.Namespace, c))
		}
		p.Rules = append(p.Rules, rule)
	}
	return p
}

func (x *Index) accessSource(namespace string, s *security.Source) snapshot.AccessSource {
	return snapshot.AccessSource{
		Principals: x.principals(s.GetPrincipals()), NotPrincipals: x.principals(s.GetNotPrincipals()),
		RequestPrincipals: s.GetRequestPrincipals(), NotRequestPrincipals: s.GetNotRequestPrincipals(),
		Namespaces: s.GetNamespaces(), NotNamespaces: s.GetNotNamespaces(),
		ServiceAccounts: serviceAccounts(namespace, s.GetServiceAccounts()), NotServiceAccounts: serviceAccounts(namespace, s.GetNotServiceAccounts()),
		TrustDomains: s.GetTrustDomains(), NotTrustDomains: s.GetNotTrustDomains(),
		IPBlocks: s.GetIpBlocks(), NotIPBlocks: s.GetNotIpBlocks(), RemoteIPBlocks: s.GetRemoteIpBlocks(), NotRemoteIPBlocks: s.GetNotRemoteIpBlocks(),
	}
}

func (x *Index) accessCondition(namespace string, c *security.Condition) snapshot.AccessCondition {
	attribute, names, _ := api.ConditionKey(c.GetKey())
	out := snapshot.AccessCondition{Attribute: attribute, Names: names, Values: c.GetValues(), NotValues: c.GetNotValues()}
	switch attribute {
	case api.AttributeSourcePrincipal:
		out.Values, out.NotValues = x.principals(out.Values), x.principals(out.NotValues)
	case api.AttributeSourceServiceAccount:
		out.Values, out.NotValues = serviceAccounts(namespace, out.Values), serviceAccounts(namespace, out.NotValues)
	}
	return out
}

// principals are list, with cluster.local standing for the mesh's own trust domain besides, so that what people have written
// for the default one holds in any mesh
// (https://istio.io/latest/docs/tasks/security/authorization/authz-td-migration/).
func (x *Index) principals(list []string) []string {
	if x.trustDomain == "" || x.trustDomain == mesh.DefaultTrustDomain {
		return list
	}
	var out []string
	for _, p := range list {
		out = append(out, p)
		if rest, ok := strings.CutPrefix(p, mesh.DefaultTrustDomain+"/"); ok {
			out = append(out, x.trustDomain+"/"+rest)
		}
	}
	return out
}

// serviceAccounts are list with the namespace that those have which name none.
func serviceAccounts(namespace string, list []string) []string {
	var out []string
	for _, a := range list {
		if !strings.Contains(a, "/") {
			a = namespace + "/" + a
		}
		out = append(out, a)
	}
	return out
}

// checkAccess is what is questionable about an AuthorizationPolicy.
func (x *Index) checkAccess(o *api.Object) []analysis.Problem {
	spec, ok := o.Spec.(*security.AuthorizationPolicy)
	if !ok {
		return nil
	}
	problems := slices.Concat(x.checkProvider(o, spec), checkSelector(o, spec), x.checkNamespaces(o, spec))
	if spec.GetAction() == security.AuthorizationPolicy_AUDIT && len(spec.GetRules()) == 0 {
		problems = append(problems, problem(analysis.SchemaWarning, o, "spec.rules", "there are none, so nothing is audited"))
	}
	return append(problems, x.checkScope(o)...)
}

// matches reports whether a text is that of a pattern: x, x*, *x or *
// (https://istio.io/latest/docs/concepts/security/#authorization-policies).
func matches(pattern, text string) bool {
	if end, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(text, end)
	}
	if start, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(text, start)
	}
	return pattern == text
}

// checkNamespaces finds namespaces of sources that are not there.
func (x *Index) checkNamespaces(o *api.Object, spec *security.AuthorizationPolicy) (problems []analysis.Problem) {
	check := func(path string, list []string) {
		for i, pattern := range list {
			if !slices.ContainsFunc(x.namespaces, func(n string) bool { return matches(pattern, n) }) {
				problems = append(problems, problem(analysis.ReferencedResourceNotFound, o, fmt.Sprintf("%s[%d]", path, i), "there is no namespace "+pattern))
			}
		}
	}
	for i, rule := range spec.GetRules() {
		for j, from := range rule.GetFrom() {
			path := fmt.Sprintf("spec.rules[%d].from[%d].source.", i, j)
			check(path+"namespaces", from.GetSource().GetNamespaces())
			check(path+"notNamespaces", from.GetSource().GetNotNamespaces())
		}
	}
	return problems
}
