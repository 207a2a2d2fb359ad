package compose

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

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

func encode(n *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
