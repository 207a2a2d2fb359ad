package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestParseWrk(t *testing.T) {
	const out = `Running 1s test @ http://127.0.0.1:80/
  1 threads and 64 connections
  Latency Distribution
     50%  500.00us
     75%    1.20ms
     90%    2.50ms
     99%    1.01s
  33221 requests in 1.10s, 40.00MB read
Requests/sec:  30201.20
Transfer/sec:     36.36MB
`
	count, m, err := parseWrk([]byte(out))
	if err != nil || count != 33221 || m["requests_per_second"] != 30201.2 || m["p50_ms"] != 0.5 || m["p99_ms"] != 1010 {
		t.Errorf("parseWrk = %v, %v, %v", count, m, err)
	}
	for _, bad := range []string{"  Non-2xx or 3xx responses: 12\n", "  Socket errors: connect 0, read 4, write 0, timeout 0\n"} {
		if _, _, err := parseWrk([]byte(out + bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestParseH2load(t *testing.T) {
	const out = `finished in 1.02s, 52000.50 req/s, 60.00MB/s
requests: 53040 total, 53168 started, 53040 done, 53040 succeeded, %d failed, 0 errored, 0 timeout
status codes: %d 2xx, 0 3xx, 0 4xx, %d 5xx
`
	count, m, err := parseH2load(fmt.Appendf(nil, out, 0, 53040, 0))
	if err != nil || count != 53040 || m["requests_per_second"] != 52000.5 {
		t.Errorf("parseH2load = %v, %v, %v", count, m, err)
	}
	for _, bad := range [][3]any{{1, 53039, 0}, {0, 53030, 10}} {
		if _, _, err := parseH2load(fmt.Appendf(nil, out, bad[:]...)); err == nil {
			t.Errorf("%v is taken", bad)
		}
	}
}

// TestRows: the ratio is the median of the rounds' own ratios, and a metric that one side lacks is left out.
func TestRows(t *testing.T) {
	ours := []sample{{"p50_ms": 1, "rss_mb": 10}, {"p50_ms": 2, "rss_mb": 10}, {"p50_ms": 30, "rss_mb": 10}}
	theirs := []sample{{"p50_ms": 2}, {"p50_ms": 3}, {"p50_ms": 31}}
	got := rows([]*side{{name: "ours"}, {name: "nginx"}}, [][]sample{ours, theirs})
	want := row{Metric: "p50_ms", Ours: 2, Theirs: 3, Ratio: 0.6667, Opponent: "nginx"}
	if len(got) != 1 || got[0] != want {
		t.Errorf("rows = %+v, want %+v", got, want)
	}
}

func TestReport(t *testing.T) {
	b := &bench{ctx: t.Context(), rows: []row{{Case: "http", Metric: "p50_ms", Ours: 1, Theirs: 2, Opponent: "nginx", Ratio: 0.5}}}
	dir := t.TempDir()
	doc, results := filepath.Join(dir, "perf.md"), filepath.Join(dir, "results.json")
	if err := os.WriteFile(doc, []byte("before\n"+tableBegin+"old\n"+tableEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.writeDoc(doc); err != nil {
		t.Fatal(err)
	}
	if err := b.writeJSON(results); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	if !strings.HasPrefix(text, "before\n") || !strings.HasSuffix(text, tableEnd+"after\n") || strings.Contains(text, "old") ||
		!strings.Contains(text, "| http | p50_ms | 1.00 | 2.00 | 0.50 | nginx |") {
		t.Errorf("document:\n%s", text)
	}
	data, err := os.ReadFile(results)
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	if err := json.Unmarshal(data, &list); err != nil || len(list) != 1 || len(list[0]) != 6 || list[0]["ratio"] != 0.5 {
		t.Errorf("results %v, %v", list, err)
	}
	if err := os.WriteFile(doc, []byte("no place"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.writeDoc(doc); err == nil {
		t.Error("a document without a place for the table is taken")
	}
}

// TestGenerators: each of our own loads counts what it does at our own backends, without any proxy.
func TestGenerators(t *testing.T) {
	for _, tc := range []struct {
		backend string
		load    loadParams
		run     func(context.Context, *loadParams) (loadResult, error)
		metric  string
	}{
		{"http", loadParams{Bytes: 10_000}, bodies, "mb_per_second"},
		{"http", loadParams{Bytes: 100_000, Upload: true}, bodies, "requests_per_second"},
		{"echo", loadParams{}, connects, "connections_per_second"},
		{"source", loadParams{}, streams, "mb_per_second"},
		{"grpc", loadParams{}, pingPong, "messages_per_second"},
	} {
		ctx, stop := context.WithCancel(t.Context())
		addr := freeAddr(t)
		done := make(chan error, 1)
		go func() { done <- serveBackend(ctx, []string{tc.backend, addr}) }()
		tc.load.Addr, tc.load.Seconds, tc.load.Connections = addr, 0.05, 2
		r, err := tc.run(ctx, &tc.load)
		for err != nil && strings.Contains(err.Error(), "refused") { // it is only starting
			r, err = tc.run(ctx, &tc.load)
		}
		if err != nil || r.Count == 0 || r.Metrics[tc.metric] <= 0 {
			t.Errorf("%s: %+v, %v", tc.backend, r, err)
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("backend %s: %v", tc.backend, err)
		}
	}
}

// TestOpenLoop counts every request that was due, and fails on an answer that is none.
func TestOpenLoop(t *testing.T) {
	var status atomic.Int64
	status.Store(http.StatusOK)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(status.Load()))
		fmt.Fprint(w, "hello")
	}))
	defer srv.Close()
	p := &loadParams{Addr: srv.Listener.Addr().String(), Seconds: 0.1, Connections: 2, Rate: 100}
	if r, err := openLoop(t.Context(), p); err != nil || r.Count != 10 || r.Metrics["p99.9_ms"] < r.Metrics["p50_ms"] || r.Metrics["p50_ms"] <= 0 {
		t.Errorf("openLoop = %+v, %v", r, err)
	}
	status.Store(http.StatusBadGateway)
	if _, err := openLoop(t.Context(), p); err == nil {
		t.Error("a 502 is taken")
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// TestChoose: a name stands for the case of that name, or else for all that begin with it and a dash.
func TestChoose(t *testing.T) {
	for names, want := range map[string]string{"http": "http", "mtls": "mtls", "routes,inject": "routes-1000 inject", "grpc": "grpc-unary grpc-stream"} {
		chosen, err := choose(names)
		var got []string
		for _, c := range chosen {
			got = append(got, c.name)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s chooses %v, %v, want %s", names, got, err, want)
		}
	}
	if _, err := choose("http,none"); err == nil {
		t.Error("a name that is no case's is taken")
	}
}

func TestMarkOf(t *testing.T) {
	for _, tc := range []struct {
		tail, line string
		want       bool
	}{{"", "a 10.2.3.4 b", true}, {"xx 10.2", ".3.4 b", true}, {"10.2.3.", "5", false}, {"", "", false}} {
		if got := markOf([]byte(tc.tail), []byte(tc.line), "10.2.3.4"); got != tc.want {
			t.Errorf("markOf(%q, %q) = %t", tc.tail, tc.line, got)
		}
	}
}
