package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/composure-mesh/composure/mesh/labels"
)

// payload holds <architecture>/<component>.tar.gz, the images' layers, and <architecture>/index.json. They are
// made by `make build`; a meshctl that was built without them says so.
//
//go:embed all:payload
var payload embed.FS

// ErrNoPayload is returned by a meshctl that carries no images.
var ErrNoPayload = errors.New("this meshctl was built without images; build it with `make build`")

// Index describes the layers that meshctl carries for one architecture.
type Index struct {
	Version string            `json:"version"`
	Layers  map[string]string `json:"layers"` // component → SHA-256 of the uncompressed layer, hex
}

// Set is the images of one architecture.
type Set struct {
	arch  string
	index Index
	tags  Tags
}

// Tags are the tags of the images: the version, and for the sandbox a digest of its content on every
// architecture that meshctl carries, so that a mesh upgrade that leaves the sandbox alone re-creates none, and
// restarts no application. They do not depend on the engine.
type Tags struct {
	Version, Sandbox string
}

// CarriedTags are the tags of the images that this meshctl carries.
func CarriedTags() (Tags, error) {
	entries, err := payload.ReadDir("payload")
	if err != nil {
		return Tags{}, err
	}
	var t Tags
	sandboxes := sha256.New()
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		index, err := readIndex(e.Name())
		if err != nil {
			return Tags{}, err
		}
		t.Version = index.Version
		fmt.Fprintln(sandboxes, e.Name(), index.Layers["sandbox"])
	}
	if t.Version == "" {
		return Tags{}, ErrNoPayload
	}
	t.Sandbox = hex.EncodeToString(sandboxes.Sum(nil)[:6])
	return t, nil
}

// For is the set for an engine of the given architecture, such as amd64.
func For(arch string) (*Set, error) {
	tags, err := CarriedTags()
	if err != nil {
		return nil, err
	}
	index, err := readIndex(arch)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("this meshctl carries no images for the engine's architecture %s; build it with `make build ARCH=%s`", arch, arch)
	} else if err != nil {
		return nil, err
	}
	return &Set{arch: arch, index: index, tags: tags}, nil
}

func readIndex(arch string) (Index, error) {
	var index Index
	b, err := payload.ReadFile("payload/" + arch + "/index.json")
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("index of the images for %s: %w", arch, err)
	}
	return index, nil
}

// Ref is the image's name, such as composure/proxy:1.2.0.
func (s *Set) Ref(component string) string { return "composure/" + component + ":" + s.tag(component) }

// tag is all that an image knows of a version: Compose re-creates a container whose image's id has changed under the same
// name, and the sandbox's must not change with each version.
func (s *Set) tag(component string) string {
	if component == "sandbox" {
		return s.tags.Sandbox
	}
	return s.tags.Version
}

// Content is the digest that an engine's copy of the image carries in labels.Content.
func (s *Set) Content(c Component) string {
	sum := sha256.Sum256(s.config(c))
	return hex.EncodeToString(sum[:])
}

// Archive writes c's image in the format that `docker load` reads. Equal content gives equal bytes.
func (s *Set) Archive(w io.Writer, c Component) error {
	f, err := payload.Open("payload/" + s.arch + "/" + c.Name + ".tar.gz")
	if err != nil {
		return fmt.Errorf("layer of %s: %w", c.Name, err)
	}
	defer func() { _ = f.Close() }() // an embedded file: there is nothing to lose
	gz, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("layer of %s: %w", c.Name, err)
	}
	layer, err := io.ReadAll(gz)
	if err != nil {
		return fmt.Errorf("layer of %s: %w", c.Name, err)
	}
	config := s.labelled(c)
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{s.Ref(c.Name)}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, e := range []struct {
		name string
		data []byte
	}{{"layer.tar", layer}, {"config.json", config}, {"manifest.json", manifest}} {
		if err := t.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.data)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		if _, err := io.Copy(t, bytes.NewReader(e.data)); err != nil {
			return err
		}
	}
	return t.Close()
}

// config is the image's configuration without the label that names its digest.
func (s *Set) config(c Component) []byte { return s.render(c, nil) }

func (s *Set) labelled(c Component) []byte {
	return s.render(c, map[string]string{labels.Content: s.Content(c)})
}

func (s *Set) render(c Component, l map[string]string) []byte {
	b, err := json.Marshal(map[string]any{
		"architecture": s.arch,
		"os":           "linux",
		"created":      "1970-01-01T00:00:00Z",
		"config": map[string]any{
			"User":       c.user(),
			"Entrypoint": []string{"/" + c.Name},
			"WorkingDir": "/",
			"Labels":     l,
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + s.index.Layers[c.Name]}},
		"history": []map[string]any{{"created": "1970-01-01T00:00:00Z", "created_by": "composure " + s.tag(c.Name)}},
	})
	if err != nil {
		panic(err) // strings and maps always encode
	}
	return b
}
