package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/proxyprotocol"
)

var (
	farClient = netip.MustParseAddrPort("203.0.113.7:4711")
	farServer = netip.MustParseAddrPort("198.51.100.2:443")
)

// forwardedFor is an application that tells whom it thinks it serves.
func (m *testMesh) forwardedFor() uint16 {
	m.app(webIP, func(ln net.Listener) {
		_ = bothVersions(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("X-Forwarded-For")) }).Serve(ln)
	})
	addr, _ := m.apps.Load(webIP)
	return addr.(netip.AddrPort).Port()
}

// bothVersions serves HTTP/1 and, by prior knowledge, HTTP/2.
func bothVersions(h http.HandlerFunc) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{Protocols: &protocols, Handler: h}
}

// whom sends what begins a connection and a request, and returns the answer's body.
func whom(t *testing.T, addr, begin string) (string, error) {
	t.Helper()
	c := dialFrom(t, "127.0.0.9", addr)
	defer c.Close()
	fmt.Fprint(c, begin+"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func header(version int) string {
	return string(proxyprotocol.Append(nil, version, proxyprotocol.Header{Source: farClient, Destination: farServer}))
}

func TestProxyHeaderIn(t *testing.T) {
	m := newMesh(t)
	port := m.forwardedFor()
	m.client = run(t, m.clientConfig(listen.Own(m.outbound, nil)))
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	cfg.Settings = set(fmt.Sprint("proxy-protocol=", port))
	m.server = run(t, cfg)
	awaitReady(t, m.client)
	awaitReady(t, m.server)
	for name, tt := range map[string]struct{ begin, want string }{
		"version 1": {header(1), farClient.Addr().String()},
		"version 2": {header(2), farClient.Addr().String()},
		"unknown":   {"PROXY UNKNOWN\r\n", "127.0.0.9"},
		"local":     {string(proxyprotocol.Append(nil, 2, proxyprotocol.Header{})), "127.0.0.9"},
	} {
		if got, err := whom(t, m.direct(webIP), tt.begin); got != tt.want || err != nil {
			t.Errorf("%s: the application serves %q, %v, want %q", name, got, err, tt.want)
		}
	}
	m.server.log.await(t, farClient.String())
	bad := []string{"", "PROXY TCP4 203.0.113.7 198.51.100.2 4711\r\n", "\x16\x03\x01\x00\x05hello"}
	for _, begin := range bad {
		if got, err := whom(t, m.direct(webIP), begin); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%q is answered %q, %v, want a reset", begin, got, err)
		}
	}
	if n := m.server.allStats()["listen.bad_headers"]; n != uint64(len(bad)) {
		t.Errorf("%d bad headers, want %d", n, len(bad))
	}
	// One of the mesh needs none.
	if code, _ := get(t, httpClient(t, m.at(webIP), ""), "http://web/"); code != http.StatusOK {
		t.Errorf("through two proxies: %d", code)
	}
}

// TestProxyHeaderNeverComes holds a client to the handshake's time.
func TestProxyHeaderNeverComes(t *testing.T) {
	m := newMesh(t)
	port := m.forwardedFor()
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	cfg.Settings = set(fmt.Sprint("proxy-protocol=", port), "handshake-timeout=50ms")
	p := run(t, cfg)
	awaitReady(t, p)
	c := dialFrom(t, "127.0.0.9", m.direct(webIP))
	fmt.Fprint(c, "PROXY TCP4")
	wantClosed(t, p, c)
}

func TestProxyHeaderAtTheGateway(t *testing.T) {
	m := newMesh(t)
	m.forwardedFor()
	m.server = run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(t, m.server)
	web, bytes := edgePort(), edgePort()
	snap := clone(t, m.snapshot("client"))
	snap.VirtualHosts = nil
	to := []snapshot.Destination{{Service: mesh.FQDN("web", "default"), Port: m.port, Weight: 1}}
	snap.Gateways = []snapshot.GatewayServer{
		{Port: web, Protocol: mesh.ProtocolHTTP, VirtualHosts: []snapshot.VirtualHost{{Name: "web", Domains: []string{"*"}, Routes: []snapshot.Route{{Destinations: to}}}}},
		{Port: bytes, Protocol: mesh.ProtocolTCP, TCPRoutes: []snapshot.TCPRoute{{Destinations: to}}},
	}
	gw := run(t, Config{
		Identity: m.ca.Agent("client", clientID), Snapshot: snap, GatewayPorts: []uint16{web, bytes}, GatewayHost: edge,
		Settings: set(fmt.Sprintf("proxy-protocol=%d,%d", web, bytes)),
	})
	awaitReady(t, gw)
	if got, err := whom(t, at(edge, web).String(), header(2)); got != farClient.Addr().String() || err != nil {
		t.Errorf("the application serves %q, %v", got, err)
	}
	if _, err := whom(t, at(edge, bytes).String(), header(1)); err != nil {
		t.Errorf("as bytes: %v", err)
	}
	gw.log.await(t, `"- - -"`, farClient.String())
	for _, port := range []uint16{web, bytes} {
		if got, err := whom(t, at(edge, port).String(), ""); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("without a header: %q, %v, want a reset", got, err)
		}
	}
}

// outOf is a client's proxy that names its clients to the service web. Without a server's proxy it is dialled in plain text.
func outOf(t *testing.T, m *testMesh, version uint8, plain bool) *running {
	t.Helper()
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	s := clone(t, cfg.Snapshot)
	for i := range s.Workloads {
		if plain && s.Workloads[i].Name == "server" {
			s.Workloads[i].Identity = ""
		}
	}
	policy := snapshot.Policy{Connections: &snapshot.Connections{ProxyProtocol: version}}
	s.Services[0].Policy, s.Services[0].Subsets[0].Policy = policy, policy
	s.TCPRoutes = []snapshot.TCPRoute{{Subnets: []string{mailIP.String()}, Destinations: []snapshot.Destination{{Service: s.Services[0].Host, Weight: 1}}}}
	if err := s.Seal(); err != nil {
		t.Fatal(err)
	}
	cfg.Snapshot = s
	p := run(t, cfg)
	awaitReady(t, p)
	return p
}

// namedListener takes the header off each connection of an application, and serves the rest.
type namedListener struct {
	net.Listener
	headers chan proxyprotocol.Header
}

func (l namedListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := listen.NewConn(raw)
		for {
			if err = c.Fill(); err != nil {
				break
			}
			h, n, e := proxyprotocol.Parse(c.Buffered())
			if err = e; errors.Is(err, proxyprotocol.ErrIncomplete) {
				continue
			}
			if err == nil {
				c.Skip(n)
				l.headers <- h
			}
			break
		}
		if err == nil {
			return c, nil
		}
		l.headers <- proxyprotocol.Header{}
		_ = raw.Close()
	}
}

func TestProxyHeaderOut(t *testing.T) {
	for _, version := range []uint8{1, 2} {
		t.Run(fmt.Sprint("version ", version), func(t *testing.T) {
			m := newMesh(t)
			app := namedListener{m.inbound, make(chan proxyprotocol.Header, 10)}
			srv := bothVersions(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })
			go func() { _ = srv.Serve(app) }()
			outOf(t, m, version, true)
			want := func(local netip.AddrPort) {
				t.Helper()
				if h := <-app.headers; h.Source != local || h.Destination.String() != m.direct(webIP) {
					t.Errorf("header %v, want %v to %s", h, local, m.direct(webIP))
				}
			}
			for _, from := range []string{"127.0.0.8", "127.0.0.9"} {
				c := dialFrom(t, from, m.at(webIP))
				in := bufio.NewReader(c)
				for range 2 { // the second of the same client
					fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
					resp, err := http.ReadResponse(in, nil)
					if err != nil || resp.StatusCode != http.StatusOK {
						t.Fatalf("%v, %v", resp, err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					want(listen.AddrPort(c.LocalAddr()))
				}
			}
			if code, body := get(t, h2client(t, m.at(webIP)), "http://web/"); code != http.StatusOK || body != "HTTP/2.0" {
				t.Errorf("%d %q", code, body)
			}
			if h := <-app.headers; !h.Source.IsValid() || h.Destination.String() != m.direct(webIP) {
				t.Errorf("of HTTP/2: %v", h)
			}
		})
	}
}

// TestProxyHeaderOutOfBytes is for what is no HTTP.
func TestProxyHeaderOutOfBytes(t *testing.T) {
	m := newMesh(t)
	// The service's one endpoint is the workload, and of its addresses the first.
	app := namedListener{m.inbound, make(chan proxyprotocol.Header, 1)}
	go func() {
		for c, err := app.Accept(); err == nil; c, err = app.Accept() {
			fmt.Fprint(c, "220 ready\r\n")
			_ = c.Close()
		}
	}()
	outOf(t, m, 2, true)
	c := dial(t, m.at(mailIP))
	if b, err := io.ReadAll(c); string(b) != "220 ready\r\n" {
		t.Fatalf("%q, %v", b, err)
	}
	if h := <-app.headers; h.Source != listen.AddrPort(c.LocalAddr()) || h.Destination.String() != m.direct(mailIP) {
		t.Errorf("%v", h)
	}
}

// TestProxyHeaderThroughTheMesh has it before the mutual TLS of a port that takes it there, for HTTP/1 and HTTP/2.
func TestProxyHeaderThroughTheMesh(t *testing.T) {
	m := newMesh(t)
	port := m.forwardedFor()
	m.client = outOf(t, m, 2, false)
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	cfg.Settings = set(fmt.Sprint("proxy-protocol=", port))
	m.server = run(t, cfg)
	awaitReady(t, m.server)
	for name, c := range map[string]*http.Client{"HTTP/1": httpClient(t, m.at(webIP), "127.0.0.8"), "HTTP/2": h2client(t, m.at(webIP))} {
		if code, body := get(t, c, "http://web/"); code != http.StatusOK {
			t.Errorf("%s: %d %q", name, code, body)
		}
	}
	m.server.log.await(t, "127.0.0.8:", "200")
}

// TestProxyHeaderWithHAProxy sends to HAProxy, and takes what HAProxy sends, in both versions.
func TestProxyHeaderWithHAProxy(t *testing.T) {
	if _, err := exec.LookPath("haproxy"); err != nil {
		t.Skip("no haproxy here: apt-get install haproxy")
	}
	m := newMesh(t)
	port := m.forwardedFor()
	in := m.serverConfig(listen.Own(nil, m.inbound))
	in.Settings = set(fmt.Sprint("proxy-protocol=", port))
	server := run(t, in)
	awaitReady(t, server)
	one, two, checked, back := edgePort(), edgePort(), edgePort(), edgePort()
	dir := t.TempDir()
	config := fmt.Sprintf(`global
  maxconn 100
defaults
  mode tcp
  timeout connect 5s
  timeout client 20s
  timeout server 20s
listen one
  bind %[6]s:%[1]d
  server s %[5]s send-proxy
listen two
  bind %[6]s:%[2]d
  server s %[5]s send-proxy-v2
listen checked
  bind %[6]s:%[3]d
  server s %[5]s send-proxy-v2 proxy-v2-options crc32c,unique-id
frontend back
  mode http
  bind %[6]s:%[4]d accept-proxy
  http-request return status 200 content-type text/plain lf-string "%%[src]:%%[src_port] %%[dst]:%%[dst_port]"
`, one, two, checked, back, m.direct(webIP), edge)
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "haproxy", "-db", "-f", file)
	out := &strings.Builder{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out)
		}
	})
	awaitListener(t, back)
	for name, port := range map[string]uint16{"version 1": one, "version 2": two, "version 2 with TLVs": checked} {
		if got, err := whom(t, at(edge, port).String(), ""); got != "127.0.0.9" || err != nil {
			t.Errorf("%s from HAProxy: %q, %v", name, got, err)
		}
	}
	if n := server.allStats()["listen.bad_headers"]; n != 0 {
		t.Errorf("%d bad headers", n)
	}
	for _, version := range []uint8{1, 2} {
		m := newMesh(t)
		relay := m.inbound // HAProxy has another port
		go each(func(c net.Conn) {
			up, err := net.Dial("tcp", at(edge, back).String())
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(up, c) }()
			_, _ = io.Copy(c, up)
			_ = c.Close()
			_ = up.Close()
		})(relay)
		outOf(t, m, version, true)
		c := dialFrom(t, "127.0.0.8", m.at(webIP))
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if want := fmt.Sprint(c.LocalAddr(), " ", m.direct(webIP)); string(body) != want {
			t.Errorf("HAProxy reads version %d as %q, want %q", version, body, want)
		}
	}
}

// awaitListener waits until somebody listens on a port of edge.
func awaitListener(t *testing.T, port uint16) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", at(edge, port).String())
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}
