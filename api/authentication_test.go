package api_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	security "istio.io/api/security/v1"

	"github.com/composure-mesh/composure/api"
)

// Files as people have them apply, whatever their version.
func TestAuthentication(t *testing.T) {
	for name, text := range map[string]string{
		"mesh-wide strict": "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: x, namespace: istio-system}\nspec: {mtls: {mode: STRICT}}",
		"ports, with numbers as keys": `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: x}
spec:
  selector:
    matchLabels: {app: reviews}
  mtls: {mode: UNSET}
  portLevelMtls:
    9080:
      mode: DISABLE
    "9081":
      mode: STRICT
`,
		"all of a rule": `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: x}
spec:
  selector: {matchLabels: {app: reviews}}
  jwtRules:
  - issuer: https://issuer.example
    audiences: [a, b]
    jwksUri: https://issuer.example/keys
    fromHeaders: [{name: x-jwt, prefix: "Token "}, {name: Authorization, prefix: "Bearer "}]
    fromParams: [token]
    fromCookies: [session]
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-sub, claim: sub}, {header: x-role, claim: realm.role}]
    forwardOriginalToken: true
    timeout: 2s
    spaceDelimitedClaims: [groups]
  - issuer: me@accounts.example
    jwks: '{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}'
`,
		"the mesh of 1.0":  "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata: {name: default}\nspec: {peers: [{mtls: {}}]}",
		"mtls: of 1.0":     "apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec:\n  peers:\n  - mtls:\n",
		"a service of 1.0": "apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: x}\nspec: {targets: [{name: httpbin, ports: [{number: 1234}]}], peers: [{mtls: {mode: PERMISSIVE}}], origins: [{jwt: {issuer: a@b, jwksUri: 'https://a.b/keys', jwtHeaders: [x-jwt]}}], principalBinding: USE_ORIGIN}",
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := api.DecodeYAML(kinds, "f", strings.NewReader(text))
			if err != nil || len(docs) != 1 {
				t.Fatalf("%d objects, %v", len(docs), err)
			}
		})
	}
}

func TestOldPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		spec string
		want api.AuthenticationPolicy
	}{
		"mutual":               {"{peers: [{mtls: {}}]}", api.AuthenticationPolicy{MutualTLS: true}},
		"null":                 {"{peers: [{mtls: null}]}", api.AuthenticationPolicy{MutualTLS: true}},
		"strict":               {"{peers: [{mtls: {mode: STRICT}}]}", api.AuthenticationPolicy{MutualTLS: true}},
		"permissive":           {"{peers: [{mtls: {mode: PERMISSIVE}}]}", api.AuthenticationPolicy{Permissive: true}},
		"optional":             {"{peers: [{mtls: {}}], peerIsOptional: true}", api.AuthenticationPolicy{Permissive: true}},
		"none":                 {"{}", api.AuthenticationPolicy{}},
		"origin, not optional": {"{origins: [{jwt: {issuer: 'https://a.b', audiences: [c]}}]}", api.AuthenticationPolicy{Origins: []api.PolicyJWT{{Issuer: "https://a.b", Audiences: []string{"c"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := api.DecodeYAML(kinds, "f", strings.NewReader("apiVersion: authentication.istio.io/v1alpha1\nkind: Policy\nmetadata: {name: default}\nspec: "+c.spec))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, docs[0].Object.Spec); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	r := (&api.PolicyJWT{Issuer: "a", Headers: []string{"x-jwt", "authorization"}}).Rule()
	want := []*security.JWTHeader{{Name: "x-jwt"}, {Name: "authorization", Prefix: "Bearer "}}
	for i, h := range r.FromHeaders {
		if h.Name != want[i].Name || h.Prefix != want[i].Prefix {
			t.Errorf("header %d is %v, want %v", i, h, want[i])
		}
	}
}
