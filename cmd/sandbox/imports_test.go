//go:build linux

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports: whatever is in the sandbox changes its image, and with a changed one an upgrade restarts every
// application. So it has nothing in it that changes for other reasons than its own.
func TestImports(t *testing.T) {
	const ours = "github.com/composure-mesh/composure/"
	want := []string{ours + "cmd/sandbox", ours + "internal/component", ours + "internal/lifecycle", ours + "mesh", ours + "mesh/labels", ours + "sandbox"}
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := slices.DeleteFunc(strings.Fields(string(out)), func(path string) bool { return !strings.HasPrefix(path, ours) })
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the sandbox is made of %v, want %v", got, want)
	}
}
