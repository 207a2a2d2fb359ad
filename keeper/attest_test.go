package keeper

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// procWith is a /proc of the given cgroups by pid.
func procWith(t *testing.T, cgroups map[int]string) string {
	t.Helper()
	root := t.TempDir()
	for pid, cgroup := range cgroups {
		dir := filepath.Join(root, strconv.Itoa(pid))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(cgroup), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func livingPeer(pid, uid int) *peer {
	return &peer{pid: pid, uid: uid, exited: func() (bool, error) { return false, nil }, close: func() {}}
}

func TestAttest(t *testing.T) {
	proxy := box("web-mesh-proxy", mesh.RoleProxy, "web", map[string]string{labels.ServiceAccount: "frontend", labels.Namespace: "prod"})
	with := func(change func(*Container)) Container {
		c := box("web-mesh-proxy", mesh.RoleProxy, "web")
		change(&c)
		return c
	}
	relabelled := func(key, value string) Container { return with(func(c *Container) { c.Labels[key] = value }) }
	for name, test := range map[string]struct {
		container Container
		uid       int
		want      Caller
		err       string
	}{
		"proxy": {container: proxy, uid: 1337,
			want: Caller{Role: mesh.RoleProxy, Workload: "web", Identity: "spiffe://cluster.local/ns/prod/sa/frontend"}},
		"gateway": {container: box("gw", mesh.RoleGateway, "istio-ingressgateway"), uid: 1337,
			want: Caller{Role: mesh.RoleGateway, Workload: "istio-ingressgateway", Identity: "spiffe://cluster.local/ns/default/sa/istio-ingressgateway"}},
		"pilot": {container: box("pilot", mesh.RolePilot, ""), uid: mesh.UIDPilot,
			want: Caller{Role: mesh.RolePilot, Identity: "spiffe://cluster.local/ns/composure-system/sa/pilot"}},
		"citadel": {container: box("citadel", mesh.RoleCitadel, ""), uid: mesh.UIDCitadel,
			want: Caller{Role: mesh.RoleCitadel, Identity: "spiffe://cluster.local/ns/composure-system/sa/citadel"}},
		"mixer": {container: box("mixer", mesh.RoleMixer, ""), uid: mesh.UIDMixer,
			want: Caller{Role: mesh.RoleMixer, Identity: "spiffe://cluster.local/ns/composure-system/sa/mixer"}},
		"root in a proxy's container":       {container: proxy, uid: 0, err: "user id 0, want 1337 for role proxy"},
		"a proxy's user in a plane":         {container: box("pilot", mesh.RolePilot, ""), uid: 1337, err: "want 1341 for role pilot"},
		"an application":                    {container: box("web", mesh.RoleApp, "web"), uid: 1337, err: `is "app", which has no identity`},
		"a sandbox":                         {container: box("s", mesh.RoleSandbox, "web"), uid: 1339, err: "which has no identity"},
		"no role":                           {container: relabelled(labels.Role, ""), uid: 1337, err: "which has no identity"},
		"another mesh":                      {container: relabelled(labels.Mesh, "bank"), uid: 1337, err: `composure.mesh is "bank", want "shop"`},
		"no mesh":                           {container: with(func(c *Container) { delete(c.Labels, labels.Mesh) }), uid: 1337, err: `composure.mesh is "", want "shop"`},
		"no workload":                       {container: relabelled(labels.Workload, ""), uid: 1337, err: "composure.workload is missing"},
		"a service account but no workload": {container: with(func(c *Container) { c.Labels[labels.Workload], c.Labels[labels.ServiceAccount] = "", "x" }), uid: 1337, err: "composure.workload is missing"},
		"the planes' namespace":             {container: relabelled(labels.Namespace, mesh.SystemNamespace), uid: 1337, err: "kept for the mesh's own planes"},
		"a path in a name":                  {container: relabelled(labels.ServiceAccount, "../../ns/composure-system/sa/citadel"), uid: 1337, err: "service account"},
		"stopped":                           {container: with(func(c *Container) { c.Running = false }), uid: 1337, err: "it does not run"},
	} {
		t.Run(name, func(t *testing.T) {
			cgroup := "0::/docker/" + test.container.ID + "\n"
			a := newCgroupAttestor(testScope, newFakeEngine(test.container), procWith(t, map[int]string{7: cgroup, 100: cgroup}))
			got, err := a.attest(t.Context(), livingPeer(7, test.uid))
			if test.err != "" {
				if !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), test.err) {
					t.Errorf("attest = %+v, %v; want a refusal with %q", got, err, test.err)
				}
				return
			}
			test.want.Container = test.container.ID
			if err != nil || got != test.want {
				t.Errorf("attest = %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestAttestRefusesProcesses(t *testing.T) {
	proxy := box("web-mesh-proxy", mesh.RoleProxy, "web")
	own := "0::/docker/" + proxy.ID + "\n"
	for name, test := range map[string]struct {
		cgroups map[int]string
		exited  bool
		err     string
	}{
		"of the host":                     {cgroups: map[int]string{7: "0::/user.slice\n"}, err: "in no Docker container"},
		"of an unknown container":         {cgroups: map[int]string{7: "0::/docker/" + id("other") + "\n"}, err: "not found"},
		"that are gone":                   {cgroups: map[int]string{100: own}, err: "no such file"},
		"whose pid may be another's":      {cgroups: map[int]string{7: own, 100: own}, exited: true, err: "process 7 has ended"},
		"in a cgroup that has their name": {cgroups: map[int]string{7: "0::/docker/" + id("other") + "/docker/" + proxy.ID + "\n", 100: own}, err: "not in the container's own cgroup"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newCgroupAttestor(testScope, newFakeEngine(proxy), procWith(t, test.cgroups))
			p := livingPeer(7, 1337)
			p.exited = func() (bool, error) { return test.exited, nil }
			if got, err := a.attest(t.Context(), p); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), test.err) {
				t.Errorf("attest = %+v, %v; want a refusal with %q", got, err, test.err)
			}
		})
	}
}

// An engine that does not answer is no reason to tell a caller that it is nobody.
func TestAttestWithoutAnEngine(t *testing.T) {
	proxy := box("web-mesh-proxy", mesh.RoleProxy, "web")
	e := newFakeEngine(proxy)
	e.breakWith(errEngine)
	a := newCgroupAttestor(testScope, e, procWith(t, map[int]string{7: "0::/docker/" + proxy.ID + "\n"}))
	if _, err := a.attest(t.Context(), livingPeer(7, 1337)); !errors.Is(err, errEngine) || errors.Is(err, ErrUnknown) {
		t.Errorf("attest: %v", err)
	}
}
