package compile_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

const keys = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

// shop is a mesh of two namespaces on one network, with a workload on another.
func shop() mesh.Facts {
	app := func(name, namespace, network, ip string) mesh.Workload {
		return mesh.Workload{
			Name: name, Namespace: namespace, ServiceAccount: name, Identity: "spiffe://cluster.local/ns/" + namespace + "/sa/" + name, Role: mesh.RoleApp,
			Services: []string{name}, Labels: map[string]string{"app": name}, Meshed: true, Running: true,
			Addresses: []mesh.Address{{Network: network, IPv4: ip}}, Ports: []mesh.Port{{Number: 80, Published: []string{"8080"}}, {Number: 81}},
		}
	}
	gateway := app("gate", "default", "net", "10.0.0.9")
	gateway.Role, gateway.Meshed = mesh.RoleGateway, false
	return mesh.Facts{
		Workloads: []mesh.Workload{
			app("api", "default", "net", "10.0.0.2"), app("bank", "money", "net", "10.0.0.3"), app("far", "default", "away", "10.9.0.2"), gateway,
			app("web", "default", "net", "10.0.0.4"),
		},
		Networks: []mesh.Network{
			{Name: "away", Subnets: []string{"10.9.0.0/24"}, Gateways: []string{"10.9.0.1"}},
			{Name: "net", Subnets: []string{"10.0.0.0/24", "fd00::/64"}, Gateways: []string{"10.0.0.1", "fd00::1"}},
		},
	}
}

// decode reads objects, made one minute after another in the order of the text.
func decode(t *testing.T, text string) []*api.Object {
	t.Helper()
	docs, err := api.DecodeYAML(api.Security(), "f", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var objects []*api.Object
	for i, d := range docs {
		d.Object.Meta.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, i, 0, 0, time.UTC))
		objects = append(objects, d.Object)
	}
	return objects
}

// peer is a PeerAuthentication.
func peer(name, namespace, spec string) string {
	return "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: " + spec + "\n"
}

func old(kind, name, namespace, spec string) string {
	return "---\napiVersion: authentication.istio.io/v1alpha1\nkind: " + kind + "\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: " + spec + "\n"
}

func TestModes(t *testing.T) {
	strict, permissive, off := "{mtls: {mode: STRICT}}", "{mtls: {mode: PERMISSIVE}}", "{mtls: {mode: DISABLE}}"
	for _, c := range []struct {
		name, objects string
		def           snapshot.MutualTLS
		want          map[string]string // workload:port → mode, source
	}{
		{"nothing", "", "", map[string]string{"api:80": "PERMISSIVE the mesh's default", "gate:80": "PERMISSIVE the mesh's default"}},
		{"the mesh's default", "", snapshot.Strict, map[string]string{"api:80": "STRICT the mesh's default"}},
		{"the root namespace", peer("a", "istio-system", strict), "", map[string]string{"api:80": "STRICT peerauthentication/istio-system/a", "bank:80": "STRICT peerauthentication/istio-system/a"}},
		{"a namespace before the mesh", peer("a", "istio-system", strict) + peer("b", "money", permissive), "", map[string]string{
			"api:80": "STRICT peerauthentication/istio-system/a", "bank:80": "PERMISSIVE peerauthentication/money/b",
		}},
		{"a workload before its namespace", peer("a", "default", strict) + peer("b", "default", "{selector: {matchLabels: {app: api}}, mtls: {mode: DISABLE}}"), "", map[string]string{
			"api:80": "DISABLE peerauthentication/default/b", "web:80": "STRICT peerauthentication/default/a", "bank:80": "PERMISSIVE the mesh's default",
		}},
		{"a port before its workload", peer("b", "default", "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {81: {mode: DISABLE}}}"), "", map[string]string{
			"api:80": "STRICT peerauthentication/default/b", "api:81": "DISABLE peerauthentication/default/b",
		}},
		{"unset is what is around", peer("a", "default", strict) + peer("b", "default", "{selector: {matchLabels: {app: api}}, mtls: {mode: UNSET}, portLevelMtls: {80: {mode: UNSET}, 81: {mode: PERMISSIVE}}}"), "", map[string]string{
			"api:80": "STRICT peerauthentication/default/a", "api:81": "PERMISSIVE peerauthentication/default/b",
		}},
		{"a namespace that is unset", peer("a", "istio-system", strict) + peer("b", "default", "{mtls: {mode: UNSET}}"), "", map[string]string{"api:80": "STRICT peerauthentication/istio-system/a"}},
		{"the older of two", peer("b", "default", strict) + peer("a", "default", off), "", map[string]string{"api:80": "STRICT peerauthentication/default/b"}},
		{"a selector in the root namespace is for that namespace", peer("a", "istio-system", "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}}"), "", map[string]string{"api:80": "PERMISSIVE the mesh's default"}},
		{"the mesh of 1.0", old("MeshPolicy", "default", "default", "{peers: [{mtls: {}}]}"), "", map[string]string{"bank:80": "STRICT meshpolicy/default/default"}},
		{"a namespace of 1.0", old("MeshPolicy", "default", "default", "{peers: [{mtls: {}}]}") + old("Policy", "default", "money", "{}"), "", map[string]string{
			"bank:80": "PERMISSIVE policy/money/default", "api:80": "STRICT meshpolicy/default/default",
		}},
		{"a service of 1.0", old("Policy", "x", "default", "{targets: [{name: api}, {name: web, ports: [{number: 81}]}], peers: [{mtls: {mode: STRICT}}]}"), "", map[string]string{
			"api:80": "STRICT policy/default/x", "web:80": "PERMISSIVE the mesh's default", "web:81": "STRICT policy/default/x", "bank:80": "PERMISSIVE the mesh's default",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := compile.New(compile.View{Intent: decode(t, c.objects), Facts: shop(), MutualTLS: c.def})
			for at, want := range c.want {
				name, number, _ := strings.Cut(at, ":")
				m := x.Modes(x.Workload(name))
				mode, source := m.At(map[string]uint16{"80": 80, "81": 81}[number])
				if got := string(mode) + " " + source; got != want {
					t.Errorf("%s: %s, want %s", at, got, want)
				}
			}
		})
	}
}

func security(t *testing.T, v compile.View, workload string) snapshot.Authentication {
	t.Helper()
	s, _, err := compile.New(v).Compile(workload)
	if err != nil {
		t.Fatal(err)
	}
	return s.Authentication
}

// A strict proxy knows who is a neighbour; a client knows who takes plain text alone.
func TestPeers(t *testing.T) {
	v := compile.View{Facts: shop(), Intent: decode(t, peer("a", "default", "{mtls: {mode: STRICT}}")+peer("b", "money", "{mtls: {mode: DISABLE}}"))}
	want := snapshot.Authentication{
		TLS: snapshot.ServerTLS{
			Modes:     snapshot.Modes{Mode: snapshot.Strict, Source: "peerauthentication/default/a"},
			Published: []uint16{80}, Gateways: []string{"10.0.0.1", "fd00::1"}, Subnets: []string{"10.0.0.0/24", "fd00::/64"},
		},
		Peers: []snapshot.PeerTLS{{Workload: "bank", Modes: snapshot.Modes{Mode: snapshot.Disable, Source: "peerauthentication/money/b"}}},
	}
	if diff := cmp.Diff(want, security(t, v, "api")); diff != "" {
		t.Errorf("api (-want +got):\n%s", diff)
	}
	if got := security(t, v, "far"); got.Peers != nil {
		t.Errorf("far, which has no network in common with bank, is told of %v", got.Peers)
	}
	if got := security(t, v, "gate").TLS; got.Mode != "" {
		t.Errorf("the gateway's listeners are %s", got.Mode)
	}
}

func TestTokens(t *testing.T) {
	text := `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: all, namespace: istio-system}
spec:
  jwtRules:
  - {issuer: https://issuer.example/, audiences: [shop], timeout: 2s}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: api}
spec:
  selector: {matchLabels: {app: api}}
  jwtRules:
  - issuer: b
    jwks: '` + keys + `'
    fromHeaders: [{name: X-Jwt, prefix: "Token "}]
    fromCookies: [session]
    outputPayloadToHeader: X-Payload
    outputClaimToHeaders: [{header: X-Sub, claim: sub}]
    forwardOriginalToken: true
    spaceDelimitedClaims: [groups]
` + old("Policy", "web", "default", "{targets: [{name: web}], origins: [{jwt: {issuer: c, jwksUri: 'https://c.example/keys', jwtHeaders: [X-C]}}], principalBinding: USE_ORIGIN}")
	v := compile.View{Facts: shop(), Intent: decode(t, text), Keys: map[string]compile.Keys{
		"https://issuer.example/.well-known/openid-configuration": {Set: keys}, "https://c.example/keys": {Err: "it answered 500"},
	}}
	all := snapshot.TokenRule{
		Source: "requestauthentication/istio-system/all spec.jwtRules[0]", Issuer: "https://issuer.example/", Audiences: []string{"shop"}, Keys: keys,
		KeysFrom: "https://issuer.example/.well-known/openid-configuration",
		Headers:  []snapshot.TokenHeader{{Name: "authorization", Prefix: "Bearer "}}, Params: []string{"access_token"},
	}
	for workload, want := range map[string]snapshot.Authentication{
		"gate": {Tokens: []snapshot.TokenRule{all}},
		"api": {Tokens: []snapshot.TokenRule{all, {
			Source: "requestauthentication/default/api spec.jwtRules[0]", Issuer: "b", Keys: keys, Headers: []snapshot.TokenHeader{{Name: "x-jwt", Prefix: "Token "}},
			Cookies: []string{"session"}, PayloadHeader: "x-payload", ClaimHeaders: []snapshot.ClaimHeader{{Name: "x-sub", Claim: "sub"}}, Forward: true, SpaceDelimited: []string{"groups"},
		}}},
		"web": {TokenRequired: true, Tokens: []snapshot.TokenRule{all, {
			Source: "policy/default/web spec.origins[0].jwt", Issuer: "c", KeysFrom: "https://c.example/keys", Headers: []snapshot.TokenHeader{{Name: "x-c"}},
		}}},
	} {
		got := security(t, v, workload)
		got.TLS = snapshot.ServerTLS{}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", workload, diff)
		}
	}
	sources := []compile.KeySource{{"https://c.example/keys", 5 * time.Second}, {"https://issuer.example/.well-known/openid-configuration", 2 * time.Second}}
	if diff := cmp.Diff(sources, compile.New(v).KeySources()); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
}

func TestProblems(t *testing.T) {
	text := peer("a", "default", "{mtls: {mode: STRICT}}") + peer("b", "default", "{mtls: {mode: DISABLE}}") +
		peer("none", "default", "{selector: {matchLabels: {app: nobody}}, mtls: {mode: STRICT}}") + `
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: r}
spec:
  jwtRules:
  - {issuer: a, jwksUri: "https://a.example/keys"}
  - {issuer: b, jwksUri: "https://b.example/keys"}
  - {issuer: c, jwks: '{"keys":[` + `{"kty":"RSA","e":"AQAB","n":"` + strings.Repeat("q", 99) + `w"}]}'}
`
	v := compile.View{Facts: shop(), Intent: decode(t, text), Keys: map[string]compile.Keys{
		"https://a.example/keys": {Err: "it answered 500"}, "https://b.example/keys": {Err: "it answered 500", Set: keys},
	}}
	var got []string
	for _, p := range compile.New(v).CheckAll() {
		line, _, _ := strings.Cut(string(p.Code)+" "+p.Resource+" "+p.String(), "\n")
		got = append(got, line)
	}
	want := []string{
		"IST0133 peerauthentication/default/b spec: peerauthentication/default/a is older and for the namespace too: it holds, this does not",
		"IST0127 peerauthentication/default/none spec.selector.matchLabels: no workload that runs is meant by this",
		"CMP0001 requestauthentication/default/r spec.jwtRules[0].jwksUri: every token of a is refused until its keys are there: it answered 500",
		"CMP0001 requestauthentication/default/r spec.jwtRules[1].jwksUri: the keys that were fetched before stay in force: it answered 500",
		"IST0133 requestauthentication/default/r spec.jwtRules[2].jwks: every token of c is refused: key set has no key that verifies tokens: keys[0]: RSA key of 600 bits with exponent 65537, want 2048 bits and 3 at least",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What changes nothing is valid, as in Istio, and said to be so.
func TestNothing(t *testing.T) {
	for text, want := range map[string][]string{
		peer("x", "default", "{}"):                                   {"IST0133 spec.mtls"},
		peer("x", "default", "{mtls: {mode: UNSET}}"):                {"IST0133 spec.mtls"},
		peer("x", "default", "{selector: {}, mtls: {mode: STRICT}}"): {"IST0133 spec.selector"},
		"apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: x}\nspec: {selector: {}}":              {"IST0133 spec.selector", "IST0133 spec.jwtRules"},
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {selector: {}, action: AUDIT}": {"IST0133 spec.selector", "IST0133 spec.rules"},
	} {
		var got []string
		for _, p := range compile.New(compile.View{Facts: shop(), Intent: decode(t, text)}).CheckAll() {
			got = append(got, string(p.Code)+" "+p.Path)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
	}
}
