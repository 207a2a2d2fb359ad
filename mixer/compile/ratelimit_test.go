package compile_test

import (
	"slices"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/compile"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/quota"
)

// TestCorpusRateLimit: the file of the lecture limits productpage to two requests in five seconds for a client, and lets
// reviews alone, whose service is not bound.
func TestCorpusRateLimit(t *testing.T) {
	text := corpus(t, "mixer-rule-productpage-ratelimit.yaml")
	for _, namespace := range []string{"default", "istio-system"} {
		objects := decode(t, text)
		for _, o := range objects {
			if o.Meta.Namespace == "" {
				o.Meta.Namespace = namespace
			}
		}
		x := compile.New(compile.View{Intent: slices.Concat(compile.Defaults(), objects), Facts: mesh.Facts{Workloads: []mesh.Workload{
			{Name: "productpage-v1", Namespace: "default", Services: []string{"productpage"}, Labels: map[string]string{"app": "productpage"}},
			{Name: "reviews-v1", Namespace: "default", Services: []string{"reviews"}, Labels: map[string]string{"app": "reviews"}},
		}}})
		if problems := x.CheckAll(); len(problems) > 0 {
			t.Errorf("in %s: %v", namespace, problems)
		}
		if u, _, err := x.Compile("reviews-v1"); err != nil || len(u.RateLimits) != 0 {
			t.Errorf("in %s: reviews has the limits %v, %v", namespace, u.RateLimits, err)
		}
		u, _, err := x.Compile("productpage-v1")
		if err != nil || len(u.RateLimits) != 1 {
			t.Fatalf("in %s: productpage has the limits %v, %v", namespace, u.RateLimits, err)
		}
		if l := x.RateLimit("productpage-v1", u.RateLimits[0].Name); l == nil || l.Redis != "" {
			t.Errorf("mixer knows the limit as %+v", l)
		}
		u.RateLimits[0].OnFailure = snapshot.FailLocal // so that it counts without mixer
		set, err := quota.Build(u.RateLimits, nil)
		if err != nil {
			t.Fatal(err)
		}
		page := called
		page.Destination = &snapshot.Workload{Name: "productpage-v1", Namespace: "default", Labels: map[string]string{"app": "productpage", "version": "v1"}}
		check := &quota.Check{Set: set, Lookup: page}
		ask := func(from string) *filter.Answer {
			return check.Check(request("/productpage", "x-forwarded-for: "+from))
		}
		for range 2 {
			if a := ask("1.2.3.4"); a != nil {
				t.Fatalf("refused at once: %+v", a)
			}
		}
		a := ask("1.2.3.4")
		if a == nil || a.Status != 429 || a.Body != "RESOURCE_EXHAUSTED:Quota is exhausted for: requestcount" || a.Flag != "RL" {
			t.Fatalf("the third is answered %+v", a)
		}
		var fields []string
		for _, f := range a.Header {
			fields = append(fields, string(f.Name)+": "+string(f.Value))
		}
		if want := []string{"Retry-After: 6", `RateLimit-Policy: "handler.memquota.istio-system/requestcount.quota.istio-system";q=2;w=5`}; !slices.Equal(fields[:2], want) {
			if fields[0] != "Retry-After: 5" { // by where in a part of the window the first was
				t.Errorf("fields are %q, want %q", fields, want)
			}
		}
		if a := ask("5.6.7.8"); a != nil {
			t.Errorf("another client is refused: %+v", a)
		}
		for range 300 { // 10.28.11.20 has 500 a second by an override
			if a := ask("10.28.11.20"); a != nil {
				t.Fatalf("the client of the override is refused: %+v", a)
			}
		}
	}
}
