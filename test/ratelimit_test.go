//go:build suites

package test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const perUser = `
apiVersion: policy.composure.dev/v1alpha1
kind: RateLimit
metadata:
  name: per-user
spec:
  selector:
    matchLabels: {app: productpage}
  match: request.path.startsWith("/productpage")
  key: ['request.headers["x-user"]']
  limit: 3
  window: 10s
  scope: GLOBAL
  onFailure: OPEN
`

// limits applies the rate limits of Istio 1.0.6's samples, unchanged, and the mesh's own to a bookinfo that runs.
func limits(t *testing.T, p *project, gateway string) {
	t.Helper()
	p.write(map[string]string{"per-user.yaml": perUser})
	// burst sends n requests one after the other, and says how many passed and what the last refusal was.
	burst := func(n int, header ...string) (passed int, refusal string) {
		for range n {
			switch status, body := get(t, gateway+"/productpage", header...); status {
			case http.StatusOK:
				passed++
			case http.StatusTooManyRequests:
				refusal = body
			default:
				t.Errorf("status %d: %s", status, body)
			}
		}
		return passed, refusal
	}
	limited := func(header ...string) {
		t.Helper()
		eventually(t, "a refusal", func() string {
			if _, refusal := burst(1, header...); refusal == "" {
				return "everything passes"
			}
			return ""
		})
	}

	p.meshctl("apply", "-f", corpus(t, "policy/mixer-rule-productpage-ratelimit.yaml"))
	limited()
	time.Sleep(5500 * time.Millisecond) // the whole window, with its part
	passed, refusal := burst(6)
	if want := "RESOURCE_EXHAUSTED:Quota is exhausted for: requestcount"; passed != 2 || refusal != want {
		t.Errorf("%d of six passed in five seconds, and then: %q, want 2 and %q", passed, refusal, want)
	}
	if passed, _ := burst(6, "x-forwarded-for", "10.1.2.3"); passed != 2 {
		t.Errorf("%d of another client's six passed, want 2", passed)
	}
	p.meshctl("delete", "-f", corpus(t, "policy/mixer-rule-productpage-ratelimit.yaml"))
	eventually(t, "no limit", func() string {
		if passed, _ := burst(5); passed != 5 {
			return fmt.Sprintf("%d of five pass", passed)
		}
		return ""
	})

	p.meshctl("apply", "-f", "per-user.yaml")
	limited("x-user", "first")
	if passed, refusal := burst(5, "x-user", "jason"); passed != 3 || refusal != "rate limit per-user exceeded" {
		t.Errorf("%d of jason's five passed, and then: %q, want 3", passed, refusal)
	}
	if log := p.compose("logs", "--no-color", "productpage-v1-mesh-proxy"); !strings.Contains(log, "429 RL request_rate_limited") {
		t.Error("the access log has no 429 RL request_rate_limited")
	}
	p.compose("stop", "composure-mixer")
	burst(1, "x-user", "finds-out")
	time.Sleep(time.Second)
	if passed, _ := burst(5, "x-user", "jane"); passed != 5 {
		t.Errorf("%d of five passed while mixer is away, want all: onFailure is OPEN", passed)
	}
	p.compose("start", "composure-mixer")
	eventually(t, "mixer counts again", func() string {
		if passed, _ := burst(5, "x-user", strconv.FormatInt(time.Now().UnixNano(), 10)); passed != 3 {
			return fmt.Sprintf("%d of five pass", passed)
		}
		return ""
	})
	p.meshctl("delete", "-f", "per-user.yaml")
}
