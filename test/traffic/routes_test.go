package traffic

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/internal/explain"
)

// TestRoutes plays testdata/routes/*.txt, and holds that meshctl explain says of each request what the proxy has done with
// it. Such a file has rules and requests:
//
//	What it shows.
//	-- rules --
//	<YAML, as for meshctl apply>
//	-- requests from productpage-v1 --
//	GET reviews:9080/path | end-user: jason  => 200 reviews-v2
//
// What follows the arrow holds for the answer: the status, the workload that gave it ("-" for the proxy itself), and any
// number of name=value: flag, route and cluster as in the access log; tries, the requests that workloads got; mirrored, a
// workload that got a copy; and else the answer's header, of which saw-path, saw-host and saw-NAME tell what the workload
// saw. "name=" is absent. Underscores in a value stand for spaces.
func TestRoutes(t *testing.T) {
	files, err := filepath.Glob("testdata/routes/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			play(t, file, string(raw))
		})
	}
}

func play(t *testing.T, file, text string) {
	t.Helper()
	var (
		s       *shop
		rules   strings.Builder
		section string
	)
	for i, line := range strings.Split(text, "\n") {
		if name, ok := strings.CutPrefix(line, "-- "); ok {
			section = strings.TrimSuffix(name, " --")
			if section == "rules" {
				rules.Reset()
			} else if from, ok := strings.CutPrefix(section, "requests from "); ok {
				s = open(t, from, rules.String())
			} else {
				t.Fatalf("%s:%d: section %q, want rules or requests from WORKLOAD", file, i+1, section)
			}
			continue
		}
		switch {
		case section == "rules":
			rules.WriteString(line + "\n")
		case section != "" && line != "" && line[0] != '#':
			s.check(t, file+":"+strconv.Itoa(i+1), line)
		}
	}
	if s == nil {
		t.Fatalf("%s: no requests", file)
	}
}

func (s *shop) check(t *testing.T, at, line string) {
	t.Helper()
	request, wants, ok := strings.Cut(line, "=>")
	if !ok {
		t.Fatalf("%s: want a request => an answer", at)
	}
	parts := strings.Split(request, "|")
	method, url, _ := strings.Cut(strings.TrimSpace(parts[0]), " ")
	host, _, _ := strings.Cut(url, "/")
	name, _, _ := strings.Cut(host, ":")
	name, _, _ = strings.Cut(name, ".")
	s.requests()
	url = strings.TrimSpace(url)
	a := s.client(name).do(method, url, parts[1:]...)
	// What is dialled is the service's address, whatever the host says.
	headers := []string{"host: " + host}
	for _, h := range parts[1:] {
		headers = append(headers, strings.TrimSpace(h))
	}
	_, path, _ := strings.Cut(url, "/")
	asked, _, _ := strings.Cut(host, ":")
	to := "http://" + net.JoinHostPort(asked, strconv.Itoa(int(a.record.Conn.OriginalDst.Port()))) + "/" + path
	s.explained(t, at, a, explain.Request{Method: method, URL: to, Headers: headers})
	for i, want := range strings.Fields(wants) {
		what, value, named := strings.Cut(want, "=")
		if !named {
			what, value = []string{"status", "workload"}[i], want
		}
		value = strings.ReplaceAll(value, "_", " ")
		if what == "mirrored" {
			s.mirrored(t, at, value)
			continue
		}
		if got := s.about(a, what); got != value {
			t.Errorf("%s: %s is %q, want %q", at, what, got, value)
		}
	}
}

// explained compares what is said about a request with the answer to it.
func (s *shop) explained(t *testing.T, at string, a *answer, r explain.Request) {
	t.Helper()
	e, err := explain.Snapshot(s.snap, r)
	if err != nil {
		t.Errorf("%s: explain: %v", at, err)
		return
	}
	byProxy := a.Header.Get("X-App") == "" && a.record.Upstream.Cluster == ""
	switch {
	case e.Status != nil:
		// To a client of gRPC, an answer of the mesh's own is 200 with a status of gRPC.
		status := *e.Status == a.StatusCode || a.StatusCode == http.StatusOK && a.Header.Get("Grpc-Status") != ""
		if a.workload() != "" || !status || e.Redirect != a.Header.Get("Location") {
			t.Errorf("%s: explain: %s; the proxy answered with %d, location %q, of workload %q", at, e.Reason, a.StatusCode, a.Header.Get("Location"), a.workload())
		}
		return
	case byProxy:
		return // a fault that is chance, CORS's answer
	}
	cluster := a.record.Upstream.Cluster
	named := func(w explain.Weight) bool {
		return cluster == fmt.Sprintf("outbound|%d|%s|%s", w.Port, w.Subset, w.Destination)
	}
	if len(e.Weights) > 0 && !slices.ContainsFunc(e.Weights, named) {
		t.Errorf("%s: explain: goes to one of %v; the proxy sent it to %s", at, e.Weights, cluster)
	}
	if w := e.Rewrite; w != nil && a.workload() != "" && (w.URI != "" && w.URI != a.Header.Get("Saw-Path") || w.Authority != "" && w.Authority != a.Header.Get("Saw-Host")) {
		t.Errorf("%s: explain: rewritten to %+v; the workload saw %s at %s", at, *w, a.Header.Get("Saw-Path"), a.Header.Get("Saw-Host"))
	}
}

func (s *shop) about(a *answer, what string) string {
	switch what {
	case "status":
		return strconv.Itoa(a.StatusCode)
	case "workload":
		if a.workload() == "" {
			return "-"
		}
		return a.workload()
	case "flag":
		return string(a.record.Flag)
	case "route":
		return a.record.Route
	case "cluster":
		return a.record.Upstream.Cluster
	case "body":
		return a.body
	case "tries":
		n := 0
		for _, got := range s.requests() {
			n += len(got)
		}
		return strconv.Itoa(n)
	}
	return strings.Join(a.Header.Values(what), "|")
}

// mirrored waits for a copy at a workload.
func (s *shop) mirrored(t *testing.T, at, workload string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		s.mu.Lock()
		for _, got := range s.seen[workload] {
			if strings.Contains(got, "-shadow") {
				s.mu.Unlock()
				return
			}
		}
		s.mu.Unlock()
	}
	t.Errorf("%s: %s got no copy", at, workload)
}

// TestRecipes plays docs/traffic.md: each block of requests with the rules above it.
func TestRecipes(t *testing.T) {
	const page = "../../docs/traffic.md"
	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var (
		rules strings.Builder
		s     *shop
		block string
		ran   int
	)
	for i, line := range strings.Split(string(raw), "\n") {
		if language, fence := strings.CutPrefix(line, "```"); fence {
			switch block = language; language {
			case "yaml":
				rules.Reset()
			case "requests":
				s = open(t, "productpage-v1", rules.String())
			}
			continue
		}
		switch {
		case block == "yaml":
			rules.WriteString(line + "\n")
		case block == "requests" && line != "":
			s.check(t, page+":"+strconv.Itoa(i+1), line)
			ran++
		}
	}
	if ran < 20 {
		t.Errorf("%d requests, want at least 20", ran)
	}
}
