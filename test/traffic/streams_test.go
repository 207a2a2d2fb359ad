package traffic

import (
	"net/http"
	"net/netip"
	"testing"
)

// TestStreams has connections that are no HTTP follow tcp and tls routes: where each of them goes.
func TestStreams(t *testing.T) {
	const rules = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  tcp:
  - match: [{port: 6379, sourceLabels: {app: productpage}}]
    route: [{destination: {host: details, port: {number: 6380}}}]
  - match: [{port: 6379, sourceLabels: {app: reviews}}]
    route: [{destination: {host: productpage}}]
  - match: [{destinationSubnets: [10.0.0.0/30], port: 5432}]
    route: [{destination: {host: reviews, subset: v2}, weight: 1}, {destination: {host: reviews, subset: v3}, weight: 3}]
  - match: [{port: 7000}]
    route: [{destination: {host: nobody}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: outside}
spec:
  hosts: ["*.example.com", db.example.org]
  tls:
  - match: [{sniHosts: [a.example.com], port: 443}]
    route: [{destination: {host: details, port: {number: 443}}}]
  - match: [{sniHosts: ["*.example.com"]}]
    route: [{destination: {host: ratings}}]
  tcp:
  - match: [{destinationSubnets: [192.0.2.0/24]}]
    route: [{destination: {host: details, port: {number: 9080}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: ["*.example.net", www.example.net]
  ports: [{number: 443, name: https, protocol: HTTPS}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.net]
  addresses: [203.0.113.0/24]
  ports: [{number: 5432, name: db, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 198.51.100.7}]
`
	cases := []struct {
		name, from, dst, sni string // sni "-" is not TLS
		cluster              string
		workload             string
		flag                 string
	}{
		{"the address itself", "productpage-v1", "10.0.0.3:8000", "-", "outbound|8000||ratings.default.svc.cluster.local", "ratings-v1", ""},
		{"by port, for this caller", "productpage-v1", "10.0.0.3:6379", "-", "outbound|6380||details.default.svc.cluster.local", "details-v1", ""},
		{"another service's port", "productpage-v1", "10.0.0.4:6379", "-", "outbound|6379||reviews.default.svc.cluster.local", "reviews-v1", ""},
		{"for another caller", "reviews-v1", "10.0.0.3:6379", "-", "outbound|6379||productpage.default.svc.cluster.local", "productpage-v1", ""},
		{"for no rule's caller", "details-v1", "10.0.0.3:6379", "-", "outbound|6379||ratings.default.svc.cluster.local", "ratings-v1", ""},
		{"nobody there", "productpage-v1", "10.0.0.3:7000", "-", "outbound|7000||nobody.default.svc.cluster.local", "", "NC"},
		{"outside", "productpage-v1", "198.51.100.1:443", "www.example.edu", "PassthroughCluster", "", ""},
		{"an entry's name", "productpage-v1", "198.51.100.1:443", "www.example.net", "outbound|443||www.example.net", "", ""},
		{"an entry's wildcard", "productpage-v1", "198.51.100.1:443", "b.example.net", "outbound|443||*.example.net", "", ""},
		{"an entry's name at another port", "productpage-v1", "198.51.100.1:444", "www.example.net", "PassthroughCluster", "", ""},
		{"an entry's address", "productpage-v1", "203.0.113.9:5432", "-", "outbound|5432||db.example.net", "198.51.100.7", ""},
		{"by name and port", "productpage-v1", "198.51.100.1:443", "a.example.com", "outbound|443||details.default.svc.cluster.local", "details-v1", ""},
		{"by name, any port", "productpage-v1", "198.51.100.1:8443", "A.example.com", "outbound|8443||ratings.default.svc.cluster.local", "ratings-v1", ""},
		{"no name", "productpage-v1", "198.51.100.1:443", "", "PassthroughCluster", "", ""},
		{"by subnet", "productpage-v1", "192.0.2.9:25", "-", "outbound|9080||details.default.svc.cluster.local", "details-v1", ""},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t, tt.from, rules)
			tls := tt.sni != "-"
			got := s.table.Load().Session(netip.MustParseAddrPort(tt.dst), tls, map[bool]string{true: tt.sni}[tls], 0)
			workload := ""
			if w := got.Ends.Destination; w != nil {
				workload = w.Name
			}
			if got.Cluster != tt.cluster || workload != tt.workload || string(got.Flag) != tt.flag {
				t.Errorf("goes to %s, %q, flag %q, want %s, %q, %q", got.Cluster, workload, got.Flag, tt.cluster, tt.workload, tt.flag)
			}
		})
	}
	t.Run("by weight", func(t *testing.T) {
		tab := open(t, "productpage-v1", rules).table.Load()
		seen := map[string]int{}
		for random := range uint64(400) {
			seen[tab.Session(netip.MustParseAddrPort("10.0.0.3:5432"), false, "", random).Ends.Destination.Name]++
		}
		if seen["reviews-v2"] != 100 || seen["reviews-v3"] != 300 {
			t.Errorf("connections go to %v, want one to three", seen)
		}
	})
	// HTTP of a host that has no rules for it goes as if there were none.
	t.Run("http beside", func(t *testing.T) {
		if a := open(t, "productpage-v1", rules).client("ratings").do("GET", "ratings:9080/"); a.workload() != "ratings-v1" {
			t.Errorf("status %d of %q", a.StatusCode, a.workload())
		}
	})
}

func TestGatewayStreams(t *testing.T) {
	const rules = `
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 443, name: tls, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: ["*.example.com"]}
  - {port: {number: 6379, name: redis, protocol: TCP}, hosts: ["*"]}
  - {port: {number: 80, name: http, protocol: HTTP}, tls: {httpsRedirect: true}, hosts: ["*.example.com"]}
  - {port: {number: 443, name: late, protocol: TCP}, hosts: ["*"]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example.com, shop.example.net]
  gateways: [front]
  tls:
  - match: [{sniHosts: [shop.example.com]}, {sniHosts: [shop.example.net]}]
    route: [{destination: {host: details}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: redis}
spec:
  hosts: ["*"]
  gateways: [front]
  tcp: [{match: [{port: 6379}], route: [{destination: {host: ratings, port: {number: 6379}}}]}]
`
	s := open(t, "istio-ingressgateway", rules)
	for _, tt := range []struct {
		port    uint16
		sni     string
		cluster string // "" for none
	}{
		{443, "shop.example.com", "outbound|9080||details.default.svc.cluster.local"},
		{443, "shop.example.net", ""}, // not among the server's hosts
		{443, "other.example.com", ""},
		{6379, "", "outbound|6379||ratings.default.svc.cluster.local"},
		{8443, "shop.example.com", ""},
	} {
		got, ok := s.table.Load().GatewaySession(netip.AddrPortFrom(netip.MustParseAddr("10.0.0.7"), tt.port), "", tt.sni != "", tt.sni, 0)
		if ok != (tt.cluster != "") || got.Cluster != tt.cluster {
			t.Errorf("%d, %q: goes to %q, want %q", tt.port, tt.sni, got.Cluster, tt.cluster)
		}
	}
	a := s.client("shop").do("GET", "shop.example.com/a?b")
	if a.StatusCode != http.StatusMovedPermanently || a.Header.Get("Location") != "https://shop.example.com/a?b" {
		t.Errorf("status %d to %q, want 301 to https", a.StatusCode, a.Header.Get("Location"))
	}
}
