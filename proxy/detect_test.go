package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/settings"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// declare says in a snapshot what a port speaks: of the server, and of 127.0.0.1, where its applications really listen.
func declare(t *testing.T, s *snapshot.Snapshot, port uint16, p mesh.Protocol) {
	t.Helper()
	for _, w := range append([]*snapshot.Workload{&s.Proxy}, pointers(s.Workloads)...) {
		w.Ports = append(w.Ports, snapshot.Port{Number: port, Protocol: p})
	}
	if err := s.Seal(); err != nil {
		t.Fatal(err)
	}
}

func pointers[T any](s []T) []*T {
	out := make([]*T, len(s))
	for i := range s {
		out[i] = &s[i]
	}
	return out
}

// startOpaque runs both proxies with the port of an application declared as mysql.
func (m *testMesh) startOpaque(app netip.Addr) *testMesh {
	m.t.Helper()
	client, server := m.clientConfig(listen.Own(m.outbound, nil)), m.serverConfig(listen.Own(nil, m.inbound))
	declare(m.t, client.Snapshot, m.port, "mysql")
	at, ok := m.apps.Load(app)
	if !ok {
		m.t.Fatal("no such application")
	}
	declare(m.t, server.Snapshot, at.(netip.AddrPort).Port(), "mysql")
	m.client, m.server = run(m.t, client), run(m.t, server)
	awaitReady(m.t, m.client)
	awaitReady(m.t, m.server)
	return m
}

// TestOpaquePortIsNotSniffed sends the beginning of what could become a request to a port that is declared mysql: it
// arrives at once, both through two proxies and from a client without one.
func TestOpaquePortIsNotSniffed(t *testing.T) {
	m := newMesh(t)
	m.app(mailIP, each(func(c net.Conn) {
		defer c.Close()
		b := make([]byte, 1)
		_, err := io.ReadFull(c, b)
		fmt.Fprintf(c, "%s %v", b, err)
	}))
	m.startOpaque(mailIP)
	for name, addr := range map[string]string{"through two proxies": m.at(mailIP), "from outside": m.direct(mailIP)} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, addr)
			// Sooner than the time in which a request line must come to its end.
			if err := c.SetDeadline(time.Now().Add(settings.Default().HeaderTimeout / 2)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(c, "G")
			if got, err := io.ReadAll(c); err != nil || string(got) != "G <nil>" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestOpaqueServerSpeaksFirst greets a client without a proxy at a declared port, and one with a proxy, whose handshake
// the greeting must not disturb.
func TestOpaqueServerSpeaksFirst(t *testing.T) {
	m := newMesh(t)
	m.app(mailIP, each(func(c net.Conn) {
		defer c.Close()
		fmt.Fprint(c, "220 ready\r\n")
		line, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Fprint(c, line)
	}))
	m.startOpaque(mailIP)
	for name, dial := range map[string]func(*testing.T) *net.TCPConn{
		"through two proxies": func(t *testing.T) *net.TCPConn { t.Helper(); return dial(t, m.at(mailIP)) },
		"from outside":        func(t *testing.T) *net.TCPConn { t.Helper(); return dialFrom(t, "127.0.0.9", m.direct(mailIP)) },
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t)
			in := bufio.NewReader(c)
			if line, err := in.ReadString('\n'); line != "220 ready\r\n" {
				t.Fatalf("%q, %v", line, err)
			}
			fmt.Fprint(c, "GET / HTTP/1.1\r\n")
			if line, err := in.ReadString('\n'); line != "GET / HTTP/1.1\r\n" {
				t.Errorf("%q, %v", line, err)
			}
		})
	}
}

// dialFrom dials from a local address that belongs to no workload.
func dialFrom(t *testing.T, local, addr string) *net.TCPConn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// TestSlowRequestIsHTTP sends a request byte by byte, with the server connected in vain meanwhile or not: it is served
// as HTTP, by the rules for HTTP, whatever the server does.
func TestSlowRequestIsHTTP(t *testing.T) {
	m := newMesh(t)
	silent := make(chan struct{}, 8)
	m.app(webIP, each(func(c net.Conn) {
		silent <- struct{}{}
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
		}
	}))
	m.start()
	for _, late := range []bool{true, false} {
		path := fmt.Sprintf("/late=%v", late)
		t.Run(path, func(t *testing.T) {
			c := dial(t, m.at(webIP))
			if late {
				<-silent
			}
			for _, b := range []byte("GET " + path + " HTTP/1.1\r\nHost: web\r\n\r\n") {
				time.Sleep(time.Millisecond)
				if _, err := c.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%v, %v", resp, err)
			}
			m.client.log.await(t, `"GET `+path+` HTTP/1.1" 200`)
			m.server.log.await(t, `"GET `+path+` HTTP/1.1" 200`)
		})
	}
}

// TestLooseRequestsAreRefused sends to a port that nobody has declared what is a request to lenient servers only: it must
// not go round the rules for HTTP as bytes.
func TestLooseRequestsAreRefused(t *testing.T) {
	m := newMesh(t)
	var reached atomic.Int32
	m.app(webIP, each(func(c net.Conn) {
		defer c.Close()
		if b, _ := io.ReadAll(c); len(b) > 0 {
			reached.Add(1)
		}
	}))
	m.start()
	for _, request := range []string{
		"GET  /admin HTTP/1.1\r\nHost: web\r\n\r\n", "GET\t/admin HTTP/1.1\r\nHost: web\r\n\r\n", "GET /admin\r\n", "GET /admin", "GET /admin HTTP/1.1",
		"get /a b HTTP/1.1\r\n\r\n", " GET /admin HTTP/1.1\r\n\r\n", "\n\n\nGET /admin HTTP/1.1\n\n", "\r\n\r\n\r\nGET /admin HTTP/1.1\r\n\r\n",
	} {
		t.Run(request, func(t *testing.T) {
			c := dialFrom(t, "127.0.0.9", m.direct(webIP))
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			_ = c.CloseWrite() // it may be refused already
			got, err := io.ReadAll(c)
			if len(got) > 0 && !strings.HasPrefix(string(got), "HTTP/1.1 4") && !strings.HasPrefix(string(got), "HTTP/1.1 505") {
				t.Errorf("answered %q, %v", got, err)
			}
			_ = c.Close()
		})
	}
	m.server.halt(t)
	if n := reached.Load(); n != 0 {
		t.Errorf("%d of them reached the application", n)
	}
}

// TestSilentOnBothSides connects to a port where clients begin, whose server says nothing either: not for good.
func TestSilentOnBothSides(t *testing.T) {
	m := newMesh(t)
	ln := listenTCP(t, "127.0.0.1:0")
	to := listen.AddrPort(ln.Addr())
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	cfg.Settings = set("first-byte-timeout=50ms")
	cfg.Capture.OriginalDst = func(*net.TCPConn, bool) (netip.AddrPort, error) { return to, nil }
	declare(t, cfg.Snapshot, to.Port(), mesh.ProtocolTLS)
	p := run(t, cfg)
	awaitReady(t, p)
	wantClosed(t, p, dialFrom(t, "127.0.0.9", m.direct(webIP)))
}
