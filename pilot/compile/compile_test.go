package compile_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// corpus is where the sample files of Istio 1.0.6 lie beside the repository.
const corpus = "../../../shared/corpora/istio-1.0.6"

// bookinfo is the facts of the lecture's application behind a gateway, with a database that is not in the mesh, on
// a network of its own, and a workload that shares no network with the rest.
func bookinfo() mesh.Facts {
	app := func(name, service, version, ip string) mesh.Workload {
		return mesh.Workload{
			Name: name, Namespace: "default", ServiceAccount: name, Identity: "spiffe://cluster.local/ns/default/sa/" + name,
			Role: mesh.RoleApp, Services: []string{service, name}, Labels: map[string]string{"app": service, "version": version},
			Meshed: true, Running: true, Addresses: []mesh.Address{{Network: "shop_default", IPv4: ip}},
			Ports: []mesh.Port{{Number: 9080, Protocol: mesh.ProtocolHTTP}},
		}
	}
	ratings := app("ratings-v1", "ratings", "v1", "172.20.0.13")
	ratings.Addresses = append([]mesh.Address{{Network: "shop_back", IPv4: "172.21.0.2"}}, ratings.Addresses...)
	return mesh.Facts{Revision: 7, Project: "shop", Workloads: []mesh.Workload{
		app("details-v1", "details", "v1", "172.20.0.11"),
		{
			Name: "db", Namespace: "default", ServiceAccount: "db", Role: mesh.RoleApp, Services: []string{"db"}, Running: true,
			Addresses: []mesh.Address{{Network: "shop_back", IPv4: "172.21.0.3", IPv6: "fd00::3"}}, Ports: []mesh.Port{{Number: 5432, Protocol: mesh.ProtocolTCP}},
		},
		{
			Name: "istio-ingressgateway", Namespace: "default", ServiceAccount: "istio-ingressgateway",
			Identity: "spiffe://cluster.local/ns/default/sa/istio-ingressgateway", Role: mesh.RoleGateway, Services: []string{"istio-ingressgateway"},
			Labels: map[string]string{"istio": "ingressgateway"}, Running: true,
			Addresses: []mesh.Address{{Network: "shop_default", IPv4: "172.20.0.10"}}, Ports: []mesh.Port{{Number: 80, Published: []string{"30080"}}},
		},
		{
			Name: "lonely", Namespace: "default", ServiceAccount: "lonely", Identity: "spiffe://cluster.local/ns/default/sa/lonely", Role: mesh.RoleApp,
			Services: []string{"lonely"}, Meshed: true, Running: true, Addresses: []mesh.Address{{Network: "other", IPv4: "172.29.0.2"}},
		},
		app("productpage-v1", "productpage", "v1", "172.20.0.12"),
		ratings,
		app("reviews-v1", "reviews", "v1", "172.20.0.14"),
		app("reviews-v2", "reviews", "v2", "172.20.0.15"),
		app("reviews-v3", "reviews", "v3", "172.20.0.16"),
	}}
}

// decode reads objects, made one minute after another in the order of the text.
func decode(t *testing.T, name, text string) []*api.Object {
	t.Helper()
	docs, err := api.DecodeYAML(api.Kinds(), name, strings.NewReader(text))
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

func fromCorpus(t *testing.T, files ...string) []*api.Object {
	t.Helper()
	var text strings.Builder
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(corpus, f))
		if err != nil {
			t.Skipf("the corpus of Istio 1.0.6 is not here: %v", err)
		}
		text.Write(raw)
		text.WriteString("\n---\n")
	}
	return decode(t, "corpus", text.String())
}

func compiled(t *testing.T, v compile.View, workload string) (*snapshot.Snapshot, []analysis.Problem) {
	t.Helper()
	v.TrustDomain = "cluster.local"
	s, problems, err := compile.Compile(v, workload)
	if err != nil {
		t.Fatal(err)
	}
	return s, problems
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name+".json")
	if *rewrite {
		if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestWithoutIntent(t *testing.T) {
	for _, workload := range []string{"productpage-v1", "ratings-v1", "istio-ingressgateway", "lonely"} {
		s, problems := compiled(t, compile.View{Facts: bookinfo()}, workload)
		if len(problems) > 0 {
			t.Errorf("%s: problems %v", workload, problems)
		}
		golden(t, "plain-"+workload, s)
	}
}

// What productpage's and reviews' proxies, and the gateway, make of the lecture's files.
func TestLecture(t *testing.T) {
	const rules = "networking/destination-rule-all.yaml"
	cases := []struct {
		name, workload string
		files          []string
	}{
		{"all-v1", "productpage-v1", []string{rules, "networking/virtual-service-all-v1.yaml"}},
		{"reviews-test-v2", "productpage-v1", []string{rules, "networking/virtual-service-reviews-test-v2.yaml"}},
		{"reviews-90-10", "productpage-v1", []string{rules, "networking/virtual-service-reviews-90-10.yaml"}},
		{"reviews-80-20", "productpage-v1", []string{rules, "networking/virtual-service-reviews-80-20.yaml"}},
		{"reviews-50-v3", "productpage-v1", []string{rules, "networking/virtual-service-reviews-50-v3.yaml"}},
		{"reviews-v3", "productpage-v1", []string{rules, "networking/virtual-service-reviews-v3.yaml"}},
		{"ratings-test-delay", "reviews-v2", []string{rules, "networking/virtual-service-ratings-test-delay.yaml"}},
		{"ratings-test-abort", "reviews-v2", []string{rules, "networking/virtual-service-ratings-test-abort.yaml"}},
		{"bookinfo-gateway", "istio-ingressgateway", []string{rules, "networking/bookinfo-gateway.yaml"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, problems := compiled(t, compile.View{Intent: fromCorpus(t, c.files...), Facts: bookinfo()}, c.workload)
			if len(problems) > 0 {
				t.Errorf("problems: %v", problems)
			}
			golden(t, "lecture-"+c.name, map[string]any{
				"services": slices.DeleteFunc(s.Services, func(s snapshot.Service) bool { return s.Name != "reviews" && s.Name != "ratings" }),
				"virtualHosts": slices.DeleteFunc(s.VirtualHosts, func(v snapshot.VirtualHost) bool {
					return len(v.Routes) > 0 && v.Routes[0].Name == "default"
				}),
				"gateways": s.Gateways,
			})
		})
	}
}

// The files of Istio 1.0's Docker mode say the same with names of Consul.
func TestConsulTwins(t *testing.T) {
	for _, file := range []string{"all-v1", "reviews-50-v3", "reviews-test-v2", "reviews-v2-v3", "reviews-v3"} {
		name := "virtual-service-" + file + ".yaml"
		want, _ := compiled(t, compile.View{Intent: fromCorpus(t, "networking/destination-rule-all.yaml", "networking/"+name), Facts: bookinfo()}, "productpage-v1")
		got, _ := compiled(t, compile.View{Intent: fromCorpus(t, "platform/consul/destination-rule-all.yaml", "platform/consul/"+name), Facts: bookinfo()}, "productpage-v1")
		if diff := cmp.Diff(want.VirtualHosts, got.VirtualHosts); diff != "" {
			t.Errorf("%s (-kubernetes +consul):\n%s", name, diff)
		}
	}
}

func TestEqualInputEqualBytes(t *testing.T) {
	intent := decode(t, "x", vs("a", "reviews", "reviews", "")+vs("b", "ratings", "ratings", ""))
	facts := bookinfo()
	first, _ := compiled(t, compile.View{Intent: intent, Facts: facts}, "productpage-v1")
	slices.Reverse(intent)
	facts.Revision++
	again, _ := compiled(t, compile.View{Intent: intent, Facts: facts}, "productpage-v1")
	if first.Version != again.Version {
		t.Errorf("versions differ: %s", cmp.Diff(first, again))
	}
}

// vs is a VirtualService with one rule; extra is more of its spec.
func vs(name, host, destination, extra string) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s}
spec:
  hosts: [%q]
  http:
  - route: [{destination: {host: %s}}]
%s`, name, host, destination, extra)
}

func host(s *snapshot.Snapshot, name string) *snapshot.VirtualHost {
	for i := range s.VirtualHosts {
		if s.VirtualHosts[i].Name == name {
			return &s.VirtualHosts[i]
		}
	}
	return nil
}

func TestEachDomainOnce(t *testing.T) {
	facts := bookinfo()
	// A second reviews in another namespace: the short name stays that of the proxy's own.
	other := facts.Workloads[6]
	other.Name, other.Namespace = "reviews-staging", "staging"
	facts.Workloads = append(facts.Workloads, other)
	intent := decode(t, "x", vs("a", "reviews", "ratings", "")+vs("b", "*.default.svc.cluster.local", "details", "")+vs("c", "nobody", "details", ""))
	for _, workload := range []string{"productpage-v1", "reviews-staging"} {
		s, _ := compiled(t, compile.View{Intent: intent, Facts: facts}, workload)
		owner := map[string]string{}
		for _, vh := range s.VirtualHosts {
			for _, d := range vh.Domains {
				if owner[d] != "" {
					t.Errorf("%s: domain %s is in %s and %s", workload, d, owner[d], vh.Name)
				}
				owner[d] = vh.Name
			}
		}
		want := map[string]string{
			"productpage-v1":  "reviews.default.svc.cluster.local",
			"reviews-staging": "reviews.staging.svc.cluster.local",
		}[workload]
		if owner["reviews"] != want {
			t.Errorf("%s: reviews is in %q, want %q", workload, owner["reviews"], want)
		}
		if owner["nobody"] == "" || owner["*.default.svc.cluster.local"] == "" {
			t.Errorf("%s: hosts of VirtualServices that no service has are missing: %v", workload, owner)
		}
	}
}

func TestVirtualServicesOfOneHost(t *testing.T) {
	intent := decode(t, "x", vs("young", "reviews", "details", "")+vs("old", "reviews.default.svc.cluster.local", "ratings", ""))
	intent[1].Meta.CreationTimestamp.Time = intent[0].Meta.CreationTimestamp.Add(-time.Hour)
	s, problems := compiled(t, compile.View{Intent: intent, Facts: bookinfo()}, "productpage-v1")
	got := host(s, "reviews.default.svc.cluster.local").Routes[0].Destinations[0].Service
	if got != "ratings.default.svc.cluster.local" {
		t.Errorf("requests go to %s, want the older rule's ratings", got)
	}
	want := []analysis.Problem{{
		Code:     analysis.ConflictingMeshGatewayHosts,
		Resource: "virtualservice/default/young", Path: "spec.hosts[0]",
		Detail: "reviews belongs to virtualservice/default/old, which is older; the rules here are not used for it",
	}}
	if diff := cmp.Diff(want, problems); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
}

func TestMatches(t *testing.T) {
	const rule = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - name: first
    match: [%s]
    route: [{destination: {host: ratings, port: {number: 81}}}]
  - name: rest
    route: [{destination: {host: reviews}}]
`
	exact := func(s string) *snapshot.StringMatch { return &snapshot.StringMatch{Exact: s} }
	cases := []struct {
		name, match string
		want        []snapshot.Match
		skipped     bool // the rule can't match at this proxy
		everything  bool // the rule matches everything, and hides what follows
	}{
		{name: "uri", match: `{uri: {prefix: /a}, ignoreUriCase: true}`, want: []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: "/a"}, IgnoreURICase: true}}},
		{name: "fields", match: `{method: {exact: GET}, authority: {regex: "r.*"}, scheme: {exact: http}, port: 9080}`, want: []snapshot.Match{
			{Method: exact("GET"), Authority: &snapshot.StringMatch{Regex: "r.*"}, Scheme: exact("http"), Port: 9080},
		}},
		{name: "headers", match: `{headers: {End-User: {exact: jason}, x-a: {}, x-b: {regex: "*"}}, withoutHeaders: {cookie: {prefix: b}}}`, want: []snapshot.Match{{Headers: []snapshot.HeaderMatch{
			{Name: "cookie", Value: &snapshot.StringMatch{Prefix: "b"}, Invert: true}, {Name: "end-user", Value: exact("jason")}, {Name: "x-a"}, {Name: "x-b"},
		}}}},
		{name: "claims", match: `{headers: {"@request.auth.claims.realm.Role": {exact: jason}}, withoutHeaders: {"@request.auth.claims[https://a.b/c][d]": {}}}`, want: []snapshot.Match{{Headers: []snapshot.HeaderMatch{
			{Name: "@request.auth.claims.realm.Role", Claim: []string{"realm", "Role"}, Value: exact("jason")},
			{Name: "@request.auth.claims[https://a.b/c][d]", Claim: []string{"https://a.b/c", "d"}, Invert: true},
		}}}},
		{name: "query", match: `{queryParams: {Page: {exact: "2"}, q: {}}}`, want: []snapshot.Match{{QueryParams: []snapshot.HeaderMatch{{Name: "Page", Value: exact("2")}, {Name: "q"}}}}},
		{name: "any of", match: `{uri: {exact: /a}}, {uri: {exact: /b}}`, want: []snapshot.Match{{URI: exact("/a")}, {URI: exact("/b")}}},
		{name: "own labels", match: `{sourceLabels: {app: productpage}}`, everything: true},
		{name: "own namespace", match: `{sourceNamespace: default, uri: {exact: /a}}`, want: []snapshot.Match{{URI: exact("/a")}}},
		{name: "other labels", match: `{sourceLabels: {app: reviews}}`, skipped: true},
		{name: "other namespace", match: `{sourceNamespace: prod}`, skipped: true},
		{name: "one of two is for others", match: `{sourceLabels: {app: reviews}}, {uri: {exact: /b}}`, want: []snapshot.Match{{URI: exact("/b")}}},
		{name: "empty", match: `{}`, everything: true},
		{name: "mesh", match: `{gateways: [mesh], uri: {exact: /a}}`, want: []snapshot.Match{{URI: exact("/a")}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			text := fmt.Sprintf(rule, c.match)
			if c.name == "mesh" {
				text = strings.Replace(text, "hosts:", "gateways: [mesh]\n  hosts:", 1)
			}
			s, _ := compiled(t, compile.View{Intent: decode(t, "x", text), Facts: bookinfo()}, "productpage-v1")
			routes := host(s, "reviews.default.svc.cluster.local").Routes
			var names []string
			for _, r := range routes {
				names = append(names, r.Name)
			}
			want := []string{"first", "rest"}
			if c.skipped {
				want = want[1:]
			} else if c.everything {
				want = want[:1]
			}
			if diff := cmp.Diff(want, names); diff != "" {
				t.Fatalf("routes (-want +got):\n%s", diff)
			}
			if c.skipped {
				return
			}
			if diff := cmp.Diff(c.want, routes[0].Matches); diff != "" {
				t.Errorf("matches (-want +got):\n%s", diff)
			}
			if got := routes[0].Resource; got != "virtualservice/default/reviews spec.http[0]" {
				t.Errorf("resource is %q", got)
			}
			if got := routes[0].Destinations[0]; got.Port != 81 || got.Weight == 0 {
				t.Errorf("destination is %+v, want port 81 and a weight", got)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	cases := []struct {
		name  string
		state [3]string // of reviews v1, v2, v3: health, or "stopped"
		want  []string
	}{
		{"all", [3]string{"", "healthy", "starting"}, []string{"reviews-v1", "reviews-v2", "reviews-v3"}},
		{"one unhealthy", [3]string{"", "unhealthy", ""}, []string{"reviews-v1", "reviews-v3"}},
		{"one stopped", [3]string{"stopped", "", ""}, []string{"reviews-v2", "reviews-v3"}},
		{"all unhealthy", [3]string{"unhealthy", "unhealthy", "unhealthy"}, []string{"reviews-v1", "reviews-v2", "reviews-v3"}},
		{"what runs is unhealthy", [3]string{"unhealthy", "stopped", "stopped"}, []string{"reviews-v1"}},
		{"none", [3]string{"stopped", "stopped", "stopped"}, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			facts := bookinfo()
			for i, state := range c.state {
				w := &facts.Workloads[6+i]
				w.Health, w.Running = state, state != "stopped"
				if !w.Running {
					w.Health = ""
				}
			}
			s, _ := compiled(t, compile.View{Facts: facts}, "productpage-v1")
			for _, svc := range s.Services {
				if svc.Name == "reviews" {
					if diff := cmp.Diff(c.want, svc.Endpoints); diff != "" {
						t.Errorf("endpoints (-want +got):\n%s", diff)
					}
				}
			}
		})
	}
}

func TestDestinationRules(t *testing.T) {
	const rule = `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: %s, namespace: %s}
spec:
  host: %q
  trafficPolicy: {loadBalancer: {simple: %s}}
  subsets:
  - {name: %s, labels: {version: v2}}
`
	subsets := func(s snapshot.Service) (names []string) {
		for _, sub := range s.Subsets {
			names = append(names, sub.Name+"="+string(sub.Policy.LoadBalancer)+strings.Join(sub.Endpoints, ","))
		}
		return names
	}
	cases := []struct {
		name, rules string
		policy      snapshot.LoadBalancer
		subsets     []string
	}{
		{"one", fmt.Sprintf(rule, "a", "default", "reviews", "RANDOM", "x"), snapshot.Random, []string{"x=RANDOMreviews-v2"}},
		{
			"two are one", fmt.Sprintf(rule, "a", "default", "reviews", "RANDOM", "x") + fmt.Sprintf(rule, "b", "default", "reviews", "ROUND_ROBIN", "y"),
			snapshot.Random, []string{"x=RANDOMreviews-v2", "y=RANDOMreviews-v2"},
		},
		{
			"exact before wildcard", fmt.Sprintf(rule, "a", "default", "*.default.svc.cluster.local", "RANDOM", "x") + fmt.Sprintf(rule, "b", "default", "reviews", "ROUND_ROBIN", "y"),
			snapshot.RoundRobin, []string{"y=ROUND_ROBINreviews-v2"},
		},
		{"of another namespace", fmt.Sprintf(rule, "a", "other", "reviews.default.svc.cluster.local", "RANDOM", "x"), "", nil},
		{"of the root namespace", fmt.Sprintf(rule, "a", "istio-system", "*.local", "RANDOM", "x"), snapshot.Random, []string{"x=RANDOMreviews-v2"}},
		{
			"its own namespace before the root", fmt.Sprintf(rule, "a", "istio-system", "reviews.default.svc.cluster.local", "RANDOM", "x") + fmt.Sprintf(rule, "b", "default", "*.local", "ROUND_ROBIN", "y"),
			snapshot.RoundRobin, []string{"y=ROUND_ROBINreviews-v2"},
		},
		{"short names are of the rule's namespace", fmt.Sprintf(rule, "a", "istio-system", "reviews", "RANDOM", "x"), "", nil},
		{
			"for its labels instead of for all", fmt.Sprintf(rule, "a", "default", "reviews", "RANDOM", "x") +
				fmt.Sprintf(rule, "b", "default", "reviews", "ROUND_ROBIN", "y") + "  workloadSelector: {matchLabels: {app: productpage}}\n",
			snapshot.RoundRobin, []string{"y=ROUND_ROBINreviews-v2"},
		},
		{
			"for other labels", fmt.Sprintf(rule, "a", "default", "reviews", "ROUND_ROBIN", "y") + "  workloadSelector: {matchLabels: {app: ratings}}\n" +
				fmt.Sprintf(rule, "b", "default", "*.local", "RANDOM", "x"),
			snapshot.Random, []string{"x=RANDOMreviews-v2"},
		},
		{
			"labels select in the rule's namespace alone", fmt.Sprintf(rule, "a", "istio-system", "*.local", "RANDOM", "x") + "  workloadSelector: {matchLabels: {app: productpage}}\n", "", nil,
		},
		{"least conn", fmt.Sprintf(rule, "a", "default", "reviews.service.consul", "LEAST_CONN", "x"), snapshot.LeastRequest, []string{"x=LEAST_REQUESTreviews-v2"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, _ := compiled(t, compile.View{Intent: decode(t, "x", c.rules), Facts: bookinfo()}, "productpage-v1")
			for _, svc := range s.Services {
				if svc.Name != "reviews" {
					continue
				}
				if svc.Policy.LoadBalancer != c.policy {
					t.Errorf("load balancer is %q, want %q", svc.Policy.LoadBalancer, c.policy)
				}
				if diff := cmp.Diff(c.subsets, subsets(svc)); diff != "" {
					t.Errorf("subsets (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestSidecarFor: which of several Sidecars is a proxy's.
func TestSidecarFor(t *testing.T) {
	sidecar := func(namespace, spec string) string {
		return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: x, namespace: %s}\nspec: %s\n", namespace, spec)
	}
	const knowsRatings, knowsDetails, knowsAll = `{egress: [{hosts: ["./ratings"]}]}`, `{egress: [{hosts: ["./details"]}]}`, `{egress: [{hosts: ["*/*"]}]}`
	mine := `{workloadSelector: {labels: {app: productpage}}, egress: [{hosts: ["./details"]}]}`
	for name, c := range map[string]struct {
		config string
		want   []string
	}{
		"for the mesh":                  {sidecar("istio-system", knowsRatings), []string{"ratings"}},
		"its namespace before the mesh": {sidecar("istio-system", knowsRatings) + sidecar("default", knowsDetails), []string{"details"}},
		"its own before its namespace":  {sidecar("default", knowsRatings) + strings.Replace(sidecar("default", mine), "name: x", "name: y", 1), []string{"details"}},
		"of another namespace":          {sidecar("default", knowsDetails) + sidecar("other", knowsAll), []string{"details"}},
		"of some workloads in the root": {sidecar("istio-system", mine) + sidecar("default", knowsRatings), []string{"ratings"}},
		"one for the mesh is older":     {sidecar("istio-system", knowsDetails) + strings.Replace(sidecar("istio-system", knowsRatings), "name: x", "name: y", 1), []string{"details"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := compiled(t, compile.View{Intent: decode(t, "x", c.config), Facts: bookinfo()}, "productpage-v1")
			var got []string
			for _, svc := range s.Services {
				got = append(got, svc.Name)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("services (-want +got):\n%s", diff)
			}
		})
	}
}

const gateway = `---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 80, name: http, protocol: HTTP}
    hosts: [%s]
`

func TestGateways(t *testing.T) {
	bind := "  gateways: [front]\n"
	cases := []struct {
		name, text string
		want       map[string][]string // services by domain
	}{
		{"no rules", fmt.Sprintf(gateway, `"*"`), map[string][]string{}},
		{"not bound", fmt.Sprintf(gateway, `"*"`) + vs("a", "shop.example.com", "details", ""), map[string][]string{}},
		{"bound", fmt.Sprintf(gateway, `"*"`) + vs("a", "shop.example.com", "details", bind), map[string][]string{"shop.example.com": {"details"}}},
		{"by namespace", fmt.Sprintf(gateway, `"*"`) + vs("a", "*", "details", "  gateways: [default/front]\n"), map[string][]string{"*": {"details"}}},
		{"narrower server", fmt.Sprintf(gateway, `"*.example.com"`) + vs("a", "*", "details", bind), map[string][]string{"*.example.com": {"details"}}},
		{"other host", fmt.Sprintf(gateway, `"*.example.org"`) + vs("a", "shop.example.com", "details", bind), map[string][]string{}},
		{"other namespace", fmt.Sprintf(gateway, `"prod/*"`) + vs("a", "shop.example.com", "details", bind), map[string][]string{}},
		{"own namespace", fmt.Sprintf(gateway, `"./*"`) + vs("a", "shop.example.com", "details", bind), map[string][]string{"shop.example.com": {"details"}}},
		{"a service's full name", fmt.Sprintf(gateway, `details.default.svc.cluster.local`) + vs("a", "details", "details", bind), map[string][]string{
			"details": {"details"}, "details.default": {"details"}, "details.default.svc": {"details"}, "details.default.svc.cluster.local": {"details"}, "details.service.consul": {"details"},
		}},
		{
			"merged, catch-alls last", fmt.Sprintf(gateway, `"*"`) + vs("a", "*", "details", bind) + strings.Replace(vs("b", "*", "ratings", bind), "- route:", "- match: [{uri: {prefix: /r}}]\n    route:", 1),
			map[string][]string{"*": {"ratings", "details"}},
		},
		{"other selector", strings.Replace(fmt.Sprintf(gateway, `"*"`), "ingressgateway", "egress", 1) + vs("a", "*", "details", bind), nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s, _ := compiled(t, compile.View{Intent: decode(t, "x", c.text), Facts: bookinfo()}, "istio-ingressgateway")
			if c.want == nil {
				if len(s.Gateways) > 0 {
					t.Errorf("gateways are %v, want none", s.Gateways)
				}
				return
			}
			if len(s.Gateways) != 1 || s.Gateways[0].Port != 80 {
				t.Fatalf("gateways are %v, want one at port 80", s.Gateways)
			}
			got := map[string][]string{}
			for _, vh := range s.Gateways[0].VirtualHosts {
				for _, r := range vh.Routes {
					d := r.Destinations[0]
					got[vh.Domains[0]] = append(got[vh.Domains[0]], strings.TrimSuffix(d.Service, ".default.svc.cluster.local"))
					if d.Port != 9080 {
						t.Errorf("destination port of %s is %d, want the service's single one", d.Service, d.Port)
					}
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("domains (-want +got):\n%s", diff)
			}
			if len(s.VirtualHosts) > 0 {
				t.Errorf("a gateway has virtual hosts of a sidecar: %v", s.VirtualHosts)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	rules := `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets:
  - {name: v2, labels: {version: v2}}
  - {name: v9, labels: {version: v9}}
`
	subset := func(name string) string {
		return strings.Replace(vs("a", "reviews", "reviews", ""), "host: reviews}", "host: reviews, subset: "+name+"}", 1)
	}
	cases := []struct {
		name, text string
		want       []string // of the last object
	}{
		{"fine", rules + subset("v2"), nil},
		{"no such subset", rules + subset("v7"), []string{`spec.http[0].route[0].destination.subset: no DestinationRule gives reviews.default.svc.cluster.local a subset "v7"; its requests get 503`}},
		{"empty subset", rules + subset("v9"), []string{`spec.http[0].route[0].destination.subset: no running workload of reviews.default.svc.cluster.local is in subset "v9"; its requests get 503`}},
		{"nobody", vs("a", "reviewz", "nobody", ""), []string{
			"spec.hosts[0]: no workload serves reviewz.default.svc.cluster.local",
			"spec.http[0].route[0].destination.host: no workload serves nobody.default.svc.cluster.local; its requests get 503",
		}},
		{"host outside", vs("a", "www.example.com", "details", ""), nil},
		{"older rule", vs("a", "reviews", "reviews", "") + vs("b", "reviews", "reviews", ""), []string{
			"spec.hosts[0]: reviews belongs to virtualservice/default/a, which is older; the rules here are not used for it",
		}},
		{"no gateway", vs("a", "*", "details", "  gateways: [front]\n"), []string{
			"spec.gateways[0]: there is no Gateway default/front",
			"spec.gateways[0]: no server of Gateway front has one of the hosts *: nothing comes from there",
		}},
		{"published", fmt.Sprintf(gateway, `"*"`), nil},
		{"not published", strings.Replace(fmt.Sprintf(gateway, `"*"`), "80", "8443", 1), []string{
			"spec.servers[0].port.number: gateway istio-ingressgateway publishes no port 8443: meshctl compose inject --ingress HOSTPORT:8443 does",
		}},
		{"selector", strings.Replace(fmt.Sprintf(gateway, `"*"`), "ingressgateway", "egress", 1), []string{
			"spec.selector: no gateway has these labels: meshctl compose inject --ingress HOSTPORT adds one with istio: ingressgateway, --egress one with istio: egressgateway",
		}},
		{"egress", strings.Replace(fmt.Sprintf(gateway, `"*"`), "ingressgateway", "egressgateway", 1), nil},
		{"not a port of the egress gateway", strings.NewReplacer("ingressgateway", "egressgateway", "80", "8443").Replace(fmt.Sprintf(gateway, `"*"`)), []string{
			"spec.servers[0].port.number: gateway istio-egressgateway, which publishes none, has no port 8443: want one of 80, 443",
		}},
		{"rule for nobody", strings.Replace(rules, "host: reviews", "host: reviewz", 1), []string{"spec.host: no workload serves reviewz.default.svc.cluster.local"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			intent := decode(t, "x", c.text)
			var got []string
			facts := bookinfo()
			facts.Workloads = append(facts.Workloads, mesh.Workload{
				Name: "istio-egressgateway", Namespace: "istio-system", Role: mesh.RoleGateway, Labels: map[string]string{"istio": "egressgateway"},
				Ports: []mesh.Port{{Number: 80, Protocol: mesh.ProtocolHTTP}, {Number: 443, Protocol: mesh.ProtocolHTTPS}},
			})
			for _, p := range compile.New(compile.View{Intent: intent, Facts: facts}).Check(intent[len(intent)-1]) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnknownWorkload(t *testing.T) {
	if _, _, err := compile.Compile(compile.View{Facts: bookinfo()}, "nobody"); err == nil {
		t.Error("want an error for a workload that does not run")
	}
}

// A subset's policy overlays its service's block by block; a port's stands alone, the subset's before the service's.
func TestPolicies(t *testing.T) {
	const rule = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  trafficPolicy:
    loadBalancer: {simple: RANDOM}
    connectionPool: {http: {http2MaxRequests: 7}}
    portLevelSettings:
    - port: {number: 9080}
      outlierDetection: {}
  subsets:
  - name: v1
    labels: {version: v1}
  - name: v2
    labels: {version: v2}
    trafficPolicy:
      loadBalancer: {consistentHash: {httpHeaderName: X-User}, localityLbSetting: {distribute: [{from: "eu/*", to: {us: 20, eu/a: 80}}]}}
  - name: v3
    labels: {version: v3}
    trafficPolicy:
      tls: {mode: DISABLE}
      proxyProtocol: {version: V2}
      portLevelSettings:
      - port: {number: 81}
        loadBalancer: {simple: ROUND_ROBIN}
`
	pool := &snapshot.Connections{MaxRequests: 7}
	named, onlyNamed := &snapshot.Connections{MaxRequests: 7, ProxyProtocol: 2}, &snapshot.Connections{ProxyProtocol: 2}
	outlier := &snapshot.Outlier{Consecutive5xx: 5, Interval: snapshot.Duration(10 * time.Second), BaseTime: snapshot.Duration(30 * time.Second), MaxPercent: 10}
	hash := &snapshot.Hash{Header: "x-user"}
	near := &snapshot.Locality{Distribute: []snapshot.Distribute{{From: "eu/*", To: []snapshot.LocalityShare{{Locality: "eu/a", Weight: 80}, {Locality: "us", Weight: 20}}}}}
	type of struct {
		Policy snapshot.Policy
		Ports  []snapshot.PortPolicy
	}
	want := map[string]of{
		"":   {snapshot.Policy{LoadBalancer: snapshot.Random, Connections: pool}, []snapshot.PortPolicy{{Port: 9080, Policy: snapshot.Policy{Outlier: outlier}}}},
		"v1": {snapshot.Policy{LoadBalancer: snapshot.Random, Connections: pool}, []snapshot.PortPolicy{{Port: 9080, Policy: snapshot.Policy{Outlier: outlier}}}},
		"v2": {snapshot.Policy{Hash: hash, Connections: pool, Locality: near}, []snapshot.PortPolicy{{Port: 9080, Policy: snapshot.Policy{Hash: hash, Outlier: outlier, Locality: near}}}},
		"v3": {snapshot.Policy{LoadBalancer: snapshot.Random, Connections: named, TLS: snapshot.TLSDisable, TLSFrom: "destinationrule/default/reviews"}, []snapshot.PortPolicy{
			{Port: 81, Policy: snapshot.Policy{LoadBalancer: snapshot.RoundRobin, Connections: onlyNamed}},
			{Port: 9080, Policy: snapshot.Policy{Connections: onlyNamed, Outlier: outlier, TLS: snapshot.TLSDisable, TLSFrom: "destinationrule/default/reviews"}},
		}},
	}
	s, _ := compiled(t, compile.View{Intent: decode(t, "x", rule), Facts: bookinfo()}, "productpage-v1")
	for _, svc := range s.Services {
		if svc.Name != "reviews" {
			continue
		}
		got := map[string]of{"": {svc.Policy, svc.PortPolicies}}
		for _, sub := range svc.Subsets {
			got[sub.Name] = of{sub.Policy, sub.PortPolicies}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("policies (-want +got):\n%s", diff)
		}
	}
}

// An entry that is resolved leaves the addresses to the proxies: its host stands for itself, or its endpoints' names do.
func TestResolvedEntries(t *testing.T) {
	objects := decode(t, "entries", `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: alone}
spec: {hosts: [alone.example, Other.example], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: behind}
spec:
  hosts: [behind.example]
  location: MESH_EXTERNAL
  resolution: DNS_ROUND_ROBIN
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 80}]
  endpoints: [{address: us.example, labels: {at: us}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: mixed}
spec:
  hosts: [mixed.example]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 80}]
  endpoints: [{address: eu.example}, {address: 192.0.2.1}]
`)
	s, problems := compiled(t, compile.View{Intent: objects, Facts: bookinfo()}, "productpage-v1")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	services := map[string]snapshot.Service{}
	for _, svc := range s.Services {
		services[svc.Host] = svc
	}
	workloads := map[string]snapshot.Workload{}
	for _, w := range s.Workloads {
		workloads[w.Name] = w
	}
	for host, want := range map[string][]string{
		"alone.example": {"alone.example"}, "other.example": {"other.example"}, "behind.example": {"us.example (first)"}, "mixed.example": {"eu.example", "192.0.2.1"},
	} {
		if diff := cmp.Diff(want, services[host].Endpoints); diff != "" {
			t.Errorf("endpoints of %s (-want +got):\n%s", host, diff)
		}
	}
	if p := services["alone.example"].Ports; len(p) != 1 || p[0].Number != 80 || p[0].Target != 443 {
		t.Errorf("ports are %+v", p)
	}
	if p := services["behind.example"].Ports; len(p) != 1 || p[0].Target != 0 {
		t.Errorf("ports are %+v", p)
	}
	if w := workloads["alone.example"]; w.Resolve != "alone.example" || w.ResolveFirst || len(w.Addresses) != 0 {
		t.Errorf("%+v", w)
	}
	if w := workloads["us.example (first)"]; w.Resolve != "us.example" || !w.ResolveFirst || w.Labels["at"] != "us" {
		t.Errorf("%+v", w)
	}
	if w := workloads["192.0.2.1"]; w.Resolve != "" || len(w.Addresses) != 1 {
		t.Errorf("%+v", w)
	}
}

// Endpoints outside of Docker have a weight, ports and, where a label says so, an identity, each in its own service; the names of an
// entry's certificates are verified by TLS that names none.
func TestWorkloadEntries(t *testing.T) {
	objects := decode(t, "entries", `
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm}
spec: {address: 192.0.2.1, weight: 3, ports: {http: 8081}, serviceAccount: orders, labels: {app: orders, security.istio.io/tlsMode: istio}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm2}
spec: {address: 192.0.2.1, labels: {app: orders}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: named}
spec: {address: vm.example, serviceAccount: orders, labels: {app: orders}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: orders}
spec:
  hosts: [orders.example]
  location: MESH_INTERNAL
  resolution: DNS
  subjectAltNames: ["spiffe://elsewhere/ns/a/sa/b"]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}, {number: 81, name: other, protocol: HTTP}]
  workloadSelector: {labels: {app: orders}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec: {host: orders.example, subsets: [{name: tls, labels: {app: orders}, trafficPolicy: {tls: {mode: SIMPLE}}}]}
`)
	s, problems := compiled(t, compile.View{Intent: objects, Facts: bookinfo(), TrustDomain: "cluster.local"}, "productpage-v1")
	if len(problems) != 1 || problems[0].Resource != "workloadentry/default/named" || problems[0].Path != "spec.serviceAccount" {
		t.Errorf("problems %+v, want the service account that is not asked for", problems)
	}
	i := slices.IndexFunc(s.Services, func(svc snapshot.Service) bool { return svc.Host == "orders.example" })
	if i < 0 {
		t.Fatal("no service")
	}
	for _, p := range s.Services[i].Ports {
		if p.Target != 0 {
			t.Errorf("port %d of the service has target %d beside those of its endpoints", p.Number, p.Target)
		}
	}
	want := []snapshot.Place{
		{Workload: "named", Ports: []snapshot.PlacePort{{Number: 80, Target: 8080}}},
		{Workload: "vm", Weight: 3, Ports: []snapshot.PlacePort{{Number: 80, Target: 8081}}, Identity: "spiffe://cluster.local/ns/default/sa/orders"},
		{Workload: "vm2", Address: "192.0.2.1", Ports: []snapshot.PlacePort{{Number: 80, Target: 8080}}},
	}
	if diff := cmp.Diff(want, s.Services[i].Places); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
	if tls := s.Services[i].Subsets[0].Policy.ClientTLS; tls == nil || !slices.Equal(tls.SubjectAltNames, []string{"spiffe://elsewhere/ns/a/sa/b"}) {
		t.Errorf("tls %+v, want the entry's subjectAltNames", tls)
	}
}

// An idleTimeout of 0s turns off the one of sessions, in the snapshot's JSON too.
func TestSessionsWithoutEnd(t *testing.T) {
	for idle, want := range map[string]snapshot.Duration{"0s": math.MaxInt64, "5s": snapshot.Duration(5 * time.Second)} {
		rule := "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {idleTimeout: " + idle + "}}}}"
		s, _ := compiled(t, compile.View{Intent: decode(t, "x", rule), Facts: bookinfo()}, "productpage-v1")
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var read snapshot.Snapshot
		if err := json.Unmarshal(raw, &read); err != nil {
			t.Fatal(err)
		}
		for _, svc := range read.Services {
			if svc.Name == "reviews" && (svc.Policy.Connections == nil || svc.Policy.Connections.SessionIdle != want) {
				t.Errorf("%s: connections are %+v, want sessions that may be silent for %d ns", idle, svc.Policy.Connections, want)
			}
		}
	}
}
