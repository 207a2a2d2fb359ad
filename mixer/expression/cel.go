package expression

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	celop "cel.dev/cel-go/common/operators"
	celtype "cel.dev/cel-go/common/types"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// CheckCEL is Check for an expression in the Common Expression Language
// (https://github.com/google/cel-spec/blob/master/doc/langdef.md) over the attributes of [Attributes], which have the same
// names. What a proxy can't evaluate by itself is refused: loops (all, exists, map, filter) and what makes lists and maps.
//
// It differs in one thing: an entry that a map does not have is the empty string, not an error, so that nobody leaves a
// rule by leaving a header out. `"x-user" in request.headers` and has(request.headers.x) tell the two apart. IP addresses
// compare with strings.
func CheckCEL(source string) (*snapshot.Expression, error) {
	env, err := celEnvironment()
	if err != nil {
		return nil, err
	}
	checked, issues := env.Compile(source)
	if err := issues.Err(); err != nil {
		first := issues.Errors()[0]
		return nil, &Error{Line: first.Location.Line(), Column: first.Location.Column() + 1, Message: first.Message}
	}
	l := celLowering{checked.NativeRep()}
	return l.expr(l.Expr())
}

var celEnvironment = sync.OnceValues(func() (*cel.Env, error) {
	var options []cel.EnvOption
	for name, t := range Attributes {
		options = append(options, cel.Variable(name, celTypes[t]))
	}
	return cel.NewEnv(options...)
})

// celTypes are the types of attributes in CEL, which knows no addresses.
var celTypes = map[snapshot.ValueType]*cel.Type{
	snapshot.String: cel.StringType, snapshot.Int64: cel.IntType, snapshot.Bool: cel.BoolType, snapshot.Timestamp: cel.TimestampType,
	snapshot.DurationType: cel.DurationType, snapshot.StringMap: cel.MapType(cel.StringType, cel.StringType), snapshot.IPAddress: cel.StringType,
}

type celLowering struct{ *ast.AST }

func (l *celLowering) fail(e ast.Expr, format string, args ...any) error {
	at := l.SourceInfo().GetStartLocation(e.ID())
	return &Error{Line: at.Line(), Column: at.Column() + 1, Message: fmt.Sprintf(format, args...)}
}

var errNoLoops = errors.New("a proxy evaluates without loops, lists and maps: want no all, exists, map or filter; in takes a list of constants")

func (l *celLowering) expr(e ast.Expr) (*snapshot.Expression, error) {
	// The checker has resolved dotted names to attributes.
	if r, ok := l.ReferenceMap()[e.ID()]; ok && r.Name != "" && e.Kind() != ast.CallKind {
		return &snapshot.Expression{Type: Attributes[r.Name], Attribute: r.Name}, nil
	}
	switch e.Kind() {
	case ast.LiteralKind:
		return l.literal(e)
	case ast.SelectKind:
		s := e.AsSelect()
		m, err := l.expr(s.Operand())
		if err != nil {
			return nil, err
		}
		if s.IsTestOnly() {
			return present(m, constant(snapshot.String, s.FieldName())), nil
		}
		return call("[]", snapshot.String, m, constant(snapshot.String, s.FieldName())), nil
	case ast.CallKind:
		return l.call(e, e.AsCall())
	}
	return nil, l.fail(e, "%v", errNoLoops)
}

func (l *celLowering) literal(e ast.Expr) (*snapshot.Expression, error) {
	switch v := e.AsLiteral().(type) {
	case celtype.String:
		return constant(snapshot.String, string(v)), nil
	case celtype.Bool:
		return constant(snapshot.Bool, strconv.FormatBool(bool(v))), nil
	case celtype.Int:
		return constant(snapshot.Int64, strconv.FormatInt(int64(v), 10)), nil
	case celtype.Double:
		return constant(snapshot.Double, strconv.FormatFloat(float64(v), 'g', -1, 64)), nil
	default:
		return nil, l.fail(e, "want a string, a number or a truth value, got %s", v.Type().TypeName())
	}
}

// binary are the operators of CEL that proxies have, too.
var binary = map[string]string{
	celop.Equals: "==", celop.NotEquals: "!=", celop.Less: "<", celop.LessEquals: "<=", celop.Greater: ">",
	celop.GreaterEquals: ">=", celop.LogicalAnd: "&&", celop.LogicalOr: "||", celop.Add: "+", celop.Index: "[]",
}

func (l *celLowering) call(e ast.Expr, c ast.CallExpr) (*snapshot.Expression, error) {
	operands := c.Args()
	if c.IsMemberFunction() {
		operands = append([]ast.Expr{c.Target()}, operands...)
	}
	if c.FunctionName() == celop.In && operands[1].Kind() == ast.ListKind {
		return l.oneOf(operands[0], operands[1].AsList().Elements())
	}
	var args []*snapshot.Expression
	for _, operand := range operands {
		a, err := l.expr(operand)
		if err != nil {
			return nil, err
		}
		args = append(args, a)
	}
	switch name := c.FunctionName(); name {
	case celop.Conditional:
		return call("conditional", args[1].Type, args...), nil
	case celop.LogicalNot:
		return call("==", snapshot.Bool, args[0], constant(snapshot.Bool, "false")), nil
	case celop.In:
		return present(args[1], args[0]), nil
	case "startsWith", "endsWith":
		return call(name, snapshot.Bool, args...), nil
	case "matches":
		return l.matches(e, args[0], args[1], func(pattern string) string { return pattern })
	case "contains":
		return l.matches(e, args[0], args[1], regexp.QuoteMeta)
	case "timestamp":
		return call("timestamp", snapshot.Timestamp, args...), nil
	case "duration":
		if args[0].Constant != nil {
			return constant(snapshot.DurationType, *args[0].Constant), nil
		}
	case "string":
		if args[0].Type == snapshot.String {
			return args[0], nil
		}
	default:
		if symbol, ok := binary[name]; ok {
			return l.binary(e, symbol, args[0], args[1])
		}
	}
	return nil, l.fail(e, "proxies have no %s of this kind", c.FunctionName())
}

func (l *celLowering) binary(e ast.Expr, symbol string, x, y *snapshot.Expression) (*snapshot.Expression, error) {
	switch symbol {
	case "[]":
		return call(symbol, snapshot.String, x, y), nil
	case "&&", "||":
		return call(symbol, snapshot.Bool, x, y), nil
	}
	if x.Type != y.Type {
		x, y = asAddress(x, y), asAddress(y, x)
	}
	s := signatures[map[string]string{"==": "EQ", "!=": "NEQ", "<": "LT", "<=": "LEQ", ">": "GT", ">=": "GEQ", "+": "ADD"}[symbol]]
	for _, t := range s.on {
		if t == x.Type && x.Type == y.Type {
			if s.result == anyType {
				return call(symbol, t, x, y), nil
			}
			return call(symbol, s.result, x, y), nil
		}
	}
	return nil, l.fail(e, "proxies have no %s of %s and %s", symbol, x.Type, y.Type)
}

// asAddress is x as an address where other is one.
func asAddress(x, other *snapshot.Expression) *snapshot.Expression {
	if x.Type == snapshot.String && other.Type == snapshot.IPAddress {
		return call("ip", snapshot.IPAddress, x)
	}
	return x
}

func (l *celLowering) matches(e ast.Expr, text, pattern *snapshot.Expression, as func(string) string) (*snapshot.Expression, error) {
	if pattern.Constant == nil {
		return nil, l.fail(e, "want a constant to look for")
	}
	re := as(*pattern.Constant)
	if _, err := regexp.Compile(re); err != nil {
		return nil, l.fail(e, "want a regular expression of RE2: %v", err)
	}
	return call("matches", snapshot.Bool, constant(snapshot.String, re), text), nil
}

// oneOf is x in [a, b, …].
func (l *celLowering) oneOf(x ast.Expr, elements []ast.Expr) (*snapshot.Expression, error) {
	value, err := l.expr(x)
	if err != nil {
		return nil, err
	}
	all := constant(snapshot.Bool, "false")
	for i, element := range elements {
		y, err := l.expr(element)
		if err != nil {
			return nil, err
		}
		equal, err := l.binary(element, "==", value, y)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			all = equal
		} else {
			all = call("||", snapshot.Bool, all, equal)
		}
	}
	return all, nil
}

// present says whether a map has a key: it yields something else than what stands in for what is missing.
func present(m, key *snapshot.Expression) *snapshot.Expression {
	const nothing = "\x00"
	return call("!=", snapshot.Bool, call("|", snapshot.String, call("[]", snapshot.String, m, key), constant(snapshot.String, nothing)), constant(snapshot.String, nothing))
}

func call(function string, t snapshot.ValueType, args ...*snapshot.Expression) *snapshot.Expression {
	e := &snapshot.Expression{Type: t, Function: function}
	for _, a := range args {
		e.Arguments = append(e.Arguments, *a)
	}
	return e
}

func constant(t snapshot.ValueType, text string) *snapshot.Expression {
	return &snapshot.Expression{Type: t, Constant: &text}
}
