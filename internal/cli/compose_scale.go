package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

func newScale(env *Env) *cobra.Command {
	o := &compose.Options{}
	c := &cobra.Command{
		Use:   "scale SERVICE=N...",
		Short: "Change the number of replicas of services",
		Long: "Change the number of replicas of services. Each is a workload with a sandbox and a proxy of its own: SERVICE,\n" +
			"SERVICE-2, …. On a running project the new ones start and those that are too many go; no other container is\n" +
			"touched. The override remembers the numbers until the next `meshctl compose inject`.",
		Example: "  meshctl compose scale web=3",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE:    func(c *cobra.Command, a []string) error { return runScale(c.Context(), env, *o, a) },
	}
	addProject(c, o)
	return c
}

// parseScale reads SERVICE=N.
func parseScale(list []string) (map[string]int, error) {
	scale := map[string]int{}
	for _, v := range list {
		service, number, ok := strings.Cut(v, "=")
		n, err := strconv.Atoi(number)
		if !ok || service == "" || err != nil || n < 0 {
			return nil, withCode(exitUsage, fmt.Errorf("scale %q: want SERVICE=N, such as web=3", v))
		}
		scale[service] = n
	}
	return scale, nil
}

func runScale(ctx context.Context, env *Env, o compose.Options, list []string) error {
	scale, err := parseScale(list)
	if err != nil {
		return err
	}
	if err := checkCompose(ctx, env); err != nil {
		return err
	}
	source, res, err := reinject(ctx, env, o, func(o *injectOptions) { o.scale = append(o.scale, list...) })
	if err != nil {
		return err
	}
	containers, err := projectContainers(ctx, env, source.Name)
	if err != nil {
		return err
	}
	there := map[string]bool{} // workloads that have a container
	var surplus []container.Summary
	for _, c := range containers {
		workload := workloadOf(c)
		there[workload] = true
		if service, n := replicaOf(workload, scale); service != "" && n > scale[service] {
			surplus = append(surplus, c)
		}
	}
	if len(there) == 0 {
		env.talk("the project does not run; next: meshctl compose up -d")
		return nil
	}
	if _, err := removeContainers(ctx, env, surplus); err != nil {
		return err
	}
	var services []string
	for _, service := range slices.Sorted(maps.Keys(scale)) {
		for n := 1; n <= scale[service]; n++ {
			if name := replicaName(service, n); !there[name] {
				services = append(services, name, name+"-mesh-sandbox", name+"-mesh-proxy")
			}
		}
	}
	if len(services) == 0 {
		return nil
	}
	if err := loadImages(ctx, env); err != nil {
		return err
	}
	return runCompose(ctx, env, slices.Concat(projectFlags(env, o), res.Flags, []string{"up", "--detach", "--no-deps", "--no-recreate"}, services))
}

// projectFlags are docker compose's flags that choose the project, but for its files.
func projectFlags(env *Env, o compose.Options) []string {
	var flags []string
	if env.Project != "" {
		flags = append(flags, "--project-name", env.Project)
	}
	if o.ProjectDir != "" {
		flags = append(flags, "--project-directory", o.ProjectDir)
	}
	for _, f := range o.EnvFiles {
		flags = append(flags, "--env-file", f)
	}
	return flags
}

// workloadOf is the name of a container's workload in its project. In a mesh that projects share it has the project's name
// behind it.
func workloadOf(c container.Summary) string {
	name := c.Labels[labels.Workload]
	if project := c.Labels[composeProject]; c.Labels[labels.Mesh] != project {
		name = strings.TrimSuffix(name, "."+project)
	}
	return name
}

func replicaName(service string, n int) string {
	if n == 1 {
		return service
	}
	return fmt.Sprintf("%s-%d", service, n)
}

// replicaOf is the service of scale that a workload is a replica of, and its number.
func replicaOf(workload string, scale map[string]int) (service string, n int) {
	if _, ok := scale[workload]; ok {
		return workload, 1
	}
	i := strings.LastIndexByte(workload, '-')
	if i < 0 {
		return "", 0
	}
	n, err := strconv.Atoi(workload[i+1:])
	if _, ok := scale[workload[:i]]; !ok || err != nil || n < 2 {
		return "", 0
	}
	return workload[:i], n
}

func newPs(env *Env) *cobra.Command {
	o := &compose.Options{}
	var f format
	c := &cobra.Command{
		Use:   "ps",
		Short: "List the project's services, each with its proxy and sandbox in one row",
		Args:  args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			source, err := loadProject(c.Context(), env, *o)
			if err != nil {
				return err
			}
			warnStale(env, source)
			list, err := projectContainers(c.Context(), env, source.Name)
			if err != nil {
				return err
			}
			return printServices(env, f, list)
		},
	}
	addProject(c, o)
	addOutput(c, &f, "table", "json", "yaml")
	return c
}

// serviceRow is a service of the project.
type serviceRow struct {
	Service string `json:"service"`
	Image   string `json:"image"`
	Status  string `json:"status"`
	Proxy   string `json:"proxy,omitempty"`
	Sandbox string `json:"sandbox,omitempty"`
	Ports   string `json:"ports,omitempty"`
}

func printServices(env *Env, f format, list []container.Summary) error {
	rows := serviceRows(list)
	if f != "table" {
		return encode(env.Out, f, rows)
	}
	var cells [][]string
	for _, r := range rows {
		cells = append(cells, []string{r.Service, r.Image, r.Status, r.Proxy, r.Sandbox, r.Ports})
	}
	return table(env.Out, []string{"SERVICE", "IMAGE", "STATUS", "PROXY", "SANDBOX", "PORTS"}, cells)
}

// serviceRows groups containers: sandbox and proxy go with their application.
func serviceRows(list []container.Summary) []serviceRow {
	sidecars := map[mesh.Role]map[string]container.Summary{mesh.RoleProxy: {}, mesh.RoleSandbox: {}}
	for _, c := range list {
		if byName := sidecars[mesh.Role(c.Labels[labels.Role])]; byName != nil {
			byName[c.Labels[labels.Workload]] = c
		}
	}
	var rows []serviceRow
	for _, c := range list {
		role, workload := mesh.Role(c.Labels[labels.Role]), c.Labels[labels.Workload]
		if sidecars[role] != nil {
			continue
		}
		r := serviceRow{Service: c.Labels[composeService], Image: c.Image, Status: c.Status, Ports: ports(c)}
		if role == mesh.RoleApp {
			r.Proxy, r.Sandbox = sidecars[mesh.RoleProxy][workload].Status, sidecars[mesh.RoleSandbox][workload].Status
			r.Ports = ports(sidecars[mesh.RoleSandbox][workload])
		}
		rows = append(rows, r)
	}
	slices.SortStableFunc(rows, func(a, b serviceRow) int { return strings.Compare(a.Service, b.Service) })
	return rows
}

// ports are the published ports of a container as docker ps writes them.
func ports(c container.Summary) string {
	var list []string
	for _, p := range c.Ports {
		if p.PublicPort != 0 {
			list = append(list, fmt.Sprintf("%s:%d->%d/%s", p.IP, p.PublicPort, p.PrivatePort, p.Type))
		}
	}
	slices.Sort(list)
	return strings.Join(slices.Compact(list), ", ")
}
