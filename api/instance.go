package api

import (
	"cmp"
	"reflect"
)

// instanceSpec is how an instance is written in the long form.
type instanceSpec struct {
	CompiledTemplate  string            `json:"compiledTemplate"`
	Params            any               `json:"params"`
	AttributeBindings map[string]string `json:"attributeBindings"`
}

// instanceKind is the long form: a compiledTemplate with its params
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.policy.v1beta1/#Instance).
func instanceKind() *Kind {
	k := configKind(Kind{
		Kind: "instance",
		Columns: []Column{{Name: "Template", Description: "What it is made of", Cell: func(o *Object) any {
			return o.Spec.(*Instance).Template
		}}},
	})
	k.decodeSpec = func(spec map[string]any) (any, Problems) { return decodeInstance(spec) }
	k.schema = func() map[string]any { return structSchema(reflect.TypeFor[instanceSpec](), "") }
	k.validate = func(*Object) Problems { return nil } // its expressions are mixer's to read
	return k
}

func decodeInstance(spec map[string]any) (*Instance, Problems) {
	var s instanceSpec
	root := Path{"spec"}
	ps := decodeStruct(root, spec, &s)
	if len(ps) > 0 {
		return nil, ps
	}
	t := FindTemplate(s.CompiledTemplate)
	if s.CompiledTemplate == "" {
		ps.required(root.At("compiledTemplate"), "want one of "+templateNames())
		return nil, ps
	}
	if t == nil {
		ps.invalid(root.At("compiledTemplate"), cmp.Or(notBuilt(s.CompiledTemplate), "want one of "+templateNames()+", got "+describe(s.CompiledTemplate)))
		return nil, ps
	}
	if len(s.AttributeBindings) > 0 && t.Name != "kubernetes" {
		ps.invalid(root.At("attributeBindings"), "want none: "+t.Name+" makes no attributes")
	}
	params := s.Params
	if params == nil {
		params = map[string]any{}
	}
	i := &Instance{Template: t.Name, Params: t.newParams()}
	ps = append(ps, decodeStruct(root.At("params"), params, i.Params)...)
	return i, ps
}
