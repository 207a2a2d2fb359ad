package forward

import (
	"net/netip"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/route"
	"github.com/composure-mesh/composure/proxy/table"
)

// outline is what a decision comes to.
type outline struct {
	flag                         exchange.Flag
	route, name                  string
	address                      string // of a destination that is no endpoint of a cluster
	identity                     string // that it must prove
	port                         uint16
	source, destination, service string
	fromCluster                  bool
}

func sketch(d decision) outline {
	o := outline{route: d.route, name: d.name, port: d.port, fromCluster: d.cluster != nil}
	if d.fault != nil {
		o.flag = d.fault.Flag
	}
	switch {
	case d.cluster != nil:
	case d.endpoint != nil:
		o.address, o.identity = d.endpoint.Target(d.port).Addr.String(), d.endpoint.Identity
	case d.address.IsValid():
		o.address = d.address.String()
	}
	if w := d.ends.Source; w != nil {
		o.source = w.Name
	}
	if w := d.ends.Destination; w != nil {
		o.destination = w.Name
	}
	if s := d.ends.Service; s != nil {
		o.service = s.Name
	}
	return o
}

func TestSpeaksHTTP2(t *testing.T) {
	const out, in, edge = exchange.Outbound, exchange.Inbound, exchange.Gateway
	for _, tt := range []struct {
		declared               mesh.Protocol
		direction              exchange.Direction
		client, grpc, switched bool
		want                   bool
	}{
		{"", out, true, false, false, true},
		{"", out, false, false, false, false},
		{"", out, false, true, false, false}, // a client of HTTP/1 has dialled one that speaks it, too
		{"", in, true, false, false, true},
		{"", in, false, false, false, false},
		{"", edge, true, false, false, false}, // a browser that speaks HTTP/2 says nothing of the application
		{"", edge, true, true, false, true},
		{mesh.ProtocolHTTP, out, true, false, false, false},
		{mesh.ProtocolHTTP, out, true, true, false, true},
		{mesh.ProtocolHTTP2, out, false, false, false, true},
		{mesh.ProtocolGRPC, in, false, false, false, true},
		{mesh.ProtocolGRPC, edge, true, false, false, true},
		{mesh.ProtocolHTTP2, out, false, false, true, false}, // websocket
	} {
		o := &origin{direction: tt.direction, http2: tt.client}
		if got := speaksHTTP2(tt.declared, o, tt.grpc, tt.switched); got != tt.want {
			t.Errorf("%+v: got %v", tt, got)
		}
	}
}

func TestDecide(t *testing.T) {
	const suffix = ".default.svc.cluster.local"
	id := func(n string) string { return "spiffe://cluster.local/ns/default/sa/" + n }
	tab, err := table.Build(&snapshot.Snapshot{
		Proxy: snapshot.Workload{Name: "me", Service: "me"},
		Workloads: []snapshot.Workload{
			{Name: "lone", Namespace: "default", Service: "lone", Identity: id("lone"), Addresses: []string{"10.0.0.4"}},
			{Name: "me", Namespace: "default", Service: "me", Identity: id("me"), Addresses: []string{"10.0.0.1"}},
			{Name: "web", Namespace: "default", Service: "web", Identity: id("web"), Addresses: []string{"10.0.0.2"}},
		},
		Services: []snapshot.Service{
			{Host: "empty" + suffix, Name: "empty"},
			{Host: "lone" + suffix, Name: "lone", Endpoints: []string{"lone"}},
			{Host: "me" + suffix, Name: "me", Endpoints: []string{"me"}},
			{Host: "web" + suffix, Name: "web", Endpoints: []string{"web"}},
		},
		VirtualHosts: []snapshot.VirtualHost{
			{Name: "empty", Domains: []string{"empty"}, Service: "empty" + suffix, Routes: []snapshot.Route{{Destinations: []snapshot.Destination{{Service: "empty" + suffix, Weight: 1}}}}},
			{Name: "me", Domains: []string{"me"}, Service: "me" + suffix, Routes: []snapshot.Route{{Destinations: []snapshot.Destination{{Service: "me" + suffix, Weight: 1}}}}},
			{Name: "web", Domains: []string{"web"}, Service: "web" + suffix, Routes: []snapshot.Route{
				{Name: "moved", Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: "/moved"}}}, Destinations: []snapshot.Destination{{Service: "lone" + suffix, Port: 81, Weight: 1}}},
				{Name: "gone", Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: "/gone"}}}, Destinations: []snapshot.Destination{{Service: "gone" + suffix, Weight: 1}}},
				{Name: "get", Matches: []snapshot.Match{{Method: &snapshot.StringMatch{Exact: "GET"}}}, Destinations: []snapshot.Destination{{Service: "web" + suffix, Weight: 1}}},
			}},
		},
		Gateways: []snapshot.GatewayServer{{Port: 8080, VirtualHosts: []snapshot.VirtualHost{
			{Name: "shop", Domains: []string{"shop.example.com"}, Routes: []snapshot.Route{{Name: "all", Destinations: []snapshot.Destination{{Service: "web" + suffix, Port: 9080, Weight: 1}}}}},
		}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name        string
		direction   exchange.Direction
		dst, peer   string
		method, url string
		want        outline
	}{
		{"inbound goes to the very address", exchange.Inbound, "10.0.0.1:9080", id("web"), "GET", "me/",
			outline{route: "default", name: "inbound|9080||", address: "10.0.0.1:9080", port: 9080, source: "web", destination: "me", service: "me"}},
		{"inbound under any name", exchange.Inbound, "10.0.0.1:9080", "", "GET", "web/",
			outline{route: "default", name: "inbound|9080||", address: "10.0.0.1:9080", port: 9080, destination: "me", service: "me"}},
		{"outbound by name", exchange.Outbound, "10.0.0.2:9080", "", "GET", "web/",
			outline{route: "get", name: "outbound|9080||web" + suffix, port: 9080, source: "me", service: "web", fromCluster: true}},
		{"outbound to another service and port", exchange.Outbound, "10.0.0.2:9080", "", "GET", "web/moved",
			outline{route: "moved", name: "outbound|81||lone" + suffix, port: 81, source: "me", service: "lone", fromCluster: true}},
		{"outbound to a service that is gone", exchange.Outbound, "10.0.0.2:9080", "", "GET", "web/gone",
			outline{flag: exchange.FlagNoCluster, route: "gone", name: "outbound|9080||gone" + suffix, port: 9080, source: "me", service: "web"}},
		{"outbound without a route", exchange.Outbound, "10.0.0.2:9080", "", "POST", "web/",
			outline{flag: exchange.FlagNoRoute, source: "me", destination: "web", service: "web"}},
		{"outbound to nobody", exchange.Outbound, "10.9.9.9:9080", "", "GET", "empty/",
			outline{flag: exchange.FlagNoHealthyUpstream, route: "default", name: "outbound|9080||empty" + suffix, port: 9080, source: "me", service: "empty", fromCluster: true}},
		{"outbound to a workload without virtual host", exchange.Outbound, "10.0.0.4:70", "", "GET", "lone/",
			outline{route: "default", name: "outbound|70||lone" + suffix, address: "10.0.0.4:70", identity: id("lone"), port: 70, source: "me", destination: "lone", service: "lone"}},
		{"outbound to the outside", exchange.Outbound, "93.184.216.34:80", "", "GET", "example.com/",
			outline{route: "allow_any", name: "PassthroughCluster", address: "93.184.216.34:80", port: 80, source: "me"}},
		{"gateway", exchange.Gateway, "10.0.0.1:8080", "", "GET", "shop.example.com/",
			outline{route: "all", name: "outbound|9080||web" + suffix, port: 9080, source: "me", service: "web", fromCluster: true}},
		{"gateway for another host", exchange.Gateway, "10.0.0.1:8080", "", "GET", "example.com/", outline{flag: exchange.FlagNoRoute, source: "me"}},
		{"gateway at another port", exchange.Gateway, "10.0.0.1:8081", "", "GET", "shop.example.com/", outline{flag: exchange.FlagNoRoute, source: "me"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := &origin{direction: tt.direction, dst: netip.MustParseAddrPort(tt.dst), remote: netip.MustParseAddrPort("10.7.7.7:1"), peer: tt.peer}
			if tt.direction == exchange.Inbound {
				o.inbound = table.InboundCluster(o.dst.Port())
			}
			host, path := tt.url, ""
			for i := range tt.url {
				if tt.url[i] == '/' {
					host, path = tt.url[:i], tt.url[i:]
					break
				}
			}
			q := &route.Request{Method: []byte(tt.method), Path: []byte(path), Authority: []byte(host), Port: o.dst.Port()}
			if got := sketch(decide(tab, o, q, 0)); got != tt.want {
				t.Errorf("got\n%+v, want\n%+v", got, tt.want)
			}
		})
	}
}
