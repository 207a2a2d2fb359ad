package api_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/api"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// TestInvalid holds that each object of testdata/invalid.txt is refused, with the problems that are listed below it. An
// object is a kind and a spec on one line; problems are indented.
func TestInvalid(t *testing.T) {
	const file = "testdata/invalid.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	objects := 0
	var out strings.Builder
	for i, line := range strings.Split(string(raw), "\n") {
		kind, spec, _ := strings.Cut(line, " ")
		if strings.HasPrefix(line, "  ") {
			continue
		}
		out.WriteString(line + "\n")
		if !strings.HasPrefix(spec, "{") {
			continue
		}
		objects++
		got := problemsOf(t, kinds, "apiVersion: "+apiVersionOf(kind)+"\nkind: "+kind+"\nmetadata: {name: x}\nspec: "+spec)
		if len(got) == 0 {
			t.Errorf("%s:%d: %s is valid", file, i+1, line)
		}
		for _, p := range got {
			out.WriteString("  " + p + "\n")
		}
	}
	if objects < 280 {
		t.Errorf("%d objects, want at least 280", objects)
	}
	text := strings.TrimSuffix(out.String(), "\n")
	if *rewrite {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(raw), text); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// TestValid holds that each object of testdata/valid.txt is taken.
func TestValid(t *testing.T) {
	raw, err := os.ReadFile("testdata/valid.txt")
	if err != nil {
		t.Fatal(err)
	}
	objects := 0
	for line := range strings.Lines(string(raw)) {
		kind, spec, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(spec, "{") {
			continue
		}
		objects++
		for _, p := range problemsOf(t, kinds, "apiVersion: "+apiVersionOf(kind)+"\nkind: "+kind+"\nmetadata: {name: x}\nspec: "+spec) {
			t.Errorf("%s%s", line, p)
		}
	}
	if objects == 0 {
		t.Error("no objects")
	}
}

// apiVersionOf is the preferred one of the kind of this name.
func apiVersionOf(kind string) string {
	for _, k := range kinds {
		if k.Kind == kind {
			return k.APIVersion()
		}
	}
	return api.NetworkingGroup + "/v1"
}
