package compile_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/compile"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/mixer"
)

// These tests hold that what is compiled does in a proxy what it did in Istio 1.0.

// ends stands for a table.
type ends exchange.Ends

func (e ends) Ends(*exchange.Connection, []byte) exchange.Ends { return exchange.Ends(e) }

var (
	reviewsV3 = &snapshot.Workload{
		Name: "reviews-v3", Namespace: "default", Service: "reviews", ServiceAccount: "reviews-v3",
		Identity: "spiffe://cluster.local/ns/default/sa/reviews-v3", Labels: map[string]string{"app": "reviews", "version": "v3"},
	}
	ratings = &snapshot.Workload{
		Name: "ratings-v1", Namespace: "default", Service: "ratings", Identity: "spiffe://cluster.local/ns/default/sa/ratings-v1",
		Labels: map[string]string{"app": "ratings", "version": "v1"},
	}
	called = ends{Source: reviewsV3, Destination: ratings, Service: &snapshot.Service{Host: "ratings.default.svc.cluster.local", Name: "ratings", Namespace: "default"}}
)

// rules are the proxy's, of objects that apply to ratings-v1.
func rules(t *testing.T, lists map[string]compile.List, text string) *mixer.Rules {
	t.Helper()
	x := compile.New(compile.View{Intent: decode(t, text), Facts: facts, Lists: lists})
	usage, problems, err := x.Compile("ratings-v1")
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	r, err := mixer.New(usage, called)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func corpus(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("../../../shared/corpora/istio-1.0.6/policy", name))
	if err != nil {
		t.Skipf("the corpus of Istio 1.0.6 is not here: %v", err)
	}
	return string(raw)
}

// request is one of reviews-v3's to ratings-v1.
func request(path string, header ...string) *filter.Exchange {
	c := &exchange.Connection{
		Direction: exchange.Inbound, OriginalDst: netip.MustParseAddrPort("10.0.0.2:9080"), Remote: netip.MustParseAddrPort("10.0.0.9:4711"), Peer: reviewsV3.Identity,
	}
	r := &exchange.Exchange{
		Conn: c, Start: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), GRPCStatus: -1, Method: []byte("GET"), Path: []byte(path), Authority: []byte("ratings:9080"),
	}
	x := &filter.Exchange{}
	x.Reset(r, nil)
	x.Request = filter.Request{Method: r.Method, Path: r.Path, Authority: r.Authority, Scheme: "http"}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		x.Request.Header = append(x.Request.Header, http1.NewField(name, value))
	}
	return x
}

const list = `
apiVersion: config.istio.io/v1alpha2
kind: listchecker
metadata: {name: l}
spec: %s
---
apiVersion: config.istio.io/v1alpha2
kind: listentry
metadata: {name: e}
spec: {value: '%s'}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: r}
spec: {actions: [{handler: l.listchecker, instances: [e.listentry]}]}
`

func listed(spec, value string) string {
	return strings.Replace(strings.Replace(list, "%s", spec, 1), "%s", value, 1)
}

func TestChecks(t *testing.T) {
	lists := map[string]compile.List{
		"http://l/good": {Entries: []string{"10.0.0.9", "192.168.0.0/16"}},
		"http://l/gone": {Problem: "the list of http://l/gone can't be had: 503 Service Unavailable"},
	}
	denier := func(code, message string) string {
		return "apiVersion: config.istio.io/v1alpha2\nkind: denier\nmetadata: {name: d}\nspec: {status: {code: " + code + ", message: " + message + "}}\n---\n" +
			"apiVersion: config.istio.io/v1alpha2\nkind: checknothing\nmetadata: {name: c}\nspec:\n---\n" +
			"apiVersion: config.istio.io/v1alpha2\nkind: rule\nmetadata: {name: r}\nspec: {match: 'request.headers[\"x-user\"] == \"john\"', actions: [{handler: d.denier, instances: [c.checknothing]}]}\n"
	}
	cases := []struct {
		name, objects string
		x             *filter.Exchange
		status        int // 0: passes
		body          string
	}{
		{"label", corpus(t, "mixer-rule-deny-label.yaml"), request("/ratings/0"), 403, "PERMISSION_DENIED:denyreviewsv3handler.denier.default:Not allowed"},
		{"account of another", corpus(t, "mixer-rule-deny-serviceaccount.yaml"), request("/ratings/0"), 0, ""},
		{"header", corpus(t, "mixer-rule-ratings-denial.yaml"), request("/", "X-User: john"), 403, "PERMISSION_DENIED:handler.denier.istio-system:Not allowed"},
		{"another header", corpus(t, "mixer-rule-ratings-denial.yaml"), request("/", "X-User: jane"), 0, ""},
		{"no header", corpus(t, "mixer-rule-ratings-denial.yaml"), request("/"), 0, ""},
		{"not through the gateway", corpus(t, "mixer-rule-ingress-denial.yaml"), request("/", "X-User: john"), 0, ""},
		{"unauthenticated", denier("16", "who"), request("/", "x-user: john"), 401, "UNAUTHENTICATED:d.denier.default:who"},
		{"exhausted", denier("8", "enough"), request("/", "x-user: john"), 429, "RESOURCE_EXHAUSTED:d.denier.default:enough"},
		{"unavailable", denier("14", "later"), request("/", "x-user: john"), 503, "UNAVAILABLE:d.denier.default:later"},
		{"whitelist of strings", listed("{overrides: [v1, v2]}", `source.labels["version"]`), request("/"), 404, "NOT_FOUND:l.listchecker.default:v3 is not whitelisted"},
		{"whitelist with it", listed("{overrides: [v3]}", `source.labels["version"]`), request("/"), 0, ""},
		{"blacklist", listed("{overrides: [v3], blacklist: true}", `source.labels["version"]`), request("/"), 403, "PERMISSION_DENIED:l.listchecker.default:v3 is blacklisted"},
		{"case matters", listed("{overrides: [V3], blacklist: true}", `source.labels["version"]`), request("/"), 0, ""},
		{"case does not matter", listed("{overrides: [V3], blacklist: true, entryType: CASE_INSENSITIVE_STRINGS}", `source.labels["version"]`), request("/"), 403, "PERMISSION_DENIED:l.listchecker.default:v3 is blacklisted"},
		{"range", listed("{overrides: [10.0.0.0/24], entryType: IP_ADDRESSES}", `source.ip | ip("0.0.0.0")`), request("/"), 0, ""},
		{"out of range", listed("{overrides: [10.0.1.0/24], entryType: IP_ADDRESSES}", `source.ip | ip("0.0.0.0")`), request("/"), 404, "NOT_FOUND:l.listchecker.default:10.0.0.9 is not whitelisted"},
		{"no address", listed("{overrides: [10.0.1.0/24], entryType: IP_ADDRESSES}", `request.headers["a"]`), request("/", "a: b"), 400, "INVALID_ARGUMENT:l.listchecker.default:b is not a valid IP address"},
		{"regex", listed("{overrides: ['^/admin'], entryType: REGEX, blacklist: true}", "request.path"), request("/admin/x"), 403, "PERMISSION_DENIED:l.listchecker.default:/admin/x is blacklisted"},
		{"no regex", listed("{overrides: ['^/admin'], entryType: REGEX, blacklist: true}", "request.path"), request("/x/admin"), 0, ""},
		{"provided", listed("{providerUrl: 'http://l/good', entryType: IP_ADDRESSES}", "source.ip"), request("/"), 0, ""},
		{"not provided", listed("{providerUrl: 'http://l/gone', overrides: [a]}", `request.headers["a"]`), request("/", "a: b"), 503, "UNAVAILABLE:l.listchecker.default:the list of http://l/gone can't be had: 503 Service Unavailable"},
		{"an override does without", listed("{providerUrl: 'http://l/gone', overrides: [a]}", `request.headers["a"]`), request("/", "a: a"), 0, ""},
		{"a blacklist that is not there is closed, too", listed("{providerUrl: 'http://l/gone', blacklist: true}", `request.headers["a"]`), request("/", "a: b"), 503, "UNAVAILABLE:l.listchecker.default:the list of http://l/gone can't be had: 503 Service Unavailable"},
		{"nothing to look for", listed("{overrides: [a]}", "request.auth.principal"), request("/"), 500, "INTERNAL:l.listchecker.default:lookup failed: 'request.auth.principal'"},
		{"several", corpus(t, "mixer-rule-ratings-denial.yaml") + "\n---\n" + corpus(t, "mixer-rule-deny-label.yaml"), request("/", "x-user: john"), 403,
			"PERMISSION_DENIED:denyreviewsv3handler.denier.default:Not allowed, handler.denier.istio-system:Not allowed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			status, body := 0, ""
			if a := rules(t, lists, c.objects).Check(c.x); a != nil {
				status, body = a.Status, a.Body
			}
			if status != c.status || body != c.body {
				t.Errorf("%d %q, want %d %q", status, body, c.status, c.body)
			}
		})
	}
}

// A gateway is the source of what it sends on.
func TestGateway(t *testing.T) {
	gateway := &snapshot.Workload{Name: "istio-ingressgateway", Namespace: "default", Labels: map[string]string{"istio": "ingressgateway"}}
	x := compile.New(compile.View{Intent: decode(t, corpus(t, "mixer-rule-ingress-denial.yaml")), Facts: facts})
	usage, _, err := x.Compile("ratings-v1")
	if err != nil {
		t.Fatal(err)
	}
	r, err := mixer.New(usage, ends{Source: gateway})
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]int{"john": 403, "jane": 0} {
		q := request("/", "x-user: "+user)
		q.Record.Conn.Direction = exchange.Gateway
		got := 0
		if a := r.Check(q); a != nil {
			got = a.Status
		}
		if got != want {
			t.Errorf("%s: %d, want %d", user, got, want)
		}
	}
}

// A connection that is no HTTP is refused by what is known of it.
func TestCheckConnection(t *testing.T) {
	q := request("/")
	for name, want := range map[string]string{
		"mixer-rule-deny-label.yaml":     "PERMISSION_DENIED:denyreviewsv3handler.denier.default:Not allowed",
		"mixer-rule-ratings-denial.yaml": "", // asks for a header
	} {
		if got := rules(t, nil, corpus(t, name)).CheckConnection(q.Record.Conn, exchange.Ends(called)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

const headers = `
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: r}
spec:
  match: request.path == "/a"
  requestHeaderOperations:
  - {name: user, values: ['source.labels["app"] + "!"', 'request.headers["user"]']}
  - {name: Old, operation: REMOVE}
  - {name: lacking, values: [request.auth.principal]}
  responseHeaderOperations:
  - {name: seen-by, operation: APPEND, values: ['destination.workload.name']}
`

func TestHeaders(t *testing.T) {
	r := rules(t, nil, headers)
	text := func(h http1.Header) (out []string) {
		for _, f := range h {
			out = append(out, string(f.Name)+": "+string(f.Value))
		}
		return out
	}
	x := request("/a", "User: me", "old: 1", "other: 2", "OLD: 3")
	if a := r.Check(x); a != nil {
		t.Fatal(a.Body)
	}
	if diff := cmp.Diff([]string{"other: 2", "user: reviews!", "user: me"}, text(x.Request.Header)); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	x.Response.Header = http1.Header{http1.NewField("seen-by", "app")}
	x.Amend()
	if diff := cmp.Diff([]string{"seen-by: app", "seen-by: ratings-v1"}, text(x.Response.Header)); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
	x = request("/b", "User: me")
	if a := r.Check(x); a != nil || len(x.Later) > 0 || !slices.Equal(text(x.Request.Header), []string{"User: me"}) {
		t.Errorf("another path is changed: %v, %v", x.Later, text(x.Request.Header))
	}
}

// The task "Collecting Metrics and Logs" of Istio 1.0's documentation, and a distribution.
const telemetry = `
apiVersion: config.istio.io/v1alpha2
kind: metric
metadata: {name: doublerequestcount, namespace: istio-system}
spec:
  value: "2" # count each request twice
  dimensions:
    reporter: conditional((context.reporter.kind | "inbound") == "outbound", "client", "server")
    source: source.workload.name | "unknown"
    destination: destination.workload.name | "unknown"
    message: '"twice the fun!"'
  monitored_resource_type: '"UNSPECIFIED"'
---
apiVersion: config.istio.io/v1alpha2
kind: metric
metadata: {name: sizes, namespace: istio-system}
spec: {value: response.size | 0, dimensions: {code: response.code | 0, path: request.path}}
---
apiVersion: config.istio.io/v1alpha2
kind: prometheus
metadata: {name: doublehandler, namespace: istio-system}
spec:
  metrics:
  - name: double_request_count # Prometheus metric name
    instance_name: doublerequestcount.metric.istio-system
    kind: COUNTER
    label_names: [reporter, source, destination, message]
  - {name: sizes, instance_name: sizes.metric.istio-system, kind: DISTRIBUTION, label_names: [code, path], buckets: {explicit_buckets: {bounds: [10, 100]}}}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: doubleprom, namespace: istio-system}
spec:
  actions:
  - handler: doublehandler.prometheus
    instances: [doublerequestcount.metric, sizes.metric]
---
apiVersion: config.istio.io/v1alpha2
kind: logentry
metadata: {name: newlog, namespace: istio-system}
spec:
  severity: '"warning"'
  timestamp: request.time
  variables:
    source: source.labels["app"] | source.workload.name | "unknown"
    user: source.user | "unknown"
    responseCode: response.code | 0
    latency: response.duration | "0ms"
  monitored_resource_type: '"UNSPECIFIED"'
---
apiVersion: config.istio.io/v1alpha2
kind: stdio
metadata: {name: newloghandler, namespace: istio-system}
spec: {severity_levels: {warning: 1}, outputAsJson: true}
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata: {name: newlogstdio, namespace: istio-system}
spec: {match: "true", actions: [{handler: newloghandler.stdio, instances: [newlog.logentry]}]}
`

// answered is a request with its response.
func answered(path string, status int, size int64) *filter.Exchange {
	x := request(path)
	x.Record.Status, x.Record.BytesSent, x.Record.Duration, x.Record.Ends = status, size, 1500*time.Microsecond, exchange.Ends(called)
	return x
}

func TestTelemetry(t *testing.T) {
	r, c := rules(t, nil, telemetry), mixer.NewCollector()
	c.Apply(r)
	for _, size := range []int64{5, 10, 11, 1000} {
		x := answered("/a", 200, size)
		r.Exchange(c, x.Record, x)
	}
	got, _ := c.Report()
	slices.SortFunc(got, func(a, b report.Metric) int { return strings.Compare(a.Name, b.Name) })
	want := []report.Metric{
		{
			Name: "istio_double_request_count", Kind: "COUNTER", Labels: []string{"reporter", "source", "destination", "message"},
			Series: []report.MetricSeries{{Values: []string{"server", "reviews-v3", "ratings-v1", "twice the fun!"}, Value: 8}},
		},
		{
			Name: "istio_sizes", Kind: "DISTRIBUTION", Labels: []string{"code", "path"}, Bounds: []float64{10, 100},
			Series: []report.MetricSeries{{Values: []string{"200", "/a"}, Value: 1026, Counts: []uint64{2, 1, 1}}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	lines, n := c.Next(t.Context())
	if n != 4 {
		t.Errorf("%d entries, want 4", n)
	}
	var entry report.Entry
	if err := json.Unmarshal([]byte(strings.SplitN(string(lines), "\n", 2)[0]), &entry); err != nil {
		t.Fatalf("%v in %s", err, lines)
	}
	if diff := cmp.Diff(report.Entry{
		Handler: "newloghandler.stdio.istio-system", Instance: "newlog.logentry.istio-system", Time: answered("/", 0, 0).Record.Start, Severity: "warning",
		Variables: []report.Variable{
			{Name: "latency", Type: "DURATION", Value: "1.5ms"}, {Name: "responseCode", Type: "INT64", Value: "200"},
			{Name: "source", Type: "STRING", Value: "reviews"}, {Name: "user", Type: "STRING", Value: "cluster.local/ns/default/sa/reviews-v3"},
		},
	}, entry); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}

	// The next rules count on where the metric is the same, and forget one that is gone.
	next := rules(t, nil, strings.Replace(telemetry, "- {name: sizes,", "- {name: other,", 1))
	c.Apply(next)
	got, _ = c.Report()
	if len(got) != 1 || got[0].Series[0].Value != 8 {
		t.Errorf("after new rules: %+v", got)
	}
}

// Labels with many values cost a bounded number of series, and what is not counted is told.
func TestSeriesAreBounded(t *testing.T) {
	r, c := rules(t, nil, telemetry), mixer.NewCollector()
	c.Apply(r)
	for i := range mixer.MaxSeries + 10 {
		x := answered("/"+strings.Repeat("x", i), 200, 1) // long ones are cut, and then the same
		x.Record.Status = i
		r.Exchange(c, x.Record, x)
	}
	series := 0
	got, _ := c.Report()
	for _, m := range got {
		series += len(m.Series)
	}
	if dropped, _, _ := c.Stats(); series != mixer.MaxSeries || dropped != 11 {
		t.Errorf("%d series, %d dropped, want %d and 11", series, dropped, mixer.MaxSeries)
	}
}

func TestEntriesAreBounded(t *testing.T) {
	r, c := rules(t, nil, telemetry), mixer.NewCollector()
	c.Apply(r)
	const n = 5000
	for range n {
		x := answered("/", 200, 1)
		r.Exchange(c, x.Record, x)
	}
	done, cancel := context.WithCancel(t.Context())
	cancel()
	sent := 0
	for {
		_, m := c.Next(done)
		if m == 0 {
			break
		}
		sent += m
	}
	if _, _, lost := c.Stats(); sent == 0 || sent+int(lost) != n || lost == 0 {
		t.Errorf("%d sent and %d lost of %d", sent, lost, n)
	}
}

// A request that passes costs no allocation, whatever the rules look at.
func TestAllocations(t *testing.T) {
	objects := telemetry + "\n---\n" + headers + "\n---\n" + strings.ReplaceAll(listed("{overrides: ['10.0.0.0/8'], entryType: IP_ADDRESSES}", "source.ip"), "name: r}", "name: s}")
	objects = strings.ReplaceAll(objects, `source.labels["app"] + "!"`, `source.labels["app"]`) // + makes a string
	r, c := rules(t, nil, objects), mixer.NewCollector()
	c.Apply(r)
	x := answered("/a", 200, 1)
	x.Request.Header = make(http1.Header, 0, 16)
	one := func() {
		x.Request.Header = x.Request.Header[:0]
		x.Later, x.Text = x.Later[:0], x.Text[:0]
		if a := r.Check(x); a != nil {
			t.Fatal(a.Body)
		}
		r.Exchange(c, x.Record, x)
	}
	for range 5000 { // until the queue is full, so that buffers come back
		one()
	}
	if allocs := testing.AllocsPerRun(1000, one); allocs != 0 && !raced {
		t.Errorf("%v allocations, want none", allocs)
	}
}
