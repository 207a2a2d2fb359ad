package compile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// rbac is the access control of Istio 1.0: a configuration that closes services, and roles that open them again
// (https://istio.io/v1.0/docs/concepts/security/#authorization). What it says becomes ALLOW policies.
type rbac struct {
	config   *api.RBACConfig // nil: nothing is closed
	object   *api.Object     // that config is of
	roles    map[string]*api.RBACRole
	bindings []*api.Object
}

func newRBAC(objects []*api.Object) *rbac {
	r := &rbac{roles: map[string]*api.RBACRole{}}
	for _, o := range objects {
		switch spec := o.Spec.(type) {
		case *api.RBACConfig:
			// The oldest, and ClusterRbacConfig before RbacConfig, whose name it is since Istio 1.1.
			if r.object == nil || r.object.Kind.Kind == "RbacConfig" && o.Kind.Kind == "ClusterRbacConfig" {
				r.config, r.object = spec, o
			}
		case *api.RBACRole:
			r.roles[o.Meta.Namespace+"/"+o.Meta.Name] = spec
		case *api.RBACBinding:
			r.bindings = append(r.bindings, o)
		}
	}
	return r
}

// closes reports whether access to w is closed but for what roles allow.
func (r *rbac) closes(w *mesh.Workload) bool {
	if r.config == nil {
		return false
	}
	meant := func(t api.RBACTarget) bool { return like(t.Namespaces, w.Namespace) || likeService(t.Services, w) }
	switch r.config.Mode {
	case "ON":
		return true
	case "ON_WITH_INCLUSION":
		return meant(r.config.Inclusion)
	case "ON_WITH_EXCLUSION":
		return !meant(r.config.Exclusion)
	}
	return false
}

// policies are what holds for w.
func (r *rbac) policies(w *mesh.Workload) (policies []snapshot.AccessPolicy) {
	if !r.closes(w) {
		return nil
	}
	try := r.config.EnforcementMode == "PERMISSIVE"
	policies = append(policies, snapshot.AccessPolicy{Kind: r.object.Kind.Singular, Namespace: r.object.Meta.Namespace, Name: r.object.Meta.Name, Action: snapshot.AccessAllow, DryRun: try})
	for _, o := range r.bindings {
		b := o.Spec.(*api.RBACBinding)
		role := r.roles[o.Meta.Namespace+"/"+b.RoleRef.Name]
		if role == nil || o.Meta.Namespace != w.Namespace {
			continue
		}
		p := snapshot.AccessPolicy{Kind: o.Kind.Singular, Namespace: o.Meta.Namespace, Name: o.Meta.Name, Action: snapshot.AccessAllow, DryRun: try || b.Mode == "PERMISSIVE"}
		for i := range role.Rules {
			for j := range b.Subjects {
				if rule, ok := roleRule(w, &role.Rules[i], &b.Subjects[j]); ok {
					p.Rules = append(p.Rules, rule)
				}
			}
		}
		if len(p.Rules) > 0 {
			policies = append(policies, p)
		}
	}
	return policies
}

// roleRule is what a subject may do with w by a rule of a role; ok is false where that is nothing.
func roleRule(w *mesh.Workload, r *api.RBACRule, s *api.RBACSubject) (rule snapshot.AccessRule, ok bool) {
	if !likeService(r.Services, w) {
		return rule, false
	}
	op := snapshot.AccessOperation{Methods: notAny(r.Methods), Paths: notAny(r.Paths)}
	if len(op.Methods)+len(op.Paths) > 0 {
		rule.To = []snapshot.AccessOperation{op}
	}
	for _, c := range r.Constraints {
		attribute, names, _ := api.RBACKey(c.Key)
		meant := true
		switch attribute {
		case api.DestinationLabels:
			meant = like(c.Values, w.Labels[names[0]])
		case api.DestinationNamespace:
			meant = like(c.Values, w.Namespace)
		case api.DestinationUser:
			meant = like(c.Values, w.ServiceAccount)
		default:
			rule.When = append(rule.When, snapshot.AccessCondition{Attribute: attribute, Names: names, Values: c.Values})
		}
		if !meant {
			return rule, false
		}
	}
	if s.User != "" && s.User != "*" { // which is everyone, with a certificate or without
		rule.From = []snapshot.AccessSource{{Principals: []string{s.User}}}
	}
	if s.Group != "" {
		rule.When = append(rule.When, snapshot.AccessCondition{Attribute: api.AttributeRequestClaims, Names: []string{"groups"}, Values: []string{s.Group}})
	}
	for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
		attribute, names, _ := api.RBACKey(key)
		rule.When = append(rule.When, snapshot.AccessCondition{Attribute: attribute, Names: names, Values: []string{s.Properties[key]}})
	}
	return rule, true
}

// notAny is list, or nothing where that is any.
func notAny(list []string) []string {
	if slices.Contains(list, "*") {
		return nil
	}
	return list
}

// like reports whether one of patterns is value's.
func like(patterns []string, value string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		switch {
		case p == "*":
			return value != ""
		case strings.HasSuffix(p, "*"):
			return strings.HasPrefix(value, p[:len(p)-1])
		case strings.HasPrefix(p, "*"):
			return strings.HasSuffix(value, p[1:])
		}
		return p == value
	})
}

// likeService reports whether one of patterns is that of a service which w answers to, by its full name or its short one.
func likeService(patterns []string, w *mesh.Workload) bool {
	if slices.Contains(patterns, "*") {
		return true
	}
	return slices.ContainsFunc(w.Services, func(s string) bool { return like(patterns, mesh.FQDN(s, w.Namespace)) || slices.Contains(patterns, s) })
}

// checkRBAC is what is questionable about an object of rbac.istio.io.
func (x *Index) checkRBAC(o *api.Object) []analysis.Problem {
	switch spec := o.Spec.(type) {
	case *api.RBACBinding:
		if x.rbac.roles[o.Meta.Namespace+"/"+spec.RoleRef.Name] == nil {
			return []analysis.Problem{problem(analysis.ReferencedResourceNotFound, o, "spec.roleRef.name", fmt.Sprintf("there is no ServiceRole %s in namespace %s", spec.RoleRef.Name, o.Meta.Namespace))}
		}
	case *api.RBACConfig:
		if x.rbac.object.String() != o.String() {
			return []analysis.Problem{problem(analysis.SchemaWarning, o, "spec", x.rbac.object.String()+" holds, this does not")}
		}
	}
	return nil
}
