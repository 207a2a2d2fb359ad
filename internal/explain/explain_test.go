package explain

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestRouting(t *testing.T) {
	b, err := os.ReadFile("testdata/routing.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var tables []struct {
		Name, Config string
		Cases        []struct {
			From, To, Method string
			Header           []string
			Want             map[string]any
		}
	}
	if err := yaml.UnmarshalStrict(b, &tables); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		var files Files
		if err := files.Add(table.Name, strings.NewReader(table.Config)); err != nil {
			t.Fatalf("%s: %v", table.Name, err)
		}
		for _, c := range table.Cases {
			t.Run(table.Name+": "+c.Method+c.From+" "+c.To, func(t *testing.T) {
				e, err := files.Explain(c.From, Request{Method: c.Method, URL: c.To, Headers: c.Header})
				if err != nil {
					t.Fatal(err)
				}
				got := plain(t, e)
				for k, want := range c.Want {
					if !reflect.DeepEqual(got[k], want) {
						t.Errorf("%s is %s, want %s", k, text(t, got[k]), text(t, want))
					}
				}
			})
		}
	}
}

func plain(t *testing.T, e *Explanation) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(text(t, e)), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func text(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name, config string
		request      Request
		want         string
	}{
		{"no URL", "", Request{URL: "reviews"}, "no URL of a request"},
		{"another scheme", "", Request{URL: "ftp://reviews/"}, "no URL of a request"},
		{"a port", "", Request{URL: "http://reviews:99999/"}, "port"},
		{"a header", "", Request{URL: "http://reviews/", Headers: []string{"end-user"}}, "want name: value"},
		{"a header's name", "", Request{URL: "http://reviews/", Headers: []string{"end user: x"}}, `header "end user: x"`},
		{"a method", "", Request{URL: "http://reviews/", Method: "G T"}, "lets pass"},
		{"an object", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\nspec: {hosts: [a], htp: []}", Request{URL: "http://a/"}, "spec.htp"},
		{"YAML", "a: [", Request{URL: "http://a/"}, "config: document 0"},
		{"an address", "kind: Endpoints\nmetadata: {name: a}\nsubsets: [{addresses: [{ip: x}]}]\n---\nkind: Service\nmetadata: {name: a}", Request{URL: "http://a/"}, "endpoints a"},
		{"a port of a service", "kind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}", Request{URL: "http://a/"}, "service a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var files Files
			err := files.Add("config", strings.NewReader(c.config))
			if err == nil {
				_, err = files.Explain("web", c.request)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// The lecture's files over the lecture's application.
func TestCorpus(t *testing.T) {
	const corpus = "../../../shared/corpora/istio-1.0.6/"
	if _, err := os.Stat(corpus); err != nil {
		t.Skip("the corpora are not here: ../shared beside the checkout")
	}
	for _, c := range []struct {
		files  []string
		from   string
		to     string
		header string
		want   map[string]any
	}{
		{[]string{"virtual-service-reviews-test-v2.yaml"}, "productpage", "http://reviews:9080/reviews/0", "end-user: jason", map[string]any{"subset": "v2"}},
		{[]string{"virtual-service-reviews-test-v2.yaml"}, "productpage", "http://reviews:9080/reviews/0", "x: y", map[string]any{"subset": "v1"}},
		{[]string{"virtual-service-ratings-test-delay.yaml"}, "reviews", "http://ratings:9080/ratings/0", "end-user: jason", map[string]any{"fault": map[string]any{"delay": map[string]any{"percentage": 100.0, "fixedDelay": "7s"}}, "status": nil}},
		{[]string{"virtual-service-ratings-test-abort.yaml"}, "reviews", "http://ratings:9080/ratings/0", "end-user: jason", map[string]any{"status": 500.0}},
		{[]string{"bookinfo-gateway.yaml"}, "istio-ingressgateway", "http://any.example/productpage", "x: y", map[string]any{"destination": "productpage.default.svc.cluster.local", "port": 9080.0}},
	} {
		var files Files
		for _, name := range append([]string{"platform/bookinfo.yaml", "networking/destination-rule-all.yaml"}, prefixed("networking/", c.files)...) {
			f, err := os.Open(corpus + name)
			if err != nil {
				t.Fatal(err)
			}
			err = files.Add(name, f)
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
		e, err := files.Explain(c.from, Request{URL: c.to, Headers: []string{c.header}})
		if err != nil {
			t.Fatal(err)
		}
		got := plain(t, e)
		for k, want := range c.want {
			if !reflect.DeepEqual(got[k], want) {
				t.Errorf("%v %s %s: %s is %s, want %s", c.files, c.to, c.header, k, text(t, got[k]), text(t, want))
			}
		}
	}
}

func prefixed(prefix string, list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = prefix + s
	}
	return out
}
