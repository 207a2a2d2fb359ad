package mixer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
)

// world is a running mixer with a CA.
type world struct {
	ca    *authority
	cfg   Config
	log   *syncBuffer
	plane spiffeid.ID
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func start(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	plane, err := mesh.PlaneID(mesh.DefaultTrustDomain, mesh.RoleMixer)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ca: newAuthority(t), plane: plane, log: &syncBuffer{}}
	w.cfg = Config{
		Socket: filepath.Join(dir, "mixer.sock"), AdminSocket: filepath.Join(dir, "admin.sock"),
		KeeperSocket: filepath.Join(dir, "keeper.sock"), StoreFile: filepath.Join(dir, "mixer.db"),
		Identity: w.ca.issue(t, plane, time.Now().Add(time.Hour)), TrustDomain: mesh.DefaultTrustDomain, Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(w.log, nil)),
	}
	srv, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return w
}

// client speaks as the identity that src holds, through one unix socket.
func client(t *testing.T, socket string, tlsConfig *tls.Config) *http.Client {
	t.Helper()
	tr := &http.Transport{
		TLSClientConfig: tlsConfig,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (w *world) as(t *testing.T, src identity.Source) *http.Client {
	t.Helper()
	return client(t, w.cfg.Socket, identity.ClientTLS(src, identity.AnyOf(w.plane), "http/1.1"))
}

func post(t *testing.T, c *http.Client, body string) (int, string) {
	t.Helper()
	resp, err := c.Post("https://mixer/v1/reports", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return answer(t, resp)
}

func answer(t *testing.T, resp *http.Response) (int, string) {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (w *world) admin(t *testing.T, path string) (int, string) {
	t.Helper()
	resp, err := client(t, w.cfg.AdminSocket, nil).Get("http://mixer" + path)
	if err != nil {
		t.Fatal(err)
	}
	return answer(t, resp)
}

func encode(t *testing.T, r report.Report) string {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReportsArriveOverMutualTLSAndShowInMetrics(t *testing.T) {
	w := start(t)
	hour := time.Now().Add(time.Hour)
	for _, account := range []string{"web", "api"} {
		c := w.as(t, w.ca.issue(t, workloadID(t, account), hour))
		r := report.Report{Workload: account, Instance: "a", Sequence: 1, HTTP: []report.HTTPSeries{series(account, "200", 5)}}
		for range 2 { // the second counts nothing twice
			if code, body := post(t, c, encode(t, r)); code != http.StatusNoContent {
				t.Fatalf("report of %s: %d %s", account, code, body)
			}
		}
	}
	code, text := w.admin(t, "/metrics")
	if code != http.StatusOK {
		t.Fatalf("metrics: %d %s", code, text)
	}
	samples := counters(t, text)
	for prefix, want := range map[string]float64{
		`istio_requests_total{reporter="source",source_workload="web",`:                5,
		`istio_requests_total{reporter="source",source_workload="api",`:                5,
		`istio_request_duration_milliseconds_sum{reporter="source",source_workload="w`: 50,
		`composure_mixer_reports_total{result="accepted"`:                              2,
		`composure_mixer_reports_total{result="stale"`:                                 2,
		`composure_build_info{component="mixer",version="1.2.3"`:                       1,
		`istio_build{component="mixer",tag="1.2.3"`:                                    1,
	} {
		found := false
		for sample, got := range samples {
			if strings.HasPrefix(sample, prefix) {
				found = true
				if got != want {
					t.Errorf("%s…: %g, want %g", prefix, got, want)
				}
			}
		}
		if !found {
			t.Errorf("no sample %s…", prefix)
		}
	}
	if !strings.Contains(text, "\ncomposure_mixer_series 2\n") || !strings.Contains(text, "\ncomposure_mixer_instances 2\n") {
		t.Errorf("want 2 series of 2 instances in:\n%s", text)
	}
	checkWithPromtool(t, text)
}

// checkWithPromtool has Prometheus' own parser and linter judge; "milliseconds" is Istio's name.
func checkWithPromtool(t *testing.T, text string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not on PATH: install Debian's package prometheus to check the exposition with Prometheus' own parser")
		return
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) ||
		strings.TrimSpace(string(out)) != `istio_request_duration_milliseconds use base unit "seconds" instead of "milliseconds"` {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

func TestReportsAreRefused(t *testing.T) {
	w := start(t)
	web := workloadID(t, "web")
	c := w.as(t, w.ca.issue(t, web, time.Now().Add(time.Hour)))
	good := report.Report{Workload: "web", Instance: "a", Sequence: 7, HTTP: []report.HTTPSeries{series("web", "200", 5)}}
	if code, body := post(t, c, encode(t, good)); code != http.StatusNoContent {
		t.Fatalf("%d %s", code, body)
	}
	with := func(change func(*report.Report)) string {
		r := good
		r.Sequence++
		r.HTTP = []report.HTTPSeries{series("web", "200", 6)}
		change(&r)
		return encode(t, r)
	}
	for _, tt := range []struct {
		name string
		body string
		code int
		says string
	}{
		{"not JSON", "istio", 400, "invalid character"},
		{"unknown field", `{"workload":"web","instance":"a","sequence":9,"colour":"red"}`, 400, `unknown field "colour"`},
		{"two reports", encode(t, good) + encode(t, good), 400, "exactly one"},
		{"no workload", with(func(r *report.Report) { r.Workload = "" }), 400, "workload: 0 bytes"},
		{"long instance", with(func(r *report.Report) { r.Instance = strings.Repeat("a", 300) }), 400, "instance: 300 bytes"},
		{"no reporter", with(func(r *report.Report) { r.HTTP[0].Labels.Reporter = "" }), 400, `http[0].labels.reporter: "", want "source"`},
		{"twice the same labels", with(func(r *report.Report) { r.HTTP = append(r.HTTP, r.HTTP[0]) }), 400, "http[1].labels: the same"},
		{"long label", with(func(r *report.Report) { r.HTTP[0].Labels.ResponseFlags = strings.Repeat("U", 600) }), 400, "a value of 600 bytes"},
		{"negative sum", with(func(r *report.Report) { r.HTTP[0].Duration.Sum = -1 }), 400, "http[0].duration.sum: -1"},
		{"huge requests", with(func(r *report.Report) { r.HTTP[0].Requests = 1 << 60 }), 400, "http[0].requests"},
		{"huge bucket", with(func(r *report.Report) { r.HTTP[0].ResponseBytes.Counts[2] = 1 << 60 }), 400, "http[0].responseBytes.counts[2]"},
		{"huge bytes", with(func(r *report.Report) {
			r.TCP = []report.TCPSeries{{Labels: report.Labels{Reporter: "source"}, Sent: 1 << 60}}
		}), 400, "tcp[0].sent"},
		{"huge dropped", with(func(r *report.Report) { r.Dropped = 1 << 60 }), 400, "dropped:"},
		{"other's source", with(func(r *report.Report) { r.HTTP[0] = series("api", "200", 1) }), 403, "http[0].labels.source.principal"},
		{"other's destination", with(func(r *report.Report) {
			r.TCP = []report.TCPSeries{{Labels: report.Labels{Reporter: "destination", Destination: report.Peer{Principal: "spiffe://x/y"}}}}
		}), 403, `tcp[0].labels.destination.principal is "spiffe://x/y", but the reporter is spiffe://cluster.local/ns/default/sa/web`},
		{"fell", with(func(r *report.Report) { r.HTTP[0] = series("web", "200", 4) }), 409, "http[0] fell"},
		{"large", `{"workload":"` + strings.Repeat("a", maxReportBytes) + `"}`, 413, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, body := post(t, c, tt.body)
			if code != tt.code || !strings.Contains(body, jsonText(t, tt.says)) {
				t.Errorf("%d %s\nwant %d with %q", code, body, tt.code, tt.says)
			}
		})
	}
	_, text := w.admin(t, "/metrics")
	if !strings.Contains(text, "composure_mixer_reports_total{result=\"refused\"} 17\n") || !strings.Contains(text, "composure_mixer_series 1\n") {
		t.Errorf("want 17 refusals and still one series in:\n%s", text)
	}
	if log := w.log.String(); !strings.Contains(log, "report refused") || !strings.Contains(log, web.String()) {
		t.Errorf("log does not name the refused peer:\n%s", log)
	}
}

func jsonText(t *testing.T, s string) string {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(string(b), `"`)
}

func TestOnlyMembersOfTheMeshMayReport(t *testing.T) {
	w := start(t)
	hour := time.Now().Add(time.Hour)
	foreign, err := mesh.IdentityID("elsewhere.test", "default", "web")
	if err != nil {
		t.Fatal(err)
	}
	roots := w.ca.issue(t, workloadID(t, "web"), hour)
	impostor := newAuthority(t).issue(t, workloadID(t, "web"), hour)
	impostor.m.Roots = roots.m.Roots // it believes mixer; mixer must not believe it
	for name, src := range map[string]identity.Source{
		"another trust domain": w.ca.issue(t, foreign, hour),
		"another CA":           impostor,
		"an expired one":       w.ca.issue(t, workloadID(t, "web"), time.Now().Add(-time.Minute)),
	} {
		if resp, err := w.as(t, src).Post("https://mixer/v1/reports", "application/json", strings.NewReader("{}")); err == nil {
			code, body := answer(t, resp)
			t.Errorf("%s: answered %d %s, want no answer", name, code, body)
		}
	}
	// And a client that has no certificate at all.
	nobody := client(t, w.cfg.Socket, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if resp, err := nobody.Post("https://mixer/v1/reports", "application/json", strings.NewReader("{}")); err == nil {
		code, body := answer(t, resp)
		t.Errorf("no certificate: answered %d %s, want no answer", code, body)
	}
}

func TestACertificateThatRanOutWhileConnectedIsRefused(t *testing.T) {
	ca := newAuthority(t)
	end := time.Now().Add(time.Hour)
	leaf := ca.issue(t, workloadID(t, "web"), end).m.Certificate.Leaf
	req := httptest.NewRequest(http.MethodPost, "/v1/reports", nil)
	req.TLS = &tls.ConnectionState{}
	req.TLS.PeerCertificates = append(req.TLS.PeerCertificates, leaf)
	if id, err := peerID(req, end.Add(-time.Minute)); err != nil || id != workloadID(t, "web") {
		t.Errorf("valid: %s, %v", id, err)
	}
	if _, err := peerID(req, end.Add(time.Minute)); err == nil || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("expired: %v, want an error that says so", err)
	}

	expired := ca.issue(t, workloadID(t, "web"), time.Now().Add(-time.Minute)).m.Certificate.Leaf
	req.TLS.PeerCertificates[0] = expired
	rec := httptest.NewRecorder()
	srv := &Server{totals: newTotals()}
	srv.reportsHandler().ServeHTTP(rec, req)
	if rec.Code != http.StatusUnauthorized || rec.Header().Get("Connection") != "close" {
		t.Errorf("answered %d, Connection %q, want 401, close", rec.Code, rec.Header().Get("Connection"))
	}
}

func TestAdmin(t *testing.T) {
	w := start(t)
	if code, body := w.admin(t, "/version"); code != 200 || body != `{"component":"mixer","version":"1.2.3"}`+"\n" {
		t.Errorf("version: %d %s", code, body)
	}
	if code, body := w.admin(t, "/healthz"); code != 200 {
		t.Errorf("healthz: %d %s", code, body)
	}
	if code, _ := w.admin(t, "/v1/reports"); code != 404 {
		t.Errorf("the admin socket takes reports: %d, want 404", code)
	}
	for path, want := range map[string]os.FileMode{w.cfg.Socket: 0o666, w.cfg.AdminSocket: 0o600} {
		fi, err := os.Stat(path)
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", path, fi.Mode().Perm(), err, want)
		}
	}
}

func TestHealthNamesTheMissingCertificate(t *testing.T) {
	shared, err := plane.New(plane.Config{StoreFile: filepath.Join(t.TempDir(), "mixer.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	srv := &Server{Plane: shared, cfg: Config{Identity: fixed{}}, totals: newTotals()}
	rec := httptest.NewRecorder()
	srv.adminHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/healthz", nil))
	if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), "no certificate yet") {
		t.Errorf("healthz: %d %s, want 503 and the reason", rec.Code, rec.Body)
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	good := Config{Socket: filepath.Join(dir, "a.sock"), AdminSocket: filepath.Join(dir, "b.sock"), StoreFile: filepath.Join(dir, "mixer.db"), TrustDomain: "cluster.local"}
	for name, tt := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"trust domain": {func(c *Config) { c.TrustDomain = "Not One" }, `trust domain "Not One"`},
		"socket":       {func(c *Config) { c.Socket = filepath.Join(dir, "missing", "a.sock") }, "missing/a.sock"},
		"admin socket": {func(c *Config) { c.AdminSocket = filepath.Join(dir, "missing", "b.sock") }, "missing/b.sock"},
	} {
		cfg := good
		tt.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want an error with %q", name, err, tt.says)
		}
	}
}

func TestRefusalsAreLoggedOnceAChange(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	f := refusals{last: map[spiffeid.ID]string{}}
	id := workloadID(t, "web")
	for _, err := range []error{nil, errFull, errFull, errRetired, nil, nil} {
		f.note(log, id, err)
	}
	if got := strings.Count(out.String(), "\n"); got != 3 {
		t.Errorf("%d lines, want 3 (refused, other reason, taken again):\n%s", got, out.String())
	}
	if len(f.last) != 0 {
		t.Errorf("%v is remembered of a peer that is fine", f.last)
	}
}

// TestGoneInstancesRetireByThemselves runs the loop of Run on a false clock.
func TestGoneInstancesRetireByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &Server{totals: newTotals()}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- srv.retire(ctx) }()
		for _, instance := range []string{"old", "new"} {
			if err := srv.totals.ingest(workloadID(t, "web"), &report.Report{Workload: "web", Instance: instance}, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(silence - 3*time.Second)
		if got := srv.totals.collect().instances; got != 2 {
			t.Errorf("%d instances before the silence is over, want 2", got)
		}
		time.Sleep(silence / 10)
		synctest.Wait()
		if got := srv.totals.collect().instances; got != 1 {
			t.Errorf("%d instances after it, want 1", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"workload":"web","instance":"a","sequence":1,"http":[{"labels":{"reporter":"source"},"requests":1,"duration":{"counts":[1],"sum":3}}]}`))
	f.Add([]byte(`{"workload":"web","instance":"a","tcp":[{"labels":{"reporter":"destination","service":"db"},"opened":18446744073709551615}]}`))
	f.Add([]byte(`{}{}`))
	id := spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/web")
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decode(bytes.NewReader(body))
		if err != nil || validate(id, r) != nil {
			return
		}
		sums := newTotals()
		if err := sums.ingest(id, r, time.Now()); err != nil {
			t.Fatalf("a valid first report is refused: %v", err)
		}
		counters(t, exposition(t, sums)) // whatever the labels hold, each sample stands once and parses
	})
}
