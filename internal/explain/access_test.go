package explain_test

import (
	"strings"
	"testing"

	"github.com/composure-mesh/composure/internal/explain"
)

const guardedShop = `
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {selector: {app: api}, ports: [{port: 80, name: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api-v1}
spec: {template: {metadata: {labels: {app: api}}, spec: {serviceAccountName: shop-api}}}
---
apiVersion: v1
kind: Service
metadata: {name: bank, namespace: money}
spec: {selector: {app: bank}, ports: [{port: 80, name: http}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api}
spec:
  selector: {matchLabels: {app: api}}
  rules:
  - from: [{source: {principals: ["*/sa/web"]}}]
  - from: [{source: {requestPrincipals: ["issuer/*"]}}]
    when: [{key: "request.auth.claims[groups]", values: [staff]}, {key: "request.auth.audiences", values: [shop]}]
  - from: [{source: {ipBlocks: [192.0.2.0/24]}}]
  - from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]
  - when: [{key: "request.headers[X-Key]", values: [secret]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/admin*"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: try, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-api, namespace: money}
spec: {rules: [{from: [{source: {serviceAccounts: [default/shop-api]}}]}]}
`

func guardedFiles(t *testing.T) *explain.Files {
	t.Helper()
	f := &explain.Files{}
	if err := f.Add("f", strings.NewReader(guardedShop)); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestCan(t *testing.T) {
	type q = explain.Question
	get := func(url string, headers ...string) explain.Request {
		return explain.Request{Method: "GET", URL: url, Headers: headers}
	}
	with := func(claims map[string]any) explain.Request {
		return explain.Request{URL: "http://api/a", Claims: claims}
	}
	staff := map[string]any{"iss": "issuer", "sub": "jason", "aud": []any{"shop"}, "groups": []any{"staff"}}
	for name, c := range map[string]struct {
		q       explain.Question
		allowed bool
		by      string // policy and rule
	}{
		"by identity":                {q{From: "web", Request: get("http://api/a")}, true, "authorizationpolicy/default/api spec.rules[0]"},
		"by its full name":           {q{From: "web", Request: get("http://api.default.svc.cluster.local:80/a")}, true, "authorizationpolicy/default/api spec.rules[0]"},
		"an identity as it is":       {q{From: "spiffe://cluster.local/ns/default/sa/web", Request: get("http://api/a")}, true, "authorizationpolicy/default/api spec.rules[0]"},
		"another":                    {q{From: "other", Request: get("http://api/a")}, false, ""},
		"nobody":                     {q{From: "none", Request: get("http://api/a")}, false, ""},
		"by a token":                 {q{From: "none", Request: with(staff)}, true, "authorizationpolicy/default/api spec.rules[1]"},
		"by a token of another":      {q{From: "none", Request: with(map[string]any{"iss": "x", "sub": "jason"})}, false, ""},
		"by address":                 {q{From: "none", Request: get("http://api/a"), SourceIP: "192.0.2.9"}, true, "authorizationpolicy/default/api spec.rules[2]"},
		"by address behind":          {q{From: "none", Request: get("http://api/a"), SourceIP: "10.0.0.1", RemoteIP: "203.0.113.9"}, true, "authorizationpolicy/default/api spec.rules[3]"},
		"by a header":                {q{From: "none", Request: get("http://api/a", "x-key: secret")}, true, "authorizationpolicy/default/api spec.rules[4]"},
		"denied":                     {q{From: "web", Request: get("http://api/x/..%2fadmin")}, false, "authorizationpolicy/default/no-admin spec.rules[0]"},
		"a spelling that URLs lack":  {q{From: "web", Request: get(`http://api/\admin%zz`)}, false, "authorizationpolicy/default/no-admin spec.rules[0]"},
		"bytes have no path":         {q{From: "web", Request: get("http://api:80"), Bytes: true}, false, "authorizationpolicy/default/no-admin spec.rules[0]"},
		"a pod's service account":    {q{From: "api-v1", Request: get("http://bank.money/a")}, true, "authorizationpolicy/money/only-api spec.rules[0]"},
		"not another's":              {q{From: "web", Request: get("http://bank.money/a")}, false, ""},
		"a workload that is made up": {q{From: "web", Request: get("http://elsewhere/a")}, true, ""},
		"a name of the world's":      {q{From: "web", Request: get("http://example.com/admin")}, false, "authorizationpolicy/default/no-admin spec.rules[0]"},
		"one of a namespace":         {q{From: "web", Request: get("http://elsewhere.money/admin")}, false, ""},
		"which has labels":           {q{From: "other", Request: get("http://elsewhere/a"), Labels: map[string]string{"app": "api"}}, false, ""},
		"the workload that is asked": {q{From: "other", Request: get("http://shop.example/a"), Workload: "api-v1"}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := guardedFiles(t).Can(c.q)
			if err != nil {
				t.Fatal(err)
			}
			if by := strings.TrimSpace(a.Policy + " " + a.Rule); a.Allowed != c.allowed || by != c.by {
				t.Errorf("allowed is %v by %q, want %v by %q: %s", a.Allowed, by, c.allowed, c.by, a.Reason)
			}
		})
	}
	a, err := guardedFiles(t).Can(q{From: "web", Request: explain.Request{Method: "PUT", URL: "http://api/a"}})
	if err != nil || a.DryRun != "denied authorizationpolicy/default/try spec.rules[0]" {
		t.Errorf("a dry run would have %q, %v", a.DryRun, err)
	}
	if _, err := guardedFiles(t).Can(q{From: "web", Request: get("http://api/a%00")}); err == nil {
		t.Error("a path that ends in two places has a verdict")
	}
}

// A gateway's routes by claims are explained with the claims of the question.
func TestExplainClaims(t *testing.T) {
	f := guardedFiles(t)
	if err := f.Add("g", strings.NewReader(`
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.example]}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.example]
  gateways: [front]
  http:
  - {match: [{headers: {"@request.auth.claims[realm][role]": {exact: editor}}}], route: [{destination: {host: api}}]}
  - {directResponse: {status: 418}}
`)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		claims map[string]any
		rule   string
	}{
		{nil, "virtualservice/default/shop spec.http[1]"},
		{map[string]any{"realm": map[string]any{"role": []any{"reader", "editor"}}}, "virtualservice/default/shop spec.http[0]"},
		{map[string]any{"realm": map[string]any{"role": "reader"}}, "virtualservice/default/shop spec.http[1]"},
	} {
		e, err := f.Explain("istio-ingressgateway", explain.Request{URL: "http://shop.example/", Claims: c.claims})
		if err != nil {
			t.Fatal(err)
		}
		if e.Rule != c.rule {
			t.Errorf("with claims %v: %s, want %s: %s", c.claims, e.Rule, c.rule, e.Reason)
		}
	}
}

// What explains a request names the policy that decides at its destination.
func TestExplainPolicies(t *testing.T) {
	for _, c := range []struct {
		from, url, policy string
		status            int
	}{
		{"web", "http://api/a", "authorizationpolicy/default/api spec.rules[0]", 0},
		{"other", "http://api/a", "", 403},
		{"web", "http://api//admin/x", "authorizationpolicy/default/no-admin spec.rules[0]", 403},
	} {
		e, err := guardedFiles(t).Explain(c.from, explain.Request{Method: "GET", URL: c.url})
		if err != nil {
			t.Fatal(err)
		}
		status := 0
		if e.Status != nil {
			status = *e.Status
		}
		if strings.Join(e.Policies, " ") != c.policy || status != c.status {
			t.Errorf("%s of %s: policies %q, status %d; want %q, %d: %s", c.url, c.from, e.Policies, status, c.policy, c.status, e.Reason)
		}
	}
}
