package cli

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAuthz(t *testing.T) {
	file := filepath.Join(t.TempDir(), "policies.yaml")
	if err := os.WriteFile(file, []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: web-only}
spec:
  rules:
  - from: [{source: {serviceAccounts: [web]}}]
  - from: [{source: {requestPrincipals: ["*"]}}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	e := running(t, "shop")
	for _, c := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"can", "-f", file, "web", "GET", "http://api/a"}, 0, "allowed: GET http://api/a from cluster.local/ns/default/sa/web", ""},
		{[]string{"can", "-f", file, "other", "GET", "http://api/a"}, 1, "denied", "none of them matches"},
		{[]string{"can", "-f", file, "none", "GET", "http://api/a"}, 1, "from a client without a certificate", ""},
		{[]string{"can", "-f", file, "none", "GET", "http://api/a", "--claims", `{"iss":"a","sub":"b"}`, "-o", "json"}, 0, `"rule": "spec.rules[1]"`, ""},
		{[]string{"can", "-f", file, "none", "GET", "http://api/a", "--claims", "b"}, 2, "", "want a JSON object"},
		{[]string{"can", "-f", file, "web", "GET"}, 2, "", "accepts 3 arg(s)"},
		{[]string{"can", "-f", file, "web", "GET", "api"}, 1, "", "is no URL of a request"},
		{[]string{"check", "-f", file, "api"}, 0, "default/web-only", ""},
		{[]string{"check", "-f", file, "api", "-o", "json"}, 0, `"default/web"`, ""},
	} {
		check(t, in(t, e, "/", "", append([]string{"authz"}, c.args...)...), c.code, c.out, c.err)
	}
}
