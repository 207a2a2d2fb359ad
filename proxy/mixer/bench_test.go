package mixer_test

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/mixer"
)

// ends stands for a table.
type ends exchange.Ends

func (e ends) Ends(*exchange.Connection, []byte) exchange.Ends { return exchange.Ends(e) }

var called = ends{
	Source:      &snapshot.Workload{Name: "reviews-v3", Namespace: "default", Service: "reviews", Labels: map[string]string{"app": "reviews", "version": "v3"}},
	Destination: &snapshot.Workload{Name: "ratings-v1", Namespace: "default", Service: "ratings", Labels: map[string]string{"app": "ratings", "version": "v1"}},
	Service:     &snapshot.Service{Host: "ratings.default.svc.cluster.local", Name: "ratings", Namespace: "default"},
}

// request is one of reviews-v3's to ratings-v1.
func request(path string, header ...http1.Field) *filter.Exchange {
	c := &exchange.Connection{
		Direction: exchange.Inbound, OriginalDst: netip.MustParseAddrPort("10.0.0.2:9080"), Remote: netip.MustParseAddrPort("10.0.0.9:4711"),
		Peer: "spiffe://cluster.local/ns/default/sa/reviews-v3",
	}
	x := &filter.Exchange{}
	x.Reset(&exchange.Exchange{Conn: c, GRPCStatus: -1, Method: []byte("GET"), Path: []byte(path), Authority: []byte("ratings:9080")}, nil)
	x.Request = filter.Request{Method: x.Record.Method, Path: x.Record.Path, Authority: x.Record.Authority, Scheme: "http", Header: header}
	return x
}

// The expressions of the matches.

func attribute(name string) snapshot.Expression {
	return snapshot.Expression{Type: snapshot.String, Attribute: name}
}

func entry(m, key string) snapshot.Expression {
	return call("[]", snapshot.String, snapshot.Expression{Type: snapshot.StringMap, Attribute: m}, constant(key))
}

func constant(s string) snapshot.Expression {
	return snapshot.Expression{Type: snapshot.String, Constant: &s}
}

func call(function string, t snapshot.ValueType, arguments ...snapshot.Expression) snapshot.Expression {
	return snapshot.Expression{Type: t, Function: function, Arguments: arguments}
}

func equal(a, b snapshot.Expression) snapshot.Expression { return call("==", snapshot.Bool, a, b) }

func and(a, b snapshot.Expression) snapshot.Expression { return call("&&", snapshot.Bool, a, b) }

func or(a, b snapshot.Expression) snapshot.Expression { return call("||", snapshot.Bool, a, b) }

// deny are rules that refuse what matches.
func deny(tb testing.TB, matches ...snapshot.Expression) *mixer.Rules {
	tb.Helper()
	u := &snapshot.Usage{}
	for i := range matches {
		u.Rules = append(u.Rules, snapshot.MixerRule{
			Name: fmt.Sprintf("rule/default/deny-%d", i), Match: &matches[i],
			Checks: []snapshot.MixerCheck{{Handler: strconv.Itoa(i), Deny: &snapshot.MixerDeny{Code: 7, Message: "no"}}},
		})
	}
	r, err := mixer.New(u, called)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// sorts are the matches that rules have in Istio 1.0's samples; none holds for the request of the benchmark.
var sorts = map[string]func(i int) snapshot.Expression{
	"labels of the callee": func(i int) snapshot.Expression {
		return and(equal(entry("destination.labels", "app"), constant(fmt.Sprintf("app-%d", i))), equal(entry("source.labels", "app"), constant("reviews")))
	},
	"labels of the caller": func(i int) snapshot.Expression {
		return and(equal(entry("destination.labels", "app"), constant("ratings")), equal(entry("source.labels", "app"), constant(fmt.Sprintf("app-%d", i))))
	},
	"paths": func(i int) snapshot.Expression {
		return equal(attribute("request.path"), constant(fmt.Sprintf("/denied-%d", i)))
	},
	"a header each": func(i int) snapshot.Expression {
		return equal(entry("request.headers", fmt.Sprintf("x-header-%d", i)), constant("no"))
	},
	"prefixes": func(i int) snapshot.Expression {
		return call("match", snapshot.Bool, attribute("request.path"), constant(fmt.Sprintf("/denied-%d*", i)))
	},
}

func many(n int, match func(i int) snapshot.Expression) []snapshot.Expression {
	out := make([]snapshot.Expression, n)
	for i := range out {
		out[i] = match(i)
	}
	return out
}

// BenchmarkCheck is what the rules cost a request that none of them refuses.
func BenchmarkCheck(b *testing.B) {
	x := request("/ratings/0", http1.NewField("User-Agent", "curl/8"), http1.NewField("Accept", "*/*"))
	for sort, match := range sorts {
		for _, n := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", sort, n), func(b *testing.B) {
				r := deny(b, many(n, match)...)
				b.ReportAllocs()
				for b.Loop() {
					if a := r.Check(x); a != nil {
						b.Fatal(a.Body)
					}
				}
			})
		}
	}
}
