package explain

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Objects that are refused are looked at for what else is wrong, whatever they lack: those of api's table, beside each
// other.
func TestCheckInvalid(t *testing.T) {
	raw, err := os.ReadFile("../../api/testdata/invalid.txt")
	if err != nil {
		t.Fatal(err)
	}
	f, n := &Files{}, 0
	for line := range strings.Lines(string(raw)) {
		kind, spec, _ := strings.Cut(line, " ")
		if kind == "" || !strings.HasPrefix(spec, "{") {
			continue
		}
		n++
		document := fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: %s\nmetadata: {name: x%d}\nspec: %s", kind, n, spec)
		_ = f.Add("x", strings.NewReader(document)) // that it is refused is the table's own test
	}
	if len(f.invalid) < 100 {
		t.Errorf("%d of %d objects could be read, want 100 at least", len(f.invalid), n)
	}
	if problems, err := f.Check(); err != nil || len(problems) == 0 {
		t.Errorf("found %d problems: %v", len(problems), err)
	}
}
