//go:build suites

package test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// withCompose5 has a test use the newest Compose, also by meshctl.
func withCompose5(t *testing.T) {
	t.Helper()
	usual, v5 := compose, filepath.Join(root, ".cache", "tools", "compose-v5")
	compose = []string{v5}
	t.Cleanup(func() { compose = usual }) // after the project is taken down
	t.Setenv("COMPOSURE_COMPOSE", v5)
}

// TestComposeVersions runs a project with the newest Compose: all other suites have the one that most people have. What inject
// wrote for projects of every kind is what it takes too. An older Compose than inject needs is refused by name
// (TestOldCompose in internal/cli).
func TestComposeVersions(t *testing.T) {
	withCompose5(t)
	p := newProject(t, map[string]string{"docker-compose.yml": strings.Replace(scaleCompose, "deploy: {replicas: 2}", "deploy: {replicas: 1}", 1)})
	if version := p.compose("version", "--short"); !strings.HasPrefix(version, "v5.") && !strings.HasPrefix(version, "5.") {
		t.Fatalf("docker compose is version %s, want 5", version)
	}
	p.inject()
	p.up()
	answers := func() {
		t.Helper()
		eventually(t, "an answer of web", func() string {
			if r := p.tryExec("client", "curl", "-fsS", "-m", "5", "http://web:8000/name"); r.code != 0 {
				return r.stderr
			}
			return ""
		})
	}
	answers()
	before := p.running()
	p.up()
	if after := p.running(); !maps.Equal(before, after) {
		t.Errorf("a second up, with nothing changed, replaced containers: %v, then %v", before, after)
	}
	p.compose("up", "--detach", "--wait", "--force-recreate", "--no-deps", "web")
	answers()
	p.compose("restart", "web-mesh-sandbox")
	answers()
	p.meshctl("compose", "scale", "web=2")
	eventually(t, "two replicas", func() string {
		return strings.TrimPrefix(p.exec("client", "sh", "-c", "getent ahostsv4 web | cut -d ' ' -f 1 | sort -u | wc -l"), "2\n")
	})
	p.meshctl("compose", "down", "--timeout", "5")
	if left := p.running(); len(left) != 0 {
		t.Errorf("left after down: %v", left)
	}

	t.Run("a pipe", func(t *testing.T) {
		piped := &project{t: t, name: "composure-piped", dir: t.TempDir()}
		pipe := func(in string, program ...string) string {
			cmd := exec.CommandContext(t.Context(), program[0], program[1:]...)
			cmd.Stdin = strings.NewReader(in)
			return piped.must(piped.runCommand(cmd), "pipe to", program)
		}
		whole := pipe("services: {web: {build: ./src, ports: [\"80\"]}}\n", meshctl, "compose", "inject", "-f", "-", "--full", "-o", "-")
		read := pipe(whole, append(compose[:len(compose):len(compose)], "-f", "-", "config")...)
		for _, want := range []string{"context: " + piped.dir + "/src", "  web-mesh-proxy:", "network_mode: service:web-mesh-sandbox"} {
			if !strings.Contains(read, want) {
				t.Errorf("Compose does not read %q in\n%s", want, read)
			}
		}
		if files := must(os.ReadDir(piped.dir)); len(files) != 0 {
			t.Errorf("something was written: %v", files)
		}
	})

	projects := must(filepath.Glob(filepath.Join(root, "compose", "testdata", "odd", "*")))
	if len(projects) == 0 {
		t.Fatal("there are no projects in compose/testdata/odd")
	}
	for _, path := range projects {
		t.Run(filepath.Base(path), func(t *testing.T) {
			odd := &project{t: t, name: "composure-odd", dir: filepath.Join(t.TempDir(), "odd")}
			if err := os.CopyFS(odd.dir, os.DirFS(filepath.Join(path, "project"))); err != nil {
				t.Fatal(err)
			}
			args, _ := os.ReadFile(filepath.Join(path, "args")) // most have none
			var files []string
			for _, f := range strings.Fields(string(args)) {
				files = append(files, "-f", f)
			}
			odd.meshctl(slices.Concat([]string{"compose", "inject", "-o", "mesh.yaml"}, files)...)
			if len(files) == 0 {
				files = []string{"-f", "compose.yaml"}
				if _, err := os.Stat(filepath.Join(odd.dir, "compose.override.yaml")); err == nil {
					files = append(files, "-f", "compose.override.yaml")
				}
			}
			odd.compose(append(files, "-f", "mesh.yaml", "--profile", "*", "config", "--quiet", "--no-env-resolution")...)
		})
	}
}
