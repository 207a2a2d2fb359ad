package api

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"gopkg.in/yaml.v3"
)

// Document is one object of a file.
type Document struct {
	Object *Object
	// File and Line are where the object starts.
	File string
	Line int
	// NoNamespace says that the object names none: it has got the default one.
	NoNamespace bool
}

// DecodeYAML decodes every object of a file of YAML documents, or of JSON, which is YAML. A List is its items; empty
// documents are passed over. The error joins everything that is wrong, each with file and line; the documents
// that are right are returned with it.
func DecodeYAML(kinds []*Kind, file string, r io.Reader) ([]Document, error) {
	raw, err := io.ReadAll(io.LimitReader(r, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("%s: larger than %d bytes, want it in several files", file, MaxBytes)
	}
	d := yamlDecoder{kinds: kinds, file: file}
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	for index := 0; ; index++ {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil { // the decoder can't go on behind a syntax error
			d.errs = append(d.errs, fmt.Errorf("%s: document %d: %w", file, index, err))
			break
		}
		if len(node.Content) > 0 && node.Content[0].Tag != "!!null" {
			d.document(index, node.Content[0])
		}
	}
	return d.docs, errors.Join(d.errs...)
}

type yamlDecoder struct {
	kinds []*Kind
	file  string
	docs  []Document
	errs  []error
}

func (d *yamlDecoder) document(index int, root *yaml.Node) {
	fail := func(err error) {
		d.errs = append(d.errs, fmt.Errorf("%s:%d: document %d: %w", d.file, root.Line, index, err))
	}
	if root.Kind != yaml.MappingNode {
		fail(errors.New("want an object"))
		return
	}
	if depth(root, 0) > MaxDepth {
		fail(fmt.Errorf("nested deeper than %d levels", MaxDepth))
		return
	}
	numberKeys(root, 0)
	var value any
	if err := root.Decode(&value); err != nil { // it follows aliases, with a bound on what they may grow to
		fail(err)
		return
	}
	raw, err := json.Marshal(value)
	if err != nil {
		fail(notJSON(err))
		return
	}
	content, err := ParseJSON(raw)
	if err != nil {
		fail(err)
		return
	}
	if content["apiVersion"] == "v1" && content["kind"] == "List" {
		items, _ := content["items"].([]any)
		for i, item := range items {
			if object, ok := item.(map[string]any); ok {
				d.object(child(root, "items", i), object)
			} else {
				fail(fmt.Errorf("items[%d]: want an object, got %s", i, describe(item)))
			}
		}
		return
	}
	d.object(root, content)
}

// numberKeys makes text of the keys that are numbers, as kubectl does: portLevelMtls has such.
func numberKeys(n *yaml.Node, level int) {
	if level > MaxDepth {
		return
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && c.Tag == "!!int" {
			c.Tag = "!!str"
		}
		numberKeys(c, level+1)
	}
}

// notJSON says what YAML has and JSON has not: a number that is none, or a key that is no string.
func notJSON(err error) error {
	var value *json.UnsupportedValueError
	if errors.As(err, &value) {
		return fmt.Errorf("%s is no number: put it in quotes", value.Str)
	}
	return errors.New("a key is no string: put it in quotes")
}

func (d *yamlDecoder) object(root *yaml.Node, content map[string]any) {
	kind, _ := content["kind"].(string)
	meta, _ := content["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	namespace, _ := meta["namespace"].(string)
	o, err := Decode(d.kinds, content)
	if err == nil {
		d.docs = append(d.docs, Document{Object: o, File: d.file, Line: root.Line, NoNamespace: namespace == ""})
		return
	}
	var ps Problems
	if !errors.As(err, &ps) {
		ps = Problems{{Detail: err.Error()}}
	}
	who := cmp.Or(strings.TrimSpace(kind+" "+name), "the object")
	for _, p := range ps {
		d.errs = append(d.errs, fmt.Errorf("%s:%d: %s: %w", d.file, child(root, p.Path...).Line, who, p))
	}
}

// child is the node that path leads to: the key of a mapping's entry, so that its line is where the eye looks, or
// the nearest one above that exists.
func child(n *yaml.Node, path ...any) *yaml.Node {
	at := n
	for _, elem := range path {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		key, value := step(n, elem)
		if value == nil {
			return at
		}
		at, n = key, value
	}
	return at
}

func step(n *yaml.Node, elem any) (key, value *yaml.Node) {
	switch elem := elem.(type) {
	case int:
		if n.Kind == yaml.SequenceNode && elem < len(n.Content) {
			return n.Content[elem], n.Content[elem]
		}
	case string:
		if n.Kind != yaml.MappingNode {
			return nil, nil
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == elem {
				return n.Content[i], n.Content[i+1]
			}
		}
	}
	return nil, nil
}

// depth is how deep n nests, without following aliases; it stops counting behind MaxDepth.
func depth(n *yaml.Node, level int) int {
	if level > MaxDepth {
		return level
	}
	deepest := level
	for _, c := range n.Content {
		deepest = max(deepest, depth(c, level+1))
	}
	return deepest
}
