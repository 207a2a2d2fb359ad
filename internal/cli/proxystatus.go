package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
)

func newProxyStatus(env *Env) *cobra.Command {
	var f format
	c := &cobra.Command{
		Use:     "proxy-status [KIND/[NAMESPACE/]NAME]",
		Aliases: []string{"ps"},
		Short:   "Which proxy has the newest configuration of each plane, and what each resource has reached",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return runResourceStatus(c.Context(), env, f, a[0])
			}
			return runProxyStatus(c.Context(), env, f)
		},
	}
	addOutput(c, &f, "table", "yaml", "json")
	return c
}

// proxyReports are what the planes say of the proxies.
func (e *Env) proxyReports(ctx context.Context) (map[mesh.Role]*status.Report, error) {
	reports := map[mesh.Role]*status.Report{}
	for _, role := range apiPlanes {
		p, err := e.plane(ctx, role)
		if err != nil {
			return nil, err
		}
		reports[role] = new(status.Report)
		if err := p.getJSON(ctx, "/debug/proxies", reports[role]); err != nil {
			return nil, err
		}
	}
	return reports, nil
}

// runResourceStatus tells of one resource by how many proxies it is applied, and by which it is not.
func runResourceStatus(ctx context.Context, env *Env, f format, name string) error {
	kind, rest, ok := strings.Cut(strings.ToLower(name), "/")
	if !ok {
		return withCode(exitUsage, fmt.Errorf("%q is no resource, want KIND/NAME or KIND/NAMESPACE/NAME, such as virtualservice/reviews", name))
	}
	if !strings.Contains(rest, "/") {
		namespace, err := env.namespace(ctx, "")
		if err != nil {
			return err
		}
		rest = namespace + "/" + rest
	}
	client, err := env.resources(ctx)
	if err != nil {
		return err
	}
	k, err := client.named(kind)
	if err != nil {
		return err
	}
	reports, err := env.proxyReports(ctx)
	if err != nil {
		return err
	}
	for _, role := range apiPlanes {
		for _, r := range reports[role].Resources {
			if r.Resource != k.SingularName+"/"+rest {
				continue
			}
			if f != "table" {
				return encode(env.Out, f, r)
			}
			fmt.Fprintf(env.Out, "%s is applied by %d of %d proxies\n", r.Resource, r.Applied, r.Proxies)
			for _, p := range reports[role].Proxies {
				if p.State == status.Stale || p.State == status.Nack {
					fmt.Fprintf(env.Out, "  %s: %s\n", p.Workload, strings.TrimSpace(string(p.State)+" "+p.Error))
				}
			}
			return nil
		}
	}
	return withCode(exitNotFound, fmt.Errorf("the mesh has no %s/%s", k.SingularName, rest))
}

func runProxyStatus(ctx context.Context, env *Env, f format) error {
	reports, err := env.proxyReports(ctx)
	if err != nil {
		return err
	}
	if f != "table" {
		return encode(env.Out, f, reports)
	}
	header, rows := []string{"WORKLOAD"}, map[string][]string{}
	for i, role := range apiPlanes {
		r := reports[role]
		if !r.Keeper {
			env.talk("warning: %s has no connection to the keeper: what it knows of the containers may be old", role)
		}
		for _, p := range r.Problems {
			env.talk("warning: %s", p)
		}
		header = append(header, strings.ToUpper(string(role)))
		for _, p := range r.Proxies {
			row := rows[p.Workload]
			if row == nil {
				row = make([]string, len(apiPlanes)+4)
				row[0] = p.Workload
				for j := range apiPlanes {
					row[1+j] = string(status.NotSent)
				}
				rows[p.Workload] = row
			}
			row[1+i] = string(p.State)
			if role == mesh.RolePilot && !p.AckedAt.IsZero() {
				row[len(apiPlanes)+1] = duration.HumanDuration(time.Since(p.AckedAt))
			}
			row[len(apiPlanes)+2] = cmp.Or(row[len(apiPlanes)+2], p.Build)
			if p.Error != "" {
				row[len(apiPlanes)+3] += fmt.Sprintf("[%s] %s", role, p.Error)
			}
		}
	}
	sorted := [][]string{}
	for _, workload := range slices.Sorted(maps.Keys(rows)) {
		sorted = append(sorted, rows[workload])
	}
	if err := table(env.Out, append(header, "ROUTES FOR", "VERSION", "REFUSED BECAUSE"), sorted); err != nil {
		return err
	}
	var resources [][]string
	for _, role := range apiPlanes {
		for _, r := range reports[role].Resources {
			resources = append(resources, []string{r.Resource, fmt.Sprintf("%d of %d", r.Applied, r.Proxies)})
		}
	}
	if len(resources) == 0 {
		return nil
	}
	fmt.Fprintln(env.Out)
	return table(env.Out, []string{"RESOURCE", "APPLIED BY"}, resources)
}
