package traffic

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/proxy/dns"
	"github.com/composure-mesh/composure/proxy/table"
)

const namesRules = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.example.com]
  ports: [{number: 5432, name: db, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.80}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: other}
spec:
  hosts: [Other.example.com]
  ports: [{number: 5432, name: db, protocol: TCP}, {number: 9080, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.81}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: addressed}
spec:
  hosts: [addressed.example.com]
  addresses: [203.0.113.7, 203.0.113.64/26]
  ports: [{number: 5432, name: db, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.82}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: ["*.example.net", www.example.net]
  ports: [{number: 443, name: https, protocol: HTTPS}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: gone}
spec:
  hosts: [gone, www.example.org]
  http: [{route: [{destination: {host: details}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: rules-for-an-entry}
spec:
  hosts: [other.example.com]
  tcp: [{match: [{port: 5432}], route: [{destination: {host: ratings}}]}]
`

// TestNames says what DNS in the sidecar answers: "-" is left to Docker, "?" goes before a virtual address that answers
// only what Docker does not know.
func TestNames(t *testing.T) {
	s := open(t, "productpage-v1", namesRules)
	for i := range s.facts.Workloads { // ratings has been stopped
		if w := &s.facts.Workloads[i]; w.Name == "ratings-v1" {
			w.Running, w.Addresses = false, nil
		}
	}
	s.apply(namesRules)
	const reviews = "10.0.0.4 10.0.0.5 10.0.0.6"
	for name, want := range map[string]string{
		"reviews": "-", "reviews.default": reviews, "reviews.default.svc": reviews,
		"reviews.default.svc.cluster.local": reviews, "reviews.service.consul": reviews,
		"reviews.elsewhere": "-", "nobody.default": "-", "default.svc.cluster.local": "-", "": "-",
		"ratings": "virtual", "ratings.default": "virtual", "ratings.service.consul": "virtual",
		"db.example.com": "virtual", "other.example.com": "virtual", "addressed.example.com": "203.0.113.7",
		"www.example.net": "-", "a.example.net": "-", "*.example.net": "-", // the real address is wanted
		"gone": "?virtual", "gone.default": "virtual", "gone.default.svc.cluster.local": "virtual", "www.example.org": "-",
	} {
		got := answered(s.table.Load(), name)
		if got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

func answered(tab *table.Table, name string) string {
	addresses, meaning := tab.Resolve([]byte(name))
	if meaning == dns.Unknown {
		return "-"
	}
	list := []string{}
	for _, a := range addresses {
		if table.IsVirtual(a) {
			list = append(list, "virtual")
			continue
		}
		list = append(list, a.String())
	}
	return map[dns.Meaning]string{dns.Fallback: "?"}[meaning] + strings.Join(list, " ")
}

// TestVirtualAddresses has connections to the addresses that DNS gave for two entries which share a port.
func TestVirtualAddresses(t *testing.T) {
	s := open(t, "productpage-v1", namesRules)
	tab := s.table.Load()
	at := func(name string, port uint16) netip.AddrPort {
		t.Helper()
		addresses, _ := tab.Resolve([]byte(name))
		if len(addresses) != 1 {
			t.Fatalf("%s is %v, want one address", name, addresses)
		}
		return netip.AddrPortFrom(addresses[0], port)
	}
	for _, c := range []struct {
		name string
		port uint16
		want string
	}{
		{"db.example.com", 5432, "outbound|5432||db.example.com 192.0.2.80:5432 "},
		{"db.example.com", 6000, "outbound|6000||db.example.com 192.0.2.80:6000 "}, // not declared, and nothing else is meant
		{"other.example.com", 5432, "outbound|5432||ratings.default.svc.cluster.local 10.0.0.3:5432 "},
		{"addressed.example.com", 5432, "outbound|5432||addressed.example.com 192.0.2.82:5432 "},
		{"gone.default", 5432, "BlackHoleCluster - NR"},
	} {
		got := tab.Session(at(c.name, c.port), false, "", 0)
		target := got.Target.Addr.String()
		if got.Flag != "" {
			target = "-"
		}
		if is := fmt.Sprintf("%s %s %s", got.Cluster, target, got.Flag); is != c.want {
			t.Errorf("%s:%d goes to %q, want %q", c.name, c.port, is, c.want)
		}
	}
	if got := tab.Session(netip.MustParseAddrPort("240.240.255.254:80"), false, "", 0); got.Flag != "NR" {
		t.Errorf("an address that nobody has: %+v", got)
	}
	// HTTP goes by its Host, and where that says nothing by the address.
	for authority, want := range map[string]string{"other.example.com": "other.example.com", "10.1.1.1": "other.example.com", "reviews": "reviews.default.svc.cluster.local"} {
		if vh := tab.Outbound(at("other.example.com", 9080), []byte(authority)).VirtualHost; vh == nil || vh.Name != want {
			t.Errorf("HTTP for %s goes to %+v, want %s", authority, vh, want)
		}
	}
	if p := tab.Protocol(at("other.example.com", 9080)); p != "http" {
		t.Errorf("protocol %q, want http", p)
	}
	// The same after a restart, and in another proxy.
	if again := open(t, "details-v1", namesRules).table.Load(); answeredAddress(again, "db.example.com") != at("db.example.com", 0).Addr() {
		t.Error("another proxy has another address")
	}
}

func answeredAddress(tab *table.Table, name string) netip.Addr {
	addresses, _ := tab.Resolve([]byte(name))
	return addresses[0]
}
