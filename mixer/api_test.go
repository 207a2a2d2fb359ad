package mixer

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/report"
)

// The resource API lists the default rules and keeps them; what has a wrong expression is refused with its path.
func TestConfiguration(t *testing.T) {
	w := start(t)
	admin := client(t, w.cfg.AdminSocket, nil)
	call := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://mixer/apis/config.istio.io/v1alpha2"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := admin.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(raw)
	}
	_, rules := call(http.MethodGet, "/rules", "")
	for _, name := range []string{"kubeattrgenrulerule", "promhttp", "promtcp", "stdio", "stdiotcp", "tcpkubeattrgenrulerule"} {
		if !strings.Contains(rules, `"name":"`+name+`"`) {
			t.Errorf("no rule %s among %s", name, rules)
		}
	}
	rule := func(name, match string) string {
		return `{"apiVersion":"config.istio.io/v1alpha2","kind":"rule","metadata":{"name":"` + name + `","namespace":"istio-system"},
			"spec":{"match":"` + match + `","actions":[{"handler":"handler.stdio","instances":["accesslog.logentry"]}]}}`
	}
	cases := []struct {
		name, method, path, body string
		code                     int
		says                     string
	}{
		{"deleting a default", http.MethodDelete, "/namespaces/istio-system/rules/promhttp", "", http.StatusForbidden, "it is built in"},
		{"changing a default", http.MethodPut, "/namespaces/istio-system/rules/promhttp", rule("promhttp", "true"), http.StatusForbidden, "it is built in"},
		{"a wrong type", http.MethodPost, "/namespaces/istio-system/rules", rule("mine", "request.size"), http.StatusUnprocessableEntity, "want a value of type BOOL, got one of INT64"},
		{"a syntax error", http.MethodPost, "/namespaces/istio-system/rules", rule("mine", "a =="), http.StatusUnprocessableEntity, "spec.match"},
		{"one of one's own", http.MethodPost, "/namespaces/istio-system/rules", rule("mine", "true"), http.StatusCreated, `"name":"mine"`},
		{"deleting it", http.MethodDelete, "/namespaces/istio-system/rules/mine", "", http.StatusOK, "Success"},
	}
	for _, c := range cases {
		if code, text := call(c.method, c.path, c.body); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d, want %d and %q:\n%s", c.name, code, c.code, c.says, text)
		}
	}
}

// What proxies report of metrics that rules ask for is shown under the names of the handlers, added up over proxies; log
// entries go to their handlers.
func TestOwnTelemetry(t *testing.T) {
	w := start(t)
	admin := client(t, w.cfg.AdminSocket, nil)
	get := func() string {
		t.Helper()
		resp, err := admin.Get("http://mixer/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	await := func(wants ...string) {
		t.Helper()
		text := ""
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			text = get()
			if !slices.ContainsFunc(wants, func(want string) bool { return !strings.Contains(text, want) }) {
				return
			}
		}
		t.Fatalf("metrics lack one of %q:\n%s", wants, text)
	}
	await(`composure_mixer_entries_total{handler="handler.stdio.istio-system",result="written"} 0`)
	object := `{"apiVersion":"config.istio.io/v1alpha2","kind":"prometheus","metadata":{"name":"double","namespace":"istio-system"},"spec":{"metrics":[
		{"name":"double_request_count","instance_name":"a.metric","kind":"COUNTER","label_names":["message"]},
		{"name":"sizes","instance_name":"a.metric","kind":"DISTRIBUTION","buckets":{"explicit_buckets":{"bounds":[10]}}},
		{"name":"last","instance_name":"a.metric","kind":"GAUGE","description":"the last one"}]}}`
	resp, err := admin.Post("http://mixer/apis/config.istio.io/v1alpha2/namespaces/istio-system/prometheuses", "application/json", strings.NewReader(object))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatal(resp.Status)
	}
	reports := func(name string, sequence uint64, value float64, updated int64) *report.Report {
		return &report.Report{Workload: name, Instance: "1", Sequence: sequence, Metrics: []report.Metric{
			{Name: "istio_double_request_count", Kind: report.Counter, Labels: []string{"message"}, Series: []report.MetricSeries{{Values: []string{`twice "the" fun!`}, Value: value}}},
			{Name: "istio_sizes", Kind: report.Distribution, Bounds: []float64{10}, Series: []report.MetricSeries{{Value: value, Counts: []uint64{1, 2}}}},
			{Name: "istio_last", Description: "the last one", Kind: report.Gauge, Series: []report.MetricSeries{{Value: value, Updated: updated}}},
			{Name: report.RateLimited, Kind: report.Counter, Labels: []string{"limit", "verdict"}, Series: []report.MetricSeries{{Values: []string{"l", "shadowed"}, Value: value}}},
			{Name: "istio_of_no_handler", Kind: report.Counter, Series: []report.MetricSeries{{Value: 1}}},
		}}
	}
	for _, r := range []*report.Report{reports("web", 1, 2, 5), reports("api", 1, 4, 9), reports("web", 2, 6, 7)} {
		peer := client(t, w.cfg.Socket, identity.ClientTLS(w.ca.issue(t, workloadID(t, r.Workload), time.Now().Add(time.Hour)), identity.AnyOf(w.plane), "http/1.1"))
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		for path, body := range map[string]string{
			"/v1/reports": string(raw),
			"/v1/entries": `{"handler":"handler.stdio.istio-system","instance":"x.logentry.default","time":"2026-01-02T03:04:05Z","variables":[]}` + "\n",
		} {
			resp, err := peer.Post("https://mixer"+path, "application/json", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				t.Errorf("%s: %s", path, resp.Status)
			}
		}
	}
	await("# HELP istio_last the last one\n# TYPE istio_last gauge\nistio_last 4\n",
		"# TYPE istio_double_request_count counter\nistio_double_request_count{message=\"twice \\\"the\\\" fun!\"} 10\n",
		"istio_sizes_bucket{le=\"10\"} 2\nistio_sizes_bucket{le=\"+Inf\"} 6\nistio_sizes_sum 10\nistio_sizes_count 6\n",
		`composure_rate_limited_requests_total{limit="l",verdict="shadowed"} 10`,
		`composure_mixer_entries_total{handler="handler.stdio.istio-system",result="written"} 3`)
	if text := get(); strings.Contains(text, "of_no_handler") {
		t.Errorf("a metric of no handler is shown:\n%s", text)
	}
}

// What a proxy says of metrics is held against what can be written.
func TestValidateMetrics(t *testing.T) {
	one := []report.MetricSeries{{Value: 1}}
	for name, m := range map[string]report.Metric{
		"a standard metric":       {Name: "istio_requests_total", Kind: report.Counter, Series: one},
		"mixer's own":             {Name: "composure_mixer_series", Kind: report.Counter, Series: one},
		"no name":                 {Name: "a b", Kind: report.Counter, Series: one},
		"no kind":                 {Name: "a", Series: one},
		"a label's name":          {Name: "a", Kind: report.Counter, Labels: []string{`x="1"`}, Series: []report.MetricSeries{{Values: []string{""}}}},
		"a value too few":         {Name: "a", Kind: report.Counter, Labels: []string{"x"}, Series: one},
		"a bucket too few":        {Name: "a", Kind: report.Distribution, Bounds: []float64{1}, Series: []report.MetricSeries{{Counts: []uint64{1}}}},
		"bounds in disorder":      {Name: "a", Kind: report.Distribution, Bounds: []float64{2, 1}, Series: []report.MetricSeries{{Counts: []uint64{1, 1, 1}}}},
		"a value that is too big": {Name: "a", Kind: report.Counter, Labels: []string{"x"}, Series: []report.MetricSeries{{Values: []string{strings.Repeat("x", 600)}}}},
		"too many":                {Name: "a", Kind: report.Counter, Series: make([]report.MetricSeries, 5000)},
	} {
		if err := validateMetrics([]report.Metric{m}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
