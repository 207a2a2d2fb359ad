package table_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/table"
)

const domain = ".default.svc.cluster.local"

func to(service string) []snapshot.Route {
	return []snapshot.Route{{Destinations: []snapshot.Destination{{Service: service + domain, Weight: 1}}}}
}

// shop: reviews-v1 and -v2 stand behind reviews, with services of their own; proxied keeps Host: example.com. v2 is
// unhealthy and so no endpoint.
func shop() *snapshot.Snapshot {
	id := func(n string) string { return "spiffe://cluster.local/ns/default/sa/" + n }
	return &snapshot.Snapshot{
		Version: "1",
		Proxy:   snapshot.Workload{Name: "me", Service: "me", Identity: id("me"), Addresses: []string{"10.0.0.1"}},
		Workloads: []snapshot.Workload{
			{Name: "me", Namespace: "default", Service: "me", Identity: id("me"), Addresses: []string{"10.0.0.1"}, Ports: []snapshot.Port{{Number: 9000, Protocol: mesh.ProtocolTCP}}},
			{Name: "plain", Namespace: "default", Service: "plain", Addresses: []string{"10.0.0.5"}},
			{Name: "reviews-v1", Namespace: "default", Service: "reviews-v1", Services: []string{"reviews" + domain, "reviews-v1" + domain}, Identity: id("v1"), Addresses: []string{"10.0.0.2", "fd00::2"}},
			{Name: "reviews-v2", Namespace: "default", Service: "reviews-v2", Services: []string{"reviews" + domain, "reviews-v2" + domain}, Identity: id("v2"), Addresses: []string{"10.0.0.3"}},
		},
		Services: []snapshot.Service{
			{Host: "me" + domain, Name: "me", Endpoints: []string{"me"}},
			{Host: "reviews" + domain, Name: "reviews", Endpoints: []string{"reviews-v1"}, Subsets: []snapshot.Subset{{Name: "v2"}}},
			{Host: "reviews-v1" + domain, Name: "reviews-v1", Endpoints: []string{"reviews-v1"}},
			{Host: "reviews-v2" + domain, Name: "reviews-v2"},
		},
		VirtualHosts: []snapshot.VirtualHost{
			{Name: "ext", Domains: []string{"api.example.com", "*.example.org", "*.deep.example.org"}, Routes: to("reviews")},
			{Name: "me", Domains: []string{"me"}, Service: "me" + domain, Routes: to("me")},
			{Name: "reviews", Domains: []string{"reviews", "reviews.default", "reviews" + domain}, Service: "reviews" + domain, Routes: to("reviews")},
			{Name: "reviews-v1", Domains: []string{"reviews-v1"}, Service: "reviews-v1" + domain, Routes: to("reviews-v1")},
			{Name: "reviews-v2", Domains: []string{"reviews-v2"}, Service: "reviews-v2" + domain, Routes: to("reviews-v2")},
		},
		Gateways: []snapshot.GatewayServer{{Port: 80, VirtualHosts: []snapshot.VirtualHost{
			{Name: "deep", Domains: []string{"*.deep.example.org"}, Routes: to("reviews")},
			{Name: "wide", Domains: []string{"*.example.org"}, Routes: to("reviews")},
			{Name: "exact", Domains: []string{"a.deep.example.org"}, Routes: to("reviews")},
			{Name: "all", Domains: []string{"*"}, Routes: to("reviews")},
		}}},
	}
}

func build(t *testing.T, s *snapshot.Snapshot, old *table.Table) *table.Table {
	t.Helper()
	tab, err := table.Build(s, old)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestOutbound(t *testing.T) {
	tab := build(t, shop(), nil)
	tests := []struct{ name, dst, authority, host, workload string }{
		{"a service by name, at its endpoint", "10.0.0.2:9080", "reviews:9080", "reviews", "reviews-v1"},
		{"by full name, in any case", "10.0.0.2:9080", "Reviews.default.SVC.cluster.local", "reviews", "reviews-v1"},
		{"at an endpoint's other address", "[fd00::2]:9080", "reviews", "reviews", "reviews-v1"},
		{"at an address mapped to IPv6", "[::ffff:10.0.0.2]:9080", "reviews", "reviews", "reviews-v1"},
		{"at a member that is unhealthy", "10.0.0.3:9080", "reviews", "reviews", "reviews-v2"},
		{"at an unknown address", "10.9.9.9:9080", "reviews", "reviews", ""},
		{"another service's name", "10.0.0.1:9080", "reviews", "me", "me"},
		{"a foreign name", "10.0.0.2:9080", "example.com", "reviews-v1", "reviews-v1"},
		{"an address as name", "10.0.0.2:9080", "10.0.0.2:9080", "reviews-v1", "reviews-v1"},
		{"no name", "10.0.0.2:9080", "", "reviews-v1", "reviews-v1"},
		{"a host that is no service", "93.184.216.34:80", "api.example.com", "ext", ""},
		{"a host that is no service, at a workload", "10.0.0.2:80", "api.example.com", "ext", "reviews-v1"},
		{"a wildcard", "93.184.216.34:80", "a.b.example.org", "ext", ""},
		{"a wildcard is not its own suffix", "93.184.216.34:80", "example.org", "", ""},
		{"outside", "93.184.216.34:80", "example.com", "", ""},
		{"a workload without virtual host", "10.0.0.5:80", "plain", "", "plain"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tab.Outbound(netip.MustParseAddrPort(tt.dst), []byte(tt.authority))
			var host, workload string
			if got.VirtualHost != nil {
				host = got.VirtualHost.Name
			}
			if got.Workload != nil {
				workload = got.Workload.Name
			}
			if host != tt.host || workload != tt.workload {
				t.Errorf("got %q at %q, want %q at %q", host, workload, tt.host, tt.workload)
			}
		})
	}
}

func TestGatewayPrefersTheMoreSpecificDomain(t *testing.T) {
	tab := build(t, shop(), nil)
	for authority, want := range map[string]string{
		"a.deep.example.org:80": "exact", "b.deep.example.org": "deep", "deep.example.org": "wide", "x.example.org": "wide", "example.org": "all", "": "all",
	} {
		if vh := tab.Gateway(80, "", []byte(authority)); vh == nil || vh.Name != want {
			t.Errorf("%q: got %v, want %s", authority, vh, want)
		}
	}
	if vh := tab.Gateway(81, "", []byte("a.deep.example.org")); vh != nil {
		t.Errorf("port 81: got %v", vh)
	}
}

func TestSelfIsDialledInPlainText(t *testing.T) {
	tab := build(t, shop(), nil)
	if e := tab.Cluster("me"+domain, "").Endpoints[0]; e.Identity != "" {
		t.Errorf("our own endpoint wants %q", e.Identity)
	}
	if e := tab.Cluster("reviews"+domain, "").Endpoints[0]; e.Identity == "" {
		t.Error("a peer's endpoint wants no identity")
	}
}

func TestExcludedPortIsDialledInPlainText(t *testing.T) {
	s := shop()
	old := build(t, s, nil)
	s = shop()
	s.Workloads[2].PlainPorts = []uint16{8001}
	tab := build(t, s, old)
	for port, plain := range map[uint16]bool{8000: false, 8001: true} {
		if got := tab.Cluster("reviews"+domain, "").Endpoints[0].Target(port); (got.Identity == "") != plain {
			t.Errorf("requests to port %d want identity %q", port, got.Identity)
		}
		if got := tab.Session(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), port), false, "", 0).Target; (got.Identity == "") != plain {
			t.Errorf("connections to port %d want identity %q", port, got.Identity)
		}
	}
}

func TestSession(t *testing.T) {
	tab := build(t, shop(), nil)
	got := tab.Session(netip.MustParseAddrPort("10.0.0.2:6379"), false, "", 0)
	if got.Target.Identity != "spiffe://cluster.local/ns/default/sa/v1" || got.Cluster != "outbound|6379||reviews-v1"+domain ||
		got.Ends.Destination.Name != "reviews-v1" || got.Ends.Source.Name != "me" || got.Endpoint == nil {
		t.Errorf("got %+v", got)
	}
	if got := tab.Session(netip.MustParseAddrPort("9.9.9.9:443"), true, "example.com", 0); got.Target.Identity != "" || got.Cluster != table.PassthroughCluster || got.Endpoint != nil {
		t.Errorf("got %+v", got)
	}
}

func weighted(service string, port uint16, weight uint32) snapshot.Destination {
	return snapshot.Destination{Service: service + domain, Port: port, Weight: weight}
}

func TestStreams(t *testing.T) {
	s := shop()
	empty := snapshot.Destination{Service: "reviews" + domain, Subset: "v2", Weight: 1}
	s.TLSRoutes = []snapshot.TLSRoute{
		{ServerNames: []string{"a.example.com"}, TCPRoute: snapshot.TCPRoute{Port: 443, Destinations: []snapshot.Destination{weighted("reviews", 8443, 1)}}},
		{ServerNames: []string{"*.example.com"}, TCPRoute: snapshot.TCPRoute{Destinations: []snapshot.Destination{weighted("me", 0, 1)}}},
		{ServerNames: []string{"empty.test"}, TCPRoute: snapshot.TCPRoute{Destinations: []snapshot.Destination{empty}}},
		{ServerNames: []string{"*"}, TCPRoute: snapshot.TCPRoute{Port: 9443, Destinations: []snapshot.Destination{weighted("gone", 0, 1)}}},
	}
	s.TCPRoutes = []snapshot.TCPRoute{
		{Service: "reviews" + domain, Port: 6379, Destinations: []snapshot.Destination{weighted("me", 0, 1), weighted("reviews", 7000, 3)}},
		{Subnets: []string{"192.0.2.0/24", "198.51.100.7"}, Destinations: []snapshot.Destination{weighted("reviews", 1, 1)}},
	}
	tab := build(t, s, nil)
	tests := []struct {
		name, dst string
		tls       bool
		sni       string
		random    uint64
		cluster   string
		flag      exchange.Flag
	}{
		{"a server name", "9.9.9.9:443", true, "a.example.com", 0, "outbound|8443||reviews" + domain, ""},
		{"in any case", "9.9.9.9:443", true, "A.Example.com", 0, "outbound|8443||reviews" + domain, ""},
		{"at another port", "9.9.9.9:444", true, "a.example.com", 0, "outbound|444||me" + domain, ""},
		{"a wildcard", "9.9.9.9:443", true, "b.c.example.com", 0, "outbound|443||me" + domain, ""},
		{"a wildcard is not its own suffix", "9.9.9.9:443", true, "example.com", 0, table.PassthroughCluster, ""},
		{"what is not TLS has no server name", "9.9.9.9:9443", false, "", 0, table.PassthroughCluster, ""},
		{"any name, of an unknown service", "9.9.9.9:9443", true, "", 0, "outbound|9443||gone" + domain, exchange.FlagNoCluster},
		{"without endpoints", "9.9.9.9:443", true, "empty.test", 0, "outbound|443|v2|reviews" + domain, exchange.FlagNoHealthyUpstream},
		{"a service, by weight", "10.0.0.2:6379", false, "", 0, "outbound|6379||me" + domain, ""},
		{"a service, by weight, the other", "10.0.0.2:6379", false, "", 3, "outbound|7000||reviews" + domain, ""},
		{"a service at its unhealthy member", "10.0.0.3:6379", false, "", 3, "outbound|7000||reviews" + domain, ""},
		{"a service at another port", "10.0.0.2:6380", false, "", 0, "outbound|6380||reviews-v1" + domain, ""},
		{"another service", "10.0.0.5:6379", false, "", 0, table.PassthroughCluster, ""},
		{"a subnet", "192.0.2.77:5", false, "", 0, "outbound|1||reviews" + domain, ""},
		{"an address", "198.51.100.7:5", true, "x", 0, "outbound|1||reviews" + domain, ""},
		{"beside the address", "198.51.100.8:5", false, "", 0, table.PassthroughCluster, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tab.Session(netip.MustParseAddrPort(tt.dst), tt.tls, tt.sni, tt.random)
			if got.Cluster != tt.cluster || got.Flag != tt.flag {
				t.Errorf("got %s %q, want %s %q", got.Cluster, got.Flag, tt.cluster, tt.flag)
			}
		})
	}
}

func TestProtocol(t *testing.T) {
	tab := build(t, shop(), nil)
	for dst, want := range map[string]mesh.Protocol{
		"10.0.0.1:9000": mesh.ProtocolTCP, "10.0.0.1:9001": mesh.ProtocolAuto, "10.0.0.1:5432": mesh.ProtocolTCP, "9.9.9.9:3306": mesh.ProtocolTCP, "9.9.9.9:80": mesh.ProtocolAuto,
	} {
		if got := tab.Protocol(netip.MustParseAddrPort(dst)); got != want {
			t.Errorf("%s: %q, want %q", dst, got, want)
		}
	}
}

func TestPeer(t *testing.T) {
	tab := build(t, shop(), nil)
	const v1 = "spiffe://cluster.local/ns/default/sa/v1"
	for _, tt := range []struct{ ip, identity, want string }{
		{"10.0.0.2", v1, "reviews-v1"}, {"10.0.0.2", "", "reviews-v1"}, {"10.9.9.9", v1, "reviews-v1"}, {"10.0.0.3", v1, "reviews-v1"}, {"10.9.9.9", "", ""},
	} {
		got := ""
		if w := tab.Peer(netip.MustParseAddr(tt.ip), tt.identity); w != nil {
			got = w.Name
		}
		if got != tt.want {
			t.Errorf("%s as %q: %q, want %q", tt.ip, tt.identity, got, tt.want)
		}
	}
}

func TestInboundServiceIsOurOwn(t *testing.T) {
	tab := build(t, shop(), nil)
	for _, authority := range []string{"me", "reviews", "example.com", ""} {
		if s := tab.Inbound([]byte(authority)); s == nil || s.Name != "me" {
			t.Errorf("%q: got %v", authority, s)
		}
	}
}

// TestEndpointsSurvive swaps tables: what is the same place goes on with its counters, and what has become another does not.
func TestEndpointsSurvive(t *testing.T) {
	one := build(t, shop(), nil)
	e := one.Cluster("reviews"+domain, "").Endpoints[0]
	e.Begin()
	s := shop()
	s.Workloads[2].Labels = map[string]string{"version": "v1"}
	two := build(t, s, one)
	if got := two.Cluster("reviews"+domain, "").Endpoints[0]; got.Active() != 1 || got.Workload.Labels["version"] != "v1" {
		t.Errorf("active %d, labels %v", got.Active(), got.Workload.Labels)
	}
	s = shop()
	s.Workloads[2].Identity += "-other"
	three := build(t, s, two)
	if got := three.Cluster("reviews"+domain, "").Endpoints[0]; got.Active() != 0 {
		t.Error("an address under another identity took over its counters")
	}
}

func TestBuildRefuses(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(*snapshot.Snapshot)
		want  string
	}{
		{"bad address", func(s *snapshot.Snapshot) { s.Workloads[1].Addresses[0] = "x" }, "workload plain: addresses: "},
		{"address twice", func(s *snapshot.Snapshot) { s.Workloads[1].Addresses[0] = "10.0.0.2" }, "address 10.0.0.2 is also workload plain's"},
		{"workload twice", func(s *snapshot.Snapshot) { s.Workloads[1].Name = "me" }, "workload me: listed twice"},
		{"unknown endpoint", func(s *snapshot.Snapshot) { s.Services[1].Endpoints[0] = "gone" }, "service reviews.default.svc.cluster.local: endpoint gone is no workload"},
		{"unknown balancer", func(s *snapshot.Snapshot) { s.Services[1].Policy.LoadBalancer = "FANCY" }, `load balancer "FANCY" is not known`},
		{"bad regex", func(s *snapshot.Snapshot) {
			s.VirtualHosts[2].Routes[0].Matches = []snapshot.Match{{URI: &snapshot.StringMatch{Regex: "("}}}
		}, "virtual host reviews: routes[0]: matches[0].uri: regex"},
		{"domain twice", func(s *snapshot.Snapshot) { s.VirtualHosts[1].Domains[0] = "REVIEWS" }, `domain "reviews" is also in virtual host me`},
		{"unknown service", func(s *snapshot.Snapshot) { s.VirtualHosts[1].Service = "gone" }, "virtual host me: service gone is not in the snapshot"},
		{"bad address of a name", func(s *snapshot.Snapshot) { s.VirtualHosts[2].Addresses = []string{"x"} }, "virtual host reviews: addresses: "},
		{"virtual address twice", func(s *snapshot.Snapshot) {
			s.VirtualHosts[1].Addresses, s.VirtualHosts[2].Addresses = []string{"240.240.0.1"}, []string{"240.240.0.1"}
		}, "virtual host reviews: address 240.240.0.1 is also that of virtual host me"},
		{"stream without destination", func(s *snapshot.Snapshot) {
			s.TCPRoutes = []snapshot.TCPRoute{{Resource: "virtualservice/default/db: tcp[0]", Destinations: []snapshot.Destination{{Service: "x"}}}}
		}, "tcpRoutes[0] (virtualservice/default/db: tcp[0]): destinations: no one has a weight above 0"},
		{"stream subnet", func(s *snapshot.Snapshot) {
			s.TCPRoutes = []snapshot.TCPRoute{{Subnets: []string{"10.0.0.0/33"}, Destinations: []snapshot.Destination{{Service: "x", Weight: 1}}}}
		}, `subnets[0]: "10.0.0.0/33" is neither`},
		{"gateway stream without name", func(s *snapshot.Snapshot) {
			s.Gateways[0].TLSRoutes = []snapshot.TLSRoute{{TCPRoute: snapshot.TCPRoute{Destinations: []snapshot.Destination{{Service: "x", Weight: 1}}}}}
		}, "gateway port 80: tlsRoutes[0] (): serverNames: it needs one"},
		{"gateway port twice", func(s *snapshot.Snapshot) { s.Gateways = append(s.Gateways, snapshot.GatewayServer{Port: 80}) }, "gateway port 80: listed twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := shop()
			tt.spoil(s)
			tab, err := table.Build(s, nil)
			if err == nil || tab != nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "snapshot 1: ") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestEmptySnapshot(t *testing.T) {
	tab := build(t, &snapshot.Snapshot{}, nil)
	if out := tab.Outbound(netip.MustParseAddrPort("1.2.3.4:80"), []byte("x")); out.VirtualHost != nil || out.Workload != nil || tab.Self() != nil || tab.Inbound(nil) != nil {
		t.Errorf("an empty table knows %+v", out)
	}
}
