//go:build suites

package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// previousMeshctl is a meshctl of another version: that of COMPOSURE_PREVIOUS, such as the commit's before, or this
// source under another one.
func previousMeshctl(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("COMPOSURE_PREVIOUS"); path != "" {
		return path
	}
	dir := t.TempDir()
	index := filepath.Join(root, "internal", "images", "payload", runtime.GOARCH, "index.json")
	content := must(os.ReadFile(index))
	other := regexp.MustCompile(`"version": "[^"]*"`).ReplaceAll(content, []byte(`"version": "previous"`))
	replaced := filepath.Join(dir, "index.json")
	overlay := filepath.Join(dir, "overlay.json")
	for path, b := range map[string][]byte{replaced: other, overlay: must(json.Marshal(map[string]any{"Replace": map[string]string{index: replaced}}))} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "meshctl")
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "-o", program, "-ldflags", "-s -w -X github.com/composure-mesh/composure/internal/component.Version=previous", "./cmd/meshctl")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a meshctl of another version: %v\n%s", err, out)
	}
	return program
}

// TestUpgrade brings a running project of one replica each from another version to this one, under a steady load of new
// connections.
func TestUpgrade(t *testing.T) {
	previous := previousMeshctl(t)
	t.Cleanup(func() { removeImages(t, "previous") }) // after the project
	p := newProject(t, map[string]string{"docker-compose.yml": lifecycleCompose})
	p.must(p.run(t.Context(), previous, "compose", "inject"), previous, nil)
	p.up()
	apps := []string{"client", "server", "client-mesh-sandbox", "server-mesh-sandbox"}
	started := func() string {
		var all []string
		for _, service := range apps {
			c := must(engine.ContainerInspect(t.Context(), p.container(service)))
			all = append(all, service+" "+c.ID+" "+c.State.StartedAt)
		}
		return strings.Join(all, "\n")
	}
	before, running := started(), p.running()

	var wg sync.WaitGroup
	var load result
	wg.Go(func() {
		script := `ok=0; bad=0; while [ ! -e /tmp/stop ]; do if curl -sS -m 20 --fail -o /dev/null http://server:8000/hostname; then ok=$((ok+1)); else bad=$((bad+1)); fi; done; echo "$ok $bad"`
		load = p.tryExec("client", "sh", "-c", script)
	})
	upgrade := p.tryMeshctl("upgrade")
	p.exec("client", "touch", "/tmp/stop")
	wg.Wait()
	if upgrade.code != 0 {
		t.Fatalf("upgrade: exit %d\n%s", upgrade.code, upgrade.stderr)
	}
	ok, bad, _ := strings.Cut(strings.TrimSpace(load.stdout), " ")
	t.Logf("%s requests through the upgrade, %s lost", ok, bad)
	if bad != "0" || len(ok) < 2 {
		t.Errorf("%s requests passed and %s were lost, want at least 10 and none: %s", ok, bad, load.stderr)
	}

	at := -1
	for _, step := range []string{"composure-keeper", "composure-citadel", "composure-pilot", "composure-mixer", "client-mesh-proxy", "server-mesh-proxy"} {
		if i := strings.Index(upgrade.stderr, step+": ready"); i <= at {
			t.Errorf("%s is not ready in its turn:\n%s", step, upgrade.stderr)
		} else {
			at = i
		}
	}
	if after := started(); after != before {
		t.Errorf("an application or its sandbox was touched; before:\n%s\nafter:\n%s", before, after)
	}
	versions := p.meshctl("version", "-o", "json")
	if strings.Contains(versions, "previous") {
		t.Errorf("versions after the upgrade:\n%s", versions)
	}
	for service, id := range p.running() {
		mesh := strings.HasPrefix(service, "composure-") || strings.HasSuffix(service, "-mesh-proxy")
		if (id == running[service]) == mesh {
			t.Errorf("container of %s replaced: %v", service, id != running[service])
		}
	}

	upgraded := p.running()
	p.meshctl("upgrade")
	p.up()
	for service, id := range p.running() {
		if id != upgraded[service] {
			t.Errorf("a second upgrade, or the next up, replaces %s", service)
		}
	}
}

// removeImages removes the mesh's images of a version.
func removeImages(t *testing.T, version string) {
	t.Helper()
	for _, component := range []string{"proxy", "keeper", "pilot", "citadel", "mixer"} {
		if out, err := exec.Command("docker", "rmi", "composure/"+component+":"+version).CombinedOutput(); err != nil && !strings.Contains(string(out), "No such image") {
			t.Errorf("docker rmi composure/%s:%s: %v\n%s", component, version, err, out)
		}
	}
}
