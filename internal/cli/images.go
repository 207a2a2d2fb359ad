package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/images"
)

func newImages(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "images", Short: "The mesh's own container images, which meshctl carries"}
	c.AddCommand(&cobra.Command{
		Use:   "load",
		Short: "Load the images that the engine lacks",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return loadImages(c.Context(), env)
		},
	}, &cobra.Command{
		Use:   "list",
		Short: "Print the names of the images",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			set, err := engineImages(c.Context(), env)
			if err != nil {
				return err
			}
			for _, i := range images.Components {
				fmt.Fprintln(env.Out, set.Ref(i.Name))
			}
			return nil
		},
	})
	return c
}

func engineImages(ctx context.Context, env *Env) (*images.Set, error) {
	engine, err := env.Engine(ctx)
	if err != nil {
		return nil, err
	}
	return images.For(engine.Architecture())
}

func loadImages(ctx context.Context, env *Env) error {
	engine, err := env.Engine(ctx)
	if err != nil {
		return err
	}
	set, err := images.For(engine.Architecture())
	if err != nil {
		return err
	}
	return engine.LoadImages(ctx, set, func(ref string) { env.talk("loaded image %s", ref) })
}
