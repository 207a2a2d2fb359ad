//go:build suites

package test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// The task "Collecting Metrics and Logs" of Istio 1.0's documentation, and its white list.
const newTelemetry = `
apiVersion: "config.istio.io/v1alpha2"
kind: metric
metadata:
  name: doublerequestcount
  namespace: istio-system
spec:
  value: "2" # count each request twice
  dimensions:
    reporter: conditional((context.reporter.kind | "inbound") == "outbound", "client", "server")
    source: source.workload.name | "unknown"
    destination: destination.workload.name | "unknown"
    message: '"twice the fun!"'
  monitored_resource_type: '"UNSPECIFIED"'
---
apiVersion: "config.istio.io/v1alpha2"
kind: prometheus
metadata:
  name: doublehandler
  namespace: istio-system
spec:
  metrics:
  - name: double_request_count # Prometheus metric name
    instance_name: doublerequestcount.metric.istio-system # Mixer instance name (fully-qualified)
    kind: COUNTER
    label_names:
    - reporter
    - source
    - destination
    - message
---
apiVersion: "config.istio.io/v1alpha2"
kind: rule
metadata:
  name: doubleprom
  namespace: istio-system
spec:
  actions:
  - handler: doublehandler.prometheus
    instances:
    - doublerequestcount.metric
---
apiVersion: "config.istio.io/v1alpha2"
kind: logentry
metadata:
  name: newlog
  namespace: istio-system
spec:
  severity: '"warning"'
  timestamp: request.time
  variables:
    source: source.labels["app"] | source.workload.name | "unknown"
    user: source.user | "unknown"
    destination: destination.labels["app"] | destination.workload.name | "unknown"
    responseCode: response.code | 0
    responseSize: response.size | 0
    latency: response.duration | "0ms"
  monitored_resource_type: '"UNSPECIFIED"'
---
apiVersion: "config.istio.io/v1alpha2"
kind: stdio
metadata:
  name: newhandler
  namespace: istio-system
spec:
  severity_levels:
    warning: 1 # Params.Level.WARNING
  outputAsJson: true
---
apiVersion: "config.istio.io/v1alpha2"
kind: rule
metadata:
  name: newlogstdio
  namespace: istio-system
spec:
  match: "true" # match for all requests
  actions:
   - handler: newhandler.stdio
     instances:
     - newlog.logentry
`

const whitelist = `
apiVersion: config.istio.io/v1alpha2
kind: listchecker
metadata:
  name: whitelist
spec:
  overrides: ["v1", "v2"]
  blacklist: false
---
apiVersion: config.istio.io/v1alpha2
kind: listentry
metadata:
  name: appversion
spec:
  value: source.labels["version"]
---
apiVersion: config.istio.io/v1alpha2
kind: rule
metadata:
  name: checkversion
spec:
  match: destination.labels["app"] == "ratings"
  actions:
  - handler: whitelist.listchecker
    instances:
    - appversion.listentry
`

// TestMixerPolicies applies the policies of Istio 1.0.6's samples and documentation, unchanged, to bookinfo.
func TestMixerPolicies(t *testing.T) {
	// The samples' account of productpage.
	const product = "labels: {app: productpage, version: v1}"
	p, gateway := bookinfo(t, product, strings.Replace(product, "{", "{composure.service-account: bookinfo-productpage, ", 1))
	p.write(map[string]string{"telemetry.yaml": newTelemetry, "whitelist.yaml": whitelist})
	for _, file := range []string{"networking/bookinfo-gateway.yaml", "networking/destination-rule-all.yaml", "networking/virtual-service-reviews-v3.yaml"} {
		p.meshctl("apply", "-f", corpus(t, file))
	}
	reviews := func(want string) {
		t.Helper()
		eventually(t, "reviews", func() string {
			status, body := get(t, gateway+"/api/v1/products/0/reviews")
			if status != http.StatusOK || !strings.Contains(body, want) {
				return fmt.Sprintf("status %d: %s, want %q", status, body, want)
			}
			return ""
		})
	}
	logged := func(service, want string) {
		t.Helper()
		eventually(t, "log of "+service, func() string {
			if log := p.compose("logs", "--no-color", service); !strings.Contains(log, want) {
				return "no " + want
			}
			return ""
		})
	}
	// during has a policy in force while f runs.
	during := func(file string, f func()) {
		t.Helper()
		p.meshctl("apply", "-f", file)
		f()
		p.meshctl("delete", "-f", file)
		reviews(`"color":`)
	}
	reviews(`"color":`)

	rules := p.meshctl("get", "rules", "-n", "istio-system")
	for _, name := range []string{"kubeattrgenrulerule", "promhttp", "promtcp", "stdio", "stdiotcp", "tcpkubeattrgenrulerule"} {
		if !strings.Contains(rules, name) {
			t.Errorf("no default rule %s in:\n%s", name, rules)
		}
	}

	during(corpus(t, "policy/mixer-rule-deny-label.yaml"), func() {
		reviews("Ratings service is currently unavailable")
		logged("ratings-v1-mesh-proxy", "403 UAEX mixer_denied{PERMISSION_DENIED}")
	})
	during("whitelist.yaml", func() {
		reviews("Ratings service is currently unavailable")
		logged("ratings-v1-mesh-proxy", "404 UAEX mixer_denied{NOT_FOUND}")
	})
	during(corpus(t, "policy/mixer-rule-deny-serviceaccount.yaml"), func() {
		eventually(t, "details", func() string {
			if status, body := get(t, gateway+"/api/v1/products/0"); status == http.StatusOK {
				return "still there: " + body
			}
			return ""
		})
		logged("details-v1-mesh-proxy", "403 UAEX mixer_denied{PERMISSION_DENIED}")
	})
	for _, file := range []string{"policy/mixer-rule-ingress-denial.yaml", "policy/mixer-rule-ratings-denial.yaml"} {
		during(corpus(t, file), func() {
			eventually(t, "john", func() string {
				status, body := get(t, gateway+"/productpage", "x-user", "john")
				if status != http.StatusForbidden || body != "PERMISSION_DENIED:handler.denier.istio-system:Not allowed" {
					return fmt.Sprintf("status %d: %s", status, body)
				}
				return ""
			})
			if status, body := get(t, gateway+"/productpage", "x-user", "jane"); status != http.StatusOK {
				t.Errorf("%s: jane: status %d: %s", file, status, body)
			}
		})
	}

	p.meshctl("apply", "-f", corpus(t, "policy/mixer-rule-additional-telemetry.yaml"))
	p.meshctl("apply", "-f", "telemetry.yaml")
	eventually(t, "the new metric", func() string {
		get(t, gateway+"/productpage")
		metrics := p.meshctl("metrics")
		for _, want := range []string{
			`istio_double_request_count{reporter="server",source="productpage-v1",destination="reviews-v3",message="twice the fun!"} `,
			`istio_double_request_count{reporter="client",source="istio-ingressgateway",destination="productpage-v1",message="twice the fun!"} `,
			"istio_response_bytes_bucket{",
		} {
			if !strings.Contains(metrics, want) {
				return "no " + want
			}
		}
		return ""
	})
	logged("composure-mixer", `"level":"warn"`)
	logged("composure-mixer", `"instance":"newlog.logentry.istio-system","destination":"details"`)
	logged("composure-mixer", `"user":"cluster.local/ns/default/sa/bookinfo-productpage"`)

	limits(t, p, gateway)
}
