package api

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// RBACGroup is the group of Istio 1.0's access control (https://istio.io/v1.0/docs/reference/config/authorization/istio.rbac.v1alpha1/).
// citadel reads its kinds as AuthorizationPolicies.
const RBACGroup = "rbac.istio.io"

// RBACConfig is the spec of RbacConfig and ClusterRbacConfig: for which services access is closed but for what roles allow.
type RBACConfig struct {
	Mode            string     `json:"mode" enum:"OFF,ON,ON_WITH_INCLUSION,ON_WITH_EXCLUSION"`
	Inclusion       RBACTarget `json:"inclusion"`
	Exclusion       RBACTarget `json:"exclusion"`
	EnforcementMode string     `json:"enforcementMode" enum:"ENFORCED,PERMISSIVE"`
}

// RBACTarget are services, by name, and all those of namespaces.
type RBACTarget struct {
	Services   []string `json:"services"`
	Namespaces []string `json:"namespaces"`
}

// RBACRole is the spec of a ServiceRole: what may be done.
type RBACRole struct {
	Rules []RBACRule `json:"rules"`
}

// RBACRule is an operation. Texts are exact, "prefix*", "*suffix" or "*".
type RBACRule struct {
	Services    []string         `json:"services"`
	Paths       []string         `json:"paths"`
	Methods     []string         `json:"methods"`
	Constraints []RBACConstraint `json:"constraints"`
}

// RBACConstraint is a condition on the request or its destination.
type RBACConstraint struct {
	Key    string   `json:"key"`
	Values []string `json:"values"`
}

// RBACBinding is the spec of a ServiceRoleBinding: who may do what a role says.
type RBACBinding struct {
	Subjects []RBACSubject `json:"subjects"`
	RoleRef  RBACRoleRef   `json:"roleRef"`
	Mode     string        `json:"mode" enum:"ENFORCED,PERMISSIVE"`
}

// RBACSubject is who: all of its fields must match.
type RBACSubject struct {
	User       string            `json:"user"`
	Group      string            `json:"group"`
	Properties map[string]string `json:"properties"`
}

// RBACRoleRef names a role of the binding's namespace.
type RBACRoleRef struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// ServiceRole is the kind that says what may be done with services.
func ServiceRole() *Kind {
	return rbacKind(Kind{Kind: "ServiceRole", Plural: "serviceroles", Singular: "servicerole", validate: validateRole}, func() any { return &RBACRole{} })
}

// ServiceRoleBinding is the kind that says who has a role.
func ServiceRoleBinding() *Kind {
	return rbacKind(Kind{
		Kind: "ServiceRoleBinding", Plural: "servicerolebindings", Singular: "servicerolebinding", validate: validateRoleBinding,
	}, func() any { return &RBACBinding{} })
}

// RbacConfig is the kind that closes access in the mesh.
func RbacConfig() *Kind {
	return rbacKind(Kind{Kind: "RbacConfig", Plural: "rbacconfigs", Singular: "rbacconfig", validate: validateRBACConfig}, func() any { return &RBACConfig{} })
}

// ClusterRbacConfig is RbacConfig's name from Istio 1.1 on; it wins over that.
func ClusterRbacConfig() *Kind {
	return rbacKind(Kind{
		Kind: "ClusterRbacConfig", Plural: "clusterrbacconfigs", Singular: "clusterrbacconfig", validate: validateRBACConfig,
	}, func() any { return &RBACConfig{} })
}

func rbacKind(k Kind, newSpec func() any) *Kind {
	k.Group, k.Versions = RBACGroup, []string{"v1alpha1"}
	k.Categories = []string{"istio-io", "rbac-istio-io"}
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		s := newSpec()
		return s, decodeStruct(Path{"spec"}, spec, s)
	}
	k.schema = func() map[string]any { return structSchema(reflect.TypeOf(newSpec()).Elem(), "") }
	return &k
}

func validateRBACConfig(o *Object) Problems {
	c := o.Spec.(*RBACConfig)
	var ps Problems
	if o.Meta.Name != "default" {
		ps.invalid(Path{"metadata", "name"}, `want "default": a mesh has one`)
	}
	for _, t := range []struct {
		name, mode string
		target     RBACTarget
	}{{"inclusion", "ON_WITH_INCLUSION", c.Inclusion}, {"exclusion", "ON_WITH_EXCLUSION", c.Exclusion}} {
		path := Path{"spec", t.name}
		empty := len(t.target.Services)+len(t.target.Namespaces) == 0
		switch {
		case c.Mode == t.mode && empty:
			ps.required(path, "want services or namespaces: that is what the mode is about")
		case c.Mode != t.mode && !empty:
			ps.invalid(path, fmt.Sprintf("want mode %s besides, or it says nothing", t.mode))
		}
		checkEach(&ps, path.At("services"), t.target.Services, checkPattern)
		checkEach(&ps, path.At("namespaces"), t.target.Namespaces, checkPattern)
	}
	return ps
}

func validateRole(o *Object) Problems {
	r := o.Spec.(*RBACRole)
	var ps Problems
	if len(r.Rules) == 0 {
		ps.required(Path{"spec", "rules"}, "want at least one rule: this allows nothing")
	}
	for i, rule := range r.Rules {
		path := Path{"spec", "rules", i}
		if len(rule.Services) == 0 {
			ps.required(path.At("services"), `want at least one service, or "*"`)
		}
		checkEach(&ps, path.At("services"), rule.Services, checkPattern)
		checkEach(&ps, path.At("paths"), rule.Paths, checkPathPattern)
		checkEach(&ps, path.At("methods"), rule.Methods, checkMethodPattern)
		for j, c := range rule.Constraints {
			at := path.At("constraints", j)
			if len(c.Values) == 0 {
				ps.required(at.At("values"), "want at least one value")
			}
			attribute, names, check := RBACKey(c.Key)
			switch {
			case check == nil || !slices.Contains([]string{AttributeHeader, AttributeDestinationIP, AttributeDestinationPort, DestinationLabels, DestinationNamespace, DestinationUser}, attribute):
				ps.invalid(at.At("key"), fmt.Sprintf("want one of destination.ip, destination.port, destination.labels[<name>], destination.namespace, destination.user, request.headers[<name>], got %q", c.Key))
			case attribute == AttributeHeader:
				checkRuleHeader(&ps, at.At("key"), names[0])
				fallthrough
			default:
				checkEach(&ps, at.At("values"), c.Values, check)
			}
		}
	}
	return ps
}

// Attributes of 1.0's constraints that today's conditions lack: they say which of the workloads are meant.
const (
	DestinationLabels    = "destination.labels"
	DestinationNamespace = "destination.namespace"
	DestinationUser      = "destination.user"
)

// RBACKey splits the key of a constraint or of a property as ConditionKey does; check is nil where there is no such attribute.
func RBACKey(key string) (attribute string, names []string, check func(string) string) {
	if attribute, names, ok := ConditionKey(key); ok {
		return attribute, names, conditionChecks[attribute]
	}
	attribute, rest, _ := strings.Cut(key, "[")
	label, closed := strings.CutSuffix(rest, "]")
	switch {
	case key == DestinationNamespace, key == DestinationUser:
		return key, nil, checkPattern
	case attribute == DestinationLabels && closed && label != "":
		return attribute, []string{label}, checkPattern
	}
	return "", nil, nil
}

func validateRoleBinding(o *Object) Problems {
	b := o.Spec.(*RBACBinding)
	var ps Problems
	if len(b.Subjects) == 0 {
		ps.required(Path{"spec", "subjects"}, "want at least one subject: nobody has the role")
	}
	if b.RoleRef.Kind != "ServiceRole" {
		ps.invalid(Path{"spec", "roleRef", "kind"}, fmt.Sprintf("want ServiceRole, got %q", b.RoleRef.Kind))
	}
	if b.RoleRef.Name == "" {
		ps.required(Path{"spec", "roleRef", "name"}, "want the name of a ServiceRole of this namespace")
	}
	for i, s := range b.Subjects {
		path := Path{"spec", "subjects", i}
		if s.User == "" && s.Group == "" && len(s.Properties) == 0 {
			ps.required(path, "want user, group or properties")
		}
		if s.User != "" {
			if msg := checkPrincipal(s.User); msg != "" {
				ps.invalid(path.At("user"), msg)
			}
		}
		if s.Group != "" {
			if msg := checkPattern(s.Group); msg != "" {
				ps.invalid(path.At("group"), msg)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
			attribute, names, ok := ConditionKey(key)
			switch {
			case !ok || strings.HasPrefix(attribute, "destination.") || attribute == AttributeServerName:
				ps.invalid(path.At("properties", key), "want source.ip, source.namespace, source.principal, request.headers[<name>], request.auth.principal, request.auth.audiences, request.auth.presenter or request.auth.claims[<name>]")
				continue
			case attribute == AttributeHeader:
				checkRuleHeader(&ps, path.At("properties", key), names[0])
			}
			if msg := conditionChecks[attribute](s.Properties[key]); msg != "" {
				ps.invalid(path.At("properties", key), msg)
			}
		}
	}
	return ps
}
