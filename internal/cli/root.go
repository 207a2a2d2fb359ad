package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/internal/component"
)

// Run runs meshctl with args and returns the exit code.
func Run(ctx context.Context, env *Env, args []string) int {
	root := newRoot(env)
	root.SetArgs(args)
	root.SetIn(env.In)
	root.SetOut(env.Out)
	root.SetErr(env.Err)
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(env.Err, "error:", err)
	}
	return exitCode(ctx, err)
}

func newRoot(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "meshctl",
		Short: "A service mesh for Docker Compose",
		Long: "meshctl puts a compose project into a service mesh, and steers the mesh.\n\n" +
			"  meshctl compose inject && docker compose up -d\n  meshctl apply -f routes.yaml",
		Version:       component.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return withCode(exitUsage, fmt.Errorf("%w; see %s --help", err, c.CommandPath()))
	})
	root.PersistentFlags().StringVarP(&env.Project, "project-name", "p", "", "the mesh to talk to: its compose project; default: the one of this directory, or the only one that runs")
	root.AddCommand(
		newCompose(env), newImages(env), newInstall(env), newUninstall(env), newUpgrade(env),
		newApply(env), newGet(env), newDelete(env),
		newRollout(env), newDescribe(env), newExplain(env), newAnalyze(env), newProxyStatus(env), newProxyConfig(env), newCerts(env), newMetrics(env),
		newEvents(env), newDoctor(env), newBugReport(env), newPolicy(env), newJWT(env), newAuthn(env), newAuthz(env),
		newProxy(env), newVersion(env),
	)
	return root
}

// args wraps a cobra check of positional arguments, so that a violation is a usage error.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return withCode(exitUsage, fmt.Errorf("%w; see %s --help", err, c.CommandPath()))
		}
		return nil
	}
}
