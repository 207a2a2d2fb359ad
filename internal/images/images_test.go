package images

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/composure-mesh/composure/mesh"
)

func TestLayerIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("#!"), 0o755); err != nil {
		t.Fatal(err)
	}
	extra := filepath.Join(dir, "extra")
	for _, f := range []string{"usr/sbin/iptables", "etc/hosts"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(extra, f)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(extra, f), []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("iptables", filepath.Join(extra, "usr/sbin/iptables-save")); err != nil {
		t.Fatal(err)
	}
	write := func() []byte {
		var b bytes.Buffer
		if err := WriteLayer(&b, Component{Name: "sandbox"}, program, extra); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	first := write()
	if !bytes.Equal(first, write()) {
		t.Error("two layers of the same content differ")
	}
	got := entries(t, first)
	for name, want := range map[string]tar.Header{
		"sandbox":                {Mode: 0o755, Typeflag: tar.TypeReg},
		"usr/sbin/iptables":      {Mode: 0o644, Typeflag: tar.TypeReg},
		"usr/sbin/iptables-save": {Mode: 0o777, Typeflag: tar.TypeSymlink, Linkname: "iptables"},
		"run/":                   {Mode: 0o755, Typeflag: tar.TypeDir},
	} {
		h := got[name]
		if h == nil || h.Mode != want.Mode || h.Typeflag != want.Typeflag || h.Linkname != want.Linkname || h.ModTime.Unix() != 0 || h.Uid != 0 {
			t.Errorf("%s is %+v, want %+v", name, h, want)
		}
	}
}

// Compose re-creates a container whose image's id is another under the same name: a version that leaves the sandbox alone must
// leave its image's bytes alone.
func TestSandboxDoesNotChangeWithTheVersion(t *testing.T) {
	set := func(version string) *Set {
		return &Set{arch: "amd64", index: Index{Version: version, Layers: map[string]string{"sandbox": "abc", "proxy": "def"}}, tags: Tags{Version: version, Sandbox: "abc"}}
	}
	old, next := set("1.0.0"), set("1.0.1")
	if c := (Component{Name: "sandbox"}); !bytes.Equal(old.labelled(c), next.labelled(c)) {
		t.Errorf("sandbox:\n%s\n%s", old.labelled(c), next.labelled(c))
	}
	if c := (Component{Name: "proxy"}); bytes.Equal(old.labelled(c), next.labelled(c)) {
		t.Error("the proxy's image does not say its version")
	}
}

// A fresh volume takes over the owners of the directory it is mounted on, so each plane must own its own.
func TestDirectoriesHaveTheirOwners(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range Components {
		if c.Name == "sandbox" {
			continue
		}
		var b bytes.Buffer
		if err := WriteLayer(&b, c, program, ""); err != nil {
			t.Fatal(err)
		}
		got := entries(t, b.Bytes())
		for path, uid := range map[string]int{
			mesh.Dir(mesh.RoleKeeper): mesh.UIDKeeper, mesh.Dir(mesh.RolePilot): mesh.UIDPilot,
			mesh.Dir(mesh.RoleCitadel): mesh.UIDCitadel, mesh.Dir(mesh.RoleMixer): mesh.UIDMixer,
			mesh.StateDir: c.UID, filepath.Dir(mesh.AdminSocket): c.UID,
		} {
			if h := got[path[1:]+"/"]; h == nil || h.Uid != uid {
				t.Errorf("image %s: %s is %+v, want owner %d", c.Name, path, h, uid)
			}
		}
	}
}

func entries(t *testing.T, layer []byte) map[string]*tar.Header {
	t.Helper()
	found := map[string]*tar.Header{}
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = h
	}
}
