package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/composure-mesh/composure/api"
)

type applyOptions struct {
	files     []string
	namespace string
	dryRun    bool
}

func newApply(env *Env) *cobra.Command {
	o := &applyOptions{}
	c := &cobra.Command{
		Use:   "apply -f FILE…",
		Short: "Create or change resources",
		Long: "Create or change the resources in YAML or JSON files. Every document is checked first; when one is\n" +
			"refused, none is written. When a write fails, the error says which documents are in force and which are not.",
		Example: "  meshctl apply -f virtual-service-all-v1.yaml\n  cat rules.yaml | meshctl apply -f -",
		Args:    args(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return runApply(c.Context(), env, o) },
	}
	addFiles(c, &o.files)
	addNamespace(c, &o.namespace)
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "check only, write nothing")
	return c
}

func addFiles(c *cobra.Command, files *[]string) {
	c.Flags().StringArrayVarP(files, "filename", "f", nil, "file or directory of YAML or JSON; - is stdin; repeatable")
	_ = c.MarkFlagRequired("filename")
}

// document is one object of a file.
type document struct {
	where    string // file and line
	object   *unstructured.Unstructured
	homeless bool // it names no namespace
}

// String is kind/name.
func (d document) String() string {
	return strings.ToLower(d.object.GetKind()) + "/" + d.object.GetName()
}

func runApply(ctx context.Context, env *Env, o *applyOptions) error {
	docs, err := readDocuments(env, o.files)
	if err != nil {
		return fmt.Errorf("nothing was written:\n%w", err)
	}
	namespace, err := env.namespace(ctx, o.namespace)
	if err != nil {
		return err
	}
	place(docs, namespace)
	client, err := env.resources(ctx)
	if err != nil {
		return err
	}
	var problems []error
	quiet := *client
	quiet.env = &Env{Err: io.Discard} // the warnings come with the writing
	for _, d := range docs {
		if _, err := quiet.apply(ctx, d, true); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", d.where, err))
		}
	}
	if len(problems) > 0 {
		return fmt.Errorf("nothing was written:\n%w", errors.Join(problems...))
	}
	slices.SortStableFunc(docs, func(a, b document) int { return cmp.Compare(rank(a.object), rank(b.object)) })
	for i, d := range docs {
		verb, err := client.apply(ctx, d, o.dryRun)
		if err != nil && o.dryRun {
			return fmt.Errorf("%s: %w", d.where, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w\n%s", d.where, err, halfway(docs, i))
		}
		if o.dryRun {
			verb += " (dry run)"
		}
		fmt.Fprintf(env.Out, "%s %s\n", d, verb)
	}
	return nil
}

// halfway says which documents a failure of the i-th leaves written and which not: what passed the check can still fail to be
// written, as when a plane goes away.
func halfway(docs []document, i int) string {
	list := func(docs []document) string {
		names := make([]string, len(docs))
		for i, d := range docs {
			names[i] = d.String()
		}
		return cmp.Or(strings.Join(names, ", "), "nothing")
	}
	return fmt.Sprintf("in force as the files say: %s\nnot written: %s\nto apply the files again does the rest", list(docs[:i]), list(docs[i:]))
}

// rank orders what is written at once: what is referred to comes before what refers to it, so that no proxy is
// given a route to a subset that it does not know yet.
func rank(u *unstructured.Unstructured) int {
	if u.GetKind() == "VirtualService" {
		return 1
	}
	return 0
}

// apply creates the object, or replaces what differs, and says which. A writer that came between is met by
// trying again on what it wrote.
func (c *resourceClient) apply(ctx context.Context, d document, dryRun bool) (verb string, err error) {
	k, err := c.of(d.object)
	if err != nil {
		return "", err
	}
	query := "?fieldManager=meshctl"
	if dryRun {
		query += "&dryRun=All"
	}
	path := k.path(d.object.GetNamespace(), d.object.GetName())
	for range 5 {
		var current unstructured.Unstructured
		err = c.send(ctx, k, http.MethodGet, path, nil, nil, &current.Object)
		var status *apiError
		switch {
		case errors.As(err, &status) && status.code == http.StatusNotFound:
			verb, err = "created", c.send(ctx, k, http.MethodPost, k.path(d.object.GetNamespace(), "")+query, nil, d.object.Object, nil)
		case err != nil:
			return "", err
		case unchanged(&current, d.object):
			return "unchanged", nil
		default:
			next := d.object.DeepCopy()
			next.SetResourceVersion(current.GetResourceVersion())
			verb, err = "configured", c.send(ctx, k, http.MethodPut, path+query, nil, next.Object, nil)
		}
		if !errors.As(err, &status) || status.code != http.StatusConflict {
			return verb, err
		}
	}
	return "", err
}

// unchanged reports whether the object that is served says what the wanted one says.
func unchanged(current, want *unstructured.Unstructured) bool {
	said := func(u *unstructured.Unstructured) []byte {
		content := maps.Clone(u.Object)
		delete(content, "metadata")
		delete(content, "apiVersion")                                             // versions are aliases
		b, err := json.Marshal([]any{content, u.GetLabels(), u.GetAnnotations()}) // as JSON, 1 is 1 whatever its Go type
		if err != nil {
			return nil
		}
		return b
	}
	a := said(current)
	return a != nil && bytes.Equal(a, said(want))
}

// readDocuments reads the objects of files. What is wrong in any of them is in the error, each with file and line.
func readDocuments(env *Env, files []string) ([]document, error) {
	var docs []document
	var failed []error
	paths, err := expandAll(files)
	if err != nil {
		return nil, err
	}
	for _, p := range paths {
		more, err := readFile(env, p)
		failed = append(failed, err)
		for _, d := range more {
			docs = append(docs, document{fmt.Sprintf("%s:%d", d.File, d.Line), &unstructured.Unstructured{Object: d.Object.Content}, d.NoNamespace})
		}
	}
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: no document in it", strings.Join(files, ", "))
	}
	return docs, nil
}

// place puts the documents that name no namespace into the given one.
func place(docs []document, namespace string) {
	for _, d := range docs {
		if d.homeless {
			d.object.SetNamespace(namespace)
		}
	}
}

// expandAll is what expand makes of each path.
func expandAll(paths []string) ([]string, error) {
	var all []string
	for _, path := range paths {
		found, err := expand(path)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// expand is the YAML and JSON files of a directory, or the file itself.
func expand(path string) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var found []string
	err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(p)) {
			found = append(found, p)
		}
		return err
	})
	return found, err
}

func readFile(env *Env, path string) ([]api.Document, error) {
	r := env.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	return api.DecodeYAML(api.Kinds(), path, r)
}
