package authz_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/http1"
)

// thousands are 1000 rules of several sorts, of which the last allows the request of usual.
var thousands = map[string]func(i int) snapshot.AccessRule{
	"paths and principals": func(i int) snapshot.AccessRule {
		return snapshot.AccessRule{
			From: []snapshot.AccessSource{{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/client-%d", i%10)}}},
			To:   []snapshot.AccessOperation{{Methods: []string{"GET"}, Paths: []string{fmt.Sprintf("/api/v1/things-%d/*", i)}}},
		}
	},
	"exact paths": func(i int) snapshot.AccessRule {
		return to(snapshot.AccessOperation{Paths: []string{fmt.Sprintf("/api/v1/things-%d/1", i)}})
	},
	"suffixes": func(i int) snapshot.AccessRule {
		return to(snapshot.AccessOperation{Paths: []string{fmt.Sprintf("*things-%d/1", i)}})
	},
	"templates": func(i int) snapshot.AccessRule {
		return to(snapshot.AccessOperation{Paths: []string{fmt.Sprintf("/api/v1/things-%d/{*}", i)}})
	},
	"hosts": func(i int) snapshot.AccessRule {
		return to(snapshot.AccessOperation{Hosts: []string{fmt.Sprintf("host-%d.example", i)}})
	},
	"same path": func(i int) snapshot.AccessRule {
		return snapshot.AccessRule{
			From: []snapshot.AccessSource{{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/client-%d", i)}}},
			To:   []snapshot.AccessOperation{{Paths: []string{"/api/*"}}},
		}
	},
	"blocks": func(i int) snapshot.AccessRule {
		return snapshot.AccessRule{From: []snapshot.AccessSource{{IPBlocks: []string{fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)}}}}
	},
	"headers": func(i int) snapshot.AccessRule {
		return snapshot.AccessRule{When: []snapshot.AccessCondition{{Attribute: "request.headers", Names: []string{"x-user"}, Values: []string{fmt.Sprintf("user-%d", i)}}}}
	},
}

func to(o snapshot.AccessOperation) snapshot.AccessRule {
	return snapshot.AccessRule{To: []snapshot.AccessOperation{o}}
}

// usual is a request that rule 999 of each sort matches.
func usual(r *authz.Request) {
	r.Reset()
	r.Peer = "spiffe://cluster.local/ns/default/sa/client-999"
	r.Source, r.Destination, r.Port = netip.AddrFrom4([4]byte{10, 3, 231, 9}), netip.AddrFrom4([4]byte{10, 9, 9, 9}), 8080
	r.Remote = r.Source
	r.HTTP, r.Method, r.Path, r.Authority = true, get, plainPath, authority
	r.Header = header
}

var get, plainPath, oddPath, authority = []byte("GET"), []byte("/api/v1/things-999/1?a=b"), []byte("/api/v1//things-999/%2e%2f;a/1"), []byte("host-999.example:8080")

var header = http1.Header{
	http1.NewField("Host", "host-999.example:8080"), http1.NewField("User-Agent", "curl/8"), http1.NewField("Accept", "*/*"),
	http1.NewField("X-User", "user-999"), http1.NewField("X-Request-Id", "1"),
}

func policies(tb testing.TB, sort string, n int) *authz.Policies {
	tb.Helper()
	rules := make([]snapshot.AccessRule, n)
	for i := range rules {
		rules[i] = thousands[sort](999 - i)
		if sort == "paths and principals" {
			rules[i].From = []snapshot.AccessSource{{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/client-%d", 999-i%10)}}}
		}
	}
	p, err := authz.Compile([]snapshot.AccessPolicy{{Namespace: "default", Name: "allow", Action: snapshot.AccessAllow, Rules: rules}}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// BenchmarkDecide is the cost of one verdict; the bound is 2 µs with 1000 rules.
func BenchmarkDecide(b *testing.B) {
	for sort := range thousands {
		for _, n := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", sort, n), func(b *testing.B) {
				p := policies(b, sort, n)
				var r authz.Request
				b.ReportAllocs()
				for b.Loop() {
					usual(&r)
					if v := p.Decide(&r); !v.Allowed {
						b.Fatal("refused")
					}
				}
			})
		}
	}
}

// A verdict needs no memory, however many rules there are and however a path is spelled.
func TestDecideAllocates(t *testing.T) {
	for sort := range thousands {
		p := policies(t, sort, 1000)
		var r authz.Request
		for _, path := range [][]byte{plainPath, oddPath} {
			ask := func() {
				usual(&r)
				r.Path = path
				p.Decide(&r)
			}
			ask()
			if n := testing.AllocsPerRun(100, ask); n > 0 {
				t.Errorf("%s: %v allocations for %s, want none", sort, n, path)
			}
		}
	}
}
