package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// ownTLS is an application of the server that ends TLS by itself and answers with the server name it was asked for.
func (m *testMesh) ownTLS() {
	own := m.ca.Issue("spiffe://elsewhere/app")
	m.app(webIP, each(func(c net.Conn) {
		defer c.Close()
		srv := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{own.Certificate}})
		if srv.Handshake() == nil {
			_, _ = io.WriteString(srv, srv.ConnectionState().ServerName)
			_ = srv.Close()
		}
	}))
}

// ask opens TLS at addr and returns what the server says.
func ask(t *testing.T, addr, serverName string) (string, error) {
	t.Helper()
	c := tls.Client(dial(t, addr), &tls.Config{ServerName: serverName, InsecureSkipVerify: true}) //nolint:gosec // who answers is told by what it says
	defer c.Close()
	if err := c.Handshake(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func toWeb(port uint16, names ...string) []snapshot.TLSRoute {
	return []snapshot.TLSRoute{{ServerNames: names, TCPRoute: snapshot.TCPRoute{
		Destinations: []snapshot.Destination{{Service: mesh.FQDN("web", "default"), Port: port, Weight: 1}},
	}}}
}

// TestTLSPassesByServerName: an application's TLS to an address where nobody is arrives where a route sends its server
// name, inside the mesh's own TLS; another name goes to the address, and finds nobody.
func TestTLSPassesByServerName(t *testing.T) {
	m := newMesh(t)
	m.ownTLS()
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Snapshot.TLSRoutes = toWeb(m.port, "*.shop.example")
	m.client, m.server = run(t, cfg), run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(t, m.client)
	awaitReady(t, m.server)
	if got, err := ask(t, m.at(deadIP), "pay.shop.example"); err != nil || got != "pay.shop.example" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ask(t, m.at(deadIP), "other.example"); err == nil {
		t.Error("another name was answered")
	}
	m.client.log.await(t, "outbound|", "pay.shop.example")
	m.server.halt(t)
	r, _ := m.server.recorder.Report()
	for _, s := range r.TCP {
		if s.Labels.Source.Principal != clientID {
			t.Errorf("the server saw %+v, want mutual tls from the client", s.Labels.Source)
		}
	}
}

// TestGatewayPassesTLS: a gateway's port for TLS sends connections by server name, and refuses what no route takes.
func TestGatewayPassesTLS(t *testing.T) {
	m := newMesh(t)
	m.ownTLS()
	m.server = run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(t, m.server)
	port := edgePort()
	snap := m.snapshot("client")
	snap.Gateways = []snapshot.GatewayServer{{Port: port, Protocol: mesh.ProtocolTLS, TLSRoutes: toWeb(m.port, "shop.example")}}
	gw := run(t, Config{Identity: m.ca.Agent("client", clientID), Snapshot: snap, GatewayPorts: []uint16{port}, GatewayHost: edge})
	awaitReady(t, gw)
	addr := at(edge, port).String()
	if got, err := ask(t, addr, "shop.example"); err != nil || got != "shop.example" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ask(t, addr, "other.example"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("another name: %v, want an alert", err)
	}
	c := dial(t, addr)
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("plain text: %v, want a reset", err)
	}
	gw.log.await(t, " NR ", "other.example")
}
