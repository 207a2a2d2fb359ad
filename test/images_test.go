//go:build suites

package test

import (
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh"
)

// TestImages runs each of the mesh's images by itself.
func TestImages(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": walkCompose})
	users := map[string]string{
		"proxy": "1337:1337", "pilot": "1341:1341", "citadel": "1342:1342", "mixer": "1343:1343",
		"keeper": "", "sandbox": "", // they drop root themselves, and the suites and their own tests look
	}
	for line := range strings.Lines(p.meshctl("images", "list")) {
		ref := strings.TrimSpace(line)
		name, _, _ := strings.Cut(strings.TrimPrefix(ref, "composure/"), ":")
		t.Run(name, func(t *testing.T) {
			info := must(engine.ImageInspect(t.Context(), ref))
			if want, ok := users[name]; !ok || info.Config.User != want {
				t.Errorf("user is %q, want %q", info.Config.User, want)
			}
			if name == "proxy" && info.Size > 20_000_000 {
				t.Errorf("the image has %d bytes, want 20 MB at most", info.Size)
			}
			if len(info.RootFS.Layers) != 1 {
				t.Errorf("%d layers, want one: from scratch", len(info.RootFS.Layers))
			}
			out := p.must(p.run(t.Context(), "docker", "run", "--rm", ref, "--version"), "docker run", []string{ref, "--version"})
			if !strings.HasPrefix(out, name+" ") || len(strings.Fields(out)) != 2 {
				t.Errorf("--version says %q", out)
			}
		})
		if name == "sandbox" {
			t.Run("sandbox rules --dry-run", func(t *testing.T) {
				// Without any privilege: it only prints.
				out := p.must(p.run(t.Context(), "docker", "run", "--rm", "--cap-drop", "ALL", "-e", "COMPOSURE_EXCLUDE_OUTBOUND_PORTS=9999", ref, "rules", "--dry-run"), "sandbox", nil)
				for _, want := range []string{"*nat", "--to-ports 15001", "--to-ports 15006", mesh.SelfTestIP, "--dport 9999 -j RETURN", "::1/128"} {
					if !strings.Contains(out, want) {
						t.Errorf("the rules have no %q:\n%s", want, out)
					}
				}
			})
		}
		delete(users, name)
	}
	if len(users) > 0 {
		t.Errorf("not listed: %v", users)
	}
}

const labelsCompose = `
services:
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    labels:
      composure.exclude-outbound-ports: "8000"
      composure.proxy.memory: 64m
      composure.proxy.log-level: debug
    depends_on: [server, plain]
  server: &server
    image: ` + image + `
    command: [sh, -c, "cd /etc; python3 -m http.server 8000 & python3 -m http.server 8001 & exec python3 -m http.server 8002"]
    init: true
    labels:
      composure.service: api
      composure.version: v7
      composure.service-account: backend
      composure.protocol.8002: tcp
      composure.exclude-inbound-ports: "8001"
    networks: {default: {aliases: [api]}}
  plain:
    <<: *server
    labels: {composure.inject: "false"}
    networks: {}
`

// TestLabels checks what each of the users' labels does to real traffic.
func TestLabels(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": labelsCompose})
	p.inject()
	p.up()
	fetch := func(url string) {
		t.Helper()
		eventually(t, url, func() string {
			if r := p.tryExec("client", "curl", "-sS", "-m", "5", "--fail", "-o", "/dev/null", url); r.code != 0 {
				return r.stderr
			}
			return ""
		})
	}
	fetch("http://api:8000/hostname")   // past the client's sidecar, through the server's
	fetch("http://api:8001/hostname")   // through the client's, past the server's: it can't be mutual TLS
	fetch("http://api:8002/hostname")   // as bytes
	fetch("http://plain:8001/hostname") // not in the mesh

	if out := p.compose("ps", "--all", "--services"); strings.Contains(out, "plain-mesh") {
		t.Errorf("a service with composure.inject=false has companions:\n%s", out)
	}
	eventually(t, "metrics", func() string {
		m := p.meshctl("metrics")
		for _, want := range [][]string{
			{"istio_requests_total", `reporter="destination"`, `destination_workload="server"`, `connection_security_policy="none"`, `destination_version="v7"`, `destination_service_name="api"`},
			{"istio_tcp_connections_opened_total", `reporter="destination"`, `destination_principal="spiffe://cluster.local/ns/default/sa/backend"`, `connection_security_policy="mutual_tls"`},
			{"istio_requests_total", `reporter="source"`, `destination_workload="plain"`},
		} {
			if !hasSeries(m, want[0], want[1:]...) {
				return "no series " + strings.Join(want, " ") + " in:\n" + m
			}
		}
		if hasSeries(m, "istio_requests_total", `reporter="source"`, `destination_workload="server"`, `destination_service_name="api"`, `request_protocol="tcp"`) {
			return "a TCP port was counted as HTTP"
		}
		return ""
	})
	info := must(engine.ContainerInspect(t.Context(), p.container("client-mesh-proxy")))
	if info.HostConfig.Memory != 64<<20 {
		t.Errorf("the proxy's memory limit is %d, want 64 MiB", info.HostConfig.Memory)
	}
	if out := p.meshctl("proxy-config", "log", "client"); !strings.Contains(strings.ToLower(out), "debug") {
		t.Errorf("the proxy's log level is %q, want debug", out)
	}
}
