package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

func TestUpgradeStopsAtTheFirstUnhealthyStep(t *testing.T) {
	var talk bytes.Buffer
	var upped []string
	u := &upgrade{env: &Env{Err: &talk}, up: func(_ context.Context, services []string) error {
		upped = append(upped, services...)
		return nil
	}}
	steps := []step{
		{[]string{"composure-keeper"}, func(context.Context) error { return nil }},
		{[]string{"web-mesh-proxy"}, func(context.Context) error {
			return errors.New("it is unhealthy; see `docker logs shop-web-mesh-proxy-1`")
		}},
		{[]string{"api-mesh-proxy"}, func(context.Context) error { return nil }},
	}
	err := u.run(t.Context(), steps)
	for _, want := range []string{"stopped at step 2 of 3, web-mesh-proxy: it is unhealthy; see `docker logs", "run `meshctl upgrade` again"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if want := []string{"composure-keeper", "web-mesh-proxy"}; !slices.Equal(upped, want) {
		t.Errorf("services %v were brought up, want %v", upped, want)
	}
	if !strings.Contains(talk.String(), "[1/3] composure-keeper: ready") {
		t.Errorf("progress: %q", talk.String())
	}
}

func TestUpgradeSteps(t *testing.T) {
	var talk bytes.Buffer
	u := &upgrade{env: &Env{Err: &talk}}
	proxy := func(workload, image string, state container.ContainerState) container.Summary {
		return container.Summary{Image: image, State: state, Labels: map[string]string{
			labels.Mesh: "composure", labels.Role: string(mesh.RoleProxy), labels.Workload: workload + ".shop",
			composeProject: "shop", composeService: workload + "-mesh-proxy",
		}}
	}
	list := []container.Summary{proxy("web-2", "composure/proxy:1", "running"), proxy("web", "composure/proxy:1", "running"), proxy("job", "composure/proxy:1", "exited")}
	var got []string
	for _, s := range u.proxySteps(list, []string{"web"}) {
		got = append(got, strings.Join(s.services, " "))
	}
	if want := []string{"web-2-mesh-proxy", "web-mesh-sandbox web-mesh-proxy web"}; !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
	if !strings.Contains(talk.String(), "job-mesh-proxy is exited") {
		t.Errorf("talk: %q", talk.String())
	}
	sandbox := proxy("web", "registry:5000/mesh/sandbox:abc", "running")
	sandbox.Labels[labels.Role] = string(mesh.RoleSandbox)
	if got := sandboxesNotAt([]container.Summary{sandbox}, "abc"); got != nil {
		t.Errorf("changed sandboxes: %v, want none", got)
	}
	if got := sandboxesNotAt([]container.Summary{sandbox}, "def"); !slices.Equal(got, []string{"web"}) {
		t.Errorf("changed sandboxes: %v, want web", got)
	}
}
