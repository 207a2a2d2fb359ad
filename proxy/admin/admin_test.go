package admin

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func testConfig() Config {
	return Config{
		Info:     func() Info { return Info{Version: "v1", Mode: "sidecar"} },
		Snapshot: func() *snapshot.Snapshot { return nil },
		Clusters: func() []Cluster {
			return []Cluster{{Service: "web", Endpoints: []Endpoint{{Address: "10.0.0.1", Active: 2}}}}
		},
		Certs:     func() any { return map[string]string{"identity": "spiffe://x/y"} },
		Stats:     func() map[string]uint64 { return map[string]uint64{"b": 2, "a": 1} },
		Level:     new(slog.LevelVar),
		Readiness: NewReadiness(map[string]string{"snapshot": "none yet"}),
	}
}

func call(h http.Handler, method, target, host, origin string) (int, string) {
	r := httptest.NewRequest(method, target, http.NoBody)
	r.Host = host
	if origin != "" {
		r.Header.Set("Origin", origin)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestHandler(t *testing.T) {
	cfg := testConfig()
	h := Handler(cfg)
	for _, tc := range []struct {
		method, target string
		code           int
		want           string
	}{
		{"GET", "/", 200, "/config_dump"},
		{"GET", "/server_info", 200, `"mode":"sidecar"`},
		{"GET", "/config_dump", 404, "no snapshot yet"},
		{"GET", "/clusters", 200, `"active":2`},
		{"GET", "/certs", 200, "spiffe://x/y"},
		{"GET", "/stats", 200, "a: 1\nb: 2\n"},
		{"GET", "/ready", 503, "snapshot: none yet\n"},
		{"GET", "/logging", 200, "INFO\n"},
		{"GET", "/logging?level=debug", 200, "INFO\n"}, // a GET changes nothing
		{"POST", "/logging?level=debug", 200, "DEBUG\n"},
		{"POST", "/logging?level=loud", 400, "want debug, info, warn or error"},
		{"GET", "/logging", 200, "DEBUG\n"},
		{"GET", "/debug/pprof/", 200, "goroutine"},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "TestHandler"},
		{"POST", "/stats", 405, ""},
		{"GET", "/nothing", 404, ""},
	} {
		code, body := call(h, tc.method, tc.target, "127.0.0.1:15000", "")
		if code != tc.code || !strings.Contains(body, tc.want) {
			t.Errorf("%s %s = %d %q, want %d with %q", tc.method, tc.target, code, body, tc.code, tc.want)
		}
	}
}

func TestHandlerIsLocal(t *testing.T) {
	h := Handler(testConfig())
	for _, tc := range []struct {
		host, origin string
		code         int
	}{
		{"127.0.0.1:15000", "", 200}, {"localhost:15000", "", 200}, {"[::1]:15000", "", 200}, {"localhost", "", 200},
		{"evil.example:15000", "", 403}, {"10.0.0.1:15000", "", 403}, {"", "", 403}, {"localhost.evil.example", "", 403},
		{"127.0.0.1:15000", "http://evil.example", 403},
	} {
		if code, _ := call(h, "GET", "/stats", tc.host, tc.origin); code != tc.code {
			t.Errorf("Host %q, Origin %q: %d, want %d", tc.host, tc.origin, code, tc.code)
		}
	}
}

func TestMetrics(t *testing.T) {
	h := Metrics(func() *report.Report {
		return &report.Report{HTTP: []report.HTTPSeries{{Labels: report.Labels{Reporter: "source"}, Requests: 7}}}
	})
	for _, path := range []string{"/metrics", "/stats/prometheus"} {
		code, body := call(h, "GET", path, "10.0.0.1:15090", "")
		if code != http.StatusOK || !strings.Contains(body, "istio_requests_total{reporter=\"source\"") {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
}

func TestReadiness(t *testing.T) {
	r := NewReadiness(map[string]string{"snapshot": "none yet", "certificate": "none yet"})
	if code, body := call(r, "GET", "/healthz/ready", "x", ""); code != 503 || body != "certificate: none yet\nsnapshot: none yet\n" {
		t.Errorf("%d %q", code, body)
	}
	r.Set("snapshot", "")
	r.Set("certificate", "")
	if code, body := call(r, "GET", "/healthz/ready", "x", ""); code != 200 || body != "ready\n" {
		t.Errorf("%d %q", code, body)
	}
	for _, wait := range []string{"soon", "-1s", "11m"} {
		if code, _ := call(r, "GET", "/healthz/ready?wait="+wait, "x", ""); code != 400 {
			t.Errorf("wait %q: %d, want 400", wait, code)
		}
	}
}

// TestWait: the blocking health check of design D1.
func TestWait(t *testing.T) {
	const wait = 25 * time.Second
	for _, tc := range []struct {
		name  string
		ready bool // at the start
		told  bool // a check has been told so
		// after is when it changes, 0 for never.
		after   time.Duration
		took    time.Duration
		healthy bool
	}{
		{"becomes ready", false, false, 3 * time.Second, 3 * time.Second, true},
		{"never becomes ready", false, false, 0, wait, false},
		{"is ready, and no check knows", true, false, 0, 0, true},
		{"stays ready", true, true, 0, wait, true},
		{"stops being ready", true, true, 7 * time.Second, 7 * time.Second, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewReadiness(map[string]string{"x": "not yet"})
				if tc.ready {
					r.Set("x", "")
				}
				if tc.told {
					r.Wait(t.Context(), wait)
				}
				if tc.after > 0 {
					go func() {
						time.Sleep(tc.after)
						if tc.ready {
							r.Set("x", "lost")
						} else {
							r.Set("x", "")
						}
					}()
				}
				begun := time.Now()
				reasons := r.Wait(t.Context(), wait)
				if took := time.Since(begun); took != tc.took || (len(reasons) == 0) != tc.healthy {
					t.Errorf("%q after %v, want healthy %v after %v", reasons, took, tc.healthy, tc.took)
				}
			})
		})
	}
}

// TestWaitIsLocal: a peer on the network is answered at once, and not in place of the health check.
func TestWaitIsLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReadiness(nil)
		ask := func(remote string) (int, time.Duration) {
			req := httptest.NewRequestWithContext(t.Context(), "GET", "/healthz/ready?wait=25s", http.NoBody)
			req.RemoteAddr = remote
			w := httptest.NewRecorder()
			begun := time.Now()
			r.ServeHTTP(w, req)
			return w.Code, time.Since(begun)
		}
		for _, tc := range []struct {
			remote string
			took   time.Duration
		}{
			{"172.18.0.7:40000", 0},
			{"[fd00::7]:40000", 0},
			{"127.0.0.1:40000", 0}, // nobody was told yet
			{"127.0.0.1:40000", 25 * time.Second},
			{"[::1]:40000", 25 * time.Second},
			{"172.18.0.7:40000", 0},
		} {
			if code, took := ask(tc.remote); code != 200 || took != tc.took {
				t.Errorf("%s: %d after %v, want 200 after %v", tc.remote, code, took, tc.took)
			}
		}
	})
}

// TestCancelledWait: the engine ends its check when it pauses the container, and calls it unhealthy until the next one
// returns.
func TestCancelledWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReadiness(nil)
		r.Wait(t.Context(), time.Minute) // told
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r.Wait(ctx, time.Minute)
		begun := time.Now()
		if reasons := r.Wait(t.Context(), time.Minute); len(reasons) > 0 || time.Since(begun) > 0 {
			t.Errorf("%q after %v, want ready at once", reasons, time.Since(begun))
		}
	})
}

func TestStateIsSorted(t *testing.T) {
	r := NewReadiness(map[string]string{"b": "2", "a": "1", "c": "3"})
	if got, _ := r.State(); !slices.Equal(got, []string{"a: 1", "b: 2", "c: 3"}) {
		t.Errorf("reasons %q", got)
	}
}
