package expression

import (
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

type attributes map[string]Value

func (a attributes) Attribute(name string) (Value, bool, error) { v, ok := a[name]; return v, ok, nil }

func text(s string) *string { return &s }

// request.path == "/a" && match(source.name, "web*") || destination.port < 9000
var pathOrPort = snapshot.Expression{Type: snapshot.Bool, Function: "||", Arguments: []snapshot.Expression{
	{Type: snapshot.Bool, Function: "&&", Arguments: []snapshot.Expression{
		{Type: snapshot.Bool, Function: "==", Arguments: []snapshot.Expression{{Type: snapshot.String, Attribute: "request.path"}, {Type: snapshot.String, Constant: text("/a")}}},
		{Type: snapshot.Bool, Function: "match", Arguments: []snapshot.Expression{{Type: snapshot.String, Attribute: "source.name"}, {Type: snapshot.String, Constant: text("web*")}}},
	}},
	{Type: snapshot.Bool, Function: "<", Arguments: []snapshot.Expression{{Type: snapshot.Int64, Attribute: "destination.port"}, {Type: snapshot.Int64, Constant: text("9000")}}},
}}

var request = attributes{
	"request.path":     {Type: snapshot.String, Str: "/a"},
	"source.name":      {Type: snapshot.String, Str: "api-1"},
	"destination.port": {Type: snapshot.Int64, Int: 9080},
}

func TestEvalAllocatesNothing(t *testing.T) {
	p, err := Compile(&pathOrPort)
	if err != nil {
		t.Fatal(err)
	}
	var a Attributes = request
	if n := testing.AllocsPerRun(100, func() {
		if v, err := p.Eval(a); err != nil || v.True() {
			t.Fatalf("%v, %v", v, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
	missing := attributes{}
	if n := testing.AllocsPerRun(100, func() {
		if _, err := p.Eval(missing); err == nil {
			t.Fatal("no error for what is missing")
		}
	}); n != 0 {
		t.Errorf("%v allocations where an attribute is missing, want none", n)
	}
}

// What a snapshot must not have is refused, not met by a request.
func TestCompileRefuses(t *testing.T) {
	for name, e := range map[string]snapshot.Expression{
		"nothing":            {},
		"an unknown name":    {Function: "exec", Arguments: []snapshot.Expression{{Type: snapshot.String, Constant: text("ls")}}},
		"too few arguments":  {Function: "==", Arguments: []snapshot.Expression{{Type: snapshot.String, Constant: text("ls")}}},
		"a bad constant":     {Type: snapshot.Int64, Constant: text("x")},
		"no equality":        {Function: "==", Arguments: []snapshot.Expression{{Type: snapshot.StringMap, Attribute: "m"}, {Type: snapshot.StringMap, Attribute: "m"}}},
		"no order":           {Function: "<", Arguments: []snapshot.Expression{{Type: snapshot.Bool, Attribute: "b"}, {Type: snapshot.Bool, Attribute: "b"}}},
		"no sum":             {Function: "+", Arguments: []snapshot.Expression{{Type: snapshot.Bool, Attribute: "b"}, {Type: snapshot.Bool, Attribute: "b"}}},
		"a bad one within":   {Function: "||", Arguments: []snapshot.Expression{{Type: snapshot.Bool, Attribute: "b"}, {Type: snapshot.Int64, Constant: text("x")}}},
		"a map as constant":  {Type: snapshot.StringMap, Constant: text("{}")},
		"a type that is not": {Type: "NUMBER", Constant: text("1")},
	} {
		if _, err := Compile(&e); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// An attribute of another type than the expression was made for is an error, not a panic.
func TestEvalOtherType(t *testing.T) {
	p, err := Compile(&pathOrPort)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Eval(attributes{"request.path": {Type: snapshot.Int64}}); err == nil {
		t.Error("no error for a path that is a number")
	}
}

func BenchmarkEval(b *testing.B) {
	p, err := Compile(&pathOrPort)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Eval(request); err != nil {
			b.Fatal(err)
		}
	}
}
