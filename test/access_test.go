//go:build suites

package test

import (
	"archive/tar"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"
)

const accessCompose = `
x-service: &service
  image: ` + image + `
  command: [python3, -u, /app/app.py]
  init: true
  volumes: ["./app:/app:ro"]
  healthcheck: {test: [CMD, curl, -fsS, "http://localhost:8000/"], interval: 1s, retries: 60}
services:
  api:
    <<: *service
    ports: ["127.0.0.1:0:8000"]
  web: {<<: *service}
  other: {<<: *service}
`

// accessApp takes every spelling of a path for what it could mean, as the most careless server does, and has a secret.
const accessApp = `
import http.server, posixpath, re, socketserver, threading, urllib.parse

class App(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        path = self.path.split("?")[0]
        for _ in range(4):
            path = urllib.parse.unquote(path)
        path = re.sub(";[^/]*", "", path.replace("\\", "/")).lower()
        path = "/" + posixpath.normpath("/" + path).lstrip("/")
        body = b"THE SECRET" if path.startswith("/admin") else b"hello, " + (self.headers.get("X-Forwarded-Client-Cert") or "nobody").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET

class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 ready\n")

mail = socketserver.ThreadingTCPServer(("", 2525), Echo)
threading.Thread(target=mail.serve_forever, daemon=True).start()
http.server.ThreadingHTTPServer(("", 8000), App).serve_forever()
`

const accessPolicies = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web}
spec:
  selector: {matchLabels: {app: api}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  selector: {matchLabels: {app: api}}
  action: DENY
  rules:
  - to: [{operation: {paths: ["/admin", "/admin/*"], ports: ["8000"]}}]
`

// accessSpellings are paths that the application takes for the one that is denied.
var accessSpellings = []string{
	"/admin", "/admin/", "/admin/x", "/admin?a=b", "//admin", "///admin", "/./admin", "/x/../admin", "/x/./../admin", "/%61dmin", "/%41%44min", "/ADMIN", "/Admin",
	"/x/%2e%2e/admin", "/x/%2E%2e%2fadmin", "/%2fadmin", "/%2Fadmin", "/x/..%2fadmin", "/x%2f..%2fadmin", "/x/..%5cadmin", `/\admin`, `/x/..\admin`, "/admin;", "/admin;a=b", "/admin;a/x",
	"/;/admin", "/x/..;/admin", "/x/..%3b/admin", "/admin%3bx", "/%2561dmin", "/%252fadmin", "/x/%252e%252e/admin", "/x/%252e%252e%252fadmin", "/x/..%255cadmin", "/x;a=b/%2e%2e;c//%5c%61dmin",
}

// Who may do what holds against those who mean harm: on real containers, each attack with its refusal.
func TestAccess(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": accessCompose, "app/app.py": accessApp, "policies.yaml": accessPolicies})
	p.inject()
	p.up()
	if out := p.exec("other", "curl", "-sS", "http://api:8000/admin"); out != "THE SECRET" {
		t.Fatalf("without policies, the application answers %q", out)
	}
	p.meshctl("apply", "-f", "policies.yaml")
	eventually(t, "policies in force", func() string {
		for from, path := range map[string]string{"other": "/", "web": "/admin"} {
			if out := p.exec(from, "curl", "-sS", "http://api:8000"+path); out != "RBAC: access denied" {
				return from + " gets " + out
			}
		}
		return ""
	})
	if out := p.exec("web", "curl", "-sS", "http://api:8000/"); !strings.Contains(out, "URI=spiffe://cluster.local/ns/default/sa/web") {
		t.Errorf("who may gets %q", out)
	}

	t.Run("spellings", func(t *testing.T) {
		for _, version := range []string{"--http1.1", "--http2-prior-knowledge"} {
			// One curl for all: a line for each.
			script := "for p in \"$@\"; do curl -sS -m 10 --path-as-is " + version + " -w ' %{http_code}\\n' \"http://api:8000$p\"; done"
			out := p.exec("web", append([]string{"sh", "-c", script, "sh"}, accessSpellings...)...)
			lines := strings.Split(strings.TrimSpace(out), "\n")
			if len(lines) != len(accessSpellings) {
				t.Fatalf("%d answers to %d requests: %s", len(lines), len(accessSpellings), out)
			}
			for i, line := range lines {
				if line != "RBAC: access denied 403" {
					t.Errorf("%s %s is answered %s", version, accessSpellings[i], line)
				}
			}
		}
		if out := p.exec("web", "curl", "-sS", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", "http://api:8000/admin%00.css"); out != "400" {
			t.Errorf("a path that ends in two places is answered %s", out)
		}
		if out := p.exec("web", "curl", "-sS", "-H", "Host: API.:8000", "http://api:8000/x/..;/admin"); out != "RBAC: access denied" {
			t.Errorf("another spelling of the host is answered %s", out)
		}
	})
	t.Run("forged headers", func(t *testing.T) {
		web := "spiffe://cluster.local/ns/default/sa/web"
		forged := []string{
			"curl", "-sS", "-m", "10", "-H", "X-Forwarded-Client-Cert: By=spiffe://cluster.local/ns/default/sa/api;URI=" + web, "-H", "X-Forwarded-For: 127.0.0.1", "-H", "Forwarded: for=127.0.0.1",
			"-H", "X-Envoy-Peer-Metadata-Id: sidecar~10.0.0.1~web.default", "-H", "X-Envoy-Internal: true", "-H", "X-Composure-Peer: " + web, "-H", "Authorization: Bearer " + web, "http://api:8000/",
		}
		if out := p.exec("other", forged...); out != "RBAC: access denied" {
			t.Errorf("another workload that says it is web gets %q", out)
		}
		if out, _ := neighbour(t, p.name+"_default", forged...); strings.TrimSpace(out) != "RBAC: access denied" {
			t.Errorf("a neighbour that says it is web gets %q", out)
		}
		status, body := get(t, "http://"+p.published("api-mesh-sandbox", 8000)+"/", "X-Forwarded-Client-Cert", "URI="+web)
		if status != 403 {
			t.Errorf("the host, which says it is web, gets %d %s", status, body)
		}
	})
	t.Run("certificates", func(t *testing.T) {
		// Made by an attacker for web's identity.
		if out, _ := neighbour(t, p.name+"_default", "python3", "-c", tlsClient, ownCertificate(t, "spiffe://cluster.local/ns/default/sa/web")); strings.Contains(out, "hello") || !strings.Contains(out, "error") {
			t.Errorf("who made a certificate for itself gets %s", out)
		}
		// Stolen from another workload's proxy: it is that workload, and no other.
		state := must(exec.CommandContext(t.Context(), "docker", "cp", p.container("other-mesh-proxy")+":/var/lib/composure/identity.json", "-").Output())
		stolen := stolenPEM(t, state)
		out, _ := neighbour(t, p.name+"_default", "python3", "-c", tlsClient, stolen)
		if !strings.Contains(out, "RBAC: access denied") {
			t.Errorf("who has another workload's certificate gets %s", out)
		}
	})
	t.Run("ports of the sandbox", func(t *testing.T) {
		for _, port := range []int{15000, 15001, 15006, 15053} {
			out, _ := neighbour(t, p.name+"_default", "sh", "-c", fmt.Sprintf("curl -sS -m 5 -H 'Host: api:8000' http://api:%d/ ; curl -sS -m 5 http://api:%d/config_dump", port, port))
			if strings.Contains(out, "hello") || strings.Contains(out, "SECRET") || strings.Contains(out, "workloads") {
				t.Errorf("port %d answers a neighbour: %s", port, out)
			}
		}
	})
	t.Run("bytes", func(t *testing.T) {
		read := "import socket; s=socket.create_connection(('api',2525),10); s.settimeout(10); print(s.recv(99))"
		if out := p.exec("web", "python3", "-c", read); !strings.Contains(out, "220 ready") {
			t.Errorf("who may gets %s", out)
		}
		if r := p.tryExec("other", "python3", "-c", read); strings.Contains(r.stdout, "220") || !strings.Contains(r.stderr, "reset") {
			t.Errorf("another workload gets %s%s, want a reset", r.stdout, r.stderr)
		}
		if out, _ := neighbour(t, p.name+"_default", "python3", "-c", read); strings.Contains(out, "220") {
			t.Errorf("a neighbour gets %s", out)
		}
	})
	t.Run("meshctl", func(t *testing.T) {
		if out := p.meshctl("authz", "can", "web", "GET", "http://api:8000/"); !strings.HasPrefix(out, "allowed") {
			t.Error(out)
		}
		if r := p.tryMeshctl("authz", "can", "other", "GET", "http://api:8000/"); r.code != 1 || !strings.HasPrefix(r.stdout, "denied") {
			t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		if out := p.meshctl("authz", "check", "api"); !strings.Contains(out, "default/no-admin") || !strings.Contains(out, "default/only-web") {
			t.Error(out)
		}
		if out := p.meshctl("explain", "--from", "web", "--to", "http://api:8000/x/..%2fadmin", "-o", "json"); !strings.Contains(out, "authorizationpolicy/default/no-admin spec.rules[0]") {
			t.Error(out)
		}
		logs := p.compose("logs", "--no-log-prefix", "api-mesh-proxy")
		for _, want := range []string{"rbac_access_denied_matched_policy[none]", "rbac_access_denied_matched_policy[ns[default]-policy[no-admin]-rule[0]]"} {
			if !strings.Contains(logs, want) {
				t.Errorf("the access log has no %s", want)
			}
		}
	})
}

// tlsClient asks api as the certificate and key in its argument say, with the mesh's own protocol inside TLS.
const tlsClient = `
import socket, ssl, sys
open("/tmp/pem", "w").write(sys.argv[1])
c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
c.check_hostname, c.verify_mode = False, ssl.CERT_NONE
c.load_cert_chain("/tmp/pem")
c.set_alpn_protocols(["composure-http/1.1"])
try:
    s = c.wrap_socket(socket.create_connection(("api", 8000), 10))
    s.sendall(b"GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
    print(s.recv(9999))
    print(s.recv(9999))
except Exception as e:
    print("error", e)
`

// ownCertificate is a self-signed certificate for an identity, and its key.
func ownCertificate(t *testing.T, id string) string {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{must(url.Parse(id))}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	cert := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})) +
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))}))
}

// stolenPEM is the chain and key in a tar of a proxy's identity.json.
func stolenPEM(t *testing.T, archive []byte) string {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	var state struct{ Chain, Key string }
	if err := json.NewDecoder(r).Decode(&state); err != nil || state.Key == "" {
		t.Fatalf("no key was stolen: %v", err)
	}
	return state.Chain + state.Key
}
