package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/pilot/compile"
)

func TestDescribe(t *testing.T) {
	facts := bookinfo()
	facts.Workloads[7].Health = "unhealthy" // reviews-v2
	x := compile.New(compile.View{Facts: facts, TrustDomain: "cluster.local", Intent: decode(t, "rules", selecting+`
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec:
  host: reviews
  subsets: [{name: v9, labels: {version: v9}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, protocol: HTTP, name: http}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: page}
spec:
  hosts: ["*"]
  gateways: [front]
  http: [{route: [{destination: {host: reviews, subset: v9}, weight: 10}, {destination: {host: details}, weight: 90}]}]
`)})
	references := func(d *compile.Description) string {
		var lines []string
		for _, r := range d.References {
			lines = append(lines, fmt.Sprintf("%s %s %s", r.Resource, r.Path, r.Says))
		}
		return strings.Join(lines, "\n")
	}
	d, ok := x.DescribeService("reviews", "default")
	if !ok {
		t.Fatal("no service reviews")
	}
	const want = `virtualservice/default/reviews spec.hosts[0] routes its requests in the mesh
virtualservice/default/reviews spec.http[1].route[0] leads to it
virtualservice/default/page spec.hosts[0] routes its requests at front
virtualservice/default/page spec.http[0].route[0] leads to it, subset v9, weight 10
destinationrule/default/reviews spec.host gives it subset v9`
	if got := references(d); got != want {
		t.Errorf("reviews is concerned by\n%s\nwant\n%s", got, want)
	}
	if d.Service != "reviews.default.svc.cluster.local" || len(d.Workloads) != 3 || strings.Join(d.Endpoints, " ") != "reviews-v1 reviews-v3" {
		t.Errorf("reviews is %s with %d workloads, endpoints %v", d.Service, len(d.Workloads), d.Endpoints)
	}
	problems := false
	for _, p := range d.Problems {
		problems = problems || p.Resource == "destinationrule/default/reviews" && p.Path == "spec.subsets[0]"
		if p.Resource == "sidecar/default/page" {
			t.Errorf("problem of another's: %v", p)
		}
	}
	if !problems {
		t.Errorf("problems are %v, want that subset v9 is empty", d.Problems)
	}
	for name, want := range map[string]string{
		"istio-ingressgateway": "gateway/default/front spec.selector opens ports at it",
		"productpage-v1":       "sidecar/default/page spec limits what its proxy knows",
		"reviews-v2":           "virtualservice/default/reviews spec.http[0].match[0].sourceLabels is for requests of its application",
		"db":                   "",
	} {
		d, ok := x.DescribeWorkload(name)
		if !ok || references(d) != want {
			t.Errorf("%s is concerned by %q, want %q", name, references(d), want)
		}
	}
	if _, ok := x.DescribeService("nobody", "default"); ok {
		t.Error("a service that nobody serves is described")
	}
	if _, ok := x.DescribeWorkload("nobody"); ok {
		t.Error("a workload that does not run is described")
	}
}
