//go:build suites

package test

import (
	"fmt"
	"hash/fnv"
	"os/exec"
	"strings"
	"testing"
)

// networksCompose has networks of every kind: an internal one, one with IPv6, one that is somebody else's, and one that
// stands apart. Each service answers with its name and its caller's identity.
const networksCompose = `
x-service: &service
  image: ` + image + `
  command: [python3, -u, /app/app.py]
  init: true
  volumes: ["./app:/app:ro"]
  healthcheck: {test: [CMD, curl, -fsS, "http://localhost:8000/"], interval: 1s, retries: 60}
services:
  front:
    <<: *service
    environment: {NAME: front}
    networks:
      public: {aliases: [www]}
      inner: {}
      shared: {aliases: [for-neighbours]}
  back:
    <<: *service
    environment: {NAME: back}
    networks:
      inner: {aliases: [store], ipv4_address: 10.%[1]d.%[2]d.10}
  six:
    <<: *service
    environment: {NAME: six}
    networks:
      public: {ipv6_address: "fd00:c1:%[1]x:%[2]x::10"}
  far:
    <<: *service
    environment: {NAME: far}
    networks: [apart]
networks:
  public:
    enable_ipv6: true
    ipam: {config: [{subnet: "fd00:c1:%[1]x:%[2]x::/64"}]}
  inner:
    internal: true
    ipam: {config: [{subnet: 10.%[1]d.%[2]d.0/24}]}
  shared: {external: true, name: %[3]s}
  apart: {}
`

const networksApp = `
import http.server, os, socket

class App(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        caller = self.headers.get("X-Forwarded-Client-Cert", "a stranger").split("/sa/")[-1]
        self.wfile.write(f"{os.environ['NAME']}, called by {caller}\n".encode())

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

Server(("::", 8000), App).serve_forever()
`

// TestNetworks: names, addresses and reach on networks of every kind are what they were, and the mesh adds no path between
// workloads that share none.
func TestNetworks(t *testing.T) {
	var shared string
	t.Cleanup(func() { // after the project, which is on it
		if out, err := exec.Command("docker", "network", "rm", shared).CombinedOutput(); err != nil {
			t.Errorf("remove the external network: %v\n%s", err, out)
		}
	})
	p := newProject(t, map[string]string{"app/app.py": networksApp})
	// Subnets of this run's own: the engine refuses two networks with one.
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.name))
	a, b := h.Sum32()%100+100, h.Sum32()/100%250+1
	shared = p.name + "-shared"
	if out, err := exec.Command("docker", "network", "create", shared).CombinedOutput(); err != nil {
		t.Fatalf("make the external network: %v\n%s", err, out)
	}
	p.write(map[string]string{"compose.yaml": fmt.Sprintf(networksCompose, a, b, shared)})
	p.inject()
	p.up()
	backIP, sixIP := fmt.Sprintf("10.%d.%d.10", a, b), fmt.Sprintf("fd00:c1:%x:%x::10", a, b)
	farIP := strings.Fields(p.exec("far", "hostname", "-I"))[0]

	for _, tc := range []struct {
		name, from, script, want string
	}{
		{"a name on an internal network", "front", "curl -sS http://back:8000/", "back, called by front"},
		{"an alias on it", "front", "curl -sS http://store:8000/", "back, called by front"},
		{"a static address on it", "front", "curl -sS http://" + backIP + ":8000/", "back, called by front"},
		{"the other way", "back", "curl -sS http://front:8000/", "front, called by back"},
		{"a name on a network with IPv6", "front", "curl -sS -6 http://six:8000/", "six, called by front"},
		{"over IPv4", "front", "curl -sS -4 http://six:8000/", "six, called by front"},
		{"a static address of IPv6", "front", "curl -sS 'http://[" + sixIP + "]:8000/'", "six, called by front"},
		{"the other way over IPv6", "six", "curl -sS -6 http://www:8000/", "front, called by six"},
		{"DNS of two networks", "front", "getent hosts back && getent hosts store && getent ahosts six", backIP},
		{"DNS over TCP", "front", "python3 -c \"import socket, struct; s = socket.create_connection(('127.0.0.11', 53), 5); f = s.makefile('rb');" +
			" q = b'\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\4back\\0\\0\\1\\0\\1'; s.sendall(struct.pack('>H', len(q)) + q);" +
			" print(socket.inet_ntoa(f.read(*struct.unpack('>H', f.read(2)))[-4:]))\"", backIP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if r := p.tryExec(tc.from, "timeout", "20", "sh", "-c", tc.script); !strings.Contains(r.stdout, tc.want) {
				t.Errorf("%s: %s\nexit %d, says %q %s, want %q", tc.from, tc.script, r.code, r.stdout, r.stderr, tc.want)
			}
		})
	}
	for _, tc := range []struct{ name, from, script string }{
		{"an alias is on its own network alone", "back", "RES_OPTIONS='timeout:1 attempts:1' getent hosts www"},
		{"a name where no network is shared", "back", "RES_OPTIONS='timeout:1 attempts:1' getent hosts far"},
		{"an address where none is", "back", "curl -sS -m 3 --fail http://" + farIP + ":8000/"},
		{"another's name as Host, to one that is reached", "back", "curl -sS -m 3 http://front:8000/ -H 'Host: far:8000' | grep far"},
		{"another's name as Host, to an address that is not", "back", "curl -sS -m 3 --fail http://" + farIP + ":8000/ -H 'Host: front:8000' | grep far"},
		{"out of an internal network", "back", "curl -sS -m 3 --fail http://192.0.2.1:8000/"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if r := p.tryExec(tc.from, "timeout", "20", "sh", "-c", tc.script); r.code == 0 {
				t.Errorf("%s: %s\nsays %q, want a failure", tc.from, tc.script, r.stdout)
			}
		})
	}
	t.Run("a neighbour on an external network", func(t *testing.T) {
		out, code := neighbour(t, shared, "curl", "-sS", "-m", "10", "http://for-neighbours:8000/")
		if code != 0 || !strings.Contains(out, "front, called by a stranger") {
			t.Errorf("exit %d: %s", code, out)
		}
	})
}
