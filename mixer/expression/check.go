package expression

import (
	"fmt"
	"slices"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Vocabulary names the attributes and their types.
type Vocabulary map[string]snapshot.ValueType

// anyType stands in a signature for one type that all its places share.
const anyType snapshot.ValueType = ""

// signature is what a function takes and gives.
type signature struct {
	// method is called on a value of type target.
	method bool
	target snapshot.ValueType
	// either may be called as a method of its only argument, too.
	either bool
	args   []snapshot.ValueType
	result snapshot.ValueType
	// on are the types that anyType may be; empty are all.
	on []snapshot.ValueType
	// symbol is its name in a snapshot, and in errors for people, where it is not the function's own.
	symbol string
	// doing names an operation in Mixer's words for a type that it does not have.
	doing string
}

var (
	equatable = []snapshot.ValueType{snapshot.Bool, snapshot.String, snapshot.Int64, snapshot.Double, snapshot.DNSName, snapshot.EmailAddress, snapshot.URI, snapshot.IPAddress, snapshot.Timestamp}
	ordered   = []snapshot.ValueType{snapshot.String, snapshot.Int64, snapshot.Double, snapshot.Timestamp}
	two       = []snapshot.ValueType{anyType, anyType}
	text      = []snapshot.ValueType{snapshot.String}
)

// signatures are the functions of Mixer 1.0, and those of 1.1 besides: toLower, reverse and size.
var signatures = map[string]signature{
	"EQ":                {symbol: "==", args: two, result: snapshot.Bool, on: equatable, doing: "equality"},
	"NEQ":               {symbol: "!=", args: two, result: snapshot.Bool, on: equatable, doing: "equality"},
	"LT":                {symbol: "<", args: two, result: snapshot.Bool, on: ordered, doing: "less than"},
	"LEQ":               {symbol: "<=", args: two, result: snapshot.Bool, on: ordered, doing: "less or equal"},
	"GT":                {symbol: ">", args: two, result: snapshot.Bool, on: ordered, doing: "greater than"},
	"GEQ":               {symbol: ">=", args: two, result: snapshot.Bool, on: ordered, doing: "greater or equal"},
	"OR":                {symbol: "|", args: two},
	"LOR":               {symbol: "||", args: []snapshot.ValueType{snapshot.Bool, snapshot.Bool}, result: snapshot.Bool},
	"LAND":              {symbol: "&&", args: []snapshot.ValueType{snapshot.Bool, snapshot.Bool}, result: snapshot.Bool},
	"INDEX":             {symbol: "[]", args: []snapshot.ValueType{snapshot.StringMap, snapshot.String}, result: snapshot.String},
	"ADD":               {symbol: "+", args: two, on: []snapshot.ValueType{snapshot.String, snapshot.Int64, snapshot.Double}, doing: "Add"},
	"conditional":       {args: []snapshot.ValueType{snapshot.Bool, anyType, anyType}},
	"conditionalString": {args: []snapshot.ValueType{snapshot.Bool, snapshot.String, snapshot.String}, result: snapshot.String},
	"ip":                {args: text, result: snapshot.IPAddress},
	"timestamp":         {args: text, result: snapshot.Timestamp},
	"dnsName":           {args: text, result: snapshot.DNSName},
	"email":             {args: text, result: snapshot.EmailAddress},
	"uri":               {args: text, result: snapshot.URI},
	"match":             {args: []snapshot.ValueType{snapshot.String, snapshot.String}, result: snapshot.Bool},
	"matches":           {method: true, target: snapshot.String, args: text, result: snapshot.Bool},
	"startsWith":        {method: true, target: snapshot.String, args: text, result: snapshot.Bool},
	"endsWith":          {method: true, target: snapshot.String, args: text, result: snapshot.Bool},
	"emptyStringMap":    {result: snapshot.StringMap},
	"toLower":           {args: text, result: snapshot.String},
	"reverse":           {args: text, result: snapshot.String, either: true},
	"size":              {args: []snapshot.ValueType{anyType}, result: snapshot.Int64, on: text, doing: "Size"},
}

// Check parses source and types it against v. The error is an [*Error].
func Check(source string, v Vocabulary) (*snapshot.Expression, error) {
	n, err := parse(source)
	if err != nil {
		return nil, err
	}
	return v.check(n)
}

// Locate gives an error of evaluating source, which has been checked against v, the position of the part that it comes from: the innermost
// whose own evaluation fails with it.
func Locate(source string, v Vocabulary, failed error, eval func(*snapshot.Expression) error) error {
	n, err := parse(source)
	if err != nil {
		return err
	}
	fails := func(n *node) bool {
		e, err := v.check(n)
		if err != nil {
			return false
		}
		err = eval(e)
		return err != nil && err.Error() == failed.Error()
	}
	for part := n; part != nil; {
		n = part
		part = nil
		for _, operand := range append([]*node{n.target}, n.args...) {
			if operand != nil && fails(operand) {
				part = operand
				break
			}
		}
	}
	return errorAt(n.at, "%v", failed)
}

func (v Vocabulary) check(n *node) (*snapshot.Expression, error) {
	switch {
	case n.constant != nil:
		return &snapshot.Expression{Type: n.typ, Constant: n.constant}, nil
	case n.attr != "":
		t, ok := v[n.attr]
		if !ok {
			return nil, errorAt(n.at, "unknown attribute %s", n.attr)
		}
		return &snapshot.Expression{Type: t, Attribute: n.attr}, nil
	}
	s, ok := signatures[n.function]
	if !ok {
		return nil, errorAt(n.at, "unknown function: %s", n.function)
	}
	return v.call(n, s)
}

func (v Vocabulary) call(n *node, s signature) (*snapshot.Expression, error) {
	out := &snapshot.Expression{Function: n.function}
	if s.symbol != "" {
		out.Function = s.symbol
	}
	args := n.args
	switch {
	case n.target != nil && s.either && len(args) == 0:
		args = []*node{n.target}
	case n.target != nil && !s.method:
		return nil, errorAt(n.at, "invoking regular function on instance method: %s", n.function)
	case n.target == nil && s.method:
		return nil, errorAt(n.at, "invoking instance method without an instance: %s", n.function)
	case n.target != nil:
		target, err := v.check(n.target)
		if err != nil {
			return nil, err
		}
		if target.Type != s.target {
			return nil, errorAt(n.target.at, "%s target typeError got %s, expected %s", n, target.Type, s.target)
		}
		out.Arguments = append(out.Arguments, *target)
	}
	if len(args) != len(s.args) {
		return nil, errorAt(n.at, "%s arity mismatch. Got %d arg(s), expected %d arg(s)", n, len(args), len(s.args))
	}
	shared := anyType
	for i, a := range args {
		arg, err := v.check(a)
		if err != nil {
			return nil, err
		}
		want := s.args[i]
		if want == anyType {
			if shared == anyType {
				shared = arg.Type
			}
			want = shared
		}
		if arg.Type != want {
			return nil, errorAt(a.at, "%s arg %d (%s) typeError got %s, expected %s", n, i+1, a, arg.Type, want)
		}
		out.Arguments = append(out.Arguments, *arg)
	}
	if len(s.on) > 0 && shared != anyType && !slices.Contains(s.on, shared) {
		return nil, errorAt(n.at, "internal compiler error -- %s for type not yet implemented: %s", s.doing, machineType(shared))
	}
	if out.Type = s.result; out.Type == anyType {
		out.Type = shared
	}
	return out, nil
}

// machineType is how Mixer's errors name a type: as that of the machine it compiled for.
func machineType(t snapshot.ValueType) string {
	switch t {
	case snapshot.Bool:
		return "bool"
	case snapshot.DurationType:
		return "duration"
	case snapshot.Int64:
		return "integer"
	case snapshot.Double:
		return "double"
	case snapshot.IPAddress, snapshot.Timestamp, snapshot.StringMap:
		return "interface"
	default:
		return "string"
	}
}

// TypeOf is the type by its name in an attribute manifest.
func TypeOf(name string) (snapshot.ValueType, error) {
	t := snapshot.ValueType(name)
	if !slices.Contains(types, t) {
		return "", fmt.Errorf("%q is no type: want one of %v", name, types)
	}
	return t, nil
}

var types = []snapshot.ValueType{
	snapshot.String, snapshot.Int64, snapshot.Double, snapshot.Bool, snapshot.Timestamp, snapshot.IPAddress, snapshot.EmailAddress,
	snapshot.URI, snapshot.DNSName, snapshot.DurationType, snapshot.StringMap,
}
