package rollout_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/pilot/rollout"
)

const reviewsVS = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: default}
spec:
  hosts: [reviews]
  http:
  - match: [{uri: {prefix: /admin}}]
    route: [{destination: {host: reviews, subset: v1}}]
  - match: [{uri: {prefix: /beta}}]
    route: [{destination: {host: reviews, subset: v2}, weight: 30}, {destination: {host: reviews, subset: v1}, weight: 70}]
  - route: [{destination: {host: reviews, subset: v1}, weight: 95}, {destination: {host: reviews, subset: v2}, weight: 5}]
`

const reviewsRollout = `
apiVersion: rollout.composure.dev/v1alpha1
kind: Rollout
metadata: {name: reviews, namespace: default, generation: 1}
spec:
  virtualService: reviews
  host: reviews
  stable: v1
  canary: v2
  steps: [{weight: 10, hold: 1m}, {weight: 50, hold: 2m}]
  successRate: 95
  latency: {percentile: 90, below: 300ms}
  minRequests: 10
`

// scene is a controller with a clock and a mixer that are the test's.
type scene struct {
	t     *testing.T
	store *apiserver.Store
	c     *rollout.Controller
	now   time.Time
	total report.Traffic
	away  error // why mixer can't be asked
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{t: t, store: apiserver.NewMemory(1), now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	s.put(reviewsVS)
	s.serve(1000, 500, 1) // of before: it counts for nothing
	s.start()
	return s
}

// start is a pilot that starts.
func (s *scene) start() {
	s.c = rollout.New(rollout.Config{
		Store: s.store, Now: func() time.Time { return s.now }, Log: slog.New(slog.DiscardHandler),
		Workloads: func(host, subset, namespace string) ([]string, error) {
			if got := host + " " + subset + " " + namespace; got != "reviews v2 default" {
				s.t.Errorf("the workloads of %s were asked for", got)
			}
			return []string{"reviews-v2"}, nil
		},
		Traffic: func(_ context.Context, workloads []string) (report.Traffic, error) {
			if len(workloads) != 1 || workloads[0] != "reviews-v2" {
				s.t.Errorf("the traffic of %v was asked for", workloads)
			}
			return s.total, s.away
		},
	})
}

func (s *scene) put(text string) {
	s.t.Helper()
	var content map[string]any
	raw, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	if content, err = api.ParseJSON(raw); err != nil {
		s.t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: content}
	kind, err := api.Find(api.Networking(), u.GetAPIVersion(), u.GetKind())
	if err != nil {
		s.t.Fatal(err)
	}
	key := apiserver.Key{Resource: kind.Resource(), Namespace: "default", Name: u.GetName()}
	if _, err := s.store.Apply(key, false, func(current *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		if current != nil && current.Object["status"] != nil {
			u.Object["status"] = current.Object["status"]
		}
		return u, nil
	}); err != nil {
		s.t.Fatal(err)
	}
}

// serve counts requests of the canary, some of which failed, each of so many milliseconds.
func (s *scene) serve(requests, failures uint64, ms float64) {
	for code, n := range map[string]uint64{"200": requests - failures, "503": failures} {
		series := report.HTTPSeries{Labels: report.Labels{ResponseCode: code}, Requests: n}
		for i, bound := range report.Buckets {
			if ms <= bound {
				series.Duration.Counts[i] = n
				break
			}
		}
		s.total.Add(&series)
	}
}

// after lets time pass, and the controller look.
func (s *scene) after(d time.Duration) {
	s.now = s.now.Add(d)
	s.c.Step(s.t.Context())
}

// want is where the rollout must be, and the weights of the canary in the two rules that take part.
func (s *scene) want(phase rollout.Phase, step int, beta, rest int64, message string) {
	s.t.Helper()
	list := s.c.List()
	if len(list) != 1 {
		s.t.Fatalf("rollouts are %+v", list)
	}
	if got := list[0]; got.Phase != phase || got.Step != step || !strings.Contains(got.Message, message) || message == "" && got.Message != "" {
		s.t.Errorf("the rollout is %s at step %d (%q), want %s at %d (%q)", got.Phase, got.Step, got.Message, phase, step, message)
	}
	s.wantWeights(beta, rest)
}

func (s *scene) wantWeights(beta, rest int64) {
	s.t.Helper()
	u := s.store.Get(apiserver.Key{Resource: api.VirtualService().Resource(), Namespace: "default", Name: "reviews"})
	rules, _, err := unstructured.NestedSlice(u.Object, "spec", "http")
	if err != nil {
		s.t.Fatal(err)
	}
	var got []any
	for _, r := range rules {
		for _, d := range r.(map[string]any)["route"].([]any) {
			got = append(got, d.(map[string]any)["weight"])
		}
	}
	if want := []any{nil, beta, 100 - beta, 100 - rest, rest}; !slices.Equal(got, want) {
		s.t.Errorf("weights are %v, want %v", got, want)
	}
}

func TestGoodCanaryIsPromoted(t *testing.T) {
	s := newScene(t)
	s.put(reviewsRollout)
	s.after(0)
	s.want(rollout.Progressing, 1, 10, 10, "")
	s.serve(100, 3, 20)
	s.after(59 * time.Second)
	s.want(rollout.Progressing, 1, 10, 10, "")
	if got := s.c.List()[0]; got.Requests != 100 || got.Failures != 3 || got.SuccessRate != 97 || got.Weight != 10 {
		t.Errorf("status is %+v, want the 100 requests of the step", got)
	}
	s.after(time.Second)
	s.want(rollout.Progressing, 2, 50, 50, "")
	s.serve(10, 0, 20)
	s.after(2 * time.Minute)
	s.want(rollout.Promoted, 2, 100, 100, "all steps went well")
	// From here on it is the user's again.
	s.put(reviewsVS)
	s.after(time.Hour)
	s.want(rollout.Promoted, 2, 30, 5, "all steps went well")
	// Another spec begins anew.
	s.put(strings.Replace(reviewsRollout, "generation: 1", "generation: 2", 1))
	s.after(0)
	s.want(rollout.Progressing, 1, 10, 10, "")
}

func TestBadCanaryIsRolledBack(t *testing.T) {
	for name, tc := range map[string]struct {
		requests, failures uint64
		ms                 float64
		message            string
	}{
		"failures": {20, 2, 20, "at 50 %: 2 of 20 requests failed: 90.00 % succeeded, want 95 %"},
		"slowness": {20, 0, 400, "at 50 %: 90 % of the requests took up to 475ms, want less than 300ms"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.put(reviewsRollout)
			s.after(0)
			s.serve(50, 0, 20)
			s.after(time.Minute)
			s.serve(tc.requests, tc.failures, tc.ms)
			s.after(time.Second)
			s.want(rollout.RolledBack, 2, 30, 5, tc.message)
			s.after(time.Hour)
			s.want(rollout.RolledBack, 2, 30, 5, tc.message)
			if err := s.c.Do(t.Context(), rollout.Promote, "default", "reviews"); !errors.Is(err, rollout.ErrOver) {
				t.Errorf("promote after the end: %v", err)
			}
		})
	}
}

func TestFewRequestsAreNotJudged(t *testing.T) {
	s := newScene(t)
	s.put(reviewsRollout)
	s.after(0)
	s.serve(9, 9, 20)
	s.after(time.Hour)
	s.want(rollout.Progressing, 1, 10, 10, "until 10 requests have come")
	s.serve(1, 0, 20)
	s.after(time.Second)
	s.want(rollout.RolledBack, 1, 30, 5, "9 of 10 requests failed")
}

func TestMixerAway(t *testing.T) {
	s := newScene(t)
	s.away = errors.New("mixer is away")
	s.put(reviewsRollout)
	s.after(0)
	s.want(rollout.Waiting, 1, 30, 5, "mixer is away")
	s.away = nil
	s.after(time.Second)
	s.want(rollout.Progressing, 1, 10, 10, "")
	s.serve(100, 0, 20)
	s.away = errors.New("mixer is away")
	s.after(time.Hour)
	s.want(rollout.Progressing, 1, 10, 10, "mixer is away")
	// One that has started anew knows less at first.
	s.away, s.total = nil, report.Traffic{}
	s.after(time.Second)
	s.want(rollout.Progressing, 1, 10, 10, "the step begins again")
	s.serve(100, 0, 20)
	s.after(time.Minute)
	s.want(rollout.Progressing, 2, 50, 50, "")
}

func TestRestart(t *testing.T) {
	s := newScene(t)
	s.put(reviewsRollout)
	s.after(0)
	s.serve(50, 0, 20)
	s.after(time.Minute)
	s.want(rollout.Progressing, 2, 50, 50, "")
	s.start()
	s.want(rollout.Progressing, 2, 50, 50, "")
	s.serve(10, 10, 20) // while nobody looked
	s.after(time.Second)
	s.want(rollout.RolledBack, 2, 30, 5, "10 of 10 requests failed")

	// It ends between the status, with the weights from before in it, and the weights.
	s = newScene(t)
	s.put(reviewsRollout)
	s.after(0)
	s.put(reviewsVS)
	s.start()
	s.after(time.Second)
	s.want(rollout.Progressing, 1, 10, 10, "")
}

func TestChangedByHand(t *testing.T) {
	s := newScene(t)
	s.put(reviewsRollout)
	s.after(0)
	s.put(strings.Replace(strings.Replace(reviewsVS, "95", "60", 1), "weight: 5}", "weight: 40}", 1))
	s.after(time.Second)
	s.want(rollout.Paused, 1, 30, 40, "somebody else has changed the weights")
	s.after(time.Hour)
	s.want(rollout.Paused, 1, 30, 40, "somebody else")
	if err := s.c.Do(t.Context(), rollout.Resume, "default", "reviews"); err != nil {
		t.Fatal(err)
	}
	s.want(rollout.Progressing, 1, 10, 10, "")
	if err := s.c.Do(t.Context(), rollout.Abort, "default", "reviews"); err != nil {
		t.Fatal(err)
	}
	s.want(rollout.Aborted, 1, 30, 5, "by command")
}

func TestCommands(t *testing.T) {
	s := newScene(t)
	if err := s.c.Do(t.Context(), rollout.Pause, "default", "reviews"); !errors.Is(err, rollout.ErrNotFound) {
		t.Errorf("pause of none: %v", err)
	}
	s.put(reviewsRollout)
	s.after(0)
	do := func(c rollout.Command) {
		t.Helper()
		if err := s.c.Do(t.Context(), c, "default", "reviews"); err != nil {
			t.Error(err)
		}
	}
	do(rollout.Pause)
	s.serve(100, 100, 20)
	s.after(time.Hour)
	s.want(rollout.Paused, 1, 10, 10, "by command")
	do(rollout.Resume)
	s.after(59 * time.Second)
	s.want(rollout.Progressing, 1, 10, 10, "") // what came meanwhile does not count
	s.serve(100, 0, 20)
	s.after(time.Second)
	s.want(rollout.Progressing, 2, 50, 50, "")
	do(rollout.Promote)
	s.want(rollout.Promoted, 2, 100, 100, "by command")
	if err := s.c.Do(t.Context(), "dance", "default", "reviews"); err == nil {
		t.Error("dance is a command")
	}
}

func TestDeletedBeforeItsEnd(t *testing.T) {
	s := newScene(t)
	s.put(reviewsRollout)
	s.after(0)
	s.wantWeights(10, 10)
	if err := s.store.Replace(api.RolloutKind().Resource(), nil); err != nil {
		t.Fatal(err)
	}
	s.after(time.Second)
	s.wantWeights(30, 5)
}

func TestNothingToDrive(t *testing.T) {
	for name, tc := range map[string]struct{ old, replacement, message string }{
		"no such VirtualService":  {"virtualService: reviews", "virtualService: other", "there is no VirtualService default/other"},
		"no rule with the subset": {"canary: v2", "canary: v3", "no http rule with exactly the two destinations reviews subset v1 and subset v3"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			s.put(strings.Replace(reviewsRollout, tc.old, tc.replacement, 1))
			s.after(0)
			s.want(rollout.Waiting, 1, 30, 5, tc.message)
		})
	}
}
