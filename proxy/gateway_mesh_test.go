package proxy

import (
	"net/http"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestGatewayOfTheMesh: a sidecar speaks the mesh's own mutual TLS to an egress gateway that asks for it, by the server name
// that its DestinationRule says; who has no certificate of the mesh is refused.
func TestGatewayOfTheMesh(t *testing.T) {
	const gatewayID = "spiffe://cluster.local/ns/default/sa/egress"
	m := newMesh(t)
	m.web()
	m.server = run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(t, m.server)
	port, web := edgePort(), mesh.FQDN("web", "default")
	host := func(to string, port uint16) []snapshot.VirtualHost {
		return []snapshot.VirtualHost{{
			Name: "ext.example", Domains: []string{"ext.example"},
			Routes: []snapshot.Route{{Destinations: []snapshot.Destination{{Service: to, Port: port, Weight: 1}}}},
		}}
	}
	gwSnap := m.snapshot("client")
	gwSnap.VirtualHosts = nil
	gwSnap.Gateways = []snapshot.GatewayServer{{Port: port, Protocol: mesh.ProtocolTLS, TLSServers: []snapshot.TLSServer{{
		Name: "egress", ServerNames: []string{"ext.example"}, Protocol: mesh.ProtocolHTTP, TLS: snapshot.EdgeTLS{Mode: snapshot.ServerMeshMutual},
		VirtualHosts: host(web, m.port),
	}}}}
	gw := run(t, Config{Identity: m.ca.Agent("egress", gatewayID), Snapshot: gwSnap, GatewayPorts: []uint16{port}, GatewayHost: edge})
	awaitReady(t, gw)

	snap := m.snapshot("client")
	snap.Workloads = append(snap.Workloads, snapshot.Workload{Name: "egress", Namespace: "default", Identity: gatewayID, PlainText: true, Service: "egress", Addresses: []string{edge}})
	egress := mesh.FQDN("egress", "default")
	snap.Services = append(snap.Services, snapshot.Service{
		Host: egress, Name: "egress", Namespace: "default", Endpoints: []string{"egress"}, Policy: snapshot.Policy{TLS: snapshot.TLSMutual, ServerName: "ext.example"},
	})
	snap.VirtualHosts = append(snap.VirtualHosts, host(egress, port)...)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Snapshot = snap
	m.client = run(t, cfg)
	awaitReady(t, m.client)
	if code, body := get(t, httpClient(t, m.at(deadIP), ""), "http://ext.example/x"); code != http.StatusOK || !strings.HasPrefix(body, "GET ext.example /x") {
		t.Errorf("%d %q", code, body)
	}
	if _, err := ask(t, at(edge, port).String(), "ext.example"); err == nil {
		t.Error("a client without a certificate of the mesh was let in")
	}
}
