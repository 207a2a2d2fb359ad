package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
)

type deleteOptions struct {
	files     []string
	namespace string
}

func newDelete(env *Env) *cobra.Command {
	o := &deleteOptions{}
	c := &cobra.Command{
		Use:               "delete (-f FILE… | KIND NAME…)",
		Short:             "Delete resources",
		Example:           "  meshctl delete vs reviews\n  meshctl delete -f virtual-service-all-v1.yaml",
		RunE:              func(c *cobra.Command, a []string) error { return runDelete(c.Context(), env, o, a) },
		ValidArgsFunction: env.completeResource,
		Args: args(func(_ *cobra.Command, a []string) error {
			if len(o.files) == 0 && len(a) < 2 || len(o.files) > 0 && len(a) > 0 {
				return errors.New("want -f FILE, or a kind and names")
			}
			return nil
		}),
	}
	c.Flags().StringArrayVarP(&o.files, "filename", "f", nil, "file or directory whose resources to delete; - is stdin; repeatable")
	addNamespace(c, &o.namespace)
	return c
}

func runDelete(ctx context.Context, env *Env, o *deleteOptions, a []string) error {
	var docs []document
	if len(o.files) > 0 {
		var err error
		if docs, err = readDocuments(env, o.files); err != nil {
			return err
		}
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
	var failed []error
	for _, d := range docs {
		k, err := client.of(d.object)
		if err == nil {
			err = client.delete(ctx, k, d.object.GetNamespace(), d.object.GetName())
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", d.where, err))
		}
	}
	if len(a) > 0 {
		k, err := client.named(a[0])
		if err != nil {
			return err
		}
		for _, name := range a[1:] {
			failed = append(failed, client.delete(ctx, k, namespace, name))
		}
	}
	return errors.Join(failed...)
}

func (c *resourceClient) delete(ctx context.Context, k kind, namespace, name string) error {
	if err := c.send(ctx, k, http.MethodDelete, k.path(namespace, name), nil, nil, nil); err != nil {
		return err
	}
	fmt.Fprintf(c.env.Out, "%s/%s deleted\n", strings.ToLower(k.Kind), name)
	return nil
}
