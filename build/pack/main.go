// Command pack makes the layers of the mesh's images, which meshctl embeds: for each component the program in
// -dist, and for the sandbox the iptables tree, into <-out>/<component>.tar.gz and <-out>/index.json.
package main

import (
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/composure-mesh/composure/internal/images"
)

func main() {
	dist := flag.String("dist", "", "directory of the programs of one architecture")
	iptables := flag.String("iptables", "", "directory tree with iptables, for the sandbox")
	out := flag.String("out", "", "directory to write to")
	version := flag.String("version", "", "version, the images' tag")
	flag.Parse()
	if err := pack(*dist, *iptables, *out, *version); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack(dist, iptables, out, version string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	index := images.Index{Version: version, Layers: map[string]string{}}
	for _, c := range images.Components {
		extra := ""
		if c.Name == "sandbox" {
			extra = iptables
		}
		sum, err := layer(filepath.Join(out, c.Name+".tar.gz"), c, filepath.Join(dist, c.Name), extra)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		index.Layers[c.Name] = sum
	}
	b, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "index.json"), b, 0o644)
}

func layer(file string, c images.Component, program, extra string) (sum string, err error) {
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	gz := gzip.NewWriter(f)
	h := sha256.New()
	if err := images.WriteLayer(io.MultiWriter(gz, h), c, program, extra); err != nil {
		return "", err
	}
	if err := gz.Close(); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
