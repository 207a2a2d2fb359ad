package proxy

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestResolvedEndpoints: what is outside is reached by the addresses that its name has, at the port that its service names.
func TestResolvedEndpoints(t *testing.T) {
	m := newMesh(t)
	outside := listenTCP(t, "127.0.0.1:0")
	target := listen.AddrPort(outside.Addr()).Port()
	listeners := []net.Listener{outside}
	if six, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(int(target)))); err == nil { // localhost may be this, too
		t.Cleanup(func() { _ = six.Close() })
		listeners = append(listeners, six)
	}
	for _, ln := range listeners {
		go func() {
			_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "outside of ", r.Host) })) // ends with the test
		}()
	}
	s := m.snapshot("client")
	for _, name := range []string{"localhost", "nowhere.invalid"} {
		s.Workloads = append(s.Workloads, snapshot.Workload{Name: name, Resolve: name})
		s.Services = append(s.Services, snapshot.Service{
			Host: name, Name: name, Namespace: "default", Endpoints: []string{name},
			Ports: []snapshot.Port{{Number: m.port, Protocol: mesh.ProtocolHTTP, Target: target}},
		})
		s.VirtualHosts = append(s.VirtualHosts, snapshot.VirtualHost{
			Name: name, Domains: []string{name}, Service: name,
			Routes: []snapshot.Route{{Name: "default", Destinations: []snapshot.Destination{{Service: name, Weight: 1}}}},
		})
	}
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Snapshot = s
	m.client = run(t, cfg)
	awaitReady(t, m.client)
	c := httpClient(t, m.at(netip.MustParseAddr("127.0.0.50")), "")
	if code, body := get(t, c, "http://localhost/"); code != http.StatusOK || body != "outside of localhost" {
		t.Errorf("%d %q", code, body)
	}
	if line := m.client.log.await(t, `"GET / HTTP/1.1" 200`); !containsAll(line, []string{"outbound|" + strconv.Itoa(int(m.port)) + "||localhost"}) {
		t.Errorf("the access log says %s", line)
	}
	if code, _ := get(t, c, "http://nowhere.invalid/"); code != http.StatusServiceUnavailable {
		t.Errorf("a name without addresses is answered %d, want 503", code)
	}
}
