//go:build suites

package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// previousMeshctl is a meshctl of another version: that of COMPOSURE_PREVIOUS, which an earlier commit was built to with
// VERSION=previous, or this source under that name.
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
	if versions := p.meshctl("version", "-o", "json"); strings.Count(versions, `"previous"`) != 6 {
		t.Fatalf("the planes and proxies before the upgrade are %s, want version previous of all six", versions)
	}
	before, running := started(), p.running()
	flags, restarted := []string{"upgrade"}, sandboxChanged(t, p)
	if restarted {
		refused(t, p.tryMeshctl("upgrade"), "the sandboxes have changed", "nothing was done", "--restart-apps")
		if after := started(); after != before {
			t.Errorf("something was done; before:\n%s\nafter:\n%s", before, after)
		}
		flags = append(flags, "--restart-apps")
	}

	var wg sync.WaitGroup
	var load result
	wg.Go(func() {
		script := `ok=0; bad=0; while [ ! -e /tmp/stop ]; do if curl -sS -m 20 --fail -o /dev/null http://server:8000/hostname; then ok=$((ok+1)); else bad=$((bad+1)); fi; done; echo "$ok $bad"`
		load = p.tryExec("client", "sh", "-c", script)
	})
	upgrade := p.tryMeshctl(flags...)
	if upgrade.code != 0 {
		t.Fatalf("upgrade: exit %d\n%s", upgrade.code, upgrade.stderr)
	}
	if restarted { // the load went with the client
		p.exec("client", "curl", "-sS", "--fail", "-o", "/dev/null", "http://server:8000/hostname")
		wg.Wait()
		if after := started(); after == before || strings.Contains(p.meshctl("version", "-o", "json"), "previous") {
			t.Errorf("not all is new: %s", after)
		}
		return
	}
	p.exec("client", "touch", "/tmp/stop")
	wg.Wait()
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
	t.Run("installed mesh", func(t *testing.T) { testUpgradeInstalled(t, previous) })
}

// sandboxChanged reports whether the running sandboxes are of another image than this meshctl's.
func sandboxChanged(t *testing.T, p *project) bool {
	t.Helper()
	running := must(engine.ContainerInspect(t.Context(), p.container("server-mesh-sandbox"))).Config.Image
	return !strings.Contains(p.meshctl("images", "list"), strings.TrimPrefix(running, "composure/sandbox:"))
}

// testUpgradeInstalled: the planes of a shared mesh come first, and a project that is ahead of them is told so.
func testUpgradeInstalled(t *testing.T, previous string) {
	t.Helper()
	name, net := installMesh(t)
	p := newProject(t, map[string]string{"compose.yaml": "services:" + sharedService("web", "shared") + "networks:\n  shared: {external: true, name: " + net + "}\n"})
	install := []string{"-p", name, "install", "--log-level", "debug"}
	p.must(p.run(t.Context(), previous, install...), previous, install)
	inject := []string{"compose", "inject", "--control-plane", "external", "--mesh", name}
	p.must(p.run(t.Context(), previous, inject...), previous, inject)
	p.up()
	app := p.container("web")

	refused(t, p.tryMeshctl("upgrade"), "the planes of the shared mesh "+name+" come first", "meshctl -p "+name+" upgrade")
	if r := p.tryMeshctl("-p", name, "upgrade"); r.code != 0 || !strings.Contains(r.stderr, "[4/4]") || !strings.Contains(r.stderr, "next, in the directories of project "+p.name) {
		t.Fatalf("upgrade of the planes: exit %d\n%s", r.code, r.stderr)
	}
	for _, c := range meshContainers(t.Context(), name) {
		info := must(engine.ContainerInspect(t.Context(), c.ID))
		if strings.HasSuffix(c.Image, ":previous") || !slices.Contains(info.Config.Env, "COMPOSURE_LOG_LEVEL=debug") {
			t.Errorf("%s runs %s with %s, want the new version with the flags of install", c.Names, c.Image, info.Config.Env)
		}
	}
	p.meshctl("upgrade")
	if versions := p.meshctl("version", "-o", "json"); strings.Contains(versions, "previous") {
		t.Errorf("versions after the upgrades:\n%s", versions)
	}
	if p.container("web") != app {
		t.Error("the application was replaced")
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
