//go:build suites

package test

import (
	"fmt"
	"strings"
	"testing"
)

// protocolsCompose is a server with many faces, on a dual-stack network.
const protocolsCompose = `
services:
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    depends_on: {server: {condition: service_healthy}}
    volumes: [./app:/app:ro]
  server:
    image: ` + image + `
    command: [python3, /app/server.py]
    init: true
    volumes: [./app:/app:ro]
    healthcheck: {test: [CMD, test, -e, /tmp/ready], interval: 1s, retries: 60}
networks:
  default:
    enable_ipv6: true
    ipam:
      config: [{subnet: "fd00:c0:%x::/64"}]
`

// server.py: HTTP on 8000, WebSocket on 8001, TLS of its own on 8002, a server that speaks first on 8003, an echo
// that half-closes on 8004, HTTP on loopback alone on 8005, and a server-first service on PostgreSQL's port.
const protocolsServer = `
import asyncio, http.server, os, socket, socketserver, ssl, subprocess, threading, websockets, urllib.request

class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def reply(self, body, **headers):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    def do_GET(self):
        if self.path == "/self":
            self.reply(urllib.request.urlopen("http://server:8000/hello").read())
        elif self.path == "/big":
            self.reply(b"x" * 20_000_000)
        elif self.path == "/headers":
            self.reply(str(self.headers).encode())
        elif self.path == "/stream":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for i in range(3):
                self.wfile.write(b"6\r\nchunk\n\r\n")
                self.wfile.flush()
                if i == 0:
                    first.wait(20)
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/go-on":
            first.set()
            self.reply(b"ok")
        else:
            self.reply(b"hello from %s\n" % self.client_address[0].encode())
    do_HEAD = do_GET
    def do_POST(self):
        left = int(self.headers["Content-Length"])
        total = 0
        while left > 0:
            got = len(self.rfile.read(min(left, 65536)))
            left -= got
            total += got
        self.reply(b"%d bytes\n" % total)

first = threading.Event()

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

class First(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"220 speaking first\r\n")
        self.request.sendall(b"you said " + self.request.recv(100))

class Half(socketserver.BaseRequestHandler):
    def handle(self):
        total = 0
        while (b := self.request.recv(65536)):
            total += len(b)
        self.request.sendall(b"%d bytes before the end\n" % total)

class TCP(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

def run(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()

subprocess.run("openssl req -x509 -newkey rsa:2048 -nodes -keyout /tmp/k -out /tmp/c -days 1 -subj /CN=server 2>/dev/null", shell=True, check=True)
tls = Server(("::", 8002), App)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/c", "/tmp/k")
tls.socket = context.wrap_socket(tls.socket, server_side=True)
run(Server(("::", 8000), App))
run(tls)
run(TCP(("", 8003), First))
run(TCP(("", 8004), Half))
run(http.server.ThreadingHTTPServer(("127.0.0.1", 8005), App))
run(TCP(("", 5432), First))

async def echo(ws):
    async for message in ws:
        await ws.send("echo " + message)

async def main():
    async with websockets.serve(echo, "", 8001):
        open("/tmp/ready", "w").close()
        await asyncio.Future()

asyncio.run(main())
`

// TestProtocols passes what real clients send, through two sidecars.
func TestProtocols(t *testing.T) {
	p := newProject(t, map[string]string{"app/server.py": protocolsServer})
	// An IPv6 subnet of this run's own: the engine refuses two networks with one subnet.
	var subnet uint16
	for _, b := range []byte(p.name) {
		subnet = subnet*31 + uint16(b)
	}
	p.write(map[string]string{"docker-compose.yml": fmt.Sprintf(protocolsCompose, subnet)})
	p.inject()
	p.up()

	for _, c := range []struct {
		name, script, want string
	}{
		{"HTTP", "curl -sS http://server:8000/hello", "hello from"},
		{"the application sees an address of its own", "curl -sS http://server:8000/hello", "hello from ::ffff:"},
		{"HTTP over IPv6", "curl -sS -6 http://server:8000/hello", "hello from"},
		{"HTTP/1.0", "curl -sS -0 http://server:8000/hello", "hello from"},
		{"HEAD", "curl -sS -I http://server:8000/big", "20000000"},
		{"20 MB down", "curl -sS http://server:8000/big | wc -c", "20000000"},
		{"20 MB up", "head -c 20000000 /dev/zero | curl -sS --data-binary @- http://server:8000/", "20000000 bytes"},
		{"100-continue", "head -c 2000000 /dev/zero | curl -sS -H 'Expect: 100-continue' --data-binary @- http://server:8000/", "2000000 bytes"},
		{"an unknown Host goes where it was sent", "curl -sS -H 'Host: www.example.com' http://server:8000/hello", "hello from"},
		{"a stream is flushed as it comes", "curl -sSN http://server:8000/stream | while read -r l; do echo $l; curl -sS http://server:8000/go-on; done", "chunk"},
		{"a call to itself by its own name", "curl -sS http://server:8000/self", "hello from"},
		{"a forged identity is removed", "curl -sS -H 'X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/default/sa/admin' http://server:8000/headers", "sa/client"},
		{"WebSocket", `python3 -c "
import asyncio, websockets
async def main():
    async with websockets.connect('ws://server:8001/') as ws:
        for i in range(3):
            await ws.send('message %d' % i)
            print(await ws.recv())
asyncio.run(main())"`, "echo message 2"},
		{"the application's own TLS", "curl -sSk https://server:8002/hello", "hello from"},
		{"a server that speaks first", "printf 'me\\n' | nc -w 5 server 8003", "220 speaking first"},
		{"a server that speaks first on a known port", "printf 'me\\n' | nc -w 5 server 5432", "220 speaking first"},
		{"half close", "head -c 300000 /dev/zero | nc -N -w 10 server 8004", "300000 bytes before the end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := p.tryExec("client", "timeout", "30", "sh", "-c", c.script)
			if !strings.Contains(r.stdout, c.want) {
				t.Errorf("%s\nsays %.500q %s\nwant %q", c.script, r.stdout, r.stderr, c.want)
			}
		})
	}
	t.Run("the forged identity did not get through", func(t *testing.T) {
		out := p.exec("client", "curl", "-sS", "-H", "X-Forwarded-Client-Cert: URI=spiffe://cluster.local/ns/default/sa/admin", "http://server:8000/headers")
		if strings.Contains(out, "sa/admin") {
			t.Errorf("the application was told a forged identity:\n%s", out)
		}
	})
	t.Run("what listens on loopback alone stays private", func(t *testing.T) {
		if r := p.tryExec("client", "curl", "-sS", "-m", "10", "--fail", "http://server:8005/hello"); r.code == 0 {
			t.Errorf("a peer reached it: %s", r.stdout)
		}
		if out := p.exec("server", "curl", "-sS", "http://127.0.0.1:8005/hello"); !strings.Contains(out, "hello from 127.0.0.1") {
			t.Errorf("the application itself does not: %s", out)
		}
	})
	t.Run("a port that nobody serves is refused at once", func(t *testing.T) {
		r := p.tryExec("client", "curl", "-sS", "-m", "10", "telnet://server:9999")
		if r.code == 0 || strings.Contains(r.stderr, "timed out") {
			t.Errorf("exit %d: %s", r.code, r.stderr)
		}
	})
	t.Run("the address of a client without an identity ends X-Forwarded-For", func(t *testing.T) {
		out, code := neighbour(t, p.name+"_default", "sh", "-c", "curl -sS -m 10 -H 'X-Forwarded-For: 192.0.2.1' http://server:8000/headers; echo I am $(hostname -I)")
		_, own, _ := strings.Cut(out, "I am ")
		forwarded := "X-Forwarded-For: 192.0.2.1, "
		_, said, found := strings.Cut(out, forwarded)
		said, _, _ = strings.Cut(said, "\n")
		if code != 0 || !found || !strings.Contains(own, strings.TrimSpace(said)) {
			t.Errorf("exit %d: %s\nwant %q and the client's own address", code, out, forwarded)
		}
	})
	t.Run("an un-meshed neighbour is served in plain text", func(t *testing.T) {
		out, code := neighbour(t, p.name+"_default", "curl", "-sS", "-m", "10", "http://server:8000/hello")
		if code != 0 || !strings.Contains(out, "hello from") {
			t.Errorf("exit %d: %s", code, out)
		}
	})
}
