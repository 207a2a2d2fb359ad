package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/composure-mesh/composure/api"
)

// TestMeshFilesAreAccepted: what the walk applies must be what pilot takes.
func TestMeshFilesAreAccepted(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("mesh", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("files of mesh: %v, %v", files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		docs, err := api.DecodeYAML(api.Kinds(), file, bytes.NewReader(content))
		if err != nil {
			t.Error(err)
		}
		if len(docs) == 0 {
			t.Errorf("%s: no object", file)
		}
	}
}
