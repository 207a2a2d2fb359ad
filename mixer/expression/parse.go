package expression

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"strconv"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Error says where in an expression something is wrong. Line and Column count from 1, in bytes.
type Error struct {
	Line, Column int
	Message      string
}

func (e *Error) Error() string { return fmt.Sprintf("%d:%d: %s", e.Line, e.Column, e.Message) }

// maxLength bounds an expression, and so how deep the parser can be led.
const maxLength = 16 << 10

// node is a parsed expression: a constant, an attribute, or a call.
type node struct {
	at       token.Position
	attr     string
	function string // Mixer's name, as EQ
	target   *node
	args     []*node
	constant *string
	literal  string // the constant as it was written
	typ      snapshot.ValueType
}

// String writes a node as Mixer's type errors do: EQ($a, 2).
func (n *node) String() string {
	switch {
	case n.constant != nil:
		return n.literal
	case n.attr != "":
		return "$" + n.attr
	}
	var b strings.Builder
	if n.target != nil {
		b.WriteString(n.target.String() + ":")
	}
	b.WriteString(n.function + "(")
	for i, a := range n.args {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(a.String())
	}
	return b.String() + ")"
}

// operators are those that the language has, and those that Go's syntax has besides, by the names in Mixer's errors.
var operators = map[token.Token]string{
	token.EQL: "EQ", token.NEQ: "NEQ", token.LSS: "LT", token.LEQ: "LEQ", token.GTR: "GT", token.GEQ: "GEQ",
	token.LAND: "LAND", token.LOR: "LOR", token.OR: "OR", token.ADD: "ADD",
	token.SUB: "SUB", token.MUL: "MUL", token.QUO: "QUO", token.REM: "REM", token.AND: "AND", token.XOR: "XOR", token.NOT: "NOT",
	token.SHL: "SHL", token.SHR: "SHR", token.AND_NOT: "AND_NOT",
}

func parse(source string) (*node, error) {
	if len(source) > maxLength {
		return nil, &Error{1, maxLength + 1, fmt.Sprintf("the expression has %d bytes, at most %d are read", len(source), maxLength)}
	}
	files := token.NewFileSet()
	tree, err := parser.ParseExprFrom(files, "", source, parser.SkipObjectResolution)
	if err != nil {
		var list scanner.ErrorList
		e := &Error{1, 1, err.Error()}
		if errors.As(err, &list) && len(list) > 0 {
			e.Line, e.Column, e.Message = list[0].Pos.Line, list[0].Pos.Column, list[0].Msg
		}
		// Mixer's message has the position itself, after the expression.
		e.Message = fmt.Sprintf("unable to parse expression '%s': %d:%d: %s", source, e.Line, e.Column, e.Message)
		return nil, e
	}
	p := converter{files}
	return p.node(tree)
}

type converter struct{ files *token.FileSet }

func (p converter) fail(at ast.Node, format string, args ...any) error {
	return errorAt(p.files.Position(at.Pos()), format, args...)
}

func errorAt(at token.Position, format string, args ...any) error {
	return &Error{at.Line, at.Column, fmt.Sprintf(format, args...)}
}

func (p converter) node(e ast.Expr) (*node, error) {
	at := p.files.Position(e.Pos())
	switch e := e.(type) {
	case *ast.ParenExpr:
		return p.node(e.X)
	case *ast.BasicLit:
		return p.literal(e)
	case *ast.Ident:
		if lower := strings.ToLower(e.Name); lower == "true" || lower == "false" {
			return &node{at: at, constant: &lower, literal: lower, typ: snapshot.Bool}, nil
		}
		return &node{at: at, attr: e.Name}, nil
	case *ast.SelectorExpr:
		if name := dotted(e); name != "" {
			return &node{at: at, attr: name}, nil
		}
		return nil, p.fail(e.Sel, "unexpected expression: %q follows a value, which has no attributes: want a method, as .startsWith(\"a\")", "."+e.Sel.Name)
	case *ast.UnaryExpr:
		return p.call(e, operators[e.Op], nil, e.X)
	case *ast.BinaryExpr:
		n, err := p.call(e, operators[e.Op], nil, e.X, e.Y)
		return n, err
	case *ast.IndexExpr:
		return p.call(e, "INDEX", nil, e.X, e.Index)
	case *ast.CallExpr:
		switch f := e.Fun.(type) {
		case *ast.Ident:
			return p.call(e, f.Name, nil, e.Args...)
		case *ast.SelectorExpr:
			return p.call(e, f.Sel.Name, f.X, e.Args...)
		}
	}
	return nil, p.fail(e, "unexpected expression: want attributes, constants, operators and calls of functions")
}

func (p converter) call(e ast.Expr, function string, target ast.Expr, args ...ast.Expr) (*node, error) {
	n := &node{at: p.files.Position(e.Pos()), function: function}
	if b, ok := e.(*ast.BinaryExpr); ok {
		n.at = p.files.Position(b.OpPos)
	}
	var err error
	if target != nil {
		if n.target, err = p.node(target); err != nil {
			return nil, err
		}
	}
	for _, a := range args {
		arg, err := p.node(a)
		if err != nil {
			return nil, err
		}
		n.args = append(n.args, arg)
	}
	return n, nil
}

// dotted is the name that a chain of selectors spells, or "" where it begins with something else than a name.
func dotted(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		if left := dotted(e.X); left != "" {
			return left + "." + e.Sel.Name
		}
	}
	return ""
}

func (p converter) literal(l *ast.BasicLit) (*node, error) {
	n := &node{at: p.files.Position(l.Pos()), literal: l.Value}
	text := l.Value
	switch l.Kind {
	case token.INT:
		n.typ = snapshot.Int64
		if _, err := strconv.ParseInt(text, 10, 64); err != nil {
			return nil, p.fail(l, "%s is not a decimal number of 64 bits: %v", text, err)
		}
	case token.FLOAT:
		n.typ = snapshot.Double
		if _, err := strconv.ParseFloat(text, 64); err != nil {
			return nil, p.fail(l, "%s is not a number of 64 bits: %v", text, err)
		}
	case token.STRING, token.CHAR:
		n.typ = snapshot.String
		var err error
		if text, err = strconv.Unquote(text); err != nil {
			return nil, p.fail(l, "%s is not a string: %v", l.Value, err)
		}
		// A string that reads as a duration is one, in Mixer: "10ms".
		if _, err := time.ParseDuration(text); err == nil {
			n.typ = snapshot.DurationType
		}
	default:
		return nil, p.fail(l, "%s: numbers, strings, true and false are the constants", l.Value)
	}
	n.constant = &text
	return n, nil
}
