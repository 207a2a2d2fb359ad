package atomicfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, test := range []struct {
		data string
		mode os.FileMode
	}{{"first", 0o600}, {"second", 0o644}, {"", 0o666}} {
		if err := Write(path, []byte(test.data), test.mode); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != test.data {
			t.Errorf("content %q, %v; want %q", got, err, test.data)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != test.mode {
			t.Errorf("mode %v, %v; want %v", fi.Mode(), err, test.mode)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v", entries, err)
	}
}

// A failed write leaves what was there, and nothing else.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, []byte("x"), 0o600); err == nil || !strings.HasPrefix(err.Error(), "replace "+path) {
		t.Errorf("Write over a directory: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("directory holds %v, %v", entries, err)
	}
	if err := Write(filepath.Join(dir, "none", "f"), nil, 0o600); err == nil {
		t.Error("Write into a missing directory")
	}
}
