package compile_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mixer/compile"
	"github.com/composure-mesh/composure/proxy/mixer"
	"github.com/composure-mesh/composure/proxy/quota"
)

// The recipes of docs/policies.md with kinds that mixer holds apply, there is nothing to say against them, and a proxy
// takes what they become.
func TestRecipes(t *testing.T) {
	raw, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	recipes := 0
	everyone := facts
	everyone.Workloads = append(slices.Clone(facts.Workloads), mesh.Workload{Name: "productpage-v1", Namespace: "default", Labels: map[string]string{"app": "productpage"}})
	for i, part := range strings.Split(string(raw), "```yaml\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		if !strings.Contains(block, "config.istio.io/") && !strings.Contains(block, api.PolicyGroup) {
			continue
		}
		docs, err := api.DecodeYAML(api.Config(), "recipe", strings.NewReader(block))
		if err != nil {
			t.Errorf("recipe %d: %v", i, err)
			continue
		}
		var objects []*api.Object
		for _, d := range docs {
			objects = append(objects, d.Object)
		}
		x := compile.New(compile.View{Intent: objects, Facts: everyone})
		for _, p := range x.CheckAll() {
			t.Errorf("recipe %d: %s: %s", i, p.Resource, p)
		}
		workload := "ratings-v1"
		if strings.Contains(block, "app: productpage") {
			workload = "productpage-v1"
		}
		usage, _, err := x.Compile(workload)
		if err != nil || len(usage.Rules)+len(usage.RateLimits) == 0 {
			t.Errorf("recipe %d: %v, no rules and no limits", i, err)
			continue
		}
		if _, err := mixer.New(usage, called); err != nil {
			t.Errorf("recipe %d: %v", i, err)
		}
		if _, err := quota.Build(usage.RateLimits, nil); err != nil {
			t.Errorf("recipe %d: %v", i, err)
		}
		recipes++
	}
	if recipes < 5 {
		t.Errorf("%d recipes, want 5", recipes)
	}
}
