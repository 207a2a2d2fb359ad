package api

import (
	"cmp"
	"net/url"
	"reflect"
)

// handlerSpec is how a handler is written in the long form.
type handlerSpec struct {
	CompiledAdapter string             `json:"compiledAdapter"`
	Adapter         string             `json:"adapter"`
	Params          any                `json:"params"`
	Connection      *handlerConnection `json:"connection"`
}

type handlerConnection struct {
	Address string `json:"address"`
}

// handlerKind is the long form: a compiledAdapter with its params, or a connection to an adapter outside of mixer
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.policy.v1beta1/#Handler).
func handlerKind() *Kind {
	k := configKind(Kind{
		Kind: "handler",
		Columns: []Column{{Name: "Adapter", Description: "What decides or writes down", Cell: func(o *Object) any {
			h := o.Spec.(*Handler)
			return h.Adapter + h.Address
		}}},
	})
	k.decodeSpec = func(spec map[string]any) (any, Problems) { return decodeHandler(spec) }
	k.schema = func() map[string]any { return structSchema(reflect.TypeFor[handlerSpec](), "") }
	k.validate = func(*Object) Problems { return nil } // done in decode, which knows the form
	return k
}

func decodeHandler(spec map[string]any) (*Handler, Problems) {
	var s handlerSpec
	root := Path{"spec"}
	ps := decodeStruct(root, spec, &s)
	if len(ps) > 0 {
		return nil, ps
	}
	h := &Handler{Adapter: s.CompiledAdapter}
	if s.Connection != nil {
		h.Address = s.Connection.Address
		checkConnection(&ps, root, &s)
		return h, ps
	}
	if s.Adapter != "" {
		ps.required(root.At("connection"), "want the address of the adapter "+s.Adapter+", or a compiledAdapter instead of it")
		return h, ps
	}
	a := FindAdapter(s.CompiledAdapter)
	if s.CompiledAdapter == "" {
		ps.required(root.At("compiledAdapter"), "want one of "+adapterNames()+", or a connection")
		return h, ps
	}
	if a == nil {
		ps.invalid(root.At("compiledAdapter"), cmp.Or(notBuilt(s.CompiledAdapter), "want one of "+adapterNames()+", or a connection, got "+describe(s.CompiledAdapter)))
		return h, ps
	}
	params := s.Params
	if params == nil {
		params = map[string]any{}
	}
	h.Params, ps = a.decode(root.At("params"), params)
	return h, ps
}

// checkConnection checks a handler outside of mixer, which is reached by HTTP.
func checkConnection(ps *Problems, root Path, s *handlerSpec) {
	if s.CompiledAdapter != "" {
		ps.invalid(root.At("connection"), "want only one of compiledAdapter and connection")
	}
	if s.Params != nil {
		ps.unsupported(root.At("params"), "a handler outside of mixer has its own configuration: this")
	}
	u, err := url.Parse(s.Connection.Address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		ps.invalid(root.At("connection", "address"), "want a URL of http or https, got "+describe(s.Connection.Address))
	}
}
