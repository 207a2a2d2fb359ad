package compile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

const settingsFile = `
apiVersion: mesh.composure.dev/v1alpha1
kind: MeshConfig
metadata: {name: mesh, namespace: istio-system}
spec:
  extensionProviders:
  - name: rpc
    envoyExtAuthzGrpc: {service: shop/authz, port: 9000, failOpen: true, includeRequestBodyInCheck: {maxRequestBytes: 8, allowPartialMessage: true, packAsBytes: true}}
  - name: web
    envoyExtAuthzHttp:
      service: login.example.com
      port: 8080
      timeout: 2s
      statusOnError: "503"
      pathPrefix: /check/
      includeHeadersInCheck: [Old]
      includeRequestHeadersInCheck: [X-In-*]
      includeAdditionalHeadersInCheck: {X-B: "2", X-A: "1"}
      headersToUpstreamOnAllow: [X-User]
      headersToDownstreamOnAllow: [X-Down]
      headersToDownstreamOnDeny: [X-Why]
  - name: unasked
    envoyExtAuthzHttp: {service: a.b, port: 1}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: default}
spec: {action: CUSTOM, provider: {name: PROVIDER}, rules: [{}]}
`

func TestAuthorizers(t *testing.T) {
	for provider, want := range map[string][]snapshot.Authorizer{
		"rpc": {{
			Name: "rpc", Host: "authz.shop.svc.cluster.local", Port: 9000, GRPC: true, Timeout: snapshot.Duration(10 * time.Minute), FailOpen: true, StatusOnError: 403,
			Body: &snapshot.AuthorizerBody{MaxBytes: 8, Partial: true, Raw: true},
		}},
		"web": {{
			Name: "web", Host: "login.example.com", Port: 8080, Timeout: snapshot.Duration(2 * time.Second), StatusOnError: 503, PathPrefix: "/check",
			RequestHeaders: []string{"old", "x-in-*"}, AddHeaders: []snapshot.Field{{Name: "x-a", Value: "1"}, {Name: "x-b", Value: "2"}},
			UpstreamHeaders: []string{"x-user"}, AllowHeaders: []string{"x-down"}, DenyHeaders: []string{"x-why"},
		}},
		"nobody": nil,
	} {
		x := compile.New(compile.View{Facts: shop(), Intent: decode(t, strings.ReplaceAll(settingsFile, "PROVIDER", provider))})
		s, _, err := x.Compile("api")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, s.Authorizers); diff != "" {
			t.Errorf("%s (-want +got):\n%s", provider, diff)
		}
		if len(s.Access) != 1 || s.Access[0].Action != snapshot.AccessCustom || s.Access[0].Provider != provider {
			t.Errorf("%s: policies are %+v", provider, s.Access)
		}
		problems := x.CheckAll()
		if missing := want == nil; missing != (len(problems) == 1 && problems[0].Path == "spec.provider.name") {
			t.Errorf("%s: problems are %v", provider, problems)
		}
	}
}

// Of several settings the oldest that says how many proxies there are holds, and the others are told so.
func TestTrustedProxies(t *testing.T) {
	settings := func(name, spec string) string {
		return "apiVersion: mesh.composure.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: " + name + ", namespace: istio-system}\nspec: " + spec + "\n---\n"
	}
	const one, two = "{defaultConfig: {gatewayTopology: {numTrustedProxies: 1}}}", "{defaultConfig: {gatewayTopology: {numTrustedProxies: 2}}}"
	for name, tt := range map[string]struct {
		intent string
		want   int
		path   string
	}{
		"none":               {"", 0, ""},
		"other settings":     {settings("a", "{extensionProviders: []}"), 0, ""},
		"one":                {settings("a", one), 1, ""},
		"beside others":      {settings("a", "{defaultConfig: {}}") + settings("b", two), 2, ""},
		"two":                {settings("a", one) + settings("b", two), 1, "spec.defaultConfig.gatewayTopology"},
		"none, by the older": {settings("a", "{defaultConfig: {gatewayTopology: {}}}") + settings("b", two), 0, "spec.defaultConfig.gatewayTopology"},
	} {
		x := compile.New(compile.View{Facts: shop(), Intent: decode(t, tt.intent)})
		s, _, err := x.Compile("api")
		if err != nil {
			t.Fatal(err)
		}
		if s.TrustedProxies != tt.want {
			t.Errorf("%s: %d proxies, want %d", name, s.TrustedProxies, tt.want)
		}
		switch problems := x.CheckAll(); {
		case tt.path == "" && len(problems) > 0, tt.path != "" && (len(problems) != 1 || problems[0].Path != tt.path):
			t.Errorf("%s: problems are %v", name, problems)
		}
	}
}
