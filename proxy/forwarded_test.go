package proxy

import (
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// forwarding asks with fields of X-Forwarded-For, and is the status and the body.
func forwarding(t *testing.T, c *http.Client, url string, fields ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header["X-Forwarded-For"] = fields
	resp, err := c.Do(req)
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

// remote allows one client, with trusted proxies in front of the gateways.
func remote(client string, proxies int) *snapshot.Security {
	return &snapshot.Security{TrustedProxies: proxies, Access: []snapshot.AccessPolicy{{
		Namespace: "default", Name: "client", Action: snapshot.AccessAllow,
		Rules: []snapshot.AccessRule{{From: []snapshot.AccessSource{{RemoteIPBlocks: []string{client}}}}},
	}}}
}

// TestTrustedProxies: a gateway and the proxy behind it take the same one for the client, and nobody else is believed.
func TestTrustedProxies(t *testing.T) {
	const gatewayID = "spiffe://cluster.local/ns/default/sa/ingress"
	m := newMesh(t)
	m.forwardedFor()
	m.start()
	gateway := snapshot.Workload{Name: "ingress", Namespace: "default", Identity: gatewayID, PlainText: true, Addresses: []string{edge}}
	port := edgePort()
	at := at(edge, port).String()
	front := clone(t, m.snapshot("client"))
	front.Proxy, front.VirtualHosts = gateway, nil
	front.Gateways = []snapshot.GatewayServer{{Port: port, Protocol: mesh.ProtocolHTTP, VirtualHosts: []snapshot.VirtualHost{{
		Name: "web", Domains: []string{"web"}, Routes: []snapshot.Route{{Destinations: []snapshot.Destination{{Service: mesh.FQDN("web", "default"), Port: m.port, Weight: 1}}}},
	}}}}
	gw := run(t, Config{Identity: m.ca.Agent("ingress", gatewayID), Snapshot: front, GatewayPorts: []uint16{port}, GatewayHost: edge})
	awaitReady(t, gw)
	behind := m.snapshot("server")
	behind.Workloads = append(behind.Workloads, gateway)
	const peer = "127.0.0.9"
	apply := func(client string, proxies int, atGateway *snapshot.Security) {
		t.Helper()
		front, behind := clone(t, front), clone(t, behind)
		front.Security, behind.Security = atGateway, remote(client, proxies)
		if err := gw.Apply(front); err != nil {
			t.Fatal(err)
		}
		if err := m.server.Apply(behind); err != nil {
			t.Fatal(err)
		}
	}
	clients := map[string]*http.Client{"HTTP/1": httpClient(t, at, peer), "HTTP/2": h2client(t, at)}
	for _, c := range []struct {
		proxies int
		fields  []string
		want    string // empty is the gateway's peer
	}{
		{0, nil, ""},
		{0, []string{"203.0.113.1"}, ""},
		{0, []string{"203.0.113.2, 203.0.113.1"}, ""},
		{1, nil, ""},
		{1, []string{"203.0.113.1"}, "203.0.113.1"},
		{1, []string{"203.0.113.2, 203.0.113.1"}, "203.0.113.1"},
		{1, []string{"203.0.113.2", "203.0.113.1"}, "203.0.113.1"},
		{1, []string{"203.0.113.2, [2001:db8::1]:443"}, "2001:db8::1"},
		{1, []string{"203.0.113.2, unknown"}, ""},
		{1, []string{""}, ""},
		{2, []string{"203.0.113.1"}, ""},
		{2, []string{"203.0.113.3, 203.0.113.2, 203.0.113.1"}, "203.0.113.2"},
		{2, []string{"2001:db8::1, 203.0.113.1"}, "2001:db8::1"},
	} {
		for version, client := range clients {
			want, own := c.want, peer
			if version == "HTTP/2" {
				own = "127.0.0.1"
			}
			if want == "" {
				want = own
			}
			apply(want, c.proxies, remote(want, c.proxies))
			code, body := forwarding(t, client, "http://web/", c.fields...)
			list := strings.TrimPrefix(strings.Join(append(slices.Clone(c.fields), own), ", "), ", ")
			if code != http.StatusOK || body != list {
				t.Errorf("%s, %d proxies, %q: %d, the application serves %q; want %s let in, and the peer appended", version, c.proxies, c.fields, code, body, want)
			}
		}
	}

	// Without a policy at the gateway it is the proxy behind that refuses.
	apply("203.0.113.0/24", 0, nil)
	if code, _ := forwarding(t, clients["HTTP/1"], "http://web/", "203.0.113.1"); code != http.StatusForbidden {
		t.Errorf("a client that forges an address gets %d through the gateway", code)
	}
	apply("203.0.113.0/24", 1, nil)
	if code, _ := forwarding(t, clients["HTTP/1"], "http://web/", "203.0.113.1"); code != http.StatusOK {
		t.Errorf("the client of a trusted proxy gets %d through the gateway", code)
	}
	for who, addr := range map[string]string{"a peer of the mesh": m.at(webIP), "a neighbour": m.direct(webIP)} {
		if code, _ := forwarding(t, httpClient(t, addr, ""), "http://web/", "203.0.113.1, 203.0.113.1, 203.0.113.1"); code != http.StatusForbidden {
			t.Errorf("%s that forges an address gets %d", who, code)
		}
	}
}
