package compose

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestControlPlane(t *testing.T) {
	cfg := testConfig
	cfg.Ingress, cfg.Egress, cfg.LogLevel = []PortMap{{Host: "30080", Gateway: 80}}, true, "debug"
	file, err := ControlPlane(cfg, []string{"shared", "blog_default"})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/control-plane.yaml", file)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), file, 0o644); err != nil {
		t.Fatal(err)
	}
	accepted(t, dir, "compose.yaml")
}

// The planes of an installed mesh are those that a project has of its own, but for the label that tells them apart.
func TestControlPlaneIsThatOfAProject(t *testing.T) {
	type file struct {
		Services map[string]map[string]any
		Volumes  map[string]any
	}
	read := func(content []byte) (f file) {
		if err := yaml.Unmarshal(content, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	installed, err := ControlPlane(testConfig, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte("services: {web: {image: nginx}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, r := inject(t, dir, testConfig)
	own, shared := read(r.Output), read(installed)
	if len(shared.Services) != len(planes) {
		t.Errorf("installed: %d services, want the %d planes", len(shared.Services), len(planes))
	}
	for name, want := range own.Services {
		got := shared.Services[name]
		if !strings.HasPrefix(name, "composure-") {
			continue
		}
		delete(got["labels"].(map[string]any), "composure.shared")
		a, _ := yaml.Marshal(want)
		b, _ := yaml.Marshal(got)
		if string(a) != string(b) {
			t.Errorf("%s of a project:\n%s\ninstalled:\n%s", name, a, b)
		}
	}
	if len(shared.Volumes) != len(own.Volumes) {
		t.Errorf("volumes %v, want %v", shared.Volumes, own.Volumes)
	}
}

func TestExternalRefusesNames(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte("services: {web: {image: nginx}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ project, mesh, want string }{
		{"composure", "composure", "has the name of the installed mesh"},
		{"composure-system", "composure", "kept for the mesh's own planes"},
		{"shop", "Prod mesh", "want a name of up to 63 lower-case letters"},
		{"my_shop", "composure", "would be its services' namespace: want"},
	} {
		s, err := Load(context.Background(), Options{WorkingDir: dir, ProjectName: c.project, Env: testEnv})
		if err != nil {
			t.Fatal(err)
		}
		cfg := testConfig
		cfg.External = c.mesh
		if _, err := Inject(context.Background(), s, cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("project %s, mesh %q: %v, want %q", c.project, c.mesh, err, c.want)
		}
	}
}
