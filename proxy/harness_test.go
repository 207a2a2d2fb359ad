package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/settings"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/proxytest"
	"github.com/composure-mesh/composure/proxy/telemetry"
)

// The mesh of these tests is on loopback. Capture is played by addresses: what an application dials at an address of
// 127.1.0.0/16 arrives at its proxy's outbound listener and "was going" to the like address of 127.0.0.0/16, at the
// service port; what arrives at the server's proxy at 127.0.0.x was going to the application that stands there.
const (
	clientID = "spiffe://cluster.local/ns/default/sa/client"
	serverID = "spiffe://cluster.local/ns/default/sa/server"
)

var (
	webIP  = netip.MustParseAddr("127.0.0.2") // an HTTP application
	mailIP = netip.MustParseAddr("127.0.0.3") // one that speaks first
	tlsIP  = netip.MustParseAddr("127.0.0.4") // one with TLS of its own
	deadIP = netip.MustParseAddr("127.0.0.5") // nobody
)

// lines is an access log that tests can wait on.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
	on  chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	close(l.on)
	l.on = make(chan struct{})
	return len(p), nil
}

// await waits until a line has all the given parts, and returns it.
func (l *lines) await(t *testing.T, parts ...string) string {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		text, on := l.buf.String(), l.on
		l.mu.Unlock()
		for line := range strings.Lines(text) {
			if containsAll(line, parts) {
				return line
			}
		}
		select {
		case <-on:
		case <-timeout:
			t.Fatalf("no line with %q in the access log:\n%s", parts, text)
		}
	}
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// running is a proxy that runs until the test ends.
type running struct {
	*Server
	log  *lines
	stop context.CancelFunc
	done chan error
}

// halt tells it to stop and waits until it has.
func (r *running) halt(t *testing.T) {
	t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		r.done <- err
		if err != nil {
			t.Errorf("proxy: %v", err)
		}
	case <-time.After(40 * time.Second):
		t.Fatal("the proxy does not stop")
	}
}

func run(t *testing.T, cfg Config) *running {
	t.Helper()
	r := &running{log: &lines{on: make(chan struct{})}, done: make(chan error, 1)}
	cfg.Mesh, cfg.TrustDomain, cfg.Build = "test", mesh.DefaultTrustDomain, "test"
	cfg.Level = new(slog.LevelVar)
	cfg.Level.Set(slog.LevelWarn)
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: cfg.Level}))
	cfg.AdminAddr, cfg.ReadyAddr, cfg.MetricsAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.AccessLog, cfg.AccessLogFormat = r.log, telemetry.FormatText
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = s
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.done <- s.Run(ctx) }()
	t.Cleanup(func() { r.halt(t) })
	return r
}

// awaitReady waits until p is ready.
func awaitReady(t *testing.T, p *running) {
	t.Helper()
	if reasons := p.ready.Wait(t.Context(), 20*time.Second); reasons != nil {
		t.Fatalf("the proxy is not ready: %q", reasons)
	}
}

// testMesh is a client's proxy and a server's.
type testMesh struct {
	t              *testing.T
	ca             *proxytest.CA
	port           uint16 // the service port
	apps           sync.Map
	outbound       *net.TCPListener // the client's
	inbound        *net.TCPListener // the server's
	client, server *running
}

func newMesh(t *testing.T) *testMesh {
	t.Helper()
	m := &testMesh{t: t, ca: proxytest.NewCA(t)}
	m.outbound, m.inbound = listenTCP(t, "0.0.0.0:0"), listenTCP(t, "0.0.0.0:0")
	m.port = listen.AddrPort(m.inbound.Addr()).Port()
	return m
}

// start runs both proxies.
func (m *testMesh) start() *testMesh {
	m.client = run(m.t, m.clientConfig(listen.Own(m.outbound, nil)))
	m.server = run(m.t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(m.t, m.client)
	awaitReady(m.t, m.server)
	return m
}

func (m *testMesh) clientConfig(held *listen.Held) Config {
	return Config{
		Identity: m.ca.Agent("client", clientID), Snapshot: m.snapshot("client"), Settings: set("drain=10s"),
		Capture: &Capture{Acquire: once(held), OriginalDst: m.originalDst},
	}
}

func (m *testMesh) serverConfig(held *listen.Held) Config {
	return Config{
		Identity: m.ca.Agent("server", serverID), Snapshot: m.snapshot("server"), Settings: set("drain=10s"),
		Capture: &Capture{Acquire: once(held), OriginalDst: m.originalDst},
	}
}

// set are the default settings with others, each name=value.
func set(values ...string) *settings.Proxy {
	p := settings.Default()
	for _, v := range values {
		name, value, _ := strings.Cut(v, "=")
		if err := settings.Find(name).Set(p, value); err != nil {
			panic(err)
		}
	}
	return p
}

func once(h *listen.Held) func(context.Context) (*listen.Held, error) {
	return func(context.Context) (*listen.Held, error) { return h, nil }
}

func (m *testMesh) originalDst(c *net.TCPConn, outbound bool) (netip.AddrPort, error) {
	local := listen.AddrPort(c.LocalAddr()).Addr().As4()
	if outbound {
		local[1] = 0
		return netip.AddrPortFrom(netip.AddrFrom4(local), m.port), nil
	}
	app, ok := m.apps.Load(netip.AddrFrom4(local))
	if !ok {
		return netip.AddrPortFrom(netip.AddrFrom4(local), 1), nil // nobody listens there
	}
	return app.(netip.AddrPort), nil
}

// at is where the client's application dials to reach the server's application at ip.
func (m *testMesh) at(ip netip.Addr) string {
	a := ip.As4()
	a[1] = 1
	return netip.AddrPortFrom(netip.AddrFrom4(a), listen.AddrPort(m.outbound.Addr()).Port()).String()
}

// direct is where somebody without a proxy dials.
func (m *testMesh) direct(ip netip.Addr) string { return netip.AddrPortFrom(ip, m.port).String() }

func (m *testMesh) snapshot(proxy string) *snapshot.Snapshot {
	client := snapshot.Workload{
		Name: "client", Namespace: "default", ServiceAccount: "client", Identity: clientID, Service: "client",
		Labels: map[string]string{"app": "client", "version": "v1"}, Addresses: []string{"127.0.0.1"},
	}
	server := snapshot.Workload{
		Name: "server", Namespace: "default", ServiceAccount: "server", Identity: serverID, Service: "web",
		Labels:    map[string]string{"app": "web", "version": "v2"},
		Addresses: []string{webIP.String(), mailIP.String(), tlsIP.String(), deadIP.String()},
	}
	s := &snapshot.Snapshot{
		TrustDomain: mesh.DefaultTrustDomain, Proxy: client, Workloads: []snapshot.Workload{client, server},
		Services: []snapshot.Service{{
			Host: mesh.FQDN("web", "default"), Name: "web", Namespace: "default", Endpoints: []string{"server"},
			Subsets: []snapshot.Subset{{Name: "v2", Endpoints: []string{"server"}}},
		}},
		VirtualHosts: []snapshot.VirtualHost{{
			Name: mesh.FQDN("web", "default"), Domains: []string{mesh.FQDN("web", "default"), "web"}, Service: mesh.FQDN("web", "default"),
			Routes: []snapshot.Route{{Name: "default", Destinations: []snapshot.Destination{{Service: mesh.FQDN("web", "default"), Subset: "v2", Weight: 1}}}},
		}},
	}
	if proxy == "server" {
		s.Proxy = server
	}
	if err := s.Seal(); err != nil {
		m.t.Fatal(err)
	}
	return s
}

// app lets an application of the server listen where ip leads, and serves each connection.
func (m *testMesh) app(ip netip.Addr, serve func(net.Listener)) {
	ln := listenTCP(m.t, "127.0.0.1:0")
	m.apps.Store(ip, listen.AddrPort(ln.Addr()))
	go serve(ln)
}

// web is an HTTP application that tells what it got.
func (m *testMesh) web() {
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return // the client is gone
			}
			fmt.Fprintf(w, "%s %s %s %q", r.Method, r.Host, r.URL.Path, body)
		}))
	})
}

func listenTCP(t *testing.T, addr string) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// httpClient dials addr whatever the URL says, from a local address if one is given.
func httpClient(t *testing.T, addr, local string) *http.Client {
	t.Helper()
	var d net.Dialer
	if local != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	tr := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) },
		MaxIdleConnsPerHost: 100,
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// each serves every connection of a listener in a goroutine of its own.
func each(serve func(net.Conn)) func(net.Listener) {
	return func(ln net.Listener) {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}
}
