package mixer

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
)

// TestTrafficIsToldToPilotAlone: what clients have counted of the workloads that are asked about, of all clients.
func TestTrafficIsToldToPilotAlone(t *testing.T) {
	w := start(t)
	for i, name := range []string{"web", "api"} {
		r := report.Report{Workload: name, Instance: name, Sequence: 1}
		for code, n := range map[string]uint64{"200": 10, "503": uint64(i)} {
			for _, to := range []string{"reviews-v2", "reviews-v3", "ratings"} {
				s := series(name, code, n)
				s.Labels.Destination = report.Peer{Workload: to}
				r.HTTP = append(r.HTTP, s)
			}
		}
		if code, body := post(t, w.as(t, w.ca.issue(t, workloadID(t, name), time.Now().Add(time.Hour))), encode(t, r)); code != http.StatusNoContent {
			t.Fatalf("report: %d %s", code, body)
		}
	}
	pilot, err := mesh.PlaneID(mesh.DefaultTrustDomain, mesh.RolePilot)
	if err != nil {
		t.Fatal(err)
	}
	get := func(c *http.Client) (int, string) {
		resp, err := c.Get("https://mixer/v1/traffic?workload=reviews-v2&workload=reviews-v3")
		if err != nil {
			t.Fatal(err)
		}
		return answer(t, resp)
	}
	code, body := get(w.as(t, w.ca.issue(t, pilot, time.Now().Add(time.Hour))))
	var got report.Traffic
	if err := json.Unmarshal([]byte(body), &got); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s, %v", code, body, err)
	}
	if got.Requests != 42 || got.Failures != 2 || got.Duration.Counts[3] != 42 {
		t.Errorf("traffic is %+v, want 42 requests of which 2 failed", got)
	}
	if code, body := get(w.as(t, w.ca.issue(t, workloadID(t, "web"), time.Now().Add(time.Hour)))); code != http.StatusForbidden {
		t.Errorf("a proxy was told: %d %s", code, body)
	}
}
