package api

import "strings"

// RuleSpec is the spec of a rule: where its match is true, its handlers are given its instances
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.policy.v1beta1/#Rule).
type RuleSpec struct {
	// Match is an expression; empty is true.
	Match                    string            `json:"match"`
	Actions                  []RuleAction      `json:"actions"`
	RequestHeaderOperations  []HeaderOperation `json:"requestHeaderOperations"`
	ResponseHeaderOperations []HeaderOperation `json:"responseHeaderOperations"`
}

// RuleAction names a handler and the instances for it, each as name.kind.namespace, name.kind, name.namespace or name.
type RuleAction struct {
	Handler   string   `json:"handler"`
	Instances []string `json:"instances"`
	Name      string   `json:"name"`
}

// HeaderOperation changes a header field. Values are expressions.
type HeaderOperation struct {
	Name      string   `json:"name"`
	Values    []string `json:"values"`
	Operation string   `json:"operation" enum:"REPLACE,REMOVE,APPEND"`
}

// Rule is the kind that says which handlers are given which instances, and when.
func Rule() *Kind {
	k := structKind(Kind{
		Kind: "rule",
		Columns: []Column{{Name: "Match", Description: "When it applies", Cell: func(o *Object) any {
			return o.Spec.(*RuleSpec).Match
		}}},
	}, func() any { return &RuleSpec{} })
	k.validate = validateRule
	return k
}

func validateRule(o *Object) Problems {
	r := o.Spec.(*RuleSpec)
	var ps Problems
	if len(r.Actions)+len(r.RequestHeaderOperations)+len(r.ResponseHeaderOperations) == 0 {
		ps.required(Path{"spec", "actions"}, "want at least one action, or header operations: this says nothing")
	}
	for i := range r.Actions {
		a, path := &r.Actions[i], Path{"spec", "actions", i}
		checkReference(&ps, path.At("handler"), a.Handler)
		if len(a.Instances) == 0 {
			ps.required(path.At("instances"), "want at least one instance: a handler does nothing without")
		}
		for j, name := range a.Instances {
			checkReference(&ps, path.At("instances", j), name)
		}
		if a.Name != "" {
			ps.unsupported(path.At("name"), "the name of an action, whose output another could use,")
		}
	}
	checkOperations(&ps, Path{"spec", "requestHeaderOperations"}, r.RequestHeaderOperations)
	checkOperations(&ps, Path{"spec", "responseHeaderOperations"}, r.ResponseHeaderOperations)
	return ps
}

func checkReference(ps *Problems, path Path, name string) {
	if name == "" {
		ps.required(path, "want a name, such as handler.denier.istio-system")
		return
	}
	for _, part := range strings.Split(name, ".") {
		if part == "" {
			ps.invalid(path, "want name.kind.namespace, name.kind, name.namespace or name, got \""+name+"\"")
			return
		}
	}
}

func checkOperations(ps *Problems, path Path, ops []HeaderOperation) {
	for i := range ops {
		op, at := &ops[i], path.At(i)
		if text := checkHeaderName(op.Name); text != "" {
			ps.invalid(at.At("name"), text)
		}
		switch {
		case op.Operation == "REMOVE" && len(op.Values) > 0:
			ps.invalid(at.At("values"), "want none with operation REMOVE")
		case op.Operation != "REMOVE" && len(op.Values) == 0:
			ps.required(at.At("values"), "want at least one expression, or operation REMOVE")
		}
	}
}
