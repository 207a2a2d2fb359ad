package api_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/api"
)

func config(t *testing.T, text string) *api.Object {
	t.Helper()
	docs, err := api.DecodeYAML(api.Config(), "f", strings.NewReader("apiVersion: config.istio.io/v1alpha2\nmetadata: {name: x}\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	return docs[0].Object
}

// The forms in which people wrote the same thing give the same spec.
func TestConfigForms(t *testing.T) {
	list := &api.Handler{Adapter: "listchecker", Params: &api.ListChecker{
		RefreshInterval: time.Minute, TTL: 5 * time.Minute, CachingInterval: 5 * time.Minute, CachingUseCount: 10000,
		EntryType: api.ListIPAddresses, Overrides: []string{"10.57.0.0/16"}, Blacklist: true,
	}}
	cases := []struct {
		name, text string
		want       any
	}{
		{"short", "kind: listchecker\nspec: {overrides: [10.57.0.0/16], entryType: IP_ADDRESSES, blacklist: true}", list},
		{"snake case and a number for an enum", "kind: listchecker\nspec: {overrides: [10.57.0.0/16], entry_type: 2, blacklist: true}", list},
		{"long", "kind: handler\nspec: {compiledAdapter: listchecker, params: {overrides: [10.57.0.0/16], entryType: IP_ADDRESSES, blacklist: true}}", list},
		{"no spec", "kind: checknothing\nspec:", &api.Instance{Template: "checknothing", Params: &api.CheckNothing{}}},
		{"long without params", "kind: instance\nspec: {compiledTemplate: checknothing}", &api.Instance{Template: "checknothing", Params: &api.CheckNothing{}}},
		{"defaults of a map stay", "kind: stdio\nspec: {severity_levels: {odd: 1}, outputAsJson: false}", func() any {
			levels := map[string]string{"odd": "WARNING"}
			for _, s := range []string{"INFORMATIONAL", "informational", "INFO", "info", "Info"} {
				levels[s] = "INFO"
			}
			for _, s := range []string{"WARNING", "warning", "WARN", "warn"} {
				levels[s] = "WARNING"
			}
			for _, s := range []string{"ERROR", "error", "ERR", "err", "FATAL", "fatal"} {
				levels[s] = "ERROR"
			}
			return &api.Handler{Adapter: "stdio", Params: &api.Stdio{LogStream: "STDOUT", SeverityLevels: levels, MetricLevel: "INFO", OutputLevel: "INFO"}}
		}()},
		{"outside", "kind: handler\nspec: {adapter: audit, connection: {address: 'http://audit:8080/entries'}}", &api.Handler{Address: "http://audit:8080/entries"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, config(t, c.text).Spec); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPrometheusBuckets(t *testing.T) {
	cases := []struct {
		buckets string
		want    []float64
	}{
		{"{linearBuckets: {numFiniteBuckets: 2, width: 5, offset: 1}}", []float64{1, 6, 11}},
		{"{exponential_buckets: {num_finite_buckets: 2, growth_factor: 10, scale: 1}}", []float64{1, 10, 100}},
		{"{explicit_buckets: {bounds: [0.5, 1]}}", []float64{.5, 1}},
	}
	for _, c := range cases {
		o := config(t, "kind: prometheus\nspec: {metrics: [{instance_name: a.metric, kind: DISTRIBUTION, label_names: [b], buckets: "+c.buckets+"}]}")
		m := o.Spec.(*api.Handler).Params.(*api.Prometheus).Metrics[0]
		if diff := cmp.Diff(c.want, m.Buckets.Bounds()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.buckets, diff)
		}
		if got, want := m.FullName(), "istio_a_metric"; got != want {
			t.Errorf("name %q, want %q", got, want)
		}
	}
}

// The corpus' policy files decode, but for the kinds of quotas.
func TestPolicyCorpus(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(corpus, "policy", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("the corpus of Istio 1.0.6 is not here")
	}
	for _, file := range files {
		if strings.Contains(file, "ratelimit") {
			continue
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := api.DecodeYAML(api.Config(), filepath.Base(file), f)
		f.Close()
		if err != nil || len(docs) == 0 {
			t.Errorf("%d objects, %v", len(docs), err)
		}
	}
}
