package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/internal/images"
	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

type upgradeOptions struct {
	project     compose.Options
	drain       time.Duration
	restartApps bool
}

// drainDefault leaves the new proxy the rest of the 10 s for which a sandbox keeps connections waiting.
const drainDefault = 5 * time.Second

func newUpgrade(env *Env) *cobra.Command {
	o := &upgradeOptions{}
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Bring a running mesh to the version of this meshctl, step by step",
		Long: "Bring a running mesh to the version of this meshctl: in a project's directory the project, else the mesh that\n" +
			"`meshctl install` made. The planes come first, then the proxies, one at a time; each must be ready before the next\n" +
			"begins. New connections wait while a proxy is replaced. Applications are not restarted, unless the sandboxes have\n" +
			"changed between the versions, which it says before it begins. Run again, it goes on where it stopped; an older\n" +
			"meshctl goes back.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runUpgrade(c.Context(), env, o) },
	}
	addProject(c, &o.project)
	c.Flags().DurationVar(&o.drain, "drain", drainDefault, "how long a proxy's open exchanges may take to end; new connections wait that long, and are reset after 10s in all")
	c.Flags().BoolVar(&o.restartApps, "restart-apps", false, "restart the applications where their sandboxes have changed")
	return c
}

func runUpgrade(ctx context.Context, env *Env, o *upgradeOptions) error {
	if o.drain < time.Second || o.drain > time.Minute {
		return withCode(exitUsage, fmt.Errorf("--drain is %s, want 1s to 1m", o.drain))
	}
	if err := checkCompose(ctx, env); err != nil {
		return err
	}
	m, err := env.mesh(ctx)
	if err != nil {
		return err
	}
	source, err := loadProject(ctx, env, o.project)
	switch {
	case err == nil && slices.Contains(m.projects(), source.Name):
		return upgradeProject(ctx, env, m, o)
	case m.Shared:
		return upgradeInstalled(ctx, env, m, o)
	}
	return errors.Join(fmt.Errorf("run it in the directory of project %s, whose files say what the mesh is", cmp.Or(m.Project, m.Name)), err)
}

// step is one compose service, or one workload's, to bring up to date.
type step struct {
	services []string
	ready    func(context.Context) error
}

// upgrade takes steps in their order, and stops at the first that is not well after it.
type upgrade struct {
	env  *Env
	mesh *runningMesh
	// up runs docker compose up --detach --no-deps on services.
	up    func(ctx context.Context, services []string) error
	drain time.Duration
}

func (u *upgrade) run(ctx context.Context, steps []step) error {
	for i, s := range steps {
		name, begun := strings.Join(s.services, ", "), time.Now()
		err := u.up(ctx, s.services)
		if err == nil {
			err = s.ready(ctx)
		}
		if err != nil {
			return fmt.Errorf("stopped at step %d of %d, %s: %w\nwhat runs goes on running; mend it and run `meshctl upgrade` again, or go back with `meshctl upgrade` of the version before",
				i+1, len(steps), name, err)
		}
		u.env.talk("[%d/%d] %s: ready after %s", i+1, len(steps), name, time.Since(begun).Round(100*time.Millisecond))
	}
	return nil
}

func (u *upgrade) upArgs(services []string) []string {
	return append([]string{"up", "--detach", "--no-deps", "--timeout", strconv.Itoa(int(u.drain.Seconds()))}, services...)
}

// upgradeInstalled upgrades the planes of an installed mesh, and its gateway.
func upgradeInstalled(ctx context.Context, env *Env, m *runningMesh, o *upgradeOptions) error {
	installed, err := installedMesh(ctx, env, m.Name)
	if err != nil {
		return err
	}
	options, err := installed.options()
	if err != nil {
		return err
	}
	file, err := controlPlane(ctx, env, options)
	if err != nil {
		return err
	}
	if err := loadImages(ctx, env); err != nil {
		return err
	}
	u := &upgrade{env: env, mesh: m, drain: o.drain}
	u.up = func(ctx context.Context, services []string) error {
		return composeInstalled(ctx, env, m.Name, file, u.upArgs(services)...)
	}
	if err := u.run(ctx, append(u.planeSteps(ctx), u.gatewaySteps(installed.planes)...)); err != nil {
		return err
	}
	env.talk("the planes of mesh %s are at version %s", m.Name, options.config.Version)
	if len(installed.members) > 0 {
		env.talk("next, in the directories of %s: meshctl upgrade", projectList(installed.members))
	}
	return nil
}

// upgradeProject upgrades a project: its own planes, its gateway, and its proxies.
func upgradeProject(ctx context.Context, env *Env, m *runningMesh, o *upgradeOptions) error {
	tags, err := images.CarriedTags()
	if err != nil {
		return err
	}
	if m.Shared {
		if old := m.planesNotAt(tags.Version); old != "" {
			return fmt.Errorf("the planes of the shared mesh %s come first, and %s is at another version than %s: run `meshctl -p %s upgrade`", m.Name, old, tags.Version, m.Name)
		}
	}
	source, err := loadProject(ctx, env, o.project)
	if err != nil {
		return err
	}
	list, err := projectContainers(ctx, env, source.Name)
	if err != nil {
		return err
	}
	changed := sandboxesNotAt(list, tags.Sandbox)
	if len(changed) > 0 && !o.restartApps {
		return fmt.Errorf("the sandboxes have changed between the versions, and a sandbox that is replaced takes its application with it: "+
			"nothing was done; run `meshctl upgrade --restart-apps` to restart %s, one after the other", strings.Join(changed, ", "))
	}
	source, res, err := reinject(ctx, env, o.project, nil)
	if err != nil {
		return err
	}
	if err := loadImages(ctx, env); err != nil {
		return err
	}
	global := slices.Concat([]string{"--progress", "quiet"}, projectFlags(env, o.project), res.Flags)
	u := &upgrade{env: env, mesh: m, drain: o.drain}
	u.up = func(ctx context.Context, services []string) error {
		return runComposeOn(ctx, env, env.In, env.Err, slices.Concat(global, u.upArgs(services)))
	}
	var steps []step
	if !m.Shared {
		steps = u.planeSteps(ctx)
	}
	steps = slices.Concat(steps, u.gatewaySteps(list), u.proxySteps(list, changed))
	if err := u.run(ctx, steps); err != nil {
		return err
	}
	env.talk("project %s is at version %s", source.Name, tags.Version)
	return nil
}

// planesNotAt is a plane whose image has another tag than version, "" if there is none.
func (m *runningMesh) planesNotAt(version string) string {
	for _, role := range planeRoles {
		if c, ok := m.find(role); ok && tagOf(c) != version {
			return string(role)
		}
	}
	return ""
}

// sandboxesNotAt are the workloads whose sandboxes run another image.
func sandboxesNotAt(list []container.Summary, tag string) []string {
	var names []string
	for _, c := range list {
		if c.Labels[labels.Role] == string(mesh.RoleSandbox) && tagOf(c) != tag {
			names = append(names, workloadOf(c))
		}
	}
	slices.Sort(names)
	return names
}

func tagOf(c container.Summary) string { return c.Image[strings.LastIndexByte(c.Image, ':')+1:] }

// planeSteps are the planes: first the keeper, whom the others ask who they are. One that pushes configuration is well
// when the proxies that were in sync with it before are so again.
func (u *upgrade) planeSteps(ctx context.Context) []step {
	var steps []step
	for _, role := range planeRoles {
		before, _ := u.inSync(ctx, role) // a plane that is down has none
		steps = append(steps, step{services: []string{"composure-" + string(role)}, ready: func(ctx context.Context) error {
			if err := waitPlane(ctx, u.env, u.mesh.Name, role); err != nil {
				return err
			}
			return u.waitSync(ctx, role, before)
		}})
	}
	return steps
}

// inSync are the workloads whose proxies have the plane's newest configuration, and what the others are.
func (u *upgrade) inSync(ctx context.Context, role mesh.Role) (map[string]status.State, error) {
	all, err := u.env.meshes(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		c, ok := m.find(role)
		if m.Name != u.mesh.Name || !ok {
			continue
		}
		plane, err := u.env.peer(ctx, string(role), c.ID, "/"+string(role))
		if err != nil {
			return nil, err
		}
		defer plane.http.CloseIdleConnections()
		var report status.Report
		if err := plane.getJSON(ctx, "/debug/proxies", &report); err != nil {
			return nil, err
		}
		states := map[string]status.State{}
		for _, p := range report.Proxies {
			states[p.Workload] = p.State
		}
		return states, nil
	}
	return nil, fmt.Errorf("%s does not run", role)
}

// waitSync waits until the proxies that were in sync are so again.
func (u *upgrade) waitSync(ctx context.Context, role mesh.Role, before map[string]status.State) error {
	if len(before) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, planeTimeout)
	defer cancel()
	for {
		now, err := u.inSync(ctx, role)
		var missing []string
		for workload, state := range before {
			if state == status.Synced && now[workload] != status.Synced {
				missing = append(missing, fmt.Sprintf("%s is %s", workload, cmp.Or(now[workload], "unknown")))
			}
		}
		if err == nil && len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			slices.Sort(missing)
			return errors.Join(fmt.Errorf("the proxies are not in sync with the new %s: %s; see `meshctl proxy-status`", role, strings.Join(missing, ", ")), err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// gatewaySteps are the gateways among containers.
func (u *upgrade) gatewaySteps(list []container.Summary) []step {
	var steps []step
	for _, c := range list {
		if c.Labels[labels.Role] == string(mesh.RoleGateway) {
			steps = append(steps, u.containerStep(c, []string{c.Labels[composeService]}))
		}
	}
	return steps
}

// proxySteps are the proxies among containers, by workload, one after the other: of several replicas all but one serve.
// A workload whose sandbox has changed comes whole.
func (u *upgrade) proxySteps(list []container.Summary, changed []string) []step {
	var steps []step
	slices.SortFunc(list, func(a, b container.Summary) int {
		return strings.Compare(a.Labels[labels.Workload], b.Labels[labels.Workload])
	})
	for _, c := range list {
		if c.Labels[labels.Role] != string(mesh.RoleProxy) {
			continue
		}
		if c.State != container.StateRunning {
			u.env.talk("note: %s is %s: it is brought up to date when it is started", c.Labels[composeService], c.State)
			continue
		}
		s := u.containerStep(c, []string{c.Labels[composeService]})
		if workload := workloadOf(c); slices.Contains(changed, workload) {
			proxyReady := s.ready
			s = step{services: []string{workload + "-mesh-sandbox", workload + "-mesh-proxy", workload}, ready: func(ctx context.Context) error {
				if err := proxyReady(ctx); err != nil {
					return err
				}
				return waitHealthy(ctx, u.env, c.Labels[composeProject], workload) // its replicas serve meanwhile
			}}
		}
		steps = append(steps, s)
	}
	return steps
}

// containerStep is well when the container that takes c's place is healthy.
func (u *upgrade) containerStep(c container.Summary, services []string) step {
	return step{services: services, ready: func(ctx context.Context) error {
		return waitHealthy(ctx, u.env, c.Labels[composeProject], c.Labels[composeService])
	}}
}

// healthyTimeout is longer than the healthcheck of a proxy takes to give up: 4 probes of 25 s.
const healthyTimeout = 110 * time.Second

// waitHealthy waits until a service's container is healthy, or runs where it has no healthcheck.
func waitHealthy(ctx context.Context, env *Env, project, service string) error {
	ctx, cancel := context.WithTimeout(ctx, healthyTimeout)
	defer cancel()
	engine, err := env.Engine(ctx)
	if err != nil {
		return err
	}
	for {
		state := "missing"
		list, err := projectContainers(ctx, env, project)
		if err != nil {
			return err
		}
		for _, c := range list {
			if c.Labels[composeService] != service {
				continue
			}
			info, err := engine.ContainerInspect(ctx, c.ID)
			if err != nil || info.ContainerJSONBase == nil || info.State == nil {
				continue // gone since it was listed
			}
			if state = info.State.Status; info.State.Health != nil && info.State.Running {
				state = info.State.Health.Status
			}
		}
		switch state {
		case container.Healthy, container.StateRunning:
			return nil
		case container.Unhealthy, container.StateExited, container.StateDead:
			return fmt.Errorf("it is %s; see `docker logs %s-%s-1`", state, project, service)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is %s after %s; see `docker logs %s-%s-1`", state, healthyTimeout, project, service)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
