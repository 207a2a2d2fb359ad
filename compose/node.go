package compose

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// mapping is a YAML mapping of key, value, key, value …, in this order. A nil value leaves its key out.
func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i < len(pairs); i += 2 {
		add(n, pairs[i].(string), pairs[i+1])
	}
	return n
}

// add appends key: v to a mapping, unless v is nil or an empty collection.
func add(n *yaml.Node, key string, v any) {
	child := value(v)
	if child == nil || child.Kind != yaml.ScalarNode && len(child.Content) == 0 {
		return
	}
	n.Content = append(n.Content, keyNode(key), child)
}

// plainKey is a key that no YAML reader takes for anything but a string.
var plainKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]*$`)

func keyNode(key string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}
	switch strings.ToLower(key) {
	case "y", "n", "yes", "no", "on", "off", "true", "false", "null":
		n.Style = yaml.DoubleQuotedStyle
	default:
		if !plainKey.MatchString(key) {
			n.Style = yaml.DoubleQuotedStyle
		}
	}
	return n
}

// value is v as a YAML node: strings are always quoted, maps sorted by key, nil stays nil.
func value(v any) *yaml.Node {
	switch v := v.(type) {
	case nil:
		return nil
	case *yaml.Node:
		return v
	case string:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: v, Style: yaml.DoubleQuotedStyle}
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(v)}
	case []string:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, e := range v {
			n.Content = append(n.Content, value(e))
		}
		return n
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, e := range v {
			n.Content = append(n.Content, orNull(value(e)))
		}
		return n
	case map[string]any:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			n.Content = append(n.Content, keyNode(k), orNull(value(v[k])))
		}
		return n
	case map[string]string:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			n.Content = append(n.Content, keyNode(k), value(v[k]))
		}
		return n
	default: // the numbers of YAML
		return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(v)}
	}
}

func orNull(n *yaml.Node) *yaml.Node {
	if n == nil {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
	}
	return n
}

// flow lists short values on one line.
func flow(values ...string) *yaml.Node {
	n := value(values)
	n.Style = yaml.FlowStyle
	return n
}

// inline writes a mapping on one line.
func inline(pairs ...any) *yaml.Node {
	n := mapping(pairs...)
	n.Style = yaml.FlowStyle
	return n
}

// reset is Compose's way to take a field of an earlier file away; override, to replace it.
func reset() *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!reset", Value: "null"} }

func override(v any) *yaml.Node {
	n := value(v)
	n.Tag = "!override"
	n.Style |= yaml.TaggedStyle
	return n
}

// encode writes a mapping as block YAML, each scalar on one line. It is yaml.v3's own form; that encoder takes longer
// than all the rest of making a big override.
func encode(n *yaml.Node) []byte {
	return appendBlock(nil, n, 0, false)
}

// appendBlock writes the entries of a mapping or sequence, each at an indent; begun says that the first is at it already.
func appendBlock(b []byte, n *yaml.Node, indent int, begun bool) []byte {
	step := 1
	if n.Kind == yaml.MappingNode {
		step = 2
	}
	for i := 0; i < len(n.Content); i += step {
		if i > 0 || !begun {
			b = append(b, strings.Repeat(" ", indent)...)
		}
		v := n.Content[i]
		if n.Kind == yaml.MappingNode {
			b = append(appendScalar(b, v), ':')
			v = n.Content[i+1]
		} else {
			b = append(b, '-')
		}
		if strings.HasPrefix(v.Tag, "!") && !strings.HasPrefix(v.Tag, "!!") {
			b = append(append(b, ' '), v.Tag...)
		}
		switch {
		case v.Kind == yaml.ScalarNode || len(v.Content) == 0 || v.Style&yaml.FlowStyle != 0:
			b = append(appendFlow(append(b, ' '), v), '\n')
		case n.Kind == yaml.SequenceNode && v.Tag != "!override":
			b = appendBlock(append(b, ' '), v, indent+2, true)
		default:
			b = appendBlock(append(b, '\n'), v, indent+2, false)
		}
	}
	return b
}

// appendFlow writes a value on one line.
func appendFlow(b []byte, n *yaml.Node) []byte {
	switch n.Kind {
	case yaml.MappingNode:
		b = append(b, '{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = append(appendScalar(b, n.Content[i]), ": "...)
			b = appendFlow(b, n.Content[i+1])
		}
		return append(b, '}')
	case yaml.SequenceNode:
		b = append(b, '[')
		for i, e := range n.Content {
			if i > 0 {
				b = append(b, ", "...)
			}
			b = appendFlow(b, e)
		}
		return append(b, ']')
	}
	return appendScalar(b, n)
}

// appendScalar writes a scalar, in double quotes where its style says so.
func appendScalar(b []byte, n *yaml.Node) []byte {
	if n.Style&yaml.DoubleQuotedStyle == 0 {
		return append(b, n.Value...)
	}
	b = append(b, '"')
	for _, r := range n.Value {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\t':
			b = append(b, `\t`...)
		case unicode.IsPrint(r):
			b = utf8.AppendRune(b, r)
		case r <= 0xFF:
			b = fmt.Appendf(b, `\x%02X`, r)
		case r <= 0xFFFF:
			b = fmt.Appendf(b, `\u%04X`, r)
		default:
			b = fmt.Appendf(b, `\U%08X`, r)
		}
	}
	return append(b, '"')
}
