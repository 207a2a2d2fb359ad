package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

type installOptions struct {
	injectOptions
	networks []string
}

func (o *installOptions) addFlags(f *pflag.FlagSet) {
	o.addComponents(f)
	f.StringArrayVar(&o.networks, "network", nil, "Docker network that the gateways are on; repeatable")
}

func (o *installOptions) complete() error {
	if err := o.injectOptions.complete(); err != nil {
		return err
	}
	switch gateways := len(o.ingress) > 0 || o.config.Egress; {
	case gateways && len(o.networks) == 0:
		return withCode(exitUsage, errors.New("--ingress and --egress need a --network: a gateway reaches the services on the networks that it is on"))
	case !gateways && len(o.networks) > 0:
		return withCode(exitUsage, errors.New("--network is for the gateways: want --ingress or --egress with it"))
	}
	slices.Sort(o.networks)
	o.networks = slices.Compact(o.networks)
	return nil
}

func newInstall(env *Env) *cobra.Command {
	o := &installOptions{}
	c := &cobra.Command{
		Use:   "install",
		Short: "Run the planes of a mesh that several compose projects share",
		Long: "Run the planes of a mesh that several compose projects share, as a compose project of the mesh's name (-p, default\n" +
			compose.DefaultMesh + "). Projects come in by `meshctl compose inject --control-plane external`. Run again, it changes what the\n" +
			"flags change; without flags it keeps those that it was installed with.",
		Example: "  meshctl install\n  meshctl install --ingress 30080 --network shared\n  meshctl compose inject --control-plane external",
		Args:    args(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return runInstall(c.Context(), env, o, flagged(c.Flags())) },
	}
	o.addFlags(c.Flags())
	return c
}

// flagged reports whether a flag of the command's own was given.
func flagged(f *pflag.FlagSet) bool {
	given := false
	f.Visit(func(f *pflag.Flag) { given = given || f.Name != "project-name" })
	return given
}

func runInstall(ctx context.Context, env *Env, o *installOptions, given bool) error {
	name := cmp.Or(env.Project, compose.DefaultMesh)
	if err := compose.CheckMeshName(name); err != nil {
		return withCode(exitUsage, err)
	}
	if err := checkCompose(ctx, env); err != nil {
		return err
	}
	old, err := installedMesh(ctx, env, name)
	if errors.Is(err, errTaken) {
		return err
	}
	if err == nil && !given {
		if o, err = old.options(); err != nil {
			return err
		}
	}
	file, err := controlPlane(ctx, env, o)
	if err != nil {
		return err
	}
	if err := loadImages(ctx, env); err != nil {
		return err
	}
	if err := composeInstalled(ctx, env, name, file, "up", "--detach", "--remove-orphans"); err != nil {
		return err
	}
	if err := waitPlanes(ctx, env, name); err != nil {
		return err
	}
	env.talk("mesh %s is installed; next, in each project: %s", name, externalCommand(name))
	return nil
}

func externalCommand(name string) string {
	command := "meshctl compose inject --control-plane external"
	if name != compose.DefaultMesh {
		command += " --mesh " + name
	}
	return command
}

// controlPlane is the compose file for the options.
func controlPlane(ctx context.Context, env *Env, o *installOptions) ([]byte, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	engine, err := env.Engine(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range o.networks {
		if _, err := engine.NetworkInspect(ctx, name, network.InspectOptions{}); err != nil {
			return nil, fmt.Errorf("--network %s: %w; create it with `docker network create %s`", name, err, name)
		}
	}
	return compose.ControlPlane(o.config, o.networks)
}

// composeInstalled runs docker compose on the file of an installed mesh.
func composeInstalled(ctx context.Context, env *Env, name string, file []byte, args ...string) error {
	words := append([]string{"--progress", "quiet", "--project-name", name, "--file", "-"}, args...)
	if err := runComposeOn(ctx, env, bytes.NewReader(file), env.Err, words); err != nil {
		return fmt.Errorf("the planes of mesh %s: %w", name, err)
	}
	return nil
}

// planeRoles are the planes in the order in which they depend on one another.
var planeRoles = []mesh.Role{mesh.RoleKeeper, mesh.RoleCitadel, mesh.RolePilot, mesh.RoleMixer}

// planeTimeout is how long a plane may take to be ready: it fetches a certificate from two others.
const planeTimeout = time.Minute

// waitPlanes waits until every plane of a mesh answers that it is well.
func waitPlanes(ctx context.Context, env *Env, name string) error {
	for _, role := range planeRoles {
		if err := waitPlane(ctx, env, name, role); err != nil {
			return err
		}
	}
	return nil
}

func waitPlane(ctx context.Context, env *Env, name string, role mesh.Role) error {
	ctx, cancel := context.WithTimeout(ctx, planeTimeout)
	defer cancel()
	for {
		err := askPlane(ctx, env, name, role)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s of mesh %s is not ready: %w; see `docker logs %s-composure-%s-1`", role, name, err, name, role)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func askPlane(ctx context.Context, env *Env, name string, role mesh.Role) error {
	all, err := env.meshes(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(m *runningMesh) bool { return m.Name == name })
	if i < 0 {
		return errors.New("it has no container that runs")
	}
	c, ok := all[i].find(role)
	if !ok {
		return errors.New("it has no container that runs")
	}
	p, err := env.peer(ctx, string(role), c.ID, "/"+string(role))
	if err != nil {
		return err
	}
	defer p.http.CloseIdleConnections()
	_, err = p.get(ctx, "/healthz")
	return err
}

// installed is a mesh that meshctl install has made, whether it runs or not.
type installed struct {
	name    string
	planes  []container.Summary // with the gateway
	members []string            // the compose projects with workloads in it
	flags   string
}

var (
	errNotInstalled = errors.New("is not installed on this engine")
	errTaken        = errors.New("its name is taken")
)

// installedMesh finds the installed mesh of a name, with containers that have ended.
func installedMesh(ctx context.Context, env *Env, name string) (*installed, error) {
	engine, err := env.Engine(ctx)
	if err != nil {
		return nil, err
	}
	own, err := projectContainers(ctx, env, name)
	if err != nil {
		return nil, err
	}
	m := &installed{name: name, planes: own}
	for _, c := range own {
		if flags, ok := c.Labels[labels.Shared]; ok {
			m.flags = flags
		}
	}
	switch {
	case len(own) == 0:
		return nil, withCode(exitUnreachable, fmt.Errorf("mesh %s %w: run %s first", name, errNotInstalled, installCommand(name)))
	case m.flags == "":
		return nil, fmt.Errorf("mesh %s: %w: a compose project %s runs here that meshctl install did not make; choose another name with -p", name, errTaken, name)
	}
	list, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", labels.Mesh+"="+name))})
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("list containers: %w", err))
	}
	for _, c := range list {
		if p := c.Labels[composeProject]; p != name && !slices.Contains(m.members, p) {
			m.members = append(m.members, p)
		}
	}
	slices.Sort(m.members)
	return m, nil
}

func installCommand(name string) string {
	if name == compose.DefaultMesh {
		return "`meshctl install`"
	}
	return "`meshctl -p " + name + " install`"
}

// options are those that the mesh was installed with.
func (m *installed) options() (*installOptions, error) {
	var flags []string
	o := &installOptions{}
	f := pflag.NewFlagSet("install", pflag.ContinueOnError)
	o.addFlags(f)
	err := json.Unmarshal([]byte(m.flags), &flags)
	if err == nil {
		err = f.Parse(flags)
	}
	if err != nil {
		return nil, fmt.Errorf("mesh %s: label %s of its planes: %w; run `meshctl install` with the flags that you want", m.name, labels.Shared, err)
	}
	return o, nil
}

// warnExternal says what will keep a project from using its installed mesh. Writing the override needs no engine.
func warnExternal(ctx context.Context, env *Env, cfg compose.Config) {
	m, err := installedMesh(ctx, env, cfg.External)
	if err != nil {
		env.talk("warning: %v", err)
		return
	}
	o, err := m.options()
	if err != nil {
		env.talk("warning: %v", err)
		return
	}
	want, have := cmp.Or(o.config.TrustDomain, mesh.DefaultTrustDomain), cmp.Or(cfg.TrustDomain, mesh.DefaultTrustDomain)
	if want != have {
		env.talk("warning: mesh %s has the trust domain %s, the project %s: inject with --trust-domain %s", cfg.External, want, have, want)
	}
}

func newUninstall(env *Env) *cobra.Command {
	volumes := false
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the planes of a mesh that projects share",
		Long: "Remove the planes of a mesh that projects share (-p, default " + compose.DefaultMesh + "). It refuses while a project uses it. What was\n" +
			"applied, and the certificate authority, stay in their volumes for the next install; --volumes removes them too.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runUninstall(c.Context(), env, volumes) },
	}
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "remove the applied resources and the certificate authority too")
	return c
}

func runUninstall(ctx context.Context, env *Env, volumes bool) error {
	name := cmp.Or(env.Project, compose.DefaultMesh)
	m, err := installedMesh(ctx, env, name)
	if errors.Is(err, errNotInstalled) {
		m = &installed{name: name}
	} else if err != nil {
		return err
	}
	if len(m.members) > 0 {
		return fmt.Errorf("mesh %s is in use by %s: run `meshctl compose uninject` or `docker compose down` there first", name, projectList(m.members))
	}
	if _, err := removeContainers(ctx, env, m.planes); err != nil {
		return err
	}
	if err := removeEgress(ctx, env, name); err != nil {
		return err
	}
	removed, err := removeVolumes(ctx, env, name, volumes)
	if err != nil {
		return err
	}
	if len(m.planes)+removed == 0 {
		env.talk("nothing to do: mesh %s is not installed", name)
	} else {
		env.talk("mesh %s is uninstalled", name)
	}
	return nil
}

func projectList(names []string) string {
	if len(names) == 1 {
		return "project " + names[0]
	}
	return "projects " + strings.Join(names, ", ")
}

// removeVolumes removes the volumes of an installed mesh, or the sockets' alone.
func removeVolumes(ctx context.Context, env *Env, name string, all bool) (int, error) {
	engine, err := env.Engine(ctx)
	if err != nil {
		return 0, err
	}
	list, err := engine.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("label", composeProject+"="+name))})
	if err != nil {
		return 0, withCode(exitUnreachable, fmt.Errorf("list volumes: %w", err))
	}
	removed := 0
	wanted := []string{name + "_composure-run"}
	if all {
		wanted = append(wanted, name+"_composure-pilot", name+"_composure-citadel", name+"_composure-mixer")
	}
	for _, v := range list.Volumes {
		if !slices.Contains(wanted, v.Name) {
			continue
		}
		if err := engine.VolumeRemove(ctx, v.Name, false); err != nil {
			return removed, fmt.Errorf("remove volume %s: %w", v.Name, err)
		}
		removed++
	}
	return removed, nil
}
