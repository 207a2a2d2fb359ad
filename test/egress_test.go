//go:build suites

package test

import (
	"fmt"
	"strings"
	"testing"
)

const egressCompose = `
services:
  client: {image: ` + image + `, command: [sleep, infinity], init: true, networks: [inner]}
  outside:
    image: ` + image + `
    command:
    - sh
    - -c
    - |
      mkdir /tmp/w && cd /tmp/w && echo outside > index.html
      openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out crt -days 1 -subj /CN=ext.example -addext subjectAltName=DNS:ext.example 2>/dev/null
      python3 -m http.server 80 &
      exec openssl s_server -quiet -accept 443 -key key -cert crt -WWW
    init: true
    networks: [outer]
    labels: {composure.inject: "false"}
networks:
  inner: {internal: true}
  outer: {}
`

// egressRules are those of Istio's task "Egress Gateways", with an address for the server.
const egressRules = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext}
spec:
  hosts: [ext.example]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints: [{address: %s}]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: istio-egressgateway}
spec:
  selector: {istio: egressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: [ext.example]}
  - {port: {number: 443, name: tls, protocol: TLS}, hosts: [ext.example], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: egressgateway-for-ext}
spec: {host: istio-egressgateway.istio-system.svc.cluster.local, subsets: [{name: ext}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ext}
spec:
  hosts: [ext.example]
  gateways: [mesh, istio-egressgateway]
  http:
  - match: [{gateways: [mesh], port: 80}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: ext, port: {number: 80}}}]
  - match: [{gateways: [istio-egressgateway], port: 80}]
    route: [{destination: {host: ext.example, port: {number: 80}}}]
  tls:
  - match: [{gateways: [mesh], port: 443, sniHosts: [ext.example]}]
    route: [{destination: {host: istio-egressgateway.istio-system.svc.cluster.local, subset: ext, port: {number: 443}}}]
  - match: [{gateways: [istio-egressgateway], port: 443, sniHosts: [ext.example]}]
    route: [{destination: {host: ext.example, port: {number: 443}}}]
`

// TestEgress: an application without a way out of its own reaches a server outside by the egress gateway, and only what the
// rules lead there.
func TestEgress(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": egressCompose})
	p.inject("--egress")
	p.up()
	outside := p.container("outside")
	p.must(p.run(t.Context(), "docker", "network", "connect", p.name+"_mesh-egress", outside), "docker network connect", nil)
	address := strings.TrimSpace(p.must(p.run(t.Context(), "docker", "inspect", "-f",
		fmt.Sprintf(`{{(index .NetworkSettings.Networks "%s_mesh-egress").IPAddress}}`, p.name), outside), "docker inspect", nil))

	curl := func(args ...string) result {
		return p.tryExec("client", append([]string{"curl", "-fsS", "-m", "10"}, args...)...)
	}
	if r := curl("http://" + address + "/"); r.code == 0 {
		t.Fatalf("the application reaches the outside by itself: %s", r.stdout)
	}
	p.write(map[string]string{"rules.yaml": fmt.Sprintf(egressRules, address)})
	if r := p.tryMeshctl("apply", "-f", "rules.yaml"); r.code != 0 || strings.Contains(r.stderr, "arning") {
		t.Fatalf("apply: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	for name, args := range map[string][]string{
		"HTTP":             {"http://ext.example/"},
		"its own TLS":      {"--insecure", "https://ext.example/index.html"},
		"TLS, and checked": {"--cacert", "/tmp/crt", "https://ext.example/index.html"},
	} {
		if strings.HasPrefix(name, "TLS") {
			crt := p.exec("outside", "cat", "/tmp/w/crt")
			p.exec("client", "sh", "-c", "cat > /tmp/crt <<'END'\n"+crt+"END\n")
		}
		eventually(t, "an answer by "+name, func() string {
			if r := curl(args...); r.code != 0 || strings.TrimSpace(r.stdout) != "outside" {
				return fmt.Sprintf("exit %d: %s%s", r.code, r.stdout, r.stderr)
			}
			return ""
		})
	}
	eventually(t, "the gateway's log of both", func() string {
		log := p.compose("logs", "--no-log-prefix", "istio-egressgateway")
		for _, want := range []string{`"GET / HTTP/1.1" 200`, "outbound|443||ext.example"} {
			if !strings.Contains(log, want) {
				return fmt.Sprintf("no %q in\n%s", want, log)
			}
		}
		return ""
	})
	if r := curl("http://" + address + "/"); r.code == 0 {
		t.Errorf("what no rule leads to the gateway gets out: %s", r.stdout)
	}
}
