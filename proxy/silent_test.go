package proxy

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestSilentHTTPClient says nothing at a port that is declared HTTP.
func TestSilentHTTPClient(t *testing.T) {
	m := newMesh(t)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.FirstRequest = 50 * time.Millisecond
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
	port := freePort(t)
	p := run(t, Config{
		Identity: m.ca.Agent("client", clientID), Snapshot: m.snapshot("client"), GatewayPorts: []uint16{port}, GatewayHost: "127.0.0.1",
		FirstRequest: 50 * time.Millisecond,
	})
	awaitReady(t, p)
	wantClosed(t, p, dial(t, at("127.0.0.1", port).String()))
}
