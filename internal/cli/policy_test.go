package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/composure-mesh/composure/mesh/snapshot"
	checked "github.com/composure-mesh/composure/mixer/expression"
	"github.com/composure-mesh/composure/proxy/expression"
)

// expressionCase is one row: an expression over attributes, and its value or its error.
type expressionCase struct {
	Expr       string         `json:"expr"`
	Attributes map[string]any `json:"attributes,omitempty"`
	Value      any            `json:"value,omitempty"`
	Type       string         `json:"type,omitempty"`
	// Referenced are the attributes asked for; nil is not looked at.
	Referenced []string `json:"referenced,omitempty"`
	Error      string   `json:"error,omitempty"` // a part of it
}

func TestExpressions(t *testing.T) {
	b, err := os.ReadFile("testdata/expressions.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		Vocabulary map[string]string
		Cases      []expressionCase
	}
	if err := yaml.UnmarshalStrict(b, &table); err != nil {
		t.Fatal(err)
	}
	for _, c := range table.Cases {
		t.Run(c.Expr, func(t *testing.T) { c.run(t, table.Vocabulary) })
	}
}

// The expressions of Mixer's own test table.
func TestMixersExpressions(t *testing.T) {
	b, err := os.ReadFile("../../../shared/corpora/mixer-expressions/cases.json")
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("the corpora are not here: ../shared beside the checkout")
	}
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		Vocabularies map[string]map[string]string
		Cases        []struct {
			Expr, Conf, Type, Err, CompileErr string
			I                                 map[string]any
			R                                 any
			Referenced                        []string
		}
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&table); err != nil {
		t.Fatal(err)
	}
	for _, c := range table.Cases {
		t.Run(c.Expr, func(t *testing.T) {
			row := expressionCase{Expr: c.Expr, Attributes: c.I, Value: c.R, Type: c.Type, Referenced: c.Referenced, Error: c.Err + c.CompileErr}
			switch row.Error {
			case "some":
				row.Error = "TIMESTAMP"
			case "error converting string to uri ':/': 'parse :/: missing protocol scheme'":
				// Go quotes the URL since.
				row.Error = `error converting string to uri ':/': 'parse ":/": missing protocol scheme'`
			case "error converting 'barfoo' to e-mail: 'mail: no angle-addr'":
				// Go says more since.
				row.Error = "error converting 'barfoo' to e-mail: 'mail: missing '@' or angle-addr'"
			}
			row.run(t, table.Vocabularies[c.Conf])
		})
	}
}

func (c *expressionCase) run(t *testing.T, vocabulary map[string]string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	arguments := []string{"policy", "eval", "-o", "json", "--attributes", write("attributes.json", c.Attributes)}
	if vocabulary != nil {
		arguments = append(arguments, "--vocabulary", write("vocabulary.json", vocabulary))
	}
	var out, talk strings.Builder
	env := &Env{Out: &out, Err: &talk, Dir: dir, Getenv: func(string) string { return "" }}
	code := Run(t.Context(), env, append(arguments, "--", c.Expr))
	if c.Error != "" {
		if code != 1 || !strings.Contains(talk.String(), c.Error) {
			t.Fatalf("exit %d, %s%s\nwant 1 and %q", code, out.String(), talk.String(), c.Error)
		}
		return
	}
	if code != 0 {
		t.Fatalf("exit %d: %s", code, talk.String())
	}
	var got struct {
		Value      any
		Type       string
		Attributes []string
	}
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	if want := plainJSON(t, c.Value); !reflect.DeepEqual(got.Value, want) || got.Type != c.Type {
		t.Errorf("%v of type %s, want %v of type %s", got.Value, got.Type, want, c.Type)
	}
	if c.Referenced != nil && !reflect.DeepEqual(got.Attributes, c.Referenced) {
		t.Errorf("asked for %v, want %v", got.Attributes, c.Referenced)
	}
}

// plainJSON is v as it comes back from JSON.
func plainJSON(t *testing.T, v any) any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out any
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func FuzzExpression(f *testing.F) {
	for _, s := range []string{`a == "b" && c["d"] | "e" == "f"`, `ip("1.2.3.4") == source.ip`, `"a".matches(request.path)`, `conditional(true, 1, 2) + 3`, `((((`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		e, err := checked.Check(s, checked.Attributes)
		if err != nil {
			var at *checked.Error
			if !errors.As(err, &at) || at.Line < 1 || at.Column < 1 {
				t.Errorf("%q: %v says no position", s, err)
			}
			return
		}
		// What is checked can be carried in a snapshot, and evaluated.
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var back snapshot.Expression
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*e, back) {
			t.Errorf("%q: %+v comes back as %+v", s, *e, back)
		}
		mustCompile(t, &back)
	})
}

func mustCompile(t *testing.T, e *snapshot.Expression) {
	t.Helper()
	p, err := expression.Compile(e)
	if err != nil {
		t.Fatalf("checked, but: %v", err)
	}
	if v, err := p.Eval(&fileAttributes{asked: map[string]bool{}}); err == nil && v.Type != p.Type {
		t.Errorf("a value of type %s, want %s", v.Type, p.Type)
	}
}

// TestPolicyEvalPosition: an error of evaluation names the part that it comes from, as one of checking does.
func TestPolicyEvalPosition(t *testing.T) {
	for expr, want := range map[string]string{
		`ip("1.2.3")`:                                                                       `error: 1:1: `,
		`source.ip == ip("1.2.3")`:                                                          `error: 1:1: lookup failed: 'source.ip'`,
		`true && ip("1.2.3") == source.ip`:                                                  `error: 1:9: could not convert`,
		`request.path == "x" ||` + "\n" + ` request.host == "y"`:                            `error: 1:1: lookup failed: 'request.path'`,
		`(request.path | "x") == "y" || (request.host | request.path) == "z"`:               `error: 1:48: lookup failed: 'request.path'`,
		`request.path.startsWith("x")`:                                                      `error: 1:1: lookup failed: 'request.path'`,
		`conditional(true, timestamp("now"), timestamp("then")) == timestamp("never")`:      `error: 1:19: could not convert 'now'`,
		`conditional(false, timestamp("now"), timestamp("then")) == timestamp("never")`:     `error: 1:38: could not convert 'then'`,
		`match(request.headers["x"] | "a", "b") || "[".matches("a") || request.path == "x"`: `error: 1:43: `,
	} {
		if got := in(t, &fakeEngine{}, t.TempDir(), "", "policy", "eval", expr); got.code != 1 || !strings.HasPrefix(got.err, want) {
			t.Errorf("%s: exit %d, %s%s\nwant 1 and %q", expr, got.code, got.out, got.err, want)
		}
	}
}
