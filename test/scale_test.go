//go:build suites

package test

import (
	"strings"
	"testing"
)

const scaleCompose = `
services:
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
  web:
    image: ` + image + `
    command: [python3, -c, "import http.server as h, os; open('name', 'w').write(os.environ['HOSTNAME']); h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=8000)"]
    init: true
    working_dir: /tmp
    ports: ["127.0.0.1:0:8000"]
    deploy: {replicas: 2}
    healthcheck:
      test: [CMD, curl, -fsS, "http://localhost:8000/name"]
      interval: 1s
      retries: 30
`

// TestScale: each replica has a sandbox and a proxy, calls reach all of them, and scaling touches no other container.
func TestScale(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": scaleCompose})
	p.meshctl("compose", "up", "--detach", "--wait", "--wait-timeout", "120")
	answering := func(n int) {
		t.Helper()
		eventually(t, "replicas that answer", func() string {
			names := map[string]bool{}
			for line := range strings.Lines(p.exec("client", "sh", "-c", "for i in $(seq 30); do curl -sS -m 5 http://web:8000/name; echo; done")) {
				names[strings.TrimSpace(line)] = true
			}
			if len(names) != n {
				return strings.Join(keys(names), " ")
			}
			return ""
		})
	}
	answering(2)
	before := p.running()
	p.meshctl("compose", "scale", "web=4")
	answering(4)
	after := p.running()
	for service, id := range before {
		if after[service] != id {
			t.Errorf("scaling up touched %s", service)
		}
	}
	if len(after) != len(before)+6 {
		t.Errorf("two new replicas are %d containers, want 6", len(after)-len(before))
	}
	p.meshctl("compose", "scale", "web=1")
	answering(1)
	for service, id := range p.running() {
		if before[service] != id {
			t.Errorf("scaling down touched %s", service)
		}
	}
	if out := p.meshctl("compose", "ps"); !strings.Contains(out, "web ") || strings.Contains(out, "mesh-sandbox") || !strings.Contains(out, "->8000/tcp") {
		t.Errorf("ps:\n%s", out)
	}
	if out := p.meshctl("compose", "port", "web", "8000"); !strings.HasPrefix(out, "127.0.0.1:") {
		t.Errorf("port says %q", out)
	}
	p.write(map[string]string{"docker-compose.yml": strings.Replace(scaleCompose, "replicas: 2", "replicas: 3", 1)})
	if r := p.tryMeshctl("compose", "ps"); !strings.Contains(r.stderr, "docker-compose.yml has changed") {
		t.Errorf("a stale override is not named: %s", r.stderr)
	}
	if r := p.tryMeshctl("compose", "up", "--no-such-flag"); r.code == 0 {
		t.Error("docker compose's exit code is lost")
	}
	p.meshctl("compose", "down", "--timeout", "5")
	if left := p.running(); len(left) != 0 {
		t.Errorf("left after down: %v", left)
	}
}

func keys(set map[string]bool) []string {
	var list []string
	for k := range set {
		list = append(list, k)
	}
	return list
}

// running are the container ids of the project's services.
func (p *project) running() map[string]string {
	p.t.Helper()
	ids := map[string]string{}
	for line := range strings.Lines(p.compose("ps", "--format", "{{.Service}} {{.ID}}")) {
		service, id, _ := strings.Cut(strings.TrimSpace(line), " ")
		ids[service] = id
	}
	return ids
}
