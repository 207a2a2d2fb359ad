//go:build suites

package test

import (
	"encoding/json"
	"strings"
	"testing"
)

// A client that calls web all the time; v2 of web is well, v3 answers every other request with 500.
const rolloutCompose = `
services:
  client:
    image: ` + image + `
    command: [sh, -c, "while true; do curl -sS -m 5 -o /dev/null http://web:8000/; sleep 0.02; done"]
    init: true
  web-v1: &web
    image: ` + image + `
    command: &serve [python3, -c, "import http.server as h; h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=8000)"]
    init: true
    working_dir: /tmp
    labels: {app: web, version: v1}
    networks: {default: {aliases: [web]}}
  web-v2:
    <<: *web
    labels: {app: web, version: v2}
  web-v3:
    <<: *web
    labels: {app: web, version: v3}
    command:
    - python3
    - -c
    - |
      import http.server as h
      n = 0
      class Bad(h.SimpleHTTPRequestHandler):
          def do_GET(self):
              global n
              n += 1
              if n % 2: self.send_error(500)
              else: super().do_GET()
      h.test(Bad, h.ThreadingHTTPServer, port=8000)
`

const rolloutRules = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web}
spec:
  host: web
  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: v3, labels: {version: v3}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - route: [{destination: {host: web, subset: v1}, weight: 100}, {destination: {host: web, subset: CANARY}, weight: 0}]
---
apiVersion: rollout.composure.dev/v1alpha1
kind: Rollout
metadata: {name: web}
spec:
  virtualService: web
  host: web
  stable: v1
  canary: CANARY
  steps: [{weight: 20, hold: 2s}, {weight: 60, hold: 2s}]
`

// TestRollout: by the telemetry of the real proxies a bad version is rolled back and a good one promoted, with a restart of
// pilot on the way.
func TestRollout(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": rolloutCompose})
	p.inject()
	p.up()
	over := func(canary, phase string) (message string) {
		t.Helper()
		p.write(map[string]string{"rollout.yaml": strings.ReplaceAll(rolloutRules, "CANARY", canary)})
		p.meshctl("apply", "-f", "rollout.yaml")
		eventually(t, "a rollout of "+canary+" that is "+phase, func() string {
			var list []struct{ Phase, Message string }
			out := p.meshctl("rollout", "status", "web", "-o", "json")
			if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Phase != phase {
				return out
			}
			message = list[0].Message
			return ""
		})
		return message
	}
	weights := func() string {
		return strings.Join(strings.Fields(p.meshctl("get", "virtualservice", "web", "-o", "json")), "")
	}
	if message := over("v3", "RolledBack"); !strings.Contains(message, "requests failed") {
		t.Errorf("it was rolled back because %q", message)
	}
	if got := weights(); !strings.Contains(got, `"subset":"v1"},"weight":100`) || !strings.Contains(got, `"subset":"v3"},"weight":0`) {
		t.Errorf("after the rollback: %s", got)
	}
	p.compose("restart", "composure-pilot")
	over("v2", "Promoted")
	if got := weights(); !strings.Contains(got, `"subset":"v1"},"weight":0`) || !strings.Contains(got, `"subset":"v2"},"weight":100`) {
		t.Errorf("after the promotion: %s", got)
	}
}
