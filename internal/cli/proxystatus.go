package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/status"
)

func newProxyStatus(env *Env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:     "proxy-status",
		Aliases: []string{"ps"},
		Short:   "Which proxy has which configuration, and what each resource has reached",
		Args:    args(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return runProxyStatus(c.Context(), env, f) },
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

func runProxyStatus(ctx context.Context, env *Env, f format) error {
	pilot, err := env.plane(ctx, mesh.RolePilot)
	if err != nil {
		return err
	}
	var s status.Report
	if err := pilot.getJSON(ctx, "/debug/proxies", &s); err != nil {
		return err
	}
	if f != "table" {
		return encode(env.Out, f, s)
	}
	if !s.Keeper {
		env.talk("warning: pilot has no connection to the keeper: what it knows of the containers may be old")
	}
	for _, p := range s.Problems {
		env.talk("warning: %s", p)
	}
	var rows [][]string
	for _, p := range s.Proxies {
		since := ""
		if !p.AckedAt.IsZero() {
			since = duration.HumanDuration(time.Since(p.AckedAt))
		}
		rows = append(rows, []string{p.Workload, string(p.State), p.Acked, since, p.Build, p.Error})
	}
	if err := table(env.Out, []string{"WORKLOAD", "STATE", "CONFIG", "FOR", "VERSION", "REFUSED BECAUSE"}, rows); err != nil {
		return err
	}
	if len(s.Resources) == 0 {
		return nil
	}
	rows = nil
	for _, r := range s.Resources {
		rows = append(rows, []string{r.Resource, fmt.Sprintf("%d of %d", r.Applied, r.Proxies)})
	}
	fmt.Fprintln(env.Out)
	return table(env.Out, []string{"RESOURCE", "APPLIED BY"}, rows)
}
