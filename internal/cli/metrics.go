package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/mesh"
)

func newMetrics(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the mesh's metrics, as Prometheus would scrape them from mixer",
		Args:  args(cobra.NoArgs),
		RunE:  func(c *cobra.Command, _ []string) error { return runMetrics(c.Context(), env) },
	}
}

func runMetrics(ctx context.Context, env *Env) error {
	mixer, err := env.plane(ctx, mesh.RoleMixer)
	if err != nil {
		return err
	}
	b, err := mixer.get(ctx, "/metrics")
	if err != nil {
		return err
	}
	_, err = env.Out.Write(b)
	return err
}
