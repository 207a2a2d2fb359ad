package api_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/api"
)

// Policies as people have them apply.
func TestAuthorizationPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		text    string
		columns []any
	}{
		"nothing is allowed": {
			"apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\nmetadata: {name: allow-nothing, namespace: istio-system}\nspec: {}",
			[]any{"ALLOW", "mesh", 0},
		},
		"everything is allowed": {
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {rules: [{}]}",
			[]any{"ALLOW", "namespace default", 1},
		},
		"all of a rule": {`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: x
  annotations: {istio.io/dry-run: "true"}
spec:
  selector: {matchLabels: {app: reviews}}
  action: DENY
  rules:
  - from:
    - source: {principals: [cluster.local/ns/default/sa/a, "*/sa/b", "cluster.local/*", "*"], notPrincipals: [a], requestPrincipals: ["*"], notRequestPrincipals: [a/b]}
    - source: {namespaces: [a, "b*"], notNamespaces: [c], trustDomains: [td], notTrustDomains: [other]}
    - source: {serviceAccounts: [a, default/b], notServiceAccounts: [c]}
    - source: {ipBlocks: [10.0.0.0/8, "::1"], notIpBlocks: [10.0.0.1], remoteIpBlocks: [2001:db8::/32], notRemoteIpBlocks: [192.0.2.1]}
    to:
    - operation: {hosts: [a.example, "*.b.example", "c.example:8080", "[::1]:80", "d.example:*"], notHosts: [e], ports: ["80"], notPorts: ["81"]}
    - operation: {methods: [GET, "P*"], notMethods: [PURGE], paths: [/a, "/b/*", "*.html", "*", "/c/{*}/d/{**}", "/{**}/"], notPaths: ["/a%2Fb"]}
    when:
    - {key: "request.headers[User-Agent]", values: ["Mozilla/*"], notValues: ["*"]}
    - {key: "request.auth.claims[realm_access][roles]", values: [admin]}
    - {key: "request.auth.claims[https://example.com/groups]", values: [admin]}
    - {key: source.ip, values: [10.0.0.0/8]}
    - {key: destination.port, notValues: ["80"]}
    - {key: connection.sni, values: ["*.example"]}
`, []any{"DENY (dry run)", "app=reviews", 1}},
		"services": {
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec: {targetRefs: [{kind: Service, name: a}, {group: core, kind: Service, name: b}]}",
			[]any{"ALLOW", "service a,b", 0},
		},
		"a service": {
			"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: istio-system}\nspec: {targetRef: {group: '', kind: Service, name: a}}",
			[]any{"ALLOW", "service a", 0},
		},
	} {
		t.Run(name, func(t *testing.T) {
			docs, err := api.DecodeYAML(kinds, "f", strings.NewReader(c.text))
			if err != nil || len(docs) != 1 {
				t.Fatalf("%d objects, %v", len(docs), err)
			}
			var cells []any
			for _, col := range docs[0].Object.Kind.Columns {
				cells = append(cells, col.Cell(docs[0].Object))
			}
			if diff := cmp.Diff(c.columns, cells); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
		})
	}
}

// What targetRefs may be, of both kinds that have them.
func TestTargetRefs(t *testing.T) {
	const kind = ": want Service, got Gateway: a gateway is a workload, which spec.selector.matchLabels chooses, as istio: ingressgateway"
	many := "targetRefs: [" + strings.Repeat("{kind: Service, name: a}, ", 17) + "]"
	for spec, want := range map[string][]string{
		"targetRefs: [{kind: Service, name: a}]":                   nil,
		"targetRef: {kind: Service, name: a}":                      nil,
		strings.Replace(many, "{kind: Service, name: a}, ", "", 1): nil,
		many:             {"spec.targetRefs: want at most 16, got 17"},
		"targetRefs: []": {"spec.targetRefs: want at least one, or the field left out: an empty list would be every workload of the namespace"},
		"targetRefs: [{kind: Service}, {name: a}]":                                      {"spec.targetRefs[0].name: want the name of a service", "spec.targetRefs[1].kind: want Service"},
		"targetRefs: [{kind: Service, name: a, namespace: b}]":                          {"spec.targetRefs[0].namespace: want none: an object is for services of its own namespace"},
		"targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: a}]":      {"spec.targetRefs[0].kind" + kind},
		"targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: a}":         {"spec.targetRef.kind" + kind},
		"targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: a}]":       {"spec.targetRefs[0].kind: want Service, got ServiceEntry"},
		"targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: a}]": {"spec.targetRefs[0].kind: want Service, got GatewayClass"},
		"targetRefs: [{group: apps, kind: Service, name: a}]":                           {`spec.targetRefs[0].group: want none for a Service, got "apps"`},
		"targetRefs: [{kind: Service, name: a, port: 80}]":                              {"spec.targetRefs[0].port: unknown field"},
		"selector: {}, targetRefs: [{kind: Service, name: a}]":                          {"spec: want one of selector, targetRef and targetRefs at most"},
		"targetRef: {kind: Service, name: a}, targetRefs: [{kind: Service, name: a}]":   {"spec: want one of selector, targetRef and targetRefs at most"},
		"selector: {matchLabels: {app: a}}, targetRef: {kind: Service, name: a}":        {"spec: want one of selector, targetRef and targetRefs at most"},
	} {
		for _, kind := range []string{"AuthorizationPolicy", "RequestAuthentication"} {
			text := "apiVersion: security.istio.io/v1\nkind: " + kind + "\nmetadata: {name: x}\nspec: {" + spec + "}"
			var got []string
			if want == nil {
				if _, err := api.DecodeYAML(kinds, "f", strings.NewReader(text)); err != nil {
					got = []string{err.Error()}
				}
			} else {
				got = problemsOf(t, kinds, text)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s {%s} (-want +got):\n%s", kind, spec, diff)
			}
		}
	}
}

func TestDryRunOfWhat(t *testing.T) {
	for annotation, want := range map[string]string{
		"{istio.io/dry-run: 'yes'}}\nspec: {}":                            `metadata.annotations[istio.io/dry-run]: want "true" or "false", got "yes"`,
		"{istio.io/dry-run: 'true'}}\nspec: {action: AUDIT, rules: [{}]}": `metadata.annotations[istio.io/dry-run]: want it with ALLOW or DENY alone: AUDIT refuses nothing`,
	} {
		got := problemsOf(t, kinds, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, annotations: "+annotation)
		if diff := cmp.Diff([]string{want}, got); diff != "" {
			t.Errorf("problems (-want +got):\n%s", diff)
		}
	}
}

func TestConditionKey(t *testing.T) {
	for key, want := range map[string][]string{
		"request.headers[X-A]":           {"request.headers", "X-A"},
		"request.auth.claims[a][b.c][d]": {"request.auth.claims", "a", "b.c", "d"},
		"source.ip":                      {"source.ip"},
		"request.headers":                nil,
		"request.headers[a][b]":          nil,
		"request.auth.claims[a]b":        nil,
		"request.auth.claims[a][[b]]":    nil,
		"source.ip[a]":                   nil,
		"source.ip[":                     nil,
		"source.user":                    nil,
		"":                               nil,
	} {
		attribute, names, ok := api.ConditionKey(key)
		if got := append([]string{attribute}, names...); ok != (want != nil) || ok && !cmp.Equal(got, want) {
			t.Errorf("%q is %v, %v; want %v", key, got, ok, want)
		}
	}
}
