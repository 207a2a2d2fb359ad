package compile_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func access(name, namespace, spec string) string {
	return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: " + spec + "\n"
}

// A policy is for the workloads of its namespace, or of all where that is the root namespace, that its selector chooses.
func TestAccessScope(t *testing.T) {
	v := compile.View{Facts: shop(), Intent: decode(t, access("all", "istio-system", "{}")+access("some", "istio-system", "{selector: {matchLabels: {app: bank}}}")+
		access("here", "default", "{action: DENY, rules: [{}]}")+access("one", "default", "{selector: {matchLabels: {app: api}}, action: AUDIT, rules: [{}]}")+
		access("other", "default", "{selector: {matchLabels: {app: bank}}}"))}
	for workload, want := range map[string][]string{
		"api": {"default/here DENY", "default/one AUDIT", "istio-system/all ALLOW"}, "bank": {"istio-system/all ALLOW", "istio-system/some ALLOW"},
		"gate": {"default/here DENY", "istio-system/all ALLOW"},
	} {
		s, _, err := compile.New(v).Compile(workload)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range s.Access {
			got = append(got, p.Namespace+"/"+p.Name+" "+string(p.Action))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", workload, got, want)
		}
	}
	problems := compile.New(v).CheckAll()
	if len(problems) != 1 || problems[0].Resource != "authorizationpolicy/default/other" || problems[0].Path != "spec.selector.matchLabels" {
		t.Errorf("problems are %v, want the policy that is for nobody", problems)
	}
}

// A policy with targetRefs is for the workloads of its own namespace that serve one of the services, by whatever name.
func TestTargetRefs(t *testing.T) {
	facts := shop()
	for i := range facts.Workloads {
		if w := &facts.Workloads[i]; w.Name == "api" || w.Name == "far" || w.Name == "bank" {
			w.Services = append(w.Services, "shared")
		}
	}
	ref := func(names string) string { return "{targetRefs: [" + names + "]}" }
	tokens := "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: t, namespace: money}\nspec:\n" +
		"  targetRef: {kind: Service, name: bank}\n  jwtRules: [{issuer: a, jwksUri: 'https://a.example/keys'}]\n"
	v := compile.View{Facts: facts, Intent: decode(t, tokens+strings.ReplaceAll(tokens, "name: bank", "name: api")+
		access("one", "default", ref("{kind: Service, name: web}"))+access("two", "default", ref("{kind: Service, name: shared}, {kind: Service, name: web}"))+
		access("old", "default", "{targetRef: {kind: Service, name: api}}")+access("root", "istio-system", ref("{kind: Service, name: api}"))+
		access("half", "money", ref("{kind: Service, name: bank}, {kind: Service, name: web}")))}
	x := compile.New(v)
	for workload, want := range map[string][]string{
		"api": {"default/old", "default/two"}, "far": {"default/two"}, "web": {"default/one", "default/two"}, "gate": nil, "bank": {"money/half"},
	} {
		s, _, err := x.Compile(workload)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range s.Access {
			got = append(got, p.Namespace+"/"+p.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", workload, got, want)
		}
		if n := len(s.Authentication.Tokens); n != 0 != (workload == "bank") {
			t.Errorf("%s has %d rules of tokens", workload, n)
		}
	}
	var problems []string
	for _, p := range x.CheckAll() {
		problems = append(problems, string(p.Code)+" "+p.Resource+" "+p.String())
	}
	want := []string{
		"IST0127 requestauthentication/money/t spec.targetRef.name: no workload that runs serves api in namespace money",
		"IST0127 authorizationpolicy/istio-system/root spec.targetRefs[0].name: no workload that runs serves api in namespace istio-system",
		"IST0127 authorizationpolicy/money/half spec.targetRefs[1].name: no workload that runs serves web in namespace money",
	}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

// Service accounts get their namespace, and cluster.local stands for the mesh's own trust domain.
func TestAccessNames(t *testing.T) {
	text := access("p", "money", `
  action: DENY
  rules:
  - from:
    - source: {principals: [cluster.local/ns/a/sa/b, "cluster.local/*", "*/sa/c", other/ns/a/sa/b], ipBlocks: [10.0.0.0/8]}
    - source: {serviceAccounts: [x], notServiceAccounts: [x, y/z]}
    to:
    - operation: {paths: [/a], notMethods: [GET], hosts: [b], ports: ["80"]}
    when:
    - {key: "request.headers[X-A]", values: [b], notValues: [c]}
    - {key: source.principal, values: [cluster.local/ns/a/sa/b]}
    - {key: source.serviceAccount, notValues: [x]}
`)
	s, _, err := compile.New(compile.View{Facts: shop(), Intent: decode(t, text), TrustDomain: "example.org"}).Compile("bank")
	if err != nil {
		t.Fatal(err)
	}
	want := []snapshot.AccessPolicy{{Namespace: "money", Name: "p", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{{
		From: []snapshot.AccessSource{
			{
				Principals: []string{"cluster.local/ns/a/sa/b", "example.org/ns/a/sa/b", "cluster.local/*", "example.org/*", "*/sa/c", "other/ns/a/sa/b"},
				IPBlocks:   []string{"10.0.0.0/8"},
			},
			{ServiceAccounts: []string{"money/x"}, NotServiceAccounts: []string{"money/x", "y/z"}},
		},
		To: []snapshot.AccessOperation{{Paths: []string{"/a"}, NotMethods: []string{"GET"}, Hosts: []string{"b"}, Ports: []string{"80"}}},
		When: []snapshot.AccessCondition{
			{Attribute: "request.headers", Names: []string{"X-A"}, Values: []string{"b"}, NotValues: []string{"c"}},
			{Attribute: "source.principal", Values: []string{"cluster.local/ns/a/sa/b", "example.org/ns/a/sa/b"}},
			{Attribute: "source.serviceAccount", NotValues: []string{"money/x"}},
		},
	}}}}
	if diff := cmp.Diff(want, s.Access); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Namespaces that a policy names are those of workloads, of objects, or of the View's own.
func TestAccessProblems(t *testing.T) {
	from := func(list string) string { return "{rules: [{from: [{source: " + list + "}]}]}" }
	v := compile.View{Facts: shop(), Namespaces: []string{"prod-web"}, Intent: decode(t, access("known", "default", from(`{namespaces: [default, "prod-*", "*-web", "*", empty]}`))+
		access("unknown", "default", from(`{namespaces: [nowhere, default], notNamespaces: ["*-test", "prod-*", "test-*"]}`))+
		access("nobody", "empty", "{}")+access("all", "istio-system", "{}"))}
	var got []string
	for _, p := range compile.New(v).CheckAll() {
		got = append(got, string(p.Code)+" "+p.Resource+" "+p.String())
	}
	want := []string{
		"IST0127 authorizationpolicy/empty/nobody spec: no workload runs in namespace empty",
		"IST0101 authorizationpolicy/default/unknown spec.rules[0].from[0].source.namespaces[0]: there is no namespace nowhere",
		"IST0101 authorizationpolicy/default/unknown spec.rules[0].from[0].source.notNamespaces[0]: there is no namespace *-test",
		"IST0101 authorizationpolicy/default/unknown spec.rules[0].from[0].source.notNamespaces[2]: there is no namespace test-*",
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
