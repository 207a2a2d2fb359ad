package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/rollout"
)

func TestRollout(t *testing.T) {
	e := &fakeEngine{apis: map[string]*httptest.Server{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /rollouts", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode([]rollout.Status{
			{Resource: "rollout/default/reviews", Phase: rollout.Progressing, Step: 2, Steps: 3, Weight: 50, Since: time.Now().Add(-30 * time.Second), Hold: "1m0s", Requests: 200, Failures: 1, SuccessRate: 99.5},
			{Resource: "rollout/blog/web", Phase: rollout.RolledBack, Step: 1, Steps: 1, Message: "at 10 %: 9 of 10 requests failed"},
		})
	})
	mux.HandleFunc("POST /rollouts/{namespace}/{name}/{command}", func(w http.ResponseWriter, r *http.Request) {
		switch r.PathValue("namespace") + "/" + r.PathValue("name") + "/" + r.PathValue("command") {
		case "default/reviews/pause", "blog/web/abort":
			w.WriteHeader(http.StatusNoContent)
		case "default/reviews/promote":
			http.Error(w, `{"error":"the rollout is over"}`, http.StatusConflict)
		default:
			http.Error(w, `{"error":"there is no Rollout"}`, http.StatusNotFound)
		}
	})
	e.run(t, "shop", "/projects/shop", mesh.RolePilot, "", mux)
	check(t, in(t, e, "/", "", "rollout", "status"), 0, "default/reviews   Progressing   2 of 3   50 %     30s of 1m0s   99.5 % of 200   -\nblog/web          RolledBack    1 of 1   0 %      -             -               at 10 %: 9 of 10", "")
	check(t, in(t, e, "/", "", "rollout", "status", "web", "-n", "blog", "-o", "json"), 0, `"phase": "RolledBack"`, "")
	check(t, in(t, e, "/", "", "rollout", "status", "other"), exitNotFound, "", "there is no Rollout default/other")
	check(t, in(t, e, "/", "", "rollout", "pause", "reviews"), 0, "", "")
	check(t, in(t, e, "/", "", "rollout", "abort", "web", "-n", "blog"), 0, "", "")
	check(t, in(t, e, "/", "", "rollout", "promote", "reviews"), 1, "", "rollout default/reviews: the rollout is over")
	check(t, in(t, e, "/", "", "rollout", "resume", "other"), exitNotFound, "", "there is no Rollout")
}
