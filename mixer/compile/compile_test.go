package compile_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mixer/compile"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// decode reads objects, which must be valid.
func decode(t *testing.T, text string) []*api.Object {
	t.Helper()
	docs, err := api.DecodeYAML(api.Config(), "f", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var out []*api.Object
	for _, d := range docs {
		out = append(out, d.Object)
	}
	return out
}

var facts = mesh.Facts{Workloads: []mesh.Workload{
	{Name: "ratings-v1", Namespace: "default", Services: []string{"ratings"}, Labels: map[string]string{"app": "ratings"}},
	{Name: "other", Namespace: "elsewhere"},
}}

// TestGolden compiles each file of testdata for two workloads: what the proxies are told, and what people are.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			objects := decode(t, string(raw))
			x := compile.New(compile.View{
				Intent: slices.Concat(compile.Defaults(), objects), Facts: facts,
				Lists: map[string]compile.List{
					"http://lists/good": {Entries: []string{"b", "A"}},
					"http://lists/gone": {Problem: "GET http://lists/gone: connection refused"},
				},
			})
			var out strings.Builder
			for _, w := range []string{"ratings-v1", "other"} {
				usage, _, err := x.Compile(w)
				if err != nil {
					t.Fatal(err)
				}
				usage.Version = ""
				text, err := json.MarshalIndent(usage, "", " ")
				if err != nil {
					t.Fatal(err)
				}
				out.WriteString("# " + w + "\n" + string(text) + "\n")
			}
			out.WriteString("# problems\n")
			for _, p := range x.CheckAll() {
				out.WriteString(string(p.Code) + " " + p.Resource + " " + p.String() + "\n")
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *rewrite {
				if err := os.WriteFile(golden, []byte(out.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// The default rules are the six that Istio 1.0's notes list, and nothing about them is questionable.
func TestDefaults(t *testing.T) {
	var rules []string
	for _, o := range compile.Defaults() {
		if o.Kind.Kind == "rule" {
			rules = append(rules, o.Meta.Name)
		}
		if ps := compile.Validate(o); len(ps) > 0 {
			t.Errorf("%s: %v", o, ps)
		}
	}
	slices.Sort(rules)
	if want := []string{"kubeattrgenrulerule", "promhttp", "promtcp", "stdio", "stdiotcp", "tcpkubeattrgenrulerule"}; !slices.Equal(rules, want) {
		t.Errorf("rules %v, want %v", rules, want)
	}
	x := compile.New(compile.View{Intent: compile.Defaults(), Facts: facts})
	for _, p := range x.CheckAll() {
		t.Errorf("%s: %s", p.Resource, p)
	}
	usage, problems, err := x.Compile("ratings-v1")
	if err != nil || len(problems) > 0 || len(usage.Rules) > 0 {
		t.Errorf("%v, %v, %d rules: want none for a proxy to do besides", err, problems, len(usage.Rules))
	}
}

// Expressions that can't be read or have the wrong type are refused, with the path of the field.
func TestValidate(t *testing.T) {
	head := "apiVersion: config.istio.io/v1alpha2\nmetadata: {name: x}\n"
	cases := []struct {
		text string
		want []string
	}{
		{"kind: rule\nspec: {match: request.size, actions: [{handler: a, instances: [b]}]}", []string{"spec.match: want a value of type BOOL, got one of INT64"}},
		{"kind: rule\nspec: {match: sorce.name == \"a\", actions: [{handler: a, instances: [b]}]}", []string{"spec.match: 1:1: unknown attribute sorce.name"}},
		{"kind: rule\nspec: {requestHeaderOperations: [{name: a, values: [request.size, '']}]}", []string{
			"spec.requestHeaderOperations[0].values[0]: want a value of type STRING, got one of INT64",
			`spec.requestHeaderOperations[0].values[1]: want an expression, such as "a" in double quotes`,
		}},
		{"kind: listentry\nspec: {}", []string{"spec.value: want an expression: what is looked for in the list"}},
		{"kind: instance\nspec: {compiledTemplate: listentry, params: {value: request.headers}}", []string{
			"spec.params.value: want a value of type STRING, INT64, DOUBLE, BOOL, TIMESTAMP, IP_ADDRESS, EMAIL_ADDRESS, URI, DNS_NAME, DURATION, got one of STRING_MAP",
		}},
		{"kind: metric\nspec: {value: 'true', dimensions: {a: 'b', c: ''}}", []string{
			"spec.value: want a value of type INT64, DOUBLE, DURATION, STRING, got one of BOOL",
			"spec.dimensions.a: 1:1: unknown attribute b", `spec.dimensions.c: want an expression, such as "a" in double quotes`,
		}},
		{"kind: logentry\nspec: {severity: '1', timestamp: '\"a\"', variables: {a: source.labels}}", []string{
			"spec.severity: want a value of type STRING, got one of INT64", "spec.timestamp: want a value of type TIMESTAMP, got one of STRING",
			"spec.variables.a: want a value of type STRING, INT64, DOUBLE, BOOL, TIMESTAMP, IP_ADDRESS, EMAIL_ADDRESS, URI, DNS_NAME, DURATION, got one of STRING_MAP",
		}},
		{"kind: attributemanifest\nspec: {attributes: {my.own: {valueType: STRING}, request.size: {valueType: STRING}, source.ip: {valueType: IP_ADDRESS}}}", []string{
			"spec.attributes[my.own]: no proxy knows such an attribute: a manifest can't add one",
			"spec.attributes[request.size]: want valueType INT64, which is the attribute's, got STRING",
		}},
	}
	for _, c := range cases {
		var got []string
		for _, p := range compile.Validate(decode(t, head+c.text)[0]) {
			got = append(got, p.Error())
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.text, diff)
		}
	}
}
