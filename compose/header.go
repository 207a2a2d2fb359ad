package compose

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// headerKey marks a file as meshctl's own.
const headerKey = "x-composure"

// Header is what an output file says about itself, under its key x-composure.
type Header struct {
	// Version is the version of Composure that wrote it.
	Version string `yaml:"version"`
	// Flags are those of `meshctl compose inject` that it was made with.
	Flags []string `yaml:"flags"`
	// Inputs are the SHA-256 of the files it was made from, by path relative to its own.
	Inputs map[string]string `yaml:"inputs"`
	// Hash is the SHA-256 of the rest of the file: it tells an edited one.
	Hash string `yaml:"hash"`
}

// ReadHeader reads the header of a file's content; ok says whether meshctl wrote it.
func ReadHeader(content []byte) (h Header, ok bool) {
	if !bytes.Contains(content, []byte(headerKey+":")) {
		return Header{}, false
	}
	var doc struct {
		Header *Header `yaml:"x-composure"`
	}
	if err := yaml.Unmarshal(content, &doc); err != nil || doc.Header == nil {
		return Header{}, false
	}
	return *doc.Header, true
}

// Edited reports whether the content differs from what meshctl wrote.
func (h Header) Edited(content []byte) bool {
	i := bytes.Index(content, []byte("\n"+bodyStart))
	return i < 0 || digest(content[i+1:]) != h.Hash
}

// bodyStart begins the part of an output file that Header.Hash is about.
const bodyStart = "services:\n"

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Written is the file that an earlier inject made for the project, with its header: the one that Compose is told to
// read, or one of the usual names beside the first file. Empty if there is none.
func (s *Source) Written() (path string, h Header) {
	home := filepath.Dir(s.Files[0])
	for _, path := range append(slices.Clone(s.Ours), filepath.Join(home, autoOutput), filepath.Join(home, meshOutput)) {
		if content, err := os.ReadFile(path); err == nil {
			if h, ok := ReadHeader(content); ok {
				return path, h
			}
		}
	}
	return "", Header{}
}

// flags are the flags of `meshctl compose inject` for a Config.
func (c Config) flags() []string {
	var flags []string
	put := func(name, v string) {
		if v != "" {
			flags = append(flags, "--"+name+"="+escape(v))
		}
	}
	for _, p := range c.Ingress {
		put("ingress", p.String())
	}
	for _, name := range slices.Sorted(maps.Keys(c.IngressSettings)) {
		put("ingress-set", name+"="+c.IngressSettings[name])
	}
	if c.Egress {
		put("egress", "true")
	}
	for _, service := range slices.Sorted(maps.Keys(c.Scale)) {
		put("scale", fmt.Sprintf("%s=%d", service, c.Scale[service]))
	}
	put("access-log", c.AccessLog)
	put("log-level", c.LogLevel)
	put("trust-domain", c.TrustDomain)
	if c.CertLifetime > 0 {
		put("cert-lifetime", c.CertLifetime.String())
	}
	put("mtls", strings.ToLower(c.MutualTLS))
	for _, j := range c.Joins {
		put("join", j.String())
	}
	if c.External != "" {
		put("control-plane", "external")
	}
	if c.External != "" && c.External != DefaultMesh {
		put("mesh", c.External)
	}
	if c.Full {
		put("full", "true")
	}
	return flags
}

// Stale names the first input that has changed since a file with header h, at path, was written; "" if none.
func (s *Source) Stale(path string, h Header) string {
	now := s.inputHashes(filepath.Dir(path))
	for file, hash := range now {
		if h.Inputs[file] != hash {
			return file
		}
	}
	for file := range h.Inputs {
		if _, ok := now[file]; !ok {
			return file
		}
	}
	return ""
}

func (s *Source) inputHashes(dir string) map[string]string {
	hashes := map[string]string{}
	for path, content := range s.inputs {
		hashes[relative(dir, path)] = digest(content)
	}
	return hashes
}

// relative is path as seen from dir, with slashes, so that a file is the same on every machine.
func relative(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil {
		return filepath.ToSlash(rel)
	}
	return path
}

const headComment = `# Written by meshctl compose inject. Don't edit it: change your own compose files and inject again.
#
# It puts every service of the project into the mesh. <service>-mesh-sandbox takes the service's place in its
# networks, <service>-mesh-proxy carries its traffic, and the service itself joins them; the composure-* services
# steer the proxies. Your own files are as they were.
#
# Undo: meshctl compose uninject
`

// render joins comment, header and body to an output file.
func (s *Source) render(dir string, cfg Config, body []byte) []byte {
	head := encode(mapping(headerKey, mapping(
		"version", escape(cfg.Version),
		"flags", cfg.flags(),
		"inputs", s.inputHashes(dir),
		"hash", digest(body),
	)))
	return bytes.Join([][]byte{[]byte(headComment), head, body}, nil)
}

// escape makes a literal of s: Compose would take a dollar for a variable.
func escape(s string) string { return strings.ReplaceAll(s, "$", "$$") }
