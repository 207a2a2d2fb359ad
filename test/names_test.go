//go:build suites

package test

import (
	"fmt"
	"strings"
	"testing"
)

var namesFiles = map[string]string{
	"docker-compose.yml": `
services:
  client: {image: ` + image + `, command: [sleep, infinity], init: true}
  api: &app
    image: ` + image + `
    command: [sh, -c, "mkdir /tmp/w && cd /tmp/w && echo $$NAME > index.html && exec python3 -m http.server 8000"]
    init: true
    environment: {NAME: api}
  other: {<<: *app, environment: {NAME: other}}
`,
}

// overTCPScript asks Docker's resolver over TCP, and prints the code and the number of answers.
const overTCPScript = `
import socket, struct, sys
q = b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"".join(bytes([len(l)]) + l.encode() for l in sys.argv[1].split(".")) + b"\0\0\1\0\1"
s = socket.create_connection(("127.0.0.11", 53), 5)
s.sendall(struct.pack(">H", len(q)) + q)
f = s.makefile("rb")
m = f.read(struct.unpack(">H", f.read(2))[0])
print(m[3] & 15, struct.unpack(">H", m[6:8])[0])
`

const namesEntries = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one}
spec: {hosts: [one.example.com], resolution: STATIC, endpoints: [{address: %s}], ports: [{number: 8000, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: two}
spec: {hosts: [two.example.com], resolution: STATIC, endpoints: [{address: %s}], ports: [{number: 8000, name: tcp, protocol: TCP}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: three}
spec: {hosts: [three.example.com], resolution: DNS, endpoints: [{address: other}], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]}
`

// TestNames has an application ask for names that Docker knows and for those that only the mesh does, with its proxy and
// without.
func TestNames(t *testing.T) {
	p := newProject(t, namesFiles)
	p.inject()
	p.up()
	curl := func(url string) string {
		r := p.tryExec("client", "curl", "-sS", "-m", "20", url)
		return strings.TrimSpace(r.stdout + r.stderr)
	}
	address := func(name string) string {
		fields := strings.Fields(p.tryExec("client", "getent", "ahostsv4", name).stdout)
		if len(fields) == 0 {
			return ""
		}
		return fields[0]
	}
	resolves := func(name, want string) {
		t.Helper()
		eventually(t, name, func() string {
			if got := address(name); !strings.HasPrefix(got, want) || got == "" {
				return fmt.Sprintf("it is %q, want %s", got, want)
			}
			return ""
		})
	}
	api, other := address("api"), address("other")
	if api == "" || other == "" {
		t.Fatalf("Docker's own names: %q and %q", api, other)
	}
	for _, name := range []string{"api.default", "api.default.svc", "api.default.svc.cluster.local", "api.service.consul", "API.Default"} {
		resolves(name, api)
		if got := curl("http://" + name + ":8000/"); got != "api" {
			t.Errorf("%s answers %q", name, got)
		}
	}
	overTCP := func(name string) string {
		return strings.TrimSpace(p.tryExec("client", "python3", "-c", overTCPScript, name).stdout)
	}
	for _, name := range []string{"api", "api.default"} {
		if got := overTCP(name); got != "0 1" {
			t.Errorf("%s over TCP: code and answers %q", name, got)
		}
	}

	p.write(map[string]string{"entries.yaml": fmt.Sprintf(namesEntries, api, other)})
	p.meshctl("apply", "-f", "entries.yaml")
	for name, want := range map[string]string{"one.example.com": "api", "two.example.com": "other"} {
		resolves(name, "240.240.")
		if got := curl("http://" + name + ":8000/"); got != want {
			t.Errorf("%s answers %q, want %s", name, got, want)
		}
	}

	resolves("three.example.com", "240.240.")
	eventually(t, "three.example.com", func() string { // once the proxy has resolved the name
		if got := curl("http://three.example.com/"); got != "other" {
			return fmt.Sprintf("it answers %q, want other", got)
		}
		return ""
	})

	p.compose("stop", "--timeout", "5", "other", "other-mesh-proxy", "other-mesh-sandbox")
	resolves("other", "240.240.")
	if got := p.tryExec("client", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://other:8000/").stdout; got != "503" {
		t.Errorf("a service without containers answers %s, want 503", got)
	}

	// Without its proxy, and while it comes back.
	p.compose("stop", "--timeout", "5", "client-mesh-proxy")
	if got := address("api"); got != api {
		t.Errorf("without the proxy api is %q, want %s", got, api)
	}
	if got := overTCP("api"); got != "0 1" {
		t.Errorf("without the proxy, over TCP: code and answers %q", got)
	}
	p.compose("start", "client-mesh-proxy")
	resolves("api.default", api)
}
