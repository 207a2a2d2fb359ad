package cli

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type getOptions struct {
	namespace string
	all       bool
	output    format
}

func newGet(env *Env) *cobra.Command {
	o := &getOptions{}
	c := &cobra.Command{
		Use:               "get KIND [NAME]",
		Short:             "Show resources",
		Example:           "  meshctl get virtualservices\n  meshctl get vs reviews -o yaml\n  meshctl get endpoints",
		Args:              args(cobra.RangeArgs(1, 2)),
		RunE:              func(c *cobra.Command, a []string) error { return runGet(c.Context(), env, o, a) },
		ValidArgsFunction: env.completeResource,
	}
	addOutput(c, &o.output, "table", "yaml", "json", "name")
	addNamespace(c, &o.namespace)
	c.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "of all namespaces")
	return c
}

func runGet(ctx context.Context, env *Env, o *getOptions, a []string) error {
	client, err := env.resources(ctx)
	if err != nil {
		return err
	}
	k, err := client.named(a[0])
	if err != nil {
		return err
	}
	namespace, err := env.namespace(ctx, o.namespace)
	if err != nil {
		return err
	}
	name := ""
	if o.all {
		namespace = ""
	}
	if len(a) > 1 {
		name = a[1]
	}
	path := k.path(namespace, name)
	if o.output == "table" {
		return getTable(ctx, client, k, path, o.all)
	}
	var v map[string]any
	if err := client.send(ctx, k, http.MethodGet, path, nil, nil, &v); err != nil {
		return err
	}
	if o.output == "name" {
		for _, n := range objectNames(v) {
			fmt.Fprintf(env.Out, "%s/%s\n", strings.ToLower(k.Kind), n)
		}
		return nil
	}
	return encode(env.Out, o.output, v)
}

func getTable(ctx context.Context, client *resourceClient, k kind, path string, withNamespace bool) error {
	var t metav1.Table
	accept := http.Header{"Accept": {"application/json;as=Table;v=v1;g=meta.k8s.io"}}
	if err := client.send(ctx, k, http.MethodGet, path+"?includeObject=Metadata", accept, nil, &t); err != nil {
		return err
	}
	if len(t.Rows) == 0 {
		client.env.talk("no %s", k.Name)
		return nil
	}
	var header []string
	if withNamespace {
		header = append(header, "NAMESPACE")
	}
	for _, c := range t.ColumnDefinitions {
		if c.Priority == 0 {
			header = append(header, strings.ToUpper(c.Name))
		}
	}
	var rows [][]string
	for _, r := range t.Rows {
		var row []string
		if withNamespace {
			var m metav1.PartialObjectMetadata
			if err := decodeRaw(r.Object.Raw, &m); err != nil {
				return err
			}
			row = append(row, m.Namespace)
		}
		for i, c := range t.ColumnDefinitions {
			if c.Priority == 0 && i < len(r.Cells) {
				row = append(row, fmt.Sprint(r.Cells[i]))
			}
		}
		rows = append(rows, row)
	}
	return table(client.env.Out, header, rows)
}

func objectNames(v map[string]any) []string {
	items, isList := v["items"].([]any)
	if !isList {
		items = []any{v}
	}
	var names []string
	for _, i := range items {
		if o, ok := i.(map[string]any); ok {
			if m, ok := o["metadata"].(map[string]any); ok {
				names = append(names, fmt.Sprint(m["name"]))
			}
		}
	}
	return names
}

// completeResource completes a kind, then the names of that kind, from the running mesh.
func (e *Env) completeResource(c *cobra.Command, a []string, _ string) ([]string, cobra.ShellCompDirective) {
	client, err := e.resources(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var words []string
	if len(a) == 0 {
		for _, k := range client.kinds {
			if k.preferred {
				words = append(words, k.Name)
			}
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
	k, err := client.named(a[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var v map[string]any
	if err := client.send(c.Context(), k, http.MethodGet, k.path("", ""), nil, nil, &v); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return objectNames(v), cobra.ShellCompDirectiveNoFileComp
}
