package proxy

import (
	"errors"
	"io"
	"net"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestSilentHTTPClient says nothing at a port that is declared HTTP.
func TestSilentHTTPClient(t *testing.T) {
	m := newMesh(t)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Settings = set("first-byte-timeout=50ms")
	for i := range cfg.Snapshot.Workloads {
		cfg.Snapshot.Workloads[i].Ports = []snapshot.Port{{Number: m.port, Protocol: mesh.ProtocolHTTP}}
	}
	if err := cfg.Snapshot.Seal(); err != nil {
		t.Fatal(err)
	}
	p := run(t, cfg)
	awaitReady(t, p)
	wantClosed(t, p, dial(t, m.at(webIP)))
}

// wantClosed wants a silent connection to be ended politely and counted.
func wantClosed(t *testing.T, p *running, c net.Conn) {
	t.Helper()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("%v, want the end", err)
	}
	if got := p.allStats()["listen.slow_clients"]; got != 1 {
		t.Errorf("%d slow clients, want 1", got)
	}
}

func TestSilentGatewayClient(t *testing.T) {
	m := newMesh(t)
	port := edgePort()
	p := run(t, Config{
		Identity: m.ca.Agent("client", clientID), Snapshot: m.snapshot("client"), GatewayPorts: []uint16{port}, GatewayHost: edge,
		Settings: set("first-byte-timeout=50ms"),
	})
	awaitReady(t, p)
	wantClosed(t, p, dial(t, at(edge, port).String()))
}
