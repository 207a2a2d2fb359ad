package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/explain"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
)

type analyzeOptions struct {
	files      []string
	schemaOnly bool
	output     format
}

// message is one line of an analysis.
type message struct {
	Code     compile.Code     `json:"code"`
	Severity compile.Severity `json:"severity"`
	Resource string           `json:"resource"`
	Path     string           `json:"path"`
	Message  string           `json:"message"`
}

func newAnalyze(env *Env) *cobra.Command {
	o := &analyzeOptions{}
	c := &cobra.Command{
		Use:   "analyze [-f FILE…]",
		Short: "What of the configuration is wrong, or does not do what it seems to",
		Long: "Checks the configuration that is in force against what runs, or, with -f, files for themselves: the mesh's own objects, and\n" +
			"Kubernetes' Services, Endpoints, Pods and Deployments, which say what would run. Codes are Istio's (istio.io/docs/reference/config/analysis).\n" +
			"Exit code 0 where nothing is an error, 1 where something is. To check files against the running mesh: meshctl apply --dry-run -f FILE.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runAnalyze(c.Context(), env, o) },
	}
	addOutput(c, &o.output, "text", "json", "yaml")
	c.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file of YAML or JSON; - is stdin; repeatable")
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
		if f.Severity == compile.Error {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d findings are errors", wrong, len(list))
	}
	return nil
}

func (o *analyzeOptions) analyze(ctx context.Context, env *Env) ([]message, error) {
	var problems []compile.Problem
	if len(o.files) == 0 {
		pilot, err := env.plane(ctx, mesh.RolePilot)
		if err != nil {
			return nil, err
		}
		// What is in force has passed the schema.
		if !o.schemaOnly {
			err = pilot.getJSON(ctx, "/debug/analysis", &problems)
		}
		return findings(problems), err
	}
	var files explain.Files
	refused := []message{}
	for _, name := range o.files {
		wrong, err := schemaFindings(addFile(env, &files, name))
		if err != nil {
			return nil, err
		}
		refused = append(refused, wrong...)
	}
	if o.schemaOnly {
		return refused, nil
	}
	problems, err := files.Check()
	return append(refused, findings(problems)...), err
}

func findings(problems []compile.Problem) []message {
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
		return []message{{compile.SchemaValidationError, compile.Error, resource, "", d.Err.Error()}}
	}
	var list []message
	for _, p := range problems {
		list = append(list, message{compile.SchemaValidationError, compile.Error, resource, p.Path.String(), p.Detail})
	}
	return slices.Clip(list)
}
