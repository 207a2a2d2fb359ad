package compose

import (
	"fmt"
	"strings"

	"gopkg.in/yaml.v3"
)

// errorf is an error about a field of a service: it names the file, the line and the path.
func (s *Source) errorf(service string, field []string, format string, args ...any) error {
	path := append([]string{"services", service}, field...)
	return fmt.Errorf("%s: %s: %s", s.locate(path), strings.Join(path, "."), fmt.Sprintf(format, args...))
}

// locate finds where a path is written: the last file that has it, or as much of it as any file has.
func (s *Source) locate(path []string) string {
	best, bestDepth := relative(s.workingDir, s.Files[0]), 0
	for _, file := range s.Files {
		var doc yaml.Node
		if err := yaml.Unmarshal(s.inputs[file], &doc); err != nil || len(doc.Content) == 0 {
			continue
		}
		if line, depth := descend(doc.Content[0], path); depth > 0 && depth >= bestDepth {
			best, bestDepth = fmt.Sprintf("%s:%d", relative(s.workingDir, file), line), depth
		}
	}
	return best
}

// descend follows path from n as deep as it goes; it returns the line it ends at.
func descend(n *yaml.Node, path []string) (line, depth int) {
	for _, key := range path {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		next := child(n, key)
		if next == nil {
			break
		}
		line, n = next[0].Line, next[1]
		depth++
	}
	return line, depth
}

// child is the key and the value of key in a mapping, or the entry KEY=… of a list.
func child(n *yaml.Node, key string) []*yaml.Node {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return n.Content[i : i+2]
			}
		}
	case yaml.SequenceNode:
		for _, e := range n.Content {
			if k, _, _ := strings.Cut(e.Value, "="); k == key {
				return []*yaml.Node{e, e}
			}
		}
	}
	return nil
}
