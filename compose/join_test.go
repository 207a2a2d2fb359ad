package compose

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestParseJoin(t *testing.T) {
	if j, err := ParseJoin("citadel=shop"); err != nil || j != (Join{"citadel", "shop"}) || j.String() != "citadel=shop" {
		t.Errorf("%v, %v", j, err)
	}
	for _, text := range []string{"", "citadel", "citadel=", "=shop", "pilot=shop", "keeper=shop", "web=shop"} {
		if j, err := ParseJoin(text); err == nil {
			t.Errorf("%q is taken for %v", text, j)
		}
	}
}

// The planes that fetch are on a network of their own, and on those they are put on; the others are on none.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	text := "services:\n  web: {image: nginx, networks: [front]}\nnetworks: {front: {}}\n"
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig
	cfg.MutualTLS, cfg.Joins = "STRICT", Joins{{"citadel", "front"}}
	_, r := inject(t, dir, cfg)
	var file struct {
		Services map[string]struct {
			Networks    any
			NetworkMode string `yaml:"network_mode"`
			Environment map[string]string
		}
	}
	if err := yaml.Unmarshal(r.Output, &file); err != nil {
		t.Fatal(err)
	}
	for plane, want := range map[string]any{"citadel": []any{"mesh-egress", "front"}, "mixer": []any{"mesh-egress"}, "pilot": nil, "keeper": nil} {
		got := file.Services["composure-"+plane]
		if !reflect.DeepEqual(got.Networks, want) || (want == nil) != (got.NetworkMode == "none") {
			t.Errorf("%s is on %q, network_mode %q; want %q", plane, got.Networks, got.NetworkMode, want)
		}
		if mode := got.Environment["COMPOSURE_MTLS"]; (plane == "citadel") != (mode == "STRICT") {
			t.Errorf("%s: COMPOSURE_MTLS is %q", plane, mode)
		}
	}
	again, ok := ReadHeader(r.Output)
	if !ok || !slices.Contains(again.Flags, "--mtls=strict") || !slices.Contains(again.Flags, "--join=citadel=front") {
		t.Errorf("the file remembers %q", again.Flags)
	}
}
