// Package expression evaluates the expressions of Mixer's language that mixer has checked. It knows no vocabulary and
// no requests: attributes are asked for by name. Evaluation takes no lock and, but for + and the functions that make a
// new string, allocates nothing.
package expression

import (
	"fmt"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Attributes are what is known of a request. The error is for an attribute that is there and can't be read; one that is
// not there is false.
type Attributes interface {
	Attribute(name string) (Value, bool, error)
}

// Program is an expression made ready.
type Program struct {
	// Type is that of the result.
	Type snapshot.ValueType
	root node
}

// Compile makes e ready. The error says what a snapshot must not have.
func Compile(e *snapshot.Expression) (*Program, error) {
	n, err := compile(e)
	if err != nil {
		return nil, err
	}
	return &Program{Type: e.Type, root: n}, nil
}

// Eval evaluates the program. What is missing without an alternative (|) is an error.
func (p *Program) Eval(a Attributes) (Value, error) {
	v, _, err := p.root.eval(a, false)
	return v, err
}

// node yields a value and true, or false where the value is missing. It may be missing only if the caller has an
// alternative and says so.
type node interface {
	eval(a Attributes, optional bool) (Value, bool, error)
}

type constant struct{ value Value }

func (c *constant) eval(Attributes, bool) (Value, bool, error) { return c.value, true, nil }

type attribute struct {
	name    string
	typ     snapshot.ValueType
	missing error
}

func (n *attribute) eval(a Attributes, optional bool) (Value, bool, error) {
	v, ok, err := a.Attribute(n.name)
	switch {
	case err != nil:
		return v, false, err
	case !ok && !optional:
		return v, false, n.missing
	case ok && v.Type != n.typ:
		return v, false, fmt.Errorf("attribute %s is %s, the expression was made for %s", n.name, v.Type, n.typ)
	}
	return v, ok, nil
}

// alternative is x | y.
type alternative struct{ first, second node }

func (n *alternative) eval(a Attributes, optional bool) (Value, bool, error) {
	if v, ok, err := n.first.eval(a, true); ok || err != nil {
		return v, ok, err
	}
	return n.second.eval(a, optional)
}

// index is m[key]. A key that is not there is the empty string, or missing where there is an alternative.
type index struct{ source, key node }

func (n *index) eval(a Attributes, optional bool) (Value, bool, error) {
	m, ok, err := n.source.eval(a, optional)
	if !ok {
		return m, false, err
	}
	key, ok, err := n.key.eval(a, optional)
	if !ok {
		return key, false, err
	}
	s, found := m.Map.Get(key.Str)
	return str(snapshot.String, s), found || !optional, nil
}

// junction is && and ||: the second operand is evaluated only where the first does not decide.
type junction struct {
	decides       int64 // what the first must be to be the result
	first, second node
}

func (n *junction) eval(a Attributes, _ bool) (Value, bool, error) {
	if v, ok, err := n.first.eval(a, false); !ok || v.Int == n.decides {
		return v, ok, err
	}
	return n.second.eval(a, false)
}

// choice is conditional(c, a, b); conditionalString wants both to be there, as it is a function and no operator.
type choice struct {
	condition, yes, no node
	both               bool
}

func (n *choice) eval(a Attributes, _ bool) (Value, bool, error) {
	c, ok, err := n.condition.eval(a, false)
	chosen, other := n.no, n.yes
	if c.Int != 0 {
		chosen, other = n.yes, n.no
	}
	if !ok {
		return c, false, err
	}
	if n.both {
		if v, ok, err := other.eval(a, false); !ok {
			return v, false, err
		}
	}
	return chosen.eval(a, false)
}

// unary and binary are the functions of one and of two values, which must be there. Values go by value: a pointer would
// put each on the heap.
type unary struct {
	x  node
	do func(Value) (Value, error)
}

func (n *unary) eval(a Attributes, _ bool) (Value, bool, error) {
	x, ok, err := n.x.eval(a, false)
	if !ok {
		return x, false, err
	}
	v, err := n.do(x)
	return v, err == nil, err
}

type binary struct {
	x, y node
	do   func(x, y Value) (Value, error)
}

func (n *binary) eval(a Attributes, _ bool) (Value, bool, error) {
	x, ok, err := n.x.eval(a, false)
	if !ok {
		return x, false, err
	}
	y, ok, err := n.y.eval(a, false)
	if !ok {
		return y, false, err
	}
	v, err := n.do(x, y)
	return v, err == nil, err
}

func compile(e *snapshot.Expression) (node, error) {
	switch {
	case e.Constant != nil:
		v, err := Parse(e.Type, *e.Constant)
		return &constant{v}, err
	case e.Attribute != "":
		return &attribute{e.Attribute, e.Type, fmt.Errorf("lookup failed: '%s'", e.Attribute)}, nil
	}
	args := make([]node, len(e.Arguments))
	for i := range e.Arguments {
		var err error
		if args[i], err = compile(&e.Arguments[i]); err != nil {
			return nil, err
		}
	}
	if want, ok := arity[e.Function]; !ok || want != len(args) {
		return nil, fmt.Errorf("function %q with %d arguments: no such function", e.Function, len(args))
	}
	switch e.Function {
	case "|":
		return &alternative{args[0], args[1]}, nil
	case "[]":
		return &index{args[0], args[1]}, nil
	case "||":
		return &junction{1, args[0], args[1]}, nil
	case "&&":
		return &junction{0, args[0], args[1]}, nil
	case "conditional":
		return &choice{args[0], args[1], args[2], false}, nil
	case "conditionalString":
		return &choice{args[0], args[1], args[2], true}, nil
	case "emptyStringMap":
		return &constant{Value{Type: snapshot.StringMap, Map: emptyMap{}}}, nil
	case "matches":
		return matches(args[0], args[1])
	}
	if len(args) == 1 {
		return settle(&unary{args[0], conversions[e.Function]}, args...)
	}
	do, err := operation(e.Function, e.Arguments[0].Type)
	if err != nil {
		return nil, err
	}
	return settle(&binary{args[0], args[1], do}, args...)
}

// settle evaluates once and for all what depends on constants alone. One that fails does so when it is evaluated, as an
// alternative may stand before it.
func settle(n node, args ...node) (node, error) {
	for _, a := range args {
		if _, ok := a.(*constant); !ok {
			return n, nil
		}
	}
	if v, ok, _ := n.eval(nil, false); ok {
		return &constant{v}, nil
	}
	return n, nil
}

// emptyMap is the value of emptyStringMap().
type emptyMap struct{}

func (emptyMap) Get(string) (string, bool) { return "", false }
