package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/internal/explain"
	"github.com/composure-mesh/composure/mesh"
)

type analyzeOptions struct {
	files      []string
	schemaOnly bool
	live       bool
	namespace  string
	output     format
}

// message is one line of an analysis.
type message struct {
	Code     analysis.Code     `json:"code"`
	Severity analysis.Severity `json:"severity"`
	Resource string            `json:"resource"`
	Path     string            `json:"path"`
	Message  string            `json:"message"`
}

func newAnalyze(env *Env) *cobra.Command {
	o := &analyzeOptions{}
	c := &cobra.Command{
		Use:   "analyze [-f FILE…]",
		Short: "What of the configuration is wrong, or does not do what it seems to",
		Long: "Checks the configuration that is in force against what runs, or, with -f, files for themselves: the mesh's own objects, and\n" +
			"Kubernetes' Services, Endpoints, Pods and Deployments, which say what would run. With -f and --live, the files are checked as if they\n" +
			"were applied: together with the configuration that is in force, and against what runs. Nothing is applied.\n" +
			"Codes are Istio's (istio.io/docs/reference/config/analysis). Exit code 0 where nothing is an error, 1 where something is.",
		Example: "  meshctl analyze\n  meshctl analyze -f bookinfo.yaml -f routes/\n  meshctl analyze --live -f routes/",
		Args:    args(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return runAnalyze(c.Context(), env, o) },
	}
	addOutput(c, &o.output, "text", "json", "yaml")
	c.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file or directory of YAML or JSON; - is stdin; repeatable")
	c.Flags().BoolVar(&o.live, "live", false, "with -f: the files together with what is in force, against what runs")
	addNamespace(c, &o.namespace)
	c.Flags().BoolVar(&o.schemaOnly, "schema-only", false, "each object for itself: not what it refers to")
	return c
}

func runAnalyze(ctx context.Context, env *Env, o *analyzeOptions) error {
	list, err := o.analyze(ctx, env)
	if err != nil {
		return err
	}
	if o.output == "text" {
		for _, f := range list {
			fmt.Fprintf(env.Out, "%s [%s] %s: %s: %s\n", f.Severity, f.Code, f.Resource, f.Path, f.Message)
		}
		if len(list) == 0 {
			env.talk("nothing to say against it")
		}
	} else if err := encode(env.Out, o.output, list); err != nil {
		return err
	}
	wrong := 0
	for _, f := range list {
		if f.Severity == analysis.Error {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings are errors", wrong, len(list))
	}
	return nil
}

func (o *analyzeOptions) analyze(ctx context.Context, env *Env) ([]message, error) {
	files := explain.Files{Namespace: o.namespace}
	if o.live && len(o.files) > 0 {
		var err error
		if files.Namespace, err = env.namespace(ctx, o.namespace); err != nil {
			return nil, err
		}
	}
	refused := []message{}
	paths, err := expandAll(o.files)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		wrong, err := schemaFindings(addFile(env, &files, path))
		if err != nil {
			return nil, err
		}
		refused = append(refused, wrong...)
	}
	var problems []analysis.Problem
	switch {
	case o.schemaOnly: // and what is in force has passed the schema
	case o.live || len(o.files) == 0:
		problems, err = env.analyzeLive(ctx, &files)
	default:
		problems, err = files.Check()
	}
	return append(refused, findings(problems)...), err
}

// analyzeLive is what all planes say of the configuration that is in force, with the files' in its place.
func (e *Env) analyzeLive(ctx context.Context, files *explain.Files) ([]analysis.Problem, error) {
	problems := files.CheckServices()
	for _, plane := range []struct {
		role  mesh.Role
		kinds []*api.Kind
	}{{mesh.RolePilot, slices.Concat(api.Networking(), api.Core())}, {mesh.RoleCitadel, api.Security()}, {mesh.RoleMixer, api.Config()}} {
		own := []map[string]any{}
		for _, o := range files.Objects() {
			if o.Kind.In(plane.kinds) {
				own = append(own, o.Content)
			}
		}
		p, err := e.plane(ctx, plane.role)
		if err != nil {
			return nil, err
		}
		var found []analysis.Problem
		if err := p.postJSON(ctx, "/debug/analysis", own, &found); err != nil {
			return nil, err
		}
		problems = append(problems, found...)
	}
	return problems, nil
}

func findings(problems []analysis.Problem) []message {
	list := make([]message, len(problems))
	for i, p := range problems {
		list[i] = message{p.Code, p.Code.Severity(), p.Resource, p.Path, p.Detail}
	}
	return list
}

// schemaFindings takes apart what is wrong with the documents of a file. Another error is one of reading it.
func schemaFindings(err error) ([]message, error) {
	if err == nil {
		return nil, nil
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return nil, err
	}
	var list []message
	for _, e := range joined.Unwrap() {
		var d *explain.DocumentError
		if !errors.As(e, &d) {
			return nil, err
		}
		list = append(list, documentFindings(d)...)
	}
	return list, nil
}

func documentFindings(d *explain.DocumentError) []message {
	resource := d.Resource
	if resource == "" {
		resource = fmt.Sprintf("%s: document %d", d.File, d.Index)
	}
	var problems api.Problems
	if !errors.As(d.Err, &problems) {
		return []message{{analysis.SchemaValidationError, analysis.Error, resource, "", d.Err.Error()}}
	}
	var list []message
	for _, p := range problems {
		code := cmp.Or(analysis.Code(p.Code), analysis.SchemaValidationError)
		list = append(list, message{code, code.Severity(), resource, p.Path.String(), p.Detail})
	}
	return slices.Clip(list)
}
