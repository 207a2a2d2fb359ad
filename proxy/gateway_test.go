package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// edge is an address of this process's own, where gateways listen: a port that is free on 127.0.0.1 is taken by the next who
// asks for any.
var edge = fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()>>16&63, os.Getpid()>>8&255, os.Getpid()&255)

var edgePorts atomic.Uint32

// edgePort is a port of edge that no other test has.
func edgePort() uint16 { return uint16(20000 + edgePorts.Add(1)) }

func TestGateway(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.server = run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(t, m.server)

	given, further := edgePort(), edgePort()
	bare := m.snapshot("client")
	bare.VirtualHosts = nil
	gw := run(t, Config{Identity: m.ca.Agent("client", clientID), Snapshot: bare, GatewayPorts: []uint16{given}, GatewayHost: edge})
	awaitReady(t, gw)
	address := func(port uint16) string { return at(edge, port).String() }
	if code, _ := get(t, httpClient(t, address(given), ""), "http://shop.example/"); code != http.StatusNotFound {
		t.Errorf("before there is a Gateway: %d, want 404", code)
	}

	full := clone(t, bare)
	for _, port := range []uint16{given, further} {
		full.Gateways = append(full.Gateways, snapshot.GatewayServer{Port: port, Protocol: mesh.ProtocolHTTP, VirtualHosts: []snapshot.VirtualHost{{
			Name: "shop.example", Domains: []string{"shop.example"},
			Routes: []snapshot.Route{{Destinations: []snapshot.Destination{{Service: mesh.FQDN("web", "default"), Port: m.port, Weight: 1}}}},
		}}})
	}
	if err := gw.Apply(full); err != nil {
		t.Fatal(err)
	}
	for _, port := range []uint16{given, further} {
		if code, body := get(t, httpClient(t, address(port), ""), "http://shop.example/cart"); code != http.StatusOK || !strings.HasPrefix(body, "GET shop.example /cart") {
			t.Errorf("port %d: %d %q", port, code, body)
		}
	}
	// The application speaks HTTP/1 alone: what a client of the gateway speaks says nothing of it.
	if code, body := get(t, h2client(t, address(given)), "http://shop.example/h2"); code != http.StatusOK || !strings.HasPrefix(body, "GET shop.example /h2") {
		t.Errorf("HTTP/2: %d %q", code, body)
	}
	m.server.log.await(t, `"GET /h2 HTTP/1.1" 200`)
	if code, _ := get(t, httpClient(t, address(given), ""), "http://other.example/"); code != http.StatusNotFound {
		t.Errorf("another host: %d, want 404", code)
	}
	m.server.log.await(t, `"GET /cart HTTP/1.1" 200`)
	m.server.halt(t)
	r, _ := m.server.recorder.Report()
	for _, s := range r.HTTP {
		if s.Labels.Source.Principal != clientID {
			t.Errorf("the server saw %+v, want mutual tls from the gateway", s.Labels.Source)
		}
	}
}

func at(ip string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port)
}

// TestNotRedirectedIsRefused: what is dialled at the capture listener itself is never forwarded: it would come back.
func TestNotRedirectedIsRefused(t *testing.T) {
	m := newMesh(t)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Capture.OriginalDst = func(c *net.TCPConn, _ bool) (netip.AddrPort, error) { return listen.AddrPort(c.LocalAddr()), nil }
	p := run(t, cfg)
	awaitReady(t, p)
	c, err := net.Dial("tcp", m.outbound.Addr().String())
	if err == nil { // else it was reset already
		n, err := c.Read(make([]byte, 1))
		if n != 0 || err == nil {
			t.Errorf("the client read %d bytes, %v", n, err)
		}
		_ = c.Close()
	}
	p.halt(t) // all is counted then
	if got := p.allStats()["listen.not_redirected"]; got != 1 {
		t.Errorf("counted %d, want 1", got)
	}
}

func TestSelfTest(t *testing.T) {
	m := newMesh(t)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	// Capture is played: the address leads to the outbound listener, and "was" the self-test's.
	cfg.Capture.SelfTest = at("127.0.0.1", listen.AddrPort(m.outbound.Addr()).Port())
	cfg.Capture.OriginalDst = func(*net.TCPConn, bool) (netip.AddrPort, error) { return at(mesh.SelfTestIP, 1), nil }
	p := run(t, cfg)
	awaitReady(t, p)

	// Somebody else answers, or nobody.
	other := listenTCP(t, "127.0.0.1:0")
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = c.Close()
		}
	}()
	if err := selfTest(t.Context(), listen.AddrPort(other.Addr())); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("answered by somebody else: %v", err)
	}
	if err := selfTest(t.Context(), at(edge, edgePort())); err == nil || !strings.Contains(err.Error(), "nothing is captured") {
		t.Errorf("refused: %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	snap := &snapshot.Snapshot{}
	log, level := slog.New(slog.DiscardHandler), new(slog.LevelVar)
	for name, cfg := range map[string]Config{
		"no log":          {Snapshot: snap, GatewayPorts: []uint16{1}},
		"planes, no self": {Log: log, Level: level, Control: &Planes{}, GatewayPorts: []uint16{1}},
		"no snapshot":     {Log: log, Level: level, GatewayPorts: []uint16{1}},
		"no listeners":    {Log: log, Level: level, Snapshot: snap},
		"trust domain":    {Log: log, Level: level, Snapshot: snap, Capture: &Capture{Acquire: func(context.Context) (*listen.Held, error) { return nil, nil }}, TrustDomain: "not a domain"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: New takes it", name)
		}
	}
}
