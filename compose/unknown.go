package compose

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/compose-spec/compose-go/v2/schema"
	"gopkg.in/yaml.v3"
)

// A Compose that is newer than compose-go may know fields that compose-go does not. They are no reason to refuse a
// project: its files are Compose's to judge, and inject leaves all fields alone but for those that it moves. So
// compose-go's schema is opened where it lists the fields of a mapping, and what it then lets pass is told.

// Unknown is a field that this meshctl does not know.
type Unknown struct {
	File string // as errors name it
	Line int    // 0 where it is not in a file that can be read
	Path string // services.web.prots
	// Meant is the known field that it may be a misspelling of; empty if there is none.
	Meant string
}

func (u Unknown) String() string {
	text := u.File
	if u.Line > 0 {
		text += ":" + strconv.Itoa(u.Line)
	}
	text += ": " + u.Path + ": not known to this meshctl; left to Compose, which decides"
	if u.Meant != "" {
		text += "; did you mean " + u.Meant + "?"
	}
	return text
}

// shape is what the schema says of the keys of a value, whichever of its forms it has.
type shape struct {
	fields map[string]*shape
	names  *shape // of any key, such as that of a service
	items  *shape
	closed bool // it has no other fields
}

// fold adds what a part of the schema says.
func (s *shape) fold(part, root map[string]any) {
	if ref, ok := part["$ref"].(string); ok {
		defs, _ := root["$defs"].(map[string]any)
		def, _ := defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any)
		s.fold(def, root)
	}
	for _, key := range []string{"allOf", "anyOf", "oneOf"} {
		forms, _ := part[key].([]any)
		for _, form := range forms {
			if f, ok := form.(map[string]any); ok {
				s.fold(f, root)
			}
		}
	}
	below := func(at *shape, v any) *shape {
		if at == nil {
			at = &shape{}
		}
		if p, ok := v.(map[string]any); ok {
			at.fold(p, root)
		}
		return at
	}
	fields, _ := part["properties"].(map[string]any)
	for name, v := range fields {
		if s.fields == nil {
			s.fields = map[string]*shape{}
		}
		s.fields[name] = below(s.fields[name], v)
	}
	names, _ := part["patternProperties"].(map[string]any)
	for pattern, v := range names {
		if pattern != extensionPattern {
			s.names = below(s.names, v)
		}
	}
	if items, ok := part["items"]; ok {
		s.items = below(s.items, items)
	}
	s.closed = s.closed || part["additionalProperties"] == false || part["unevaluatedProperties"] == false
}

const extensionPattern = "^x-"

// field is the shape of the value of a key; known is false for a key that is neither a field, a name nor an extension.
func (s *shape) field(key string) (at *shape, known bool) {
	switch f, ok := s.fields[key]; {
	case ok:
		return f, true
	case strings.HasPrefix(key, "x-"):
		return &shape{}, true
	case s.names != nil:
		return s.names, true
	default:
		return &shape{}, !s.closed
	}
}

// item is the shape of an element of a list.
func (s *shape) item() *shape {
	if s.items == nil {
		return &shape{}
	}
	return s.items
}

// loosen lets a schema's mappings have other fields than those it lists. Names stay as they must be.
func loosen(part any) {
	switch part := part.(type) {
	case map[string]any:
		names, _ := part["patternProperties"].(map[string]any)
		named := len(names) > 1 || len(names) == 1 && names[extensionPattern] == nil
		for _, key := range []string{"additionalProperties", "unevaluatedProperties"} {
			if part[key] == false && !named {
				delete(part, key)
			}
		}
		for _, v := range part {
			loosen(v)
		}
	case []any:
		for _, v := range part {
			loosen(v)
		}
	}
}

// known is the shape of a compose file. The first call opens the schema that compose-go compiles at its first use.
var known = sync.OnceValues(func() (*shape, error) {
	var root map[string]any
	if err := json.Unmarshal([]byte(schema.Schema), &root); err != nil {
		return nil, fmt.Errorf("the schema of compose files: %w", err)
	}
	s := &shape{}
	s.fold(root, root)
	loosen(root)
	opened, err := json.Marshal(root)
	if err != nil {
		return nil, fmt.Errorf("the schema of compose files: %w", err)
	}
	schema.Schema = string(opened)
	return s, nil
})

// stray is an unknown field of a model.
type stray struct {
	path  []string
	value any
}

func (s stray) name() string { return strings.Join(s.path, ".") }

// strays are the unknown fields below v, in order.
func (s *shape) strays(v any, path ...string) []stray {
	var found []stray
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			below := append(slices.Clone(path), key)
			if at, ok := s.field(key); ok {
				found = append(found, at.strays(v[key], below...)...)
			} else {
				found = append(found, stray{below, v[key]})
			}
		}
	case []any:
		for i, e := range v {
			found = append(found, s.item().strays(e, append(slices.Clone(path), strconv.Itoa(i))...)...)
		}
	}
	return found
}

// site is where an unknown field is written.
type site struct {
	file  string // absolute
	line  int
	doc   int // which of the file's documents
	path  []string
	meant string
}

// sites are the unknown fields that are written below a node of a file.
func (s *shape) sites(n *yaml.Node, file string, path ...string) []site {
	var found []site
	switch {
	case n.Tag == "!reset":
	case n.Kind == yaml.AliasNode:
		return s.sites(n.Alias, file, path...)
	case n.Kind == yaml.SequenceNode:
		for i, e := range n.Content {
			found = append(found, s.item().sites(e, file, append(slices.Clone(path), strconv.Itoa(i))...)...)
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, v := n.Content[i], n.Content[i+1]
			if key.Tag == "!!merge" {
				for _, merged := range merges(v) {
					found = append(found, s.sites(merged, file, path...)...)
				}
				continue
			}
			below := append(slices.Clone(path), key.Value)
			switch at, ok := s.field(key.Value); {
			case ok:
				found = append(found, at.sites(v, file, below...)...)
			case v.Tag != "!reset":
				found = append(found, site{file: file, line: key.Line, path: below, meant: s.meant(key.Value)})
			}
		}
	}
	return found
}

// merges are what a merge key names.
func merges(v *yaml.Node) []*yaml.Node {
	if v.Kind == yaml.SequenceNode {
		return v.Content
	}
	return []*yaml.Node{v}
}

// meant is the field that a key is nearest to, if it is near to one.
func (s *shape) meant(key string) string {
	best, distance := "", 3
	for _, name := range slices.Sorted(maps.Keys(s.fields)) {
		if n := editDistance(key, name); n < distance && 2*n < len(name) {
			best, distance = name, n
		}
	}
	return best
}

// editDistance is how many letters have to be added, removed, replaced or swapped with their neighbour.
func editDistance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// same is what two paths have in common that mean the same field of services of any name, at any place in a list.
func same(path []string) string {
	kept := []string{}
	for i, p := range path {
		_, err := strconv.Atoi(p)
		if (i != 1 || path[0] != "services" && path[0] != "jobs") && err != nil {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, "\n")
}

// findUnknown finds the fields of the project that are not known, and where they are written.
func (s *Source) findUnknown() error {
	k, err := known()
	if err != nil {
		return err
	}
	s.strays = k.strays(s.model)
	included := map[string][]byte{}
	for _, f := range s.Files {
		collect(f, s.inputs[f], included)
	}
	if len(s.strays) == 0 && len(included) == 0 && !s.extended {
		return nil
	}
	files := maps.Clone(included)
	maps.Copy(files, s.inputs)
	for _, f := range slices.Compact(slices.Concat(s.Files, slices.Sorted(maps.Keys(files)))) {
		if ext := filepath.Ext(f); !slices.Contains(s.Files, f) && ext != ".yaml" && ext != ".yml" {
			continue
		}
		for i, doc := range documents(files[f]) {
			for _, at := range k.sites(doc, f) {
				at.doc = i
				s.sites = append(s.sites, at)
			}
		}
	}
	s.sites = slices.DeleteFunc(s.sites, func(at site) bool { // it may be in a service that nobody extends
		_, imported := included[at.file]
		section := imported && len(at.path) == 1 // it is in no model, since compose-go does not import it
		return !section && !resolvedAway(at.path) && !slices.ContainsFunc(s.strays, func(st stray) bool { return same(st.path) == same(at.path) })
	})
	return nil
}

// resolvedAway reports whether a field is part of an include or extends, of which no model has anything left.
func resolvedAway(path []string) bool {
	return path[0] == "include" || len(path) > 3 && path[0] == "services" && path[2] == "extends"
}

// documents are the YAML documents in a file's content, as far as they can be read.
func documents(content []byte) []*yaml.Node {
	var docs []*yaml.Node
	for d := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var doc yaml.Node
		if d.Decode(&doc) != nil {
			return docs
		}
		docs = append(docs, doc.Content...)
	}
}

// collect reads the files that a file includes, and that these include.
func collect(file string, content []byte, into map[string][]byte) {
	if !bytes.Contains(content, []byte("include")) {
		return
	}
	for _, doc := range documents(content) {
		list := child(doc, "include")
		if list == nil {
			continue
		}
		for _, entry := range list[1].Content {
			paths := []*yaml.Node{entry}
			if p := child(entry, "path"); p != nil {
				paths = merges(p[1])
			}
			for _, p := range paths {
				path := p.Value
				if !filepath.IsAbs(path) {
					path = filepath.Join(filepath.Dir(file), path)
				}
				if _, ok := into[path]; ok {
					continue
				}
				if content, err := os.ReadFile(path); err == nil {
					into[path] = content
					collect(path, content, into)
				}
			}
		}
	}
}

// Unknown are the fields of the project that this meshctl does not know, each once for the line it is written in.
func (s *Source) Unknown() []Unknown {
	var list []Unknown
	told := map[string]bool{}
	for _, at := range s.sites {
		u := Unknown{File: relative(s.workingDir, at.file), Line: at.line, Path: strings.Join(at.path, "."), Meant: at.meant}
		if here := fmt.Sprint(u.File, u.Line, at.path[len(at.path)-1]); !told[here] {
			told[here] = true
			list = append(list, u)
		}
		told[same(at.path)] = true
	}
	for _, st := range s.strays {
		if !told[same(st.path)] { // a file from elsewhere has it
			told[same(st.path)] = true
			list = append(list, Unknown{File: relative(s.workingDir, s.Files[0]), Path: st.name()})
		}
	}
	return list
}

// strayed compares the unknown fields of the model of project and override with those that the project has: they must be where
// they were, or where the field went that they are in.
func (e *emitter) strayed(merged map[string]any) ([]diff, error) {
	k, err := known()
	if err != nil || len(e.src.strays) == 0 {
		return nil, err
	}
	var want []stray
	from := map[string]fieldOf{}
	for _, st := range e.src.strays {
		if st.path[0] != "services" {
			want = append(want, st)
			continue
		}
		in := func(service string) stray {
			path := slices.Clone(st.path)
			path[1] = service
			return stray{path, st.value}
		}
		name, field := st.path[1], st.path[2]
		workloads := e.plan.replicas(name)
		if len(workloads) == 0 {
			want = append(want, st)
		}
		for _, w := range workloads {
			at := in(w.Name)
			switch {
			case field == "networks" || slices.Contains(moved, field):
				at = in(w.Sandbox())
			case w.Replica > 1: // it may have to be copied
				from[at.name()] = fieldOf{w.Name, field}
			}
			want = append(want, at)
		}
	}
	diffs := compareStrays(want, k.strays(merged))
	for i, d := range diffs {
		diffs[i].source = from[d.field]
	}
	return diffs, nil
}

// compareStrays lists the unknown fields that are not the same.
func compareStrays(want, got []stray) []diff {
	var diffs []diff
	left := map[string]stray{}
	for _, st := range want {
		left[st.name()] = st
	}
	for _, st := range got {
		w, ok := left[st.name()]
		if !ok || !reflect.DeepEqual(w.value, st.value) {
			diffs = append(diffs, diff{field: st.name(), want: w.value, got: st.value})
		}
		delete(left, st.name())
	}
	for _, name := range slices.Sorted(maps.Keys(left)) {
		diffs = append(diffs, diff{field: name, want: left[name].value})
	}
	return diffs
}

// flattenable says why the unknown fields can't be written into another file, if they can't: Compose may merge them, read
// paths in them or import them in ways of their own.
func (s *Source) flattenable(dir string) error {
	for i, at := range s.sites {
		refuse := func(format string, args ...any) error {
			return fmt.Errorf("%s:%d: %s: not known to this meshctl, so --full can't write it: %s; an override, without --full, leaves it where it is",
				relative(s.workingDir, at.file), at.line, strings.Join(at.path, "."), fmt.Sprintf(format, args...))
		}
		if !slices.Contains(s.Files, at.file) {
			return refuse("it comes by include or extends, and may mean something else in another file")
		}
		if resolvedAway(at.path) {
			return refuse("there is no include and no extends in it")
		}
		if dir != s.Dir {
			return refuse("it may hold a path, and %s is in another directory", relative(s.workingDir, s.Files[0]))
		}
		for _, other := range s.sites[:i] {
			if same(other.path) != same(at.path) {
				continue
			}
			again := slices.Equal(other.path, at.path) && (other.file != at.file || other.doc != at.doc)
			inherited := s.extended && at.path[0] == "services" && other.path[1] != at.path[1]
			if again || inherited {
				return refuse("%s:%d may have it too, and how they merge is not known", relative(s.workingDir, other.file), other.line)
			}
		}
	}
	for _, u := range s.Unknown() {
		if u.Line == 0 {
			return fmt.Errorf("%s: --full can't write it, since it is in none of the project's own files", u)
		}
	}
	return nil
}
