package pilot_test

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/rollout"
)

const rolloutObjects = "http://pilot/apis/rollout.composure.dev/v1alpha1/namespaces/default/rollouts"

// mixerOf plays mixer for pilot: with each question, the canary has served so many requests more.
func (h *harness) mixerOf(served report.Traffic) {
	h.t.Helper()
	l, err := net.Listen("unix", h.path("mixer.sock"))
	if err != nil {
		h.t.Fatal(err)
	}
	pilotID := spiffeid.RequireFromString("spiffe://cluster.local/ns/composure-system/sa/pilot")
	conf := identity.ServerTLS(h.ca.issue("spiffe://cluster.local/ns/composure-system/sa/mixer"), identity.AnyOf(pilotID), "http/1.1")
	var mu sync.Mutex
	var total report.Traffic
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if got := r.URL.Query()["workload"]; r.URL.Path != "/v1/traffic" || !slices.Equal(got, []string{"reviews-v2"}) {
			h.t.Errorf("mixer is asked %s", r.URL)
		}
		total.Requests += served.Requests
		total.Failures += served.Failures
		_ = json.NewEncoder(w).Encode(total)
	})}
	go func() { _ = srv.Serve(tls.NewListener(l, conf)) }() // ends with Close
	h.t.Cleanup(func() { _ = srv.Close() })
}

// TestRollout: pilot asks mixer for the canary's requests and moves the weights that proxies get, to the end or back, also
// when it is restarted meanwhile.
func TestRollout(t *testing.T) {
	for name, tc := range map[string]struct {
		served  report.Traffic
		phase   rollout.Phase
		weights []uint32 // of v1 and v2 at the end; 0 is left out
	}{
		"good": {report.Traffic{Requests: 100}, rollout.Promoted, []uint32{1}},
		"bad":  {report.Traffic{Requests: 100, Failures: 50}, rollout.RolledBack, []uint32{95, 5}},
	} {
		t.Run(name, func(t *testing.T) {
			h := start(t)
			h.mixerOf(tc.served)
			running := facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("reviews-v2", "reviews", "v2", "10.0.0.4"), workload("web", "web", "v1", "10.0.0.3"))
			h.keeper.facts <- running
			web := h.proxy("web")
			web.next()
			h.do(h.admin, http.MethodPost, objects+"destinationrules", strings.Replace(reviewsRule, `"version":"v1"}}`, `"version":"v1"}},{"name":"v2","labels":{"version":"v2"}}`, 1), http.StatusCreated)
			h.do(h.admin, http.MethodPost, objects+"virtualservices", `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"reviews"},
				"spec":{"hosts":["reviews"],"http":[{"route":[{"destination":{"host":"reviews","subset":"v1"},"weight":95},{"destination":{"host":"reviews","subset":"v2"},"weight":5}]}]}}`, http.StatusCreated)
			_, header := h.do(h.admin, http.MethodPost, rolloutObjects, `{"apiVersion":"rollout.composure.dev/v1alpha1","kind":"Rollout","metadata":{"name":"reviews"},
				"spec":{"virtualService":"reviews","host":"reviews","stable":"v1","canary":"v2","steps":[{"weight":20,"hold":"1ms"},{"weight":60,"hold":"1ms"}]}}`, http.StatusCreated)
			if got := header.Values("Warning"); len(got) > 0 {
				t.Errorf("warnings are %q", got)
			}
			weights := func(s *snapshot.Snapshot) (list []uint32) {
				for _, r := range routesOf(s, "reviews") {
					for _, d := range r.Destinations {
						list = append(list, d.Weight)
					}
				}
				return list
			}
			for s := web.next(); !slices.Equal(weights(s), []uint32{80, 20}); s = web.next() {
				web.ack(s, "")
			}
			h.stop()
			h.run()
			h.keeper.facts <- running
			again := h.proxy("web")
			for {
				if got := weights(again.next()); slices.Equal(got, tc.weights) || len(got) == 1 && len(tc.weights) == 1 {
					break
				}
			}
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the status comes after the weights
				var list []rollout.Status
				body, _ := h.do(h.admin, http.MethodGet, "http://pilot/rollouts", "", http.StatusOK)
				if err := json.Unmarshal([]byte(body), &list); err != nil {
					t.Fatal(err)
				}
				if len(list) == 1 && list[0].Phase == tc.phase {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("rollouts are %+v, want one %s", list, tc.phase)
				}
			}
			if body, _ := h.do(h.admin, http.MethodPost, "http://pilot/rollouts/default/reviews/abort", "", http.StatusConflict); !strings.Contains(body, "is over") {
				t.Errorf("abort after the end is answered %s", body)
			}
			h.do(h.admin, http.MethodPost, "http://pilot/rollouts/default/other/abort", "", http.StatusNotFound)
			// The status is the mesh's, whatever is applied.
			h.do(h.admin, http.MethodPut, rolloutObjects+"/reviews", `{"apiVersion":"rollout.composure.dev/v1alpha1","kind":"Rollout","metadata":{"name":"reviews","labels":{"a":"b"}},
				"spec":{"virtualService":"reviews","host":"reviews","stable":"v1","canary":"v2","steps":[{"weight":20,"hold":"1ms"},{"weight":60,"hold":"1ms"}]},"status":{"phase":"Waiting"}}`, http.StatusOK)
			if body, _ := h.do(h.admin, http.MethodGet, rolloutObjects+"/reviews", "", http.StatusOK); !strings.Contains(body, `"phase":"`+string(tc.phase)+`"`) {
				t.Errorf("after an update the object is %s", body)
			}
		})
	}
}

func TestRolloutIsWarnedAbout(t *testing.T) {
	h := start(t)
	h.keeper.facts <- facts(1, workload("reviews-v1", "reviews", "v1", "10.0.0.2"), workload("web", "web", "v1", "10.0.0.3"))
	h.proxy("web").next()
	h.do(h.admin, http.MethodPost, objects+"destinationrules", reviewsRule, http.StatusCreated)
	_, header := h.do(h.admin, http.MethodPost, rolloutObjects, `{"apiVersion":"rollout.composure.dev/v1alpha1","kind":"Rollout","metadata":{"name":"reviews"},
		"spec":{"virtualService":"other","host":"reviews","stable":"v1","canary":"v2","steps":[{"weight":20,"hold":"1m"}]}}`, http.StatusCreated)
	got := strings.Join(header.Values("Warning"), "\n")
	for _, want := range []string{"spec.virtualService: there is no VirtualService default/other", `spec.canary: no DestinationRule gives reviews.default.svc.cluster.local a subset \"v2\"`} {
		if !strings.Contains(got, want) {
			t.Errorf("warnings are %s, want %s", got, want)
		}
	}
	if strings.Contains(got, "spec.stable") {
		t.Errorf("warnings are %s: there is a subset v1", got)
	}
}
