package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/mesh/labels"
)

func TestSplitArgs(t *testing.T) {
	env := &Env{}
	got, err := splitArgs(env, strings.Fields("-f a.yaml --file=b.yaml --profile x up-is-gone -d -pshop --wait web -- -f"))
	if err != nil {
		t.Fatal(err)
	}
	want := child{project: compose.Options{Files: []string{"a.yaml", "b.yaml"}},
		global: []string{"--profile", "x", "--project-name", "shop"}, args: []string{"up-is-gone", "-d", "--wait", "web", "--", "-f"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(child{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if env.Project != "shop" {
		t.Errorf("the project is %q, want shop", env.Project)
	}
	if _, err := splitArgs(env, []string{"--env-file"}); err == nil {
		t.Error("a flag without its value is taken")
	}
}

func TestRecentCompose(t *testing.T) {
	for version, want := range map[string]bool{"2.24.3": false, "v2.24.4": true, "2.40.3-desktop.1": true, "2.40.3+ds1": true, "5.6.0": true, "1.29.2": false, "dev": true} {
		if recentCompose(version) != want {
			t.Errorf("recentCompose(%q) = %v", version, !want)
		}
	}
}

func TestReplicaOf(t *testing.T) {
	scale := map[string]int{"web": 1, "a-2": 3}
	for workload, want := range map[string]int{"web": 1, "web-2": 2, "web-x": 0, "web-1": 0, "a-2": 1, "a-2-3": 3, "a": 0, "db": 0} {
		if _, n := replicaOf(workload, scale); n != want {
			t.Errorf("replicaOf(%q) = %d, want %d", workload, n, want)
		}
	}
}

func TestServiceRows(t *testing.T) {
	of := func(service, role, workload, status string, ports ...container.Port) container.Summary {
		return container.Summary{Image: service, Status: status, Ports: ports,
			Labels: map[string]string{composeService: service, labels.Role: role, labels.Workload: workload}}
	}
	got := serviceRows([]container.Summary{
		of("web-mesh-sandbox", "sandbox", "web", "Up 2 s", container.Port{IP: "0.0.0.0", PublicPort: 8080, PrivatePort: 80, Type: "tcp"}),
		of("web", "app", "web", "Up 1 s"), of("web-mesh-proxy", "proxy", "web", "Up (healthy)"), of("plain", "", "", "Exited (0)"),
	})
	want := []serviceRow{{Service: "plain", Image: "plain", Status: "Exited (0)"},
		{Service: "web", Image: "web", Status: "Up 1 s", Proxy: "Up (healthy)", Sandbox: "Up 2 s", Ports: "0.0.0.0:8080->80/tcp"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOldCompose: a Compose that does not know !reset is refused by its version.
func TestOldCompose(t *testing.T) {
	program := filepath.Join(t.TempDir(), "docker-compose")
	if err := os.WriteFile(program, []byte("#!/bin/sh\necho 2.23.0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := &Env{Getenv: func(key string) string { return map[string]string{"COMPOSURE_COMPOSE": program}[key] }, Dir: t.TempDir()}
	if err := checkCompose(context.Background(), env); err == nil || !strings.Contains(err.Error(), "2.23.0, want 2.24.4") {
		t.Errorf("error %v, want the version it has and the one it needs", err)
	}
	if err := runCompose(context.Background(), &Env{Getenv: func(string) string { return "sh" }, Dir: env.Dir}, []string{"-c", "exit 17"}); exitCode(context.Background(), err) != 17 {
		t.Errorf("exit code of the child: %v", err)
	}
}

func TestPrintChanges(t *testing.T) {
	var b bytes.Buffer
	printChanges(&b, []compose.Change{
		{Service: "web", Path: "ports", From: "['80:80']", To: "services.web-mesh-sandbox.ports", Why: "it moves"},
		{Service: "web", Path: "labels", To: "{a: b}", Why: "it is new"},
	})
	want := "services.web:\n  # it moves\n- ports: ['80:80']\n+ services.web-mesh-sandbox.ports: ['80:80']\n  # it is new\n+ labels: {a: b}\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestStrict: what is left out of the mesh is an error, unless its label asks for it; so is what is not known.
func TestStrict(t *testing.T) {
	for _, c := range []struct {
		service string
		refused bool
	}{{"network_mode: host", true}, {"privileged: true", true}, {"labels: {composure.inject: \"false\"}", false}, {"prots: []", true}} {
		dir := t.TempDir()
		file := "services:\n  web: {image: web}\n  other: {image: x, " + c.service + "}\n"
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		env := &Env{Out: &bytes.Buffer{}, Err: &bytes.Buffer{}, Getenv: func(string) string { return "" }, Dir: dir}
		o := &injectOptions{strict: true, config: compose.Config{Version: "1"}}
		if _, err := makeOverride(context.Background(), env, o); (err != nil) != c.refused {
			t.Errorf("%s: error %v, want one: %v", c.service, err, c.refused)
		}
	}
}

func TestStdinIsForInject(t *testing.T) {
	check(t, in(t, &fakeEngine{}, t.TempDir(), "services: {web: {image: web}}\n", "compose", "ps", "-f", "-"), 1, "", "save the file and name it with -f")
}
