package compile_test

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/expression"
	"github.com/composure-mesh/composure/proxy/attribute"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// known is what a bag knows of the vocabulary, as text; a value of another type than expressions are checked for is an
// error.
func known(t *testing.T, b *attribute.Bag) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(expression.Attributes)) {
		v, ok, err := b.Attribute(name)
		if err != nil || ok && v.Type != expression.Attributes[name] {
			t.Errorf("%s: %s, %v, want %s", name, v.Type, err, expression.Attributes[name])
		}
		switch {
		case !ok:
		case v.Type == snapshot.StringMap:
			first, _ := v.Map.Get(map[string]string{
				"request.headers": "referer", "response.headers": "x", "request.query_params": "a b", "request.auth.claims": "group",
				"source.labels": "version", "destination.labels": "version",
			}[name])
			out[name] = first
		default:
			out[name] = v.Text()
		}
	}
	return out
}

func TestAttributesOfAnExchange(t *testing.T) {
	x := answered("/a%2Fb?x=1&a+b=c%20d", 503, 7)
	x.Request.Header = http1.Header{http1.NewField("Referer", "r"), http1.NewField("X-Api-Key", "k")}
	x.Response.Header = http1.Header{http1.NewField("X", "y"), http1.NewField("Grpc-Message", "no")}
	r := x.Record
	r.UserAgent, r.RequestID, r.XForwardedFor = []byte("curl"), []byte("id"), []byte("1.2.3.4, 5.6.7.8")
	r.Trust = exchange.Trust{Gateway: true}
	r.GRPC, r.GRPCStatus, r.Flag, r.BytesReceived = true, 14, exchange.FlagUpstreamConnect, 3
	r.CheckCode, r.CheckMessage = 7, "h:no"
	r.Conn.ServerName = "outbound_.9080_._.ratings"
	r.Auth = &exchange.Auth{Principal: "iss/sub", Audiences: []string{"a", "b"}, Presenter: "p", Raw: "{}", Claims: &exchange.Claim{Fields: map[string]*exchange.Claim{"group": {Values: []string{"g"}}}}}
	var b attribute.Bag
	b.Exchange(r, x, r.Ends, true)
	want := map[string]string{
		"check.error_code": "7", "check.error_message": "h:no", "connection.mtls": "true", "connection.requested_server_name": "outbound_.9080_._.ratings",
		"context.protocol": "grpc", "context.proxy_error_code": "UF", "context.reporter.kind": "inbound", "context.reporter.uid": "kubernetes://ratings-v1.default",
		"context.time": "2026-01-02T03:04:05Z", "context.timestamp": "2026-01-02T03:04:05Z",
		"destination.container.name": "ratings", "destination.ip": "10.0.0.2", "destination.labels": "v1", "destination.name": "ratings-v1", "destination.namespace": "default",
		"destination.port": "9080", "destination.principal": "cluster.local/ns/default/sa/ratings-v1", "destination.service": "ratings.default.svc.cluster.local",
		"destination.service.host": "ratings.default.svc.cluster.local", "destination.service.name": "ratings", "destination.service.namespace": "default",
		"destination.service.uid": "istio://default/services/ratings", "destination.uid": "kubernetes://ratings-v1.default", "destination.user": "cluster.local/ns/default/sa/ratings-v1",
		"destination.workload.name": "ratings-v1", "destination.workload.namespace": "default", "destination.workload.uid": "istio://default/workloads/ratings-v1",
		"origin.ip": "5.6.7.8", "request.api_key": "k", "request.auth.audiences": "a,b", "request.auth.claims": "g", "request.auth.presenter": "p",
		"request.auth.principal": "iss/sub", "request.auth.raw_claims": "{}", "request.headers": "r", "request.host": "ratings:9080", "request.id": "id", "request.method": "GET",
		"request.path": "/a%2Fb?x=1&a+b=c%20d", "request.query_params": "c d", "request.referer": "r", "request.scheme": "http", "request.size": "3",
		"request.time": "2026-01-02T03:04:05Z", "request.total_size": "3", "request.url_path": "/a%2Fb", "request.useragent": "curl",
		"response.code": "503", "response.duration": "1.5ms", "response.grpc_message": "no", "response.grpc_status": "14", "response.headers": "y", "response.size": "7",
		"response.time": "2026-01-02T03:04:05.0015Z", "response.total_size": "7",
		"source.ip": "10.0.0.9", "source.labels": "v3", "source.name": "reviews-v3", "source.namespace": "default", "source.principal": "cluster.local/ns/default/sa/reviews-v3",
		"source.service": "reviews.default.svc.cluster.local", "source.uid": "kubernetes://reviews-v3.default", "source.user": "cluster.local/ns/default/sa/reviews-v3",
		"source.workload.name": "reviews-v3", "source.workload.namespace": "default", "source.workload.uid": "istio://default/workloads/reviews-v3",
	}
	if diff := cmp.Diff(want, known(t, &b)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	// Before there is a response nothing is known of it, and a stranger in plain text has no name and is not believed.
	r.Conn.Peer, r.Trust = "", exchange.Trust{}
	b.Exchange(r, x, exchange.Ends{}, false)
	got := known(t, &b)
	for _, name := range []string{"response.code", "context.proxy_error_code", "source.principal", "source.name", "source.labels", "destination.service"} {
		if v, ok := got[name]; ok {
			t.Errorf("%s is %q, want nothing", name, v)
		}
	}
	if got["origin.ip"] != "10.0.0.9" || got["connection.mtls"] != "false" {
		t.Errorf("origin.ip %s, connection.mtls %s", got["origin.ip"], got["connection.mtls"])
	}
}

func TestAttributesOfASession(t *testing.T) {
	s := &exchange.Session{
		Conn:     &exchange.Connection{Direction: exchange.Outbound, Remote: netip.MustParseAddrPort("10.0.0.9:1"), OriginalDst: netip.MustParseAddrPort("10.0.0.2:3306")},
		Upstream: exchange.Upstream{TLS: true, Remote: netip.MustParseAddrPort("10.0.0.3:3306")}, Ends: exchange.Ends(called),
		BytesReceived: 5, BytesSent: 6, Duration: time.Second,
	}
	var b attribute.Bag
	b.Session(s, true)
	got := known(t, &b)
	for name, want := range map[string]string{
		"connection.event": "close", "connection.received.bytes": "5", "connection.sent.bytes_total": "6", "connection.duration": "1s", "connection.mtls": "true",
		"context.protocol": "tcp", "context.reporter.kind": "outbound", "context.proxy_error_code": "-", "destination.ip": "10.0.0.3", "destination.port": "3306",
		"source.principal": "cluster.local/ns/default/sa/reviews-v3", "destination.principal": "cluster.local/ns/default/sa/ratings-v1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["request.path"]; ok {
		t.Error("a connection has a path")
	}
	b.Session(s, false)
	if got := known(t, &b); got["connection.event"] != "open" || got["connection.duration"] != "" {
		t.Errorf("as it opens: event %q, duration %q", got["connection.event"], got["connection.duration"])
	}
}
