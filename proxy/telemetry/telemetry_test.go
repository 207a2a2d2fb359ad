package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
)

var (
	web = snapshot.Workload{
		Name: "productpage-v1", Namespace: "default", Identity: "spiffe://cluster.local/ns/default/sa/productpage", Service: "productpage",
		Labels: map[string]string{"app": "productpage", "version": "v1"},
	}
	reviews = snapshot.Workload{
		Name: "reviews-v2", Namespace: "default", Identity: "spiffe://cluster.local/ns/default/sa/reviews", Service: "reviews",
		Labels: map[string]string{"app": "reviews", "version": "v2"},
	}
	plainDB   = snapshot.Workload{Name: "db", Namespace: "default", Service: "db"}
	reviewsSv = snapshot.Service{Host: "reviews.default.svc.cluster.local", Name: "reviews", Namespace: "default"}
)

func request() *exchange.Exchange {
	return &exchange.Exchange{
		Conn: &exchange.Connection{
			Direction: exchange.Outbound, OriginalDst: netip.MustParseAddrPort("172.18.0.4:9080"),
			Remote: netip.MustParseAddrPort("172.18.0.3:40000"), Local: netip.MustParseAddrPort("127.0.0.1:15001"),
		},
		Upstream: exchange.Upstream{
			Cluster: "outbound|9080|v2|reviews.default.svc.cluster.local", TLS: true,
			Remote: netip.MustParseAddrPort("172.18.0.5:9080"), Local: netip.MustParseAddrPort("172.18.0.3:50000"),
		},
		Ends:  exchange.Ends{Source: &web, Destination: &reviews, Service: &reviewsSv},
		Start: time.Date(2026, 11, 24, 20, 0, 0, 123456789, time.UTC), Duration: 12 * time.Millisecond,
		Method: []byte("GET"), Path: []byte("/reviews/0?x=1"), Authority: []byte("reviews:9080"), Protocol: "HTTP/1.1",
		UserAgent: []byte("curl/7.88"), RequestID: []byte("af-1"), Route: "default", Status: 200, Details: "via_upstream",
		BytesSent: 375, GRPCStatus: -1, UpstreamTime: 11 * time.Millisecond,
	}
}

func newRecorder(self snapshot.Workload, log *AccessLog) *Recorder {
	r := New(Config{Cluster: "shop", Instance: "i", AccessLog: log})
	r.Apply(&snapshot.Snapshot{Proxy: self})
	return r
}

func TestLabels(t *testing.T) {
	webPeer := report.Peer{
		Workload: "productpage-v1", Namespace: "default", Principal: web.Identity, App: "productpage", Version: "v1",
		Cluster: "shop", CanonicalService: "productpage", CanonicalRevision: "v1",
	}
	reviewsPeer := report.Peer{
		Workload: "reviews-v2", Namespace: "default", Principal: reviews.Identity, App: "reviews", Version: "v2",
		Cluster: "shop", CanonicalService: "reviews", CanonicalRevision: "v2",
	}
	source := report.Labels{
		Reporter: "source", Source: webPeer, Destination: reviewsPeer, Service: reviewsSv.Host, ServiceName: "reviews",
		ServiceNamespace: "default", SecurityPolicy: "unknown", ResponseFlags: "-", RequestProtocol: "http", ResponseCode: "200",
	}
	noPrincipals := func(l report.Labels) report.Labels {
		l.Source.Principal, l.Destination.Principal = "", ""
		return l
	}
	for _, tc := range []struct {
		name string
		self snapshot.Workload
		edit func(*exchange.Exchange)
		want func(report.Labels) report.Labels
	}{
		{"outbound", web, func(*exchange.Exchange) {}, func(l report.Labels) report.Labels { return l }},
		{"gateway", web, func(x *exchange.Exchange) { x.Conn.Direction = exchange.Gateway }, func(l report.Labels) report.Labels { return l }},
		{"outbound, plain text", web, func(x *exchange.Exchange) { x.Upstream.TLS = false }, noPrincipals},
		{"no answer: the client left", web, func(x *exchange.Exchange) { x.Status, x.Flag = 0, exchange.FlagDownstreamTermination },
			func(l report.Labels) report.Labels { l.ResponseCode, l.ResponseFlags = "0", "DC"; return l }},
		{"grpc", web, func(x *exchange.Exchange) { x.GRPC, x.GRPCStatus = true, 14 },
			func(l report.Labels) report.Labels { l.RequestProtocol, l.GRPCStatus = "grpc", "14"; return l }},
		{"inbound, mutual tls", reviews, func(x *exchange.Exchange) {
			x.Conn.Direction, x.Conn.Peer, x.Upstream.TLS = exchange.Inbound, web.Identity, false
		}, func(l report.Labels) report.Labels {
			l.Reporter, l.SecurityPolicy = "destination", "mutual_tls"
			return l
		}},
		{"inbound, plain text, from nobody known", reviews, func(x *exchange.Exchange) {
			x.Conn.Direction, x.Upstream.TLS, x.Ends = exchange.Inbound, false, exchange.Ends{}
		}, func(l report.Labels) report.Labels {
			l = noPrincipals(l)
			l.Reporter, l.SecurityPolicy, l.Source = "destination", "none", report.Peer{}
			return l
		}},
		{"passthrough", web, func(x *exchange.Exchange) {
			x.Upstream.Cluster, x.Upstream.TLS, x.Ends = "PassthroughCluster", false, exchange.Ends{Source: &web}
		}, func(l report.Labels) report.Labels {
			l = noPrincipals(l)
			l.Destination, l.Service, l.ServiceName, l.ServiceNamespace = report.Peer{}, "", "PassthroughCluster", ""
			return l
		}},
		{"a workload without labels", web, func(x *exchange.Exchange) { x.Upstream.TLS, x.Ends.Destination = false, &plainDB },
			func(l report.Labels) report.Labels {
				l = noPrincipals(l)
				l.Destination = report.Peer{Workload: "db", Namespace: "default", Cluster: "shop", CanonicalService: "db", CanonicalRevision: "latest"}
				return l
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRecorder(tc.self, nil)
			x := request()
			tc.edit(x)
			r.Exchange(x)
			got, events := r.Report()
			if len(got.HTTP) != 1 || events != 1 {
				t.Fatalf("report %+v, %d events", got, events)
			}
			if diff := cmp.Diff(tc.want(source), got.HTTP[0].Labels); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCountsAddUpAndOutliveSnapshots(t *testing.T) {
	r := newRecorder(web, nil)
	r.Exchange(request())
	again := web
	r.Apply(&snapshot.Snapshot{Proxy: again})
	x := request()
	x.Ends.Source = &again // another snapshot's
	x.Duration, x.BytesReceived = 30*time.Second+time.Nanosecond, 5
	r.Exchange(x)
	got, _ := r.Report()
	if len(got.HTTP) != 1 {
		t.Fatalf("%d series, want one: the labels are the same", len(got.HTTP))
	}
	s := got.HTTP[0]
	if s.Requests != 2 || s.ResponseBytes.Sum != 750 || s.RequestBytes.Sum != 5 || s.Duration.Sum < 30012 || s.Duration.Sum > 30013 {
		t.Errorf("counted %+v", s)
	}
	if s.Duration.Counts[4] != 1 || s.Duration.Counts[14] != 1 { // ≤ 25 ms, ≤ 60 s
		t.Errorf("duration's buckets %v", s.Duration.Counts)
	}
	if got.Workload != "productpage-v1" || got.Instance != "i" || got.Sequence != 1 {
		t.Errorf("report's head %+v", got)
	}
}

func TestSessions(t *testing.T) {
	r := newRecorder(web, nil)
	x := request()
	s := &exchange.Session{Conn: x.Conn, Upstream: x.Upstream, Ends: x.Ends}
	r.SessionOpened(s)
	s.BytesReceived, s.BytesSent = 10, 20
	r.SessionClosed(s)
	got, events := r.Report()
	if len(got.TCP) != 1 || events != 2 {
		t.Fatalf("report %+v, %d events", got, events)
	}
	c := got.TCP[0]
	if c.Opened != 1 || c.Closed != 1 || c.Received != 10 || c.Sent != 20 || c.Labels.RequestProtocol != "tcp" || c.Labels.ResponseCode != "" {
		t.Errorf("counted %+v", c)
	}
}

func TestTheNumberOfSeriesIsBounded(t *testing.T) {
	r := newRecorder(web, nil)
	for i := range MaxSeries + 5 {
		x := request()
		x.Status = i
		r.Exchange(x)
	}
	got, _ := r.Report()
	if len(got.HTTP) != MaxSeries || got.Dropped != 5 {
		t.Errorf("%d series and %d dropped, want %d and 5", len(got.HTTP), got.Dropped, MaxSeries)
	}
}

func TestRecordingAllocatesNothing(t *testing.T) {
	log := NewAccessLog(io.Discard, FormatText)
	r := newRecorder(web, log)
	x := request()
	r.Exchange(x)
	log.release(<-log.lines)
	if n := testing.AllocsPerRun(1000, func() {
		r.Exchange(x)
		log.release(<-log.lines)
	}); n > 0 {
		t.Errorf("%v allocations an exchange, want none", n)
	}
}

func TestConcurrentRecording(t *testing.T) {
	r := newRecorder(web, nil)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				x := request()
				x.Status = i % 50
				r.Exchange(x)
				if i%100 == 0 {
					r.Apply(&snapshot.Snapshot{Proxy: web})
				}
			}
		})
	}
	wg.Wait()
	if _, events := r.Report(); events != 2000 {
		t.Errorf("counted %d, want 2000", events)
	}
}

func TestTextLine(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*exchange.Exchange)
		want string
	}{
		{"a request", func(*exchange.Exchange) {},
			`[2026-11-24T20:00:00.123Z] "GET /reviews/0?x=1 HTTP/1.1" 200 - via_upstream - "-" 0 375 12 11 "-" "curl/7.88" "af-1" "reviews:9080" ` +
				`"172.18.0.5:9080" outbound|9080|v2|reviews.default.svc.cluster.local 172.18.0.3:50000 172.18.0.4:9080 172.18.0.3:40000 - default`},
		{"an upstream that refuses", func(x *exchange.Exchange) {
			x.Status, x.Flag, x.Details, x.UpstreamTime = 503, exchange.FlagUpstreamConnect, "upstream_connect_failure", 0
			x.Upstream.Failure, x.Upstream.Local = "connection refused", netip.AddrPort{}
		}, `[2026-11-24T20:00:00.123Z] "GET /reviews/0?x=1 HTTP/1.1" 503 UF upstream_connect_failure - "connection refused" 0 375 12 - "-" "curl/7.88" "af-1" "reviews:9080" ` +
			`"172.18.0.5:9080" outbound|9080|v2|reviews.default.svc.cluster.local - 172.18.0.4:9080 172.18.0.3:40000 - default`},
		{"an attack on the log", func(x *exchange.Exchange) {
			x.Path, x.UserAgent, x.Authority = []byte("/\r\n[fake] \"GET"), []byte("a\"b\\c\x1b[31m\xc3\xa9"), nil
		}, `[2026-11-24T20:00:00.123Z] "GET /\x0d\x0a[fake] \x22GET HTTP/1.1" 200 - via_upstream - "-" 0 375 12 11 "-" "a\x22b\x5cc\x1b[31m\xc3\xa9" "af-1" "-" ` +
			`"172.18.0.5:9080" outbound|9080|v2|reviews.default.svc.cluster.local 172.18.0.3:50000 172.18.0.4:9080 172.18.0.3:40000 - default`},
	} {
		x := request()
		tc.edit(x)
		if diff := cmp.Diff(tc.want, string(appendText(nil, x))); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func TestJSONLine(t *testing.T) {
	x := request()
	x.UserAgent = []byte("a\"b\\\r\n\x80\u2028é")
	line := appendJSON(nil, x)
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	want := map[string]any{
		"start_time": "2026-11-24T20:00:00.123Z", "method": "GET", "path": "/reviews/0?x=1", "protocol": "HTTP/1.1", "response_code": 200.0,
		"response_flags": nil, "response_code_details": "via_upstream", "connection_termination_details": nil,
		"upstream_transport_failure_reason": nil, "bytes_received": 0.0, "bytes_sent": 375.0, "duration": 12.0, "upstream_service_time": 11.0,
		"x_forwarded_for": nil, "user_agent": "a\"b\\\r\n\ufffd\u2028é", "request_id": "af-1", "authority": "reviews:9080",
		"upstream_host": "172.18.0.5:9080", "upstream_cluster": "outbound|9080|v2|reviews.default.svc.cluster.local",
		"upstream_local_address": "172.18.0.3:50000", "downstream_local_address": "172.18.0.4:9080",
		"downstream_remote_address": "172.18.0.3:40000", "requested_server_name": nil, "route_name": "default",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(want) != 24 || bytes.ContainsAny(line, "\r\n") {
		t.Errorf("%d keys in %q", len(want), line)
	}
}

// FuzzLines checks that whatever a client sends is one line, and one sound JSON object.
func FuzzLines(f *testing.F) {
	f.Add([]byte("/\r\n\"\\\x00\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		x := request()
		x.Path, x.Authority, x.UserAgent, x.Conn.ServerName = b, b, b, string(b)
		text, object := appendText(nil, x), appendJSON(nil, x)
		if strings.Count(string(text), `"`) != 14 {
			t.Errorf("fields run into each other: %s", text)
		}
		for _, c := range text {
			if c < ' ' || c > '~' {
				t.Fatalf("byte %#x in %q", c, text)
			}
		}
		if !json.Valid(object) || bytes.ContainsAny(object, "\r\n") {
			t.Errorf("not one line of JSON: %q", object)
		}
	})
}

// stuck blocks its writer until it is let go.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

func TestABlockedOutputLosesLinesAndBlocksNobody(t *testing.T) {
	out := stuck{make(chan struct{})}
	log := NewAccessLog(out, FormatText)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- log.Run(ctx) }()
	x := request()
	for log.Dropped() == 0 { // ends when the queue is full
		log.exchange(x)
	}
	close(out.release)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTheLogIsWrittenToItsEnd(t *testing.T) {
	var out bytes.Buffer
	log := NewAccessLog(&out, FormatText)
	for i := range 1000 {
		x := request()
		x.Path = strconv.AppendInt([]byte("/"), int64(i), 10)
		log.exchange(x)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := log.Run(ctx); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 1000 || !strings.Contains(lines[999], fmt.Sprintf("GET /%d ", 999)) {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-1])
	}
}

func TestParseFormat(t *testing.T) {
	for in, want := range map[string]Format{"": FormatText, "text": FormatText, "json": FormatJSON, "off": FormatOff} {
		if got, err := ParseFormat(in); err != nil || got != want {
			t.Errorf("ParseFormat(%q) = %q, %v", in, got, err)
		}
	}
	if _, err := ParseFormat("xml"); err == nil {
		t.Error("ParseFormat takes xml")
	}
}

func BenchmarkExchange(b *testing.B) {
	log := NewAccessLog(io.Discard, FormatText)
	r := newRecorder(web, log)
	x := request()
	b.ReportAllocs()
	for b.Loop() {
		r.Exchange(x)
		log.release(<-log.lines)
	}
}

// What policies say that refuse nothing stands in the line of JSON alone.
func TestJSONOfPolicies(t *testing.T) {
	x := request()
	if s := string(appendJSON(nil, x)); strings.Contains(s, "access_") {
		t.Errorf("a request of which policies say nothing: %s", s)
	}
	x.DryRun, x.Audit = "rbac_access_denied_matched_policy[none]", "ns[a]-policy[b]-rule[0]"
	if s := string(appendJSON(nil, x)); !strings.HasSuffix(s, `,"access_dry_run":"rbac_access_denied_matched_policy[none]","access_audit":"ns[a]-policy[b]-rule[0]"}`) {
		t.Errorf("line is %s", s)
	}
}
