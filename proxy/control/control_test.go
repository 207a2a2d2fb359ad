package control

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/proxytest"
)

const proxyID = "spiffe://cluster.local/ns/default/sa/web"

// serve runs a plane's server on a unix socket with the given identity.
func serve(t *testing.T, ca *proxytest.CA, id, socket string, handler http.Handler) *http.Server {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	td := spiffeid.RequireTrustDomainFromString(mesh.DefaultTrustDomain)
	conf := identity.ServerTLS(ca.Agent("", id), identity.MemberOf(td), "http/1.1")
	srv := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.NewTextHandler(t.Output(), nil), slog.LevelDebug)}
	go func() { _ = srv.Serve(tls.NewListener(ln, conf)) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
	return srv
}

// planes plays pilot and mixer: what it is given it streams, and what it gets it keeps.
type planes struct {
	stream  chan string // lines for the client; closing the channel ends the stream
	queries chan string
	acks    chan snapshot.Ack
	reports chan report.Report
	missed  chan snapshot.MissedKeys
}

func newPlanes() *planes {
	return &planes{make(chan string), make(chan string, 10), make(chan snapshot.Ack, 10), make(chan report.Report, 10), make(chan snapshot.MissedKeys, 10)}
}

func (p *planes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "GET /v1/snapshots":
		p.queries <- r.URL.RawQuery
		for {
			select {
			case line, ok := <-p.stream:
				if !ok {
					return
				}
				if line == "end" {
					return
				}
				fmt.Fprintln(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	case "POST /v1/acks":
		var a snapshot.Ack
		if json.NewDecoder(r.Body).Decode(&a) == nil {
			p.acks <- a
		}
	case "POST /v1/reports":
		var rep report.Report
		if json.NewDecoder(r.Body).Decode(&rep) == nil {
			p.reports <- rep
		}
	case "POST /v1/missed-keys":
		var m snapshot.MissedKeys
		if json.NewDecoder(r.Body).Decode(&m) == nil {
			p.missed <- m
		}
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"error":"no such thing"}`)
	}
}

// rig is a client with what it applied.
type rig struct {
	*Client
	dir    string
	mu     sync.Mutex
	forced []string
	events uint64
}

func (r *rig) apply(s *snapshot.Snapshot) error {
	if s.Version == "bad" {
		return errors.New("virtual host x: no such service")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forced = append(r.forced, s.Version)
	return nil
}

func (r *rig) force(part, version string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forced = append(r.forced, part+" "+version)
	return nil
}

func (r *rig) count(n uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = n
}

func newRig(t *testing.T, ca *proxytest.CA, dir string) *rig {
	t.Helper()
	r := &rig{dir: dir}
	c, err := New(Config{
		PilotSocket: filepath.Join(dir, "pilot.sock"), MixerSocket: filepath.Join(dir, "mixer.sock"), StateDir: dir,
		CitadelSocket: filepath.Join(dir, "citadel.sock"),
		TrustDomain:   mesh.DefaultTrustDomain, Identity: ca.Agent("web-1", proxyID), Build: "v9",
		Apply:         r.apply,
		ApplySecurity: func(s *snapshot.Security) error { return r.force("security", s.Version) },
		ApplyUsage:    func(u *snapshot.Usage) error { return r.force("usage", u.Version) },
		Report: func() (*report.Report, uint64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			return &report.Report{Workload: "web-1", Sequence: r.events}, r.events
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.Client = c
	return r
}

// start runs the client; the returned function stops it.
func (r *rig) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func planeID(t *testing.T, r mesh.Role) string {
	t.Helper()
	id, err := mesh.PlaneID(mesh.DefaultTrustDomain, r)
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}

func TestSnapshotsAreAppliedAnsweredAndKept(t *testing.T) {
	ca, dir, p := proxytest.NewCA(t), t.TempDir(), newPlanes()
	serve(t, ca, planeID(t, mesh.RolePilot), filepath.Join(dir, "pilot.sock"), p)
	r := newRig(t, ca, dir)
	if found, err := r.Load(); found || err != nil {
		t.Fatalf("Load with nothing kept = %v, %v", found, err)
	}
	stop := r.start(t)
	if q := <-p.queries; q != "workload=web-1&have=" {
		t.Errorf("query %q", q)
	}
	for _, step := range []struct{ line, version, err string }{
		{"", "", ""}, // keep-alive
		{`{"version":"one"}`, "one", ""},
		{`{"version":"bad"}`, "bad", "virtual host x: no such service"},
		{`{"version":`, "", "unexpected end of JSON input"},
		{`{"version":"two"}`, "two", ""},
	} {
		p.stream <- step.line
		if step.line == "" {
			continue
		}
		want := snapshot.Ack{Workload: "web-1", Version: step.version, Error: step.err, Build: "v9"}
		if got := <-p.acks; got != want {
			t.Errorf("ack %+v, want %+v", got, want)
		}
	}
	p.stream <- "end"
	<-p.queries // it has come again by itself
	p.stream <- `{"version":"three"}`
	<-p.acks
	stop()
	if got := strings.Join(r.forced, " "); got != "one two three" {
		t.Errorf("applied %q", got)
	}
	// The next start goes by the last good one.
	next := newRig(t, ca, dir)
	if found, err := next.Load(); !found || err != nil || len(next.forced) != 1 || next.forced[0] != "three" {
		t.Errorf("Load = %v, %v, applied %q", found, err, next.forced)
	}
	fi, err := os.Stat(filepath.Join(dir, "snapshot.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("kept with mode %v, %v; want 0600", fi.Mode(), err)
	}
}

// TestChanges: pilot's part comes as changes of the last, also of one that was refused, and is kept whole. What is a change
// of something else makes the client come again, and ask for the whole.
func TestChanges(t *testing.T) {
	ca, dir := proxytest.NewCA(t), t.TempDir()
	p := newPlanes()
	serve(t, ca, planeID(t, mesh.RolePilot), filepath.Join(dir, "pilot.sock"), p)
	r := newRig(t, ca, dir)
	stop := r.start(t)
	first := &snapshot.Snapshot{TrustDomain: "cluster.local", Services: []snapshot.Service{{Host: "a"}, {Host: "b"}}}
	if err := first.Seal(); err != nil {
		t.Fatal(err)
	}
	whole, err := json.Marshal(first)
	if err != nil {
		t.Fatal(err)
	}
	if q := <-p.queries; q != "workload=web-1&have=" {
		t.Errorf("query %q", q)
	}
	for _, step := range []struct{ line, version, err string }{
		{string(whole), first.Version, ""},
		{`{"version":"bad","base":"` + first.Version + `","delta":{"services":{"gone":["a"]}}}`, "bad", "virtual host x: no such service"},
		{`{"version":"third","base":"bad","delta":{"services":{"set":[{"host":"c"}]}}}`, "third", ""},
	} {
		p.stream <- step.line
		want := snapshot.Ack{Workload: "web-1", Version: step.version, Error: step.err, Build: "v9"}
		if got := <-p.acks; got != want {
			t.Errorf("ack %+v, want %+v", got, want)
		}
	}
	p.stream <- `{"version":"fifth","base":"fourth"}`
	if q := <-p.queries; q != "workload=web-1&have=" {
		t.Errorf("query %q after what it did not understand, want it to have nothing", q)
	}
	kept, err := ReadFile(filepath.Join(dir, "snapshot.json"))
	if err != nil || len(kept.Services) != 2 || kept.Services[0].Host != "b" || kept.Services[1].Host != "c" || kept.TrustDomain != "cluster.local" {
		t.Errorf("kept %+v, %v; want the services b and c", kept, err)
	}
	p.stream <- string(whole)
	<-p.acks
	p.stream <- "end"
	if q := <-p.queries; q != "workload=web-1&have="+first.Version {
		t.Errorf("query %q, want it to name what it has", q)
	}
	stop()
}

func TestLoadRefusesWhatIsBroken(t *testing.T) {
	for name, content := range map[string]string{"half a file": `{"version":"on`, "refused by the table": `{"version":"bad"}`} {
		r := newRig(t, proxytest.NewCA(t), t.TempDir())
		if err := os.WriteFile(filepath.Join(r.dir, "snapshot.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := r.Load(); found || err == nil || !strings.Contains(err.Error(), "snapshot.json") {
			t.Errorf("%s: Load = %v, %v; want an error that names the file", name, found, err)
		}
	}
}

// TestPartsComeFromTheirPlanes: each plane's part goes its own way, to its own file.
func TestPartsComeFromTheirPlanes(t *testing.T) {
	ca, dir := proxytest.NewCA(t), t.TempDir()
	r := newRig(t, ca, dir)
	stop := r.start(t)
	for _, part := range []struct {
		plane        mesh.Role
		file, forced string
	}{
		{mesh.RoleCitadel, "security.json", "security one"},
		{mesh.RoleMixer, "usage.json", "usage one"},
	} {
		p := newPlanes()
		serve(t, ca, planeID(t, part.plane), filepath.Join(dir, string(part.plane)+".sock"), p)
		p.stream <- `{"version":"one"}`
		if got, want := <-p.acks, (snapshot.Ack{Workload: "web-1", Version: "one", Build: "v9"}); got != want {
			t.Errorf("%s: ack %+v, want %+v", part.plane, got, want)
		}
		if got, err := os.ReadFile(filepath.Join(dir, part.file)); err != nil || string(got) != `{"version":"one"}` {
			t.Errorf("%s is %q, %v", part.file, got, err)
		}
		if r.forced[len(r.forced)-1] != part.forced {
			t.Errorf("in force are %q, want %s last", r.forced, part.forced)
		}
	}
	stop()
	next := newRig(t, ca, dir)
	if found, err := next.Load(); !found || err != nil || strings.Join(next.forced, ", ") != "security one, usage one" {
		t.Errorf("Load = %v, %v, in force are %q", found, err, next.forced)
	}
}

// TestOnlyPilotIsPilot: whoever else of the mesh sits at the socket is not listened to.
func TestOnlyPilotIsPilot(t *testing.T) {
	ca, dir, p := proxytest.NewCA(t), t.TempDir(), newPlanes()
	serve(t, ca, planeID(t, mesh.RoleMixer), filepath.Join(dir, "pilot.sock"), p)
	r := newRig(t, ca, dir)
	_, err := r.parts[0].stream(t.Context(), &peerState{log: r.cfg.Log})
	if err == nil || !strings.Contains(err.Error(), "sa/mixer, want") {
		t.Errorf("stream = %v, want an error that names both identities", err)
	}
}

func TestReportsAreSentWhenSomethingChanged(t *testing.T) {
	ca, dir, p := proxytest.NewCA(t), t.TempDir(), newPlanes()
	r := newRig(t, ca, dir)
	r.count(3)
	stop := r.start(t) // mixer is away at first
	serve(t, ca, planeID(t, mesh.RoleMixer), filepath.Join(dir, "mixer.sock"), p)
	if got := <-p.reports; got.Sequence != 3 {
		t.Errorf("report %+v, want the third", got)
	}
	r.count(4)
	stop() // the last report goes out at the end, or went before
	if got := <-p.reports; got.Sequence != 4 || len(p.reports) != 0 {
		t.Errorf("report %+v, and %d more; want the fourth alone", got, len(p.reports))
	}
}

func TestMissedKeysAreTold(t *testing.T) {
	ca, dir, p := proxytest.NewCA(t), t.TempDir(), newPlanes()
	serve(t, ca, planeID(t, mesh.RoleCitadel), filepath.Join(dir, "citadel.sock"), p)
	r := newRig(t, ca, dir)
	missing := make(chan []string, 1)
	missing <- []string{"https://issuer.example/keys"}
	r.cfg.MissedKeys = func() []string {
		select {
		case uris := <-missing:
			return uris
		default:
			return nil
		}
	}
	stop := r.start(t)
	if got := <-p.missed; len(got.URIs) != 1 || got.URIs[0] != "https://issuer.example/keys" {
		t.Errorf("citadel is told of %v", got.URIs)
	}
	stop()
	if n := len(p.missed); n != 0 {
		t.Errorf("citadel is told %d times more", n)
	}
}

func TestAnswersAreErrors(t *testing.T) {
	ca, dir, p := proxytest.NewCA(t), t.TempDir(), newPlanes()
	serve(t, ca, planeID(t, mesh.RoleMixer), filepath.Join(dir, "mixer.sock"), p)
	r := newRig(t, ca, dir)
	err := r.post(t.Context(), r.mixer, "https://mixer/v1/nothing", 1)
	if err == nil || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("post = %v, want status and reason", err)
	}
}

func TestBackoff(t *testing.T) {
	for n, limit := range map[int]int64{0: 100, 1: 100, 2: 200, 3: 400, 5: 1600, 6: 2000, 100: 2000} {
		for range 100 {
			if d := backoff(n).Milliseconds(); d < limit/2 || d > limit {
				t.Fatalf("backoff(%d) = %d ms, want %d to %d", n, d, limit/2, limit)
			}
		}
	}
}
