package mixer

import (
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/lease"
)

// keeperWith serves facts as the keeper does.
func keeperWith(t *testing.T, socket string, facts mesh.Facts) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/facts", func(w http.ResponseWriter, r *http.Request) {
		if json.NewEncoder(w).Encode(facts) == nil && http.NewResponseController(w).Flush() == nil {
			<-r.Context().Done()
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = srv.Serve(l) }() // ends with Close
	t.Cleanup(func() { _ = srv.Close() })
}

const limitsOfTwo = `{"apiVersion":"policy.composure.dev/v1alpha1","kind":"RateLimit","metadata":{"name":"two"},
"spec":{"limit":2,"window":"1h","scope":"GLOBAL"}}`

func TestLeases(t *testing.T) {
	w := start(t)
	worker := func(name string) mesh.Workload {
		return mesh.Workload{Name: name, Namespace: "default", Identity: workloadID(t, name).String(), Meshed: true, Running: true}
	}
	keeperWith(t, filepath.Join(filepath.Dir(w.cfg.Socket), "keeper.sock"), mesh.Facts{Revision: 1, Workloads: []mesh.Workload{worker("web"), worker("api")}})
	admin := client(t, w.cfg.AdminSocket, nil)
	resp, err := admin.Post("http://mixer/apis/policy.composure.dev/v1alpha1/namespaces/default/ratelimits", "application/json", strings.NewReader(limitsOfTwo))
	if err != nil {
		t.Fatal(err)
	}
	if code, body := answer(t, resp); code != http.StatusCreated {
		t.Fatalf("%d %s", code, body)
	}
	ask := func(as, workload string, asks ...lease.Ask) (int, lease.Answer) {
		t.Helper()
		body, err := json.Marshal(lease.Request{Workload: workload, Asks: asks})
		if err != nil {
			t.Fatal(err)
		}
		c := w.as(t, w.ca.issue(t, workloadID(t, as), time.Now().Add(time.Hour)))
		resp, err := c.Post("https://mixer/v1/leases", "application/json", strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		code, text := answer(t, resp)
		var a lease.Answer
		if err := json.Unmarshal([]byte(text), &a); err != nil {
			t.Fatal(err)
		}
		return code, a
	}
	two := lease.Ask{Limit: "ratelimit/default/two"}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if code, a := ask("web", "web", two); code == http.StatusOK && !a.Grants[0].Unknown {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("mixer does not know its own limit")
		}
	}
	used := two
	used.Used = 1
	if code, a := ask("web", "web", used, lease.Ask{Limit: "ratelimit/default/three"}, lease.Ask{Limit: two.Limit, Override: 1}); code != http.StatusOK ||
		len(a.Grants) != 3 || a.Grants[0].Left != 1 || !a.Grants[1].Unknown || !a.Grants[2].Unknown {
		t.Errorf("%d %+v, want one left, and two that nobody knows", code, a)
	}
	// The count is for all proxies.
	if _, a := ask("api", "api", used); a.Grants[0].Left != 0 || a.Grants[0].Wait <= 0 {
		t.Errorf("%+v, want none left", a)
	}
	other := used
	other.Key = []byte("another")
	if _, a := ask("api", "api", other); a.Grants[0].Left != 1 {
		t.Errorf("%+v, want one left of another key", a)
	}
	// Nobody counts for another.
	if code, _ := ask("api", "web", two); code != http.StatusForbidden {
		t.Errorf("a proxy that asks as another is answered %d", code)
	}
	if code, _ := ask("web", "web", make([]lease.Ask, lease.MaxAsks+1)...); code != http.StatusBadRequest {
		t.Errorf("too many asks are answered %d", code)
	}
}
