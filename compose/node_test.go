package compose

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

func TestCountNodes(t *testing.T) {
	if n := countNodes(mapping("a", []string{"x", "y"}, "b", mapping("c", true), "d", "e")); n != 7 {
		t.Errorf("%d nodes, want 7: 3 collections and 4 scalars", n)
	}
}

// TestEncode: whatever is written is read back the same.
func TestEncode(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	texts := []string{"", "a", "a b", "y", "null", "~", "0x1", "1e3", "a: b", "a #b", "- a", "\"q\"", `back\slash`, "line\nline\n", "\ttab", "$$x", "ü", "☃", "👻",
		"\u00a0", "\u2028", "\ufeff", "\x01", "<<", "*a", "&a", "!x", "%", "@", "`", "{", "]", ",", "'", "?", "|", ">", "=", "a:", ":a", "#"}
	var random func(depth int) any
	random = func(depth int) any {
		switch n := r.IntN(9); {
		case n < 2 && depth > 0:
			list := []any{}
			for range r.IntN(4) {
				list = append(list, random(depth-1))
			}
			return list
		case n < 6 && depth > 0:
			m := map[string]any{}
			for range r.IntN(4) {
				m[texts[r.IntN(len(texts))]] = random(depth - 1)
			}
			return m
		case n == 6:
			return []any{true, false, nil, 3, -1, 1.5}[r.IntN(6)]
		default:
			return texts[r.IntN(len(texts))]
		}
	}
	for range 2000 {
		want := map[string]any{"k": random(4), "l": random(3)}
		node, flow := value(want), value(want)
		flow.Style = yaml.FlowStyle
		for _, n := range []*yaml.Node{node, {Kind: yaml.MappingNode, Content: []*yaml.Node{keyNode("flow"), flow}}} {
			text := encode(n)
			var got any
			if err := yaml.Unmarshal(text, &got); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if n != node {
				got = got.(map[string]any)["flow"]
			}
			if diff := cmp.Diff(any(want), got); diff != "" {
				t.Fatalf("(-written +read):\n%s\n%s", diff, text)
			}
		}
	}
}
