package proxy

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports keeps the data plane lean: its packages import the standard library and what is listed here. Whatever
// needs an SDK, a plane or the config model belongs elsewhere, and its result into the snapshot.
func TestImports(t *testing.T) {
	const ours = "github.com/composure-mesh/composure/"
	allowed := []string{
		ours + "proxy", ours + "mesh", ours + "internal/identity", ours + "internal/lifecycle", ours + "internal/component",
		ours + "internal/httpx", ours + "internal/atomicfile", // helpers of the standard library alone
		ours + "internal/jwt", // and of go-jose
		ours + "internal/ratelimit",
		"google.golang.org/protobuf/encoding/protowire", // numbers and lengths of a message, without its types
		"golang.org/x/net", "golang.org/x/sys", "github.com/spiffe/go-spiffe/v2/spiffeid",
		"golang.org/x/crypto/x509roots/fallback/bundle", // the public CAs: data, of the standard library alone
		"github.com/go-jose/go-jose/v4",                 // the cryptography of internal/jwt; it imports the standard library alone
	}
	isAllowed := func(path string) bool {
		first, _, _ := strings.Cut(path, "/")
		return !strings.Contains(first, ".") || // the standard library
			slices.ContainsFunc(allowed, func(a string) bool { return path == a || strings.HasPrefix(path, a+"/") })
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "./...", "../cmd/proxy").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) < 10 {
		t.Fatalf("go list names %d packages, want all of the data plane:\n%s", len(lines), out)
	}
	for _, line := range lines {
		fields := strings.Fields(line)
		for _, path := range fields[1:] {
			if !isAllowed(path) {
				t.Errorf("%s imports %s, which the data plane must not: allowed are %v", fields[0], path, allowed)
			}
		}
	}
}
