package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/internal/images"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
	"github.com/composure-mesh/composure/mesh/settings"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

func newCompose(env *Env) *cobra.Command {
	c := &cobra.Command{Use: "compose", Short: "Put a compose project into the mesh, and out of it"}
	c.AddCommand(newInject(env), newUninject(env), newScale(env),
		newChild(env, "up [OPTIONS] [SERVICE...]", "Inject anew, load the images, and run docker compose up", composeUp),
		newChild(env, "down [OPTIONS]", "Run docker compose down, with the sidecars of all profiles", composeDown),
		newChild(env, "port [OPTIONS] SERVICE PORT", "Print where a service's port is published", composePort),
		newPs(env))
	return c
}

// addProject adds the flags that choose a compose project, in docker compose's words.
func addProject(c *cobra.Command, o *compose.Options) {
	c.Flags().StringArrayVarP(&o.Files, "file", "f", nil, "compose file; repeatable; - is stdin, for inject; default: as docker compose finds them")
	c.Flags().StringVar(&o.ProjectDir, "project-directory", "", "directory of the project; default: that of the first file")
	c.Flags().StringArrayVar(&o.EnvFiles, "env-file", nil, "environment file; repeatable; default: COMPOSE_ENV_FILES, else .env")
}

type injectOptions struct {
	project      compose.Options
	config       compose.Config
	ingress      []string
	ingressSet   []string
	scale        []string
	joins        []string
	mtls         string
	diff, strict bool

	controlPlane, mesh string
}

// addConfig adds the flags that an output file remembers.
func (o *injectOptions) addConfig(f *pflag.FlagSet) {
	o.addComponents(f)
	f.BoolVar(&o.config.Full, "full", false, "write one whole file instead of an override")
	f.StringArrayVar(&o.scale, "scale", nil, "SERVICE=N: number of replicas, over what the files say; repeatable")
	f.StringVar(&o.controlPlane, "control-plane", "own", "own: the project runs its planes itself; external: it uses those of meshctl install")
	f.StringVar(&o.mesh, "mesh", "", "name of the installed mesh, with --control-plane external (default "+compose.DefaultMesh+")")
}

// addComponents adds the flags that the mesh's own containers are made with.
func (o *injectOptions) addComponents(f *pflag.FlagSet) {
	f.StringArrayVar(&o.ingress, "ingress", nil, "[IP:]HOSTPORT[:GATEWAYPORT] to publish by a gateway, istio-ingressgateway; the gateway's port is 80 where none is given; repeatable")
	f.StringArrayVar(&o.ingressSet, "ingress-set", nil, "NAME=VALUE: a setting of the gateway, one of those that docs/compose.md lists as labels composure.proxy.NAME; repeatable")
	f.BoolVar(&o.config.Egress, "egress", false, "add an egress gateway, istio-egressgateway, with ports 80 and 443")
	f.StringVar(&o.config.AccessLog, "access-log", "", "access log of the proxies: text, json or off (default text)")
	f.StringVar(&o.config.LogLevel, "log-level", "", "log level of the mesh's parts: debug, info, warn or error (default info)")
	f.StringVar(&o.config.TrustDomain, "trust-domain", "", "trust domain of the identities (default "+mesh.DefaultTrustDomain+")")
	f.StringVar(&o.mtls, "mtls", "", "whether workloads take plain text where no PeerAuthentication says so: permissive or strict (default permissive)")
	f.StringArrayVar(&o.joins, "join", nil, "citadel=NETWORK or mixer=NETWORK to put a plane on, where it is to fetch keys or lists; repeatable")
	f.DurationVar(&o.config.CertLifetime, "cert-lifetime", 0, "life of a workload's certificate (default 24h0m0s)")
}

// complete turns the flags into the Config.
func (o *injectOptions) complete() error {
	tags, err := images.CarriedTags()
	if err != nil {
		return err
	}
	if d := o.config.CertLifetime; d != 0 && d < minCertLifetime {
		return withCode(exitUsage, fmt.Errorf("--cert-lifetime is %s, want at least %s", d, minCertLifetime))
	}
	switch o.config.MutualTLS = strings.ToUpper(o.mtls); o.config.MutualTLS {
	case "", string(snapshot.Permissive), string(snapshot.Strict):
	default:
		return withCode(exitUsage, fmt.Errorf("--mtls is %q, want permissive or strict", o.mtls))
	}
	o.config.Joins = nil
	for _, v := range o.joins {
		j, err := compose.ParseJoin(v)
		if err != nil {
			return withCode(exitUsage, err)
		}
		o.config.Joins = append(o.config.Joins, j)
	}
	o.config.Version, o.config.SandboxTag = tags.Version, tags.Sandbox
	switch {
	case o.controlPlane == "external":
		o.config.External = cmp.Or(o.mesh, compose.DefaultMesh)
	case o.controlPlane != "own" && o.controlPlane != "":
		return withCode(exitUsage, fmt.Errorf("--control-plane is %q, want own or external", o.controlPlane))
	case o.mesh != "":
		return withCode(exitUsage, errors.New("--mesh names an installed mesh: want --control-plane external with it"))
	}
	o.config.Ingress = nil
	for _, v := range o.ingress {
		m, err := compose.ParsePortMap(v)
		if err != nil {
			return withCode(exitUsage, err)
		}
		o.config.Ingress = append(o.config.Ingress, m)
	}
	if o.config.IngressSettings, err = parseSettings(o.ingressSet); err != nil {
		return err
	}
	o.config.Scale, err = parseScale(o.scale)
	return err
}

// parseSettings reads NAME=VALUE of the gateway's settings.
func parseSettings(list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	set := map[string]string{}
	for _, v := range list {
		name, value, _ := strings.Cut(v, "=")
		s := settings.Find(name)
		if s == nil {
			return nil, withCode(exitUsage, fmt.Errorf("--ingress-set %q: there is no setting %q; docs/compose.md lists them as labels composure.proxy.NAME", v, name))
		}
		if err := s.Check(value); err != nil {
			return nil, withCode(exitUsage, fmt.Errorf("--ingress-set %q: %w", v, err))
		}
		set[name] = value
	}
	return set, nil
}

func newInject(env *Env) *cobra.Command {
	o := &injectOptions{}
	c := &cobra.Command{
		Use:   "inject",
		Short: "Write the override that puts a compose project into the mesh",
		Long: "Write the override that puts a compose project into the mesh. The project's own files are not touched:\n" +
			"`docker compose up` reads the override beside them, and `meshctl compose uninject` removes it.",
		Example: "  meshctl compose inject && docker compose up -d\n  meshctl compose inject --ingress 30080\n  meshctl compose inject -f app.yml -f prod.yml -o -\n  generate | meshctl compose inject -f - --full -o - | docker compose -f - up -d",
		Args:    args(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return runInject(c.Context(), env, o) },
	}
	addProject(c, &o.project)
	c.Flags().StringVarP(&o.config.Out, "output", "o", "", "file to write, - for stdout; default: compose.override.yaml, or compose.mesh.yaml where there are overrides already")
	c.Flags().BoolVar(&o.diff, "diff", false, "print each change with its reason, and write nothing")
	c.Flags().BoolVar(&o.strict, "strict", false, "fail where a service is left out of the mesh without its label saying so")
	o.addConfig(c.Flags())
	return c
}

// minCertLifetime is the least that citadel takes.
const minCertLifetime = time.Minute

func runInject(ctx context.Context, env *Env, o *injectOptions) error {
	if err := o.complete(); err != nil {
		return err
	}
	o.project.Stdin = env.In
	res, err := makeOverride(ctx, env, o)
	if err != nil {
		return err
	}
	if o.diff {
		printChanges(env.Out, res.Changes)
		return nil
	}
	if res.Path == "" {
		_, err := env.Out.Write(res.Output)
		return err
	}
	changed, err := res.Write()
	if err != nil {
		return err
	}
	loadForInject(ctx, env)
	if o.config.External != "" {
		warnExternal(ctx, env, o.config)
	}
	env.talk("%s", nextSteps(res, changed))
	return nil
}

// makeOverride loads and injects, and says what there is to say.
func makeOverride(ctx context.Context, env *Env, o *injectOptions) (*compose.Result, error) {
	var res *compose.Result
	err := quietly(env, func() error {
		source, err := compose.Load(ctx, env.projectOptions(o.project))
		if err == nil {
			res, err = compose.Inject(ctx, source, o.config)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, w := range res.Warnings {
		env.talk("warning: %s", w)
	}
	for _, n := range res.Notes {
		env.talk("note: %s", n)
	}
	for _, u := range res.Unknown {
		env.talk("note: %s", u)
	}
	if o.strict && len(res.Unknown) > 0 {
		return nil, fmt.Errorf("--strict: %s; nothing is written", res.Unknown[0])
	}
	if left := slices.IndexFunc(res.Warnings, compose.Warning.LeftOut); o.strict && left >= 0 {
		return nil, fmt.Errorf("--strict: %s; nothing is written", res.Warnings[left])
	}
	return res, nil
}

// printChanges writes each change of a service of the user's: what was there, what is, and why.
func printChanges(w io.Writer, changes []compose.Change) {
	service := ""
	for _, c := range changes {
		if c.Service != service {
			service = c.Service
			fmt.Fprintf(w, "services.%s:\n", service)
		}
		fmt.Fprintf(w, "  # %s\n", c.Why)
		if c.From != "" {
			fmt.Fprintf(w, "- %s: %s\n", c.Path, c.From)
		}
		if strings.HasPrefix(c.To, "services.") {
			fmt.Fprintf(w, "+ %s: %s\n", c.To, c.From)
		} else {
			fmt.Fprintf(w, "+ %s: %s\n", c.Path, c.To)
		}
	}
}

// loadForInject loads the images. Writing the override needs no engine, so an engine that can't be reached is a
// word, not an error: up would say the same again.
func loadForInject(ctx context.Context, env *Env) {
	if err := loadImages(ctx, env); err != nil {
		env.talk("note: the mesh's images are not loaded yet: %v\nnote: run `meshctl images load` when the engine is there", err)
	}
}

func nextSteps(res *compose.Result, changed bool) string {
	what := "wrote " + res.Path
	if !changed {
		what = res.Path + " is up to date"
	}
	if res.Automatic {
		return what + "; next: docker compose up -d"
	}
	return fmt.Sprintf("%s; next: docker compose %s up -d\nor put this line into the project's .env, and then: docker compose up -d\n  %s",
		what, strings.Join(res.Flags, " "), res.ComposeFile)
}

func (e *Env) projectOptions(o compose.Options) compose.Options {
	o.WorkingDir = e.Dir
	o.ProjectName = e.Project
	o.Env = os.Environ()
	return o
}

func newUninject(env *Env) *cobra.Command {
	o := &compose.Options{}
	c := &cobra.Command{
		Use:   "uninject",
		Short: "Take a compose project out of the mesh again",
		Long: "Take a compose project out of the mesh again: stop and remove the mesh's own containers of the project if\n" +
			"it runs, and remove the files that inject wrote. Volumes and the project's own files are not touched.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runUninject(c.Context(), env, *o) },
	}
	addProject(c, o)
	return c
}

func runUninject(ctx context.Context, env *Env, o compose.Options) error {
	name := projectName(ctx, env, o)
	removed, err := compose.Uninject(env.projectOptions(o))
	for _, f := range removed {
		env.talk("removed %s", f)
	}
	if err != nil {
		return err
	}
	stopped, err := removeMeshContainers(ctx, env, name)
	if err != nil {
		return fmt.Errorf("the files are removed, the containers are not: %w", err)
	}
	switch {
	case stopped > 0:
		env.talk("removed %d containers of the mesh; next: docker compose up -d", stopped)
	case len(removed) == 0:
		env.talk("nothing to do: no file that meshctl wrote, no container of the mesh")
	}
	return nil
}

// projectName is the name of the project that runs here. A project that does not load still has its containers,
// and they are found by the directory.
func projectName(ctx context.Context, env *Env, o compose.Options) string {
	if s, err := compose.Load(ctx, env.projectOptions(o)); err == nil {
		return s.Name
	}
	if m, err := env.mesh(ctx); err == nil {
		return m.Name
	}
	return env.Project
}

// removeMeshContainers removes a project's sandboxes, proxies and planes, and those applications that live in a
// sandbox's network namespace: without it they could not be started again, and the next `up` makes them anew.
func removeMeshContainers(ctx context.Context, env *Env, project string) (int, error) {
	if project == "" {
		return 0, nil
	}
	engine, err := env.Engine(ctx)
	if err != nil {
		return 0, err
	}
	list, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(
		filters.Arg("label", composeProject+"="+project), filters.Arg("label", labels.Role))})
	if err != nil {
		return 0, err
	}
	n, err := removeContainers(ctx, env, list)
	if err != nil {
		return n, err
	}
	return n, removeEgress(ctx, env, project)
}

// removeEgress removes the planes' own network, which the project's file knows no more.
func removeEgress(ctx context.Context, env *Env, project string) error {
	engine, err := env.Engine(ctx)
	if err != nil {
		return err
	}
	list, err := engine.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(
		filters.Arg("label", composeProject+"="+project), filters.Arg("label", composeNetwork+"="+compose.EgressNetwork))})
	if err != nil {
		return err
	}
	for _, n := range list {
		if err := engine.NetworkRemove(ctx, n.ID); err != nil {
			return fmt.Errorf("remove network %s: %w", n.Name, err)
		}
	}
	return nil
}

// removeContainers removes containers of a mesh.
func removeContainers(ctx context.Context, env *Env, list []container.Summary) (int, error) {
	engine, err := env.Engine(ctx)
	if err != nil {
		return 0, err
	}
	// The applications first, so that they can end their work through their proxies.
	order := []mesh.Role{mesh.RoleApp, mesh.RoleGateway, mesh.RoleProxy, mesh.RoleSandbox, mesh.RoleMixer, mesh.RoleCitadel, mesh.RolePilot, mesh.RoleKeeper}
	n := 0
	var failed []error
	for _, role := range order {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for _, c := range list {
			if mesh.Role(c.Labels[labels.Role]) != role {
				continue
			}
			env.talk("removing %s", strings.TrimPrefix(strings.Join(c.Names, " "), "/"))
			wg.Go(func() {
				err := stopAndRemove(ctx, engine, c.ID)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = append(failed, err)
					return
				}
				n++
			})
		}
		wg.Wait()
	}
	return n, errors.Join(failed...)
}

func stopAndRemove(ctx context.Context, engine Engine, id string) error {
	err := engine.ContainerStop(ctx, id, container.StopOptions{}) // with the grace that the container asks for
	if err == nil {
		err = engine.ContainerRemove(ctx, id, container.RemoveOptions{Force: true})
	}
	if err != nil {
		return fmt.Errorf("container %.12s: %w", id, err)
	}
	return nil
}
