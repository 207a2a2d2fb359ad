//go:build suites

package test

import (
	"strings"
	"testing"
)

const walkCompose = `
services:
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    depends_on: [server]
  server:
    image: ` + image + `
    command: [python3, -c, "import http.server as h; h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=8000)"]
    init: true
    working_dir: /etc
`

// TestWalk is the least that a mesh does: one compose file, injected, up, and one service reaching the other
// through two sidecars, with nothing configured.
func TestWalk(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": walkCompose})
	p.inject()
	p.up()

	body := p.exec("client", "curl", "-sS", "--fail", "http://server:8000/debian_version")
	if !strings.HasPrefix(body, "12") {
		t.Fatalf("server answered %q, want Debian's version", body)
	}
	for _, side := range []string{"client-mesh-proxy", "server-mesh-proxy"} {
		eventually(t, side, func() string {
			log := p.compose("logs", "--no-color", side)
			if !strings.Contains(log, `"GET /debian_version HTTP/1.1" 200`) {
				return "its access log has no line of the request:\n" + log
			}
			return ""
		})
	}
	for _, want := range []string{
		`reporter="source"`, `reporter="destination"`, `connection_security_policy="mutual_tls"`,
		`source_principal="spiffe://cluster.local/ns/default/sa/client"`,
		`destination_principal="spiffe://cluster.local/ns/default/sa/server"`,
	} {
		eventually(t, "metrics", func() string {
			if m := p.meshctl("metrics"); !strings.Contains(m, want) {
				return "no series with " + want + " in:\n" + m
			}
			return ""
		})
	}
}
