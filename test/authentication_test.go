//go:build suites

package test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authenticationCompose is an application with a published port and one without, a client, and the server of an issuer's
// keys, which is no part of the mesh.
const authenticationCompose = `
x-service: &service
  image: ` + image + `
  init: true
  healthcheck: {test: [CMD, curl, -fsS, "http://localhost:8000/"], interval: 1s, retries: 60}
  volumes: ["./app:/app:ro"]
services:
  web:
    <<: *service
    command: [sh, -c, "python3 -u /app/app.py 8001 & exec python3 -u /app/app.py 8000"]
    ports: ["127.0.0.1::8000"]
    expose: ["8001"]
  client:
    <<: *service
    command: [python3, -u, /app/app.py, "8000"]
  issuer:
    <<: *service
    command: [python3, -u, -m, http.server, "8000", --directory, /app/keys]
    labels: {composure.inject: "false"}
`

const authenticationApp = `
import http.server, sys

class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self):
        h = self.headers
        body = f"user={h.get('X-User')} token={'Authorization' in h} peer={h.get('X-Forwarded-Client-Cert', 'none').split('/sa/')[-1]}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("", int(sys.argv[1])), App).serve_forever()
`

// recipe is the YAML of a section of docs/policies.md.
func recipe(t *testing.T, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(string(must(os.ReadFile(filepath.Join(root, "docs", "policies.md")))), "\n### "+heading+"\n")
	_, text, yaml := strings.Cut(text, "```yaml\n")
	if text, _, _ = strings.Cut(text, "```"); !found || !yaml {
		t.Fatalf("docs/policies.md has no recipe %q", heading)
	}
	return text
}

// issuerKey is a key of the issuer's.
type issuerKey struct {
	kid     string
	private ed25519.PrivateKey
}

func newIssuerKey(kid string) issuerKey {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return issuerKey{kid, must(private, err)}
}

func (k issuerKey) set() string {
	x := base64.RawURLEncoding.EncodeToString(k.private.Public().(ed25519.PublicKey))
	return fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}]}`, k.kid, x)
}

// token is a token of the issuer; header is its header but for kid.
func (k issuerKey) token(header string, exp time.Time) string {
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64(fmt.Appendf(nil, `{%s,"kid":%q}`, header, k.kid)) + "." + b64(fmt.Appendf(nil, `{"iss":"http://issuer:8000","sub":"alice","exp":%d}`, exp.Unix()))
	return signed + "." + b64(ed25519.Sign(k.private, []byte(signed)))
}

// TestAuthentication: who may send plain text under STRICT, and tokens from an issuer whose keys change and whose server goes
// away.
func TestAuthentication(t *testing.T) {
	first, second := newIssuerKey("first"), newIssuerKey("second")
	p := newProject(t, map[string]string{
		"compose.yaml": authenticationCompose, "app/app.py": authenticationApp,
		"app/keys/jwks.json": first.set(), "app/keys/.well-known/openid-configuration": `{"issuer":"http://issuer:8000","jwks_uri":"http://issuer:8000/jwks.json"}`,
		"strict.yaml": recipe(t, "No neighbour in plain text"), "tokens.yaml": recipe(t, "Login by token"),
	})
	p.inject("--join", "citadel=default")
	p.up()
	fromHost := func(path string, header ...string) (int, string) {
		return get(t, "http://"+p.published("web-mesh-sandbox", 8000)+path, header...)
	}
	fromClient := func(header string) string {
		return p.tryExec("client", "curl", "-sS", "-m", "10", "-w", " %{http_code}", "-H", header, "http://web:8000/").stdout
	}
	neighbours := func(port string) (string, int) {
		return neighbour(t, p.name+"_default", "curl", "-sS", "-m", "10", "http://web:"+port+"/")
	}

	if out, code := neighbours("8000"); code != 0 {
		t.Fatalf("a neighbour can't reach web before there is a rule: %d\n%s", code, out)
	}
	p.meshctl("apply", "-f", "strict.yaml")
	eventually(t, "a neighbour is refused", func() string {
		if out, code := neighbours("8000"); code != 56 { // curl: connection reset
			return fmt.Sprintf("curl exits with %d: %s", code, out)
		}
		return ""
	})
	if out, code := neighbours("8001"); code != 56 {
		t.Errorf("a neighbour at the other port: curl exits with %d\n%s", code, out)
	}
	if status, body := fromHost("/"); status != 200 || !strings.Contains(body, "peer=none") {
		t.Errorf("the published port answers the host %d %s", status, body)
	}
	if out := fromClient("A: b"); !strings.HasSuffix(out, " 200") || !strings.Contains(out, "peer=client") {
		t.Errorf("a peer gets %s", out)
	}
	out := p.meshctl("authn", "tls-check", "client", "web")
	if !strings.Contains(out, "peerauthentication/default/web") || strings.Contains(out, "CONFLICT") {
		t.Errorf("tls-check says\n%s", out)
	}

	p.meshctl("apply", "-f", "tokens.yaml")
	soon := time.Now().Add(time.Hour)
	good := first.token(`"alg":"EdDSA"`, soon)
	bearer := func(token string) string { return "Authorization: Bearer " + token }
	eventually(t, "a token is verified", func() string {
		if out := fromClient(bearer(good)); !strings.HasPrefix(out, "user=alice token=False peer=client") {
			return out
		}
		return ""
	})
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	for token, want := range map[string]string{
		none:                               "Jwt header [alg] is not supported",
		first.token(`"alg":"HS256"`, soon): "Jwt header [alg] is not supported",
		first.token(`"alg":"ES256"`, soon): "Jwks doesn't have key to match kid or alg from Jwt",
		first.token(`"alg":"EdDSA"`, time.Now().Add(-time.Hour)):            "Jwt is expired",
		issuerKey{"first", second.private}.token(`"alg":"EdDSA"`, soon):     "Jwt verification fails",
		first.token(`"alg":"EdDSA","jku":"http://issuer:8000/x"`, soon)[1:]: "Jwt header is an invalid",
	} {
		if out := fromClient(bearer(token)); !strings.Contains(out, want) || !strings.HasSuffix(out, " 401") {
			t.Errorf("%s… is answered %s, want %s", token[:30], out, want)
		}
	}
	if status, body := fromHost("/healthz", "X-User", "root"); status != 200 || !strings.Contains(body, "user=None") {
		t.Errorf("without a token, and with a forged claim, the host gets %d %s", status, body)
	}
	if status, body := fromHost("/", "X-User", "root"); status != 403 || !strings.Contains(body, "RBAC: access denied") {
		t.Errorf("without a token, the host gets %d %s", status, body)
	}

	// The issuer changes its key. A token with the new one is refused at most until citadel has looked again.
	p.write(map[string]string{"app/keys/jwks.json": second.set()})
	rotated := second.token(`"alg":"EdDSA"`, soon)
	eventually(t, "the new key is found", func() string {
		if out := fromClient(bearer(rotated)); !strings.HasSuffix(out, " 200") {
			return out
		}
		return ""
	})
	if out := fromClient(bearer(good)); !strings.HasSuffix(out, " 401") {
		t.Errorf("a token of the old key is answered %s", out)
	}

	// The issuer goes away, and citadel starts anew: what was fetched stays in force.
	p.compose("stop", "--timeout", "2", "issuer")
	p.compose("restart", "--timeout", "5", "composure-citadel")
	eventually(t, "citadel tells that the keys can't be fetched", func() string {
		if out := p.tryMeshctl("authn", "jwks"); !strings.Contains(out.stdout, "http://issuer:8000/.well-known/openid-configuration") || !strings.Contains(out.stdout, "dial") && !strings.Contains(out.stdout, "lookup") {
			return out.stdout + out.stderr
		}
		return ""
	})
	p.compose("restart", "--timeout", "5", "web-mesh-proxy")
	eventually(t, "tokens are verified without the issuer", func() string {
		if out := fromClient(bearer(rotated)); !strings.HasSuffix(out, " 200") {
			return out
		}
		return ""
	})
}
