package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var canLine = regexp.MustCompile(`^\$ meshctl (authz can .*\S)\s+# (allowed|denied)$`)

// Every recipe of docs/policies.md does what it says: the commands below a block of YAML, with that block.
func TestPolicyRecipes(t *testing.T) {
	raw, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	e := running(t, "shop")
	file := filepath.Join(t.TempDir(), "policy.yaml")
	language, block, ran := "", "", 0
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "```") && language != "":
			if language == "yaml" {
				if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			language = ""
		case strings.HasPrefix(line, "```"):
			language, block = strings.TrimPrefix(line, "```"), ""
		case language == "console":
			m := canLine.FindStringSubmatch(line)
			if m == nil {
				continue // another's
			}
			ran++
			code := map[string]int{"allowed": 0, "denied": 1}[m[2]]
			if got := in(t, e, "/", "", append(strings.Fields(strings.ReplaceAll(m[1], "'", "")), "-f", file)...); got.code != code || !strings.HasPrefix(got.out, m[2]) {
				t.Errorf("%s: exit %d, %s%s", line, got.code, got.out, got.err)
			}
		default:
			block += line + "\n"
		}
	}
	if ran < 25 {
		t.Errorf("%d commands ran, want all of the recipes'", ran)
	}
}
