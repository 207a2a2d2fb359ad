package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// finding is something that is not as it should be.
type finding struct {
	Workload  string `json:"workload,omitempty"`
	Container string `json:"container,omitempty"`
	Problem   string `json:"problem"`
	Advice    string `json:"advice"`
	// Level is "note" for what may well be meant: it does not make doctor fail.
	Level string `json:"level,omitempty"`
	// Fixable is what --fix repairs.
	Fixable bool `json:"fixable"`

	action heal.Action // a restart or start that repairs it
	up     service     // the compose service whose `up` repairs it
}

// service is a service of a compose project.
type service struct{ project, name string }

const levelNote = "note"

type diagnosis struct {
	Mesh     string    `json:"mesh,omitempty"` // empty if none runs
	Findings []finding `json:"findings"`
}

func newDoctor(env *Env) *cobra.Command {
	var f format
	var fix bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Examine the host, the project and the running mesh",
		Long: "Examine the host, the project and the running mesh, and say what to do about each thing that is not as it should be.\n" +
			"Where no mesh runs yet, it says what would be in the way of one. The exit code is 0 if there is nothing but notes, 1\n" +
			"otherwise. --fix restarts what is in a dead network namespace, and runs `docker compose up -d`\n" +
			"for services whose sandbox or part of the mesh is gone; it changes no file.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runDoctor(c.Context(), env, f, fix) },
	}
	addOutput(c, &f, "text", "json", "yaml")
	c.Flags().BoolVar(&fix, "fix", false, "repair what can be repaired safely, then look again")
	return c
}

func runDoctor(ctx context.Context, env *Env, f format, fix bool) error {
	d := &doctor{env: env}
	found, err := d.examine(ctx)
	if err != nil {
		return err
	}
	if fix && d.mesh != "" {
		if found, err = d.repair(ctx, found); err != nil {
			return err
		}
	}
	result := diagnosis{Mesh: d.mesh, Findings: append([]finding{}, found...)}
	if f != "text" {
		err = encode(env.Out, f, result)
	} else {
		d.print(found)
	}
	if wrong := serious(found); err == nil && wrong > 0 {
		err = fmt.Errorf("%s: %d findings", d.name(), wrong)
	}
	return err
}

// serious counts the findings that are no notes.
func serious(found []finding) int {
	n := 0
	for _, f := range found {
		if f.Level != levelNote {
			n++
		}
	}
	return n
}

func (d *doctor) name() string {
	if d.mesh == "" {
		return "the host"
	}
	return "mesh " + d.mesh
}

func (d *doctor) print(found []finding) {
	switch {
	case serious(found) > 0:
	case d.mesh == "":
		fmt.Fprintln(d.env.Out, "the host is as it should be; no mesh runs")
	default:
		fmt.Fprintf(d.env.Out, "mesh %s is as it should be: %d containers\n", d.mesh, len(d.containers))
	}
	for _, f := range found {
		who := cmp.Or(f.Container, f.Workload, d.mesh, "host")
		if f.Level == levelNote {
			who = "note: " + who
		}
		fmt.Fprintf(d.env.Out, "%s: %s\n", who, f.Problem)
		advice := f.Advice
		if f.Fixable {
			advice += "   (or: meshctl doctor --fix)"
		}
		fmt.Fprintf(d.env.Out, "    → %s\n", advice)
	}
}

// doctor examines one mesh.
type doctor struct {
	env        *Env
	engine     Engine
	mesh       string
	shared     bool                        // its planes are those of meshctl install
	containers []container.InspectResponse // of the mesh and of its projects
}

// examine asks about everything anew.
func (d *doctor) examine(ctx context.Context) ([]finding, error) {
	var err error
	if d.engine, err = d.env.Engine(ctx); err != nil {
		return nil, err
	}
	h, err := examineHost(ctx, d.env)
	if err != nil {
		return nil, err
	}
	found := h.findings()
	m, err := d.env.mesh(ctx)
	var coded *codedError
	switch {
	case errors.As(err, &coded) && coded.code == exitUnreachable:
		d.env.talk("%v", err)
		return append(found, d.before(ctx)...), nil
	case err != nil:
		return nil, err
	}
	d.mesh, d.shared = m.Name, m.Shared
	if err := d.inspect(ctx); err != nil {
		return nil, err
	}
	found = append(found, d.planes()...)
	found = append(found, d.namespaces()...)
	found = append(found, d.workloads()...)
	found = append(found, d.answers(ctx)...)
	found = append(found, d.rules(ctx)...)
	found = append(found, d.unreachable(ctx)...)
	found = append(found, d.disguised(ctx)...)
	found = append(found, d.files(ctx)...)
	outsiders, err := d.outsiders(ctx)
	if err != nil {
		return nil, err
	}
	found = append(found, outsiders...)
	for i, f := range found {
		if d.shared && f.up.project != "" { // which of the projects it is
			found[i].Advice = strings.Replace(f.Advice, "docker compose up", "docker compose -p "+f.up.project+" up", 1)
		}
	}
	return found, nil
}

// before is what inject would say of the project here, if there is one.
func (d *doctor) before(ctx context.Context) []finding {
	source, err := compose.Load(ctx, d.env.projectOptions(compose.Options{}))
	if err != nil {
		return nil // no project, or docker compose says the same of it
	}
	plan, err := source.Plan(nil)
	if err != nil {
		return []finding{{Problem: err.Error(), Advice: "mend it before meshctl compose inject"}}
	}
	var found []finding
	for _, w := range plan.Warnings {
		found = append(found, finding{Level: levelNote, Workload: w.Service, Problem: w.Field + ": " + w.Reason, Advice: cmp.Or(w.Do, "nothing, if that is meant")})
	}
	return found
}

func (d *doctor) inspect(ctx context.Context) error {
	d.containers = nil
	seen := map[string]bool{}
	wanted := []string{labels.Mesh + "=" + d.mesh, composeProject + "=" + d.mesh}
	for i := 0; i < len(wanted); i++ { // the first answer names the projects to ask about
		label := wanted[i]
		list, err := d.engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", label))})
		if err != nil {
			return withCode(exitUnreachable, fmt.Errorf("list containers: %w", err))
		}
		for _, c := range list {
			if p := composeProject + "=" + c.Labels[composeProject]; i == 0 && !slices.Contains(wanted, p) {
				wanted = append(wanted, p)
			}
			if m, other := c.Labels[labels.Mesh]; seen[c.ID] || other && m != d.mesh {
				continue
			}
			seen[c.ID] = true
			info, err := d.engine.ContainerInspect(ctx, c.ID)
			if err != nil || info.ContainerJSONBase == nil || info.State == nil || info.HostConfig == nil || info.Config == nil {
				continue // gone since
			}
			d.containers = append(d.containers, info)
		}
	}
	slices.SortFunc(d.containers, func(a, b container.InspectResponse) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func label(c container.InspectResponse, key string) string { return c.Config.Labels[key] }

func role(c container.InspectResponse) mesh.Role { return mesh.Role(label(c, labels.Role)) }

func name(c container.InspectResponse) string { return strings.TrimPrefix(c.Name, "/") }

// Labels that Compose writes.
const (
	composeService = "com.docker.compose.service"
	composeFiles   = "com.docker.compose.project.config_files"
	composeEnvFile = "com.docker.compose.project.environment_file"
	composeOneOff  = "com.docker.compose.oneoff"
)

// planes finds what the mesh itself lacks.
func (d *doctor) planes() []finding {
	var found []finding
	for _, r := range []mesh.Role{mesh.RoleKeeper, mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer} {
		i := slices.IndexFunc(d.containers, func(c container.InspectResponse) bool { return role(c) == r })
		f := upFinding("", service{d.mesh, "composure-" + string(r)})
		if d.shared {
			f = finding{Advice: strings.Trim(installCommand(d.mesh), "`")}
		}
		switch {
		case i < 0:
			f.Container, f.Problem = "composure-"+string(r), fmt.Sprintf("%s has no container", r)
			found = append(found, f)
		case !d.containers[i].State.Running:
			f.Container, f.Problem = name(d.containers[i]), fmt.Sprintf("%s does not run: %s", r, why(d.containers[i].State))
			found = append(found, f)
		}
	}
	return found
}

func why(s *container.State) string {
	if s.Error != "" {
		return s.Error
	}
	return fmt.Sprintf("%s, exit code %d", s.Status, s.ExitCode)
}

// upFinding is a finding that an `up` of the service repairs.
func upFinding(workload string, s service) finding {
	return finding{Workload: workload, Advice: "docker compose up -d " + s.name, Fixable: true, up: s}
}

// upContainer is one about a container, which an `up` of its service repairs.
func upContainer(c container.InspectResponse, problem string) finding {
	f := upFinding(label(c, labels.Workload), serviceOf(c))
	f.Container, f.Problem = name(c), problem
	return f
}

func serviceOf(c container.InspectResponse) service {
	return service{label(c, composeProject), label(c, composeService)}
}

// namespaces finds what the keeper would repair, or can't.
func (d *doctor) namespaces() []finding {
	var list []heal.Container
	for _, c := range d.containers {
		list = append(list, healView(c))
	}
	var found []finding
	for _, a := range heal.Plan(list) {
		f := finding{Workload: a.Workload, Container: a.Container.Name, Problem: a.Why, Fixable: true, action: a}
		switch {
		case a.Verb == heal.Tell && a.Container.Role == mesh.RoleSandbox: // somebody may have meant it
			f.Advice, f.Fixable = a.Advice, false
		case a.Verb == heal.Tell:
			f.Advice, f.up = a.Advice, service{d.projectOf(a.Container.ID), a.Container.Service}
		default:
			f.Advice = fmt.Sprintf("docker %s %s; the keeper does it in a moment, and `meshctl events` tells", a.Verb, a.Container.Name)
		}
		found = append(found, f)
	}
	return found
}

func (d *doctor) projectOf(id string) string {
	for _, c := range d.containers {
		if c.ID == id {
			return label(c, composeProject)
		}
	}
	return d.mesh
}

// healView is a container as the healer sees it.
func healView(c container.InspectResponse) heal.Container {
	v := heal.Container{
		ID: c.ID, Name: name(c), Service: label(c, composeService), Role: role(c), Workload: label(c, labels.Workload),
		OneOff: label(c, composeOneOff) == "True", State: heal.State(c.State.Status), Error: c.State.Error,
	}
	if c.State.Health != nil && c.State.Health.Status != container.NoHealthcheck {
		v.Health = c.State.Health.Status
	}
	if c.NetworkSettings != nil {
		for _, n := range c.NetworkSettings.Networks {
			if n != nil && n.NetworkID != "" {
				v.Networks++
			}
		}
	}
	v.Bare = v.Role == mesh.RoleSandbox && v.Networks == 0
	if c.HostConfig.NetworkMode.IsContainer() {
		v.NetworkOf = c.HostConfig.NetworkMode.ConnectedContainer()
	}
	v.StartedAt, _ = time.Parse(time.RFC3339Nano, c.State.StartedAt) // zero for one that never was
	return v
}

// workloads finds proxies that don't work, and applications that could escape them.
func (d *doctor) workloads() []finding {
	var found []finding
	proxies := map[string]container.InspectResponse{}
	for _, c := range d.containers {
		if r := role(c); r == mesh.RoleProxy || r == mesh.RoleGateway {
			proxies[label(c, labels.Workload)] = c
			found = append(found, unhealthy(c)...)
		}
	}
	for _, c := range d.containers {
		if role(c) != mesh.RoleApp || label(c, composeOneOff) == "True" {
			continue
		}
		workload := label(c, labels.Workload)
		proxy, ok := proxies[workload]
		switch {
		case !c.State.Running:
		case !ok:
			found = append(found, upContainer(c, "it has no proxy, so it reaches nobody"))
		case !proxy.State.Running && !failedToJoin(proxy):
			found = append(found, upContainer(proxy, "the proxy does not run, so the application reaches nobody: "+why(proxy.State)))
		}
		found = append(found, escapes(c)...)
	}
	return found
}

// failedToJoin reports whether the namespaces' findings have the container already.
func failedToJoin(c container.InspectResponse) bool {
	return strings.Contains(c.State.Error, "network") || strings.Contains(c.State.Error, "No such container")
}

func unhealthy(c container.InspectResponse) []finding {
	if !c.State.Running || c.State.Health == nil || c.State.Health.Status != container.Unhealthy {
		return nil
	}
	problem := "the proxy is not ready"
	if n := len(c.State.Health.Log); n > 0 {
		if out := strings.TrimSpace(c.State.Health.Log[n-1].Output); out != "" {
			problem += ": " + out
		}
	}
	return []finding{{Workload: label(c, labels.Workload), Container: name(c), Problem: problem, Advice: "docker logs --tail 20 " + name(c)}}
}

// escapes finds applications whose traffic is not captured, or that could undo the capture.
func escapes(c container.InspectResponse) []finding {
	var found []finding
	add := func(problem, advice string) {
		found = append(found, finding{Workload: label(c, labels.Workload), Container: name(c), Problem: problem, Advice: advice})
	}
	user, group, _ := strings.Cut(c.Config.User, ":")
	if proxyUser := strconv.Itoa(mesh.UIDProxy); user == proxyUser || group == proxyUser {
		add(fmt.Sprintf("it runs as user %s, the proxy's own, whose traffic is not captured", c.Config.User), "give the service another `user`")
	}
	if c.HostConfig.Privileged {
		add("it is privileged: it can remove the capture rules", "leave out `privileged`, or leave the service out of the mesh with the label "+labels.Inject+`: "false"`)
	}
	for _, capability := range c.HostConfig.CapAdd {
		if bare := strings.TrimPrefix(strings.ToUpper(capability), "CAP_"); bare == "NET_ADMIN" || bare == "ALL" {
			add("it has the capability "+bare+": it can remove the capture rules", "leave out `cap_add: "+bare+"`, or leave the service out of the mesh with the label "+labels.Inject+`: "false"`)
		}
	}
	return found
}

// files finds an override that no longer fits the project's files, and containers that were started without it.
func (d *doctor) files(ctx context.Context) []finding {
	var found []finding
	for _, project := range d.projects() {
		found = append(found, d.filesOf(ctx, project)...)
	}
	return found
}

// projects are the compose projects of the mesh's workloads, sorted.
func (d *doctor) projects() []string {
	var list []string
	for _, c := range d.containers {
		if role(c) != "" && (!d.shared || label(c, composeProject) != d.mesh) {
			list = append(list, label(c, composeProject))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (d *doctor) filesOf(ctx context.Context, project string) []finding {
	home, ok := d.home(project)
	if !ok {
		return nil
	}
	if _, err := os.Stat(home.dir); err != nil {
		return nil // the project is on another machine
	}
	opts := d.env.projectOptions(compose.Options{Files: home.files, ProjectDir: home.dir, EnvFiles: home.envFiles})
	opts.WorkingDir, opts.ProjectName = home.dir, project
	source, err := compose.Load(ctx, opts)
	if err != nil {
		return []finding{{Problem: fmt.Sprintf("the project's files don't load: %v", err), Advice: "docker compose config"}}
	}
	var found []finding
	if len(source.Ours) == 0 {
		found = append(found, finding{Problem: "the override that put the project into the mesh is gone, or the project was last started without it",
			Advice: "meshctl compose inject, then docker compose up -d"})
	}
	for _, path := range source.Ours {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // read a moment ago
		}
		h, _ := compose.ReadHeader(content)
		if stale := source.Stale(path, h); stale != "" {
			found = append(found, finding{Problem: fmt.Sprintf("%s is older than %s, which it was made from", filepath.Base(path), stale),
				Advice: "meshctl compose inject, then docker compose up -d"})
		}
		found = append(found, d.outside(project, content)...)
	}
	return found
}

// outside finds running containers of services that the override puts into the mesh, and that are not in it.
func (d *doctor) outside(project string, override []byte) []finding {
	var doc struct {
		Services map[string]struct {
			Labels map[string]string `yaml:"labels"`
		} `yaml:"services"`
	}
	if yaml.Unmarshal(override, &doc) != nil {
		return nil // the loader has read it: it is not of the form that we look for
	}
	var found []finding
	for _, c := range d.containers {
		s := serviceOf(c)
		if role(c) == "" && c.State.Running && s.project == project && doc.Services[s.name].Labels[labels.Role] != "" {
			found = append(found, upContainer(c, "it runs outside the mesh: it was started without the override"))
		}
	}
	return found
}

// home is where a project lives and how it was started.
type home struct {
	dir             string
	files, envFiles []string
}

// home is that of the newest container of a project.
func (d *doctor) home(project string) (home, bool) {
	var newest *container.InspectResponse
	for i, c := range d.containers {
		if role(c) != "" && label(c, composeProject) == project && (newest == nil || c.Created > newest.Created) {
			newest = &d.containers[i]
		}
	}
	if newest == nil || label(*newest, composeWorkingDir) == "" {
		return home{}, false
	}
	h := home{dir: label(*newest, composeWorkingDir)}
	if s := label(*newest, composeFiles); s != "" {
		h.files = strings.Split(s, ",")
	}
	if s := label(*newest, composeEnvFile); s != "" {
		h.envFiles = strings.Split(s, ",")
	}
	return h, true
}

// repair does what is safe about the findings and returns those that are left.
func (d *doctor) repair(ctx context.Context, found []finding) ([]finding, error) {
	services := map[string][]string{} // by project
	for _, f := range found {
		if p := f.up.project; f.up.name != "" && !slices.Contains(services[p], f.up.name) {
			services[p] = append(services[p], f.up.name)
		}
	}
	for _, project := range slices.Sorted(maps.Keys(services)) {
		if err := d.composeUp(ctx, project, services[project]); err != nil {
			return nil, err
		}
	}
	if len(services) > 0 {
		var err error
		if found, err = d.examine(ctx); err != nil {
			return nil, err
		}
	}
	acted := false
	for _, f := range found { // proxies come before their applications
		if f.action.Verb != heal.Start && f.action.Verb != heal.Restart {
			continue
		}
		acted = true
		if err := d.restart(ctx, f.action); err != nil {
			return nil, err
		}
	}
	if len(services) == 0 && !acted {
		return found, nil
	}
	return d.examine(ctx)
}

// fixReady is how long --fix waits for a proxy before it restarts the application all the same.
const fixReady = 30 * time.Second

func (d *doctor) restart(ctx context.Context, a heal.Action) error {
	id := a.Container.ID
	d.env.talk("%s %s", a.Verb, a.Container.Name)
	var err error
	if a.Verb == heal.Start {
		err = d.engine.ContainerStart(ctx, id, container.StartOptions{})
	} else {
		err = d.engine.ContainerRestart(ctx, id, container.StopOptions{})
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", a.Verb, a.Container.Name, err)
	}
	if a.Container.Role != mesh.RoleProxy {
		return nil
	}
	for deadline := time.Now().Add(fixReady); time.Now().Before(deadline); {
		info, err := d.engine.ContainerInspect(ctx, id)
		if err != nil {
			return err
		}
		if info.State == nil || info.State.Health == nil || info.State.Health.Status == container.Healthy {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// composeUp runs docker compose up as the project was started the last time.
func (d *doctor) composeUp(ctx context.Context, project string, services []string) error {
	h, ok := d.home(project)
	if !ok {
		return errors.New("the mesh's containers don't say where their project is: run in its directory: docker compose up -d " + strings.Join(services, " "))
	}
	words := append(composeProgram(d.env), "--project-name", project, "--project-directory", h.dir)
	for _, f := range h.files {
		words = append(words, "--file", f)
	}
	for _, f := range h.envFiles {
		words = append(words, "--env-file", f)
	}
	words = append(append(words, "up", "--detach"), services...)
	d.env.talk("docker compose up -d %s", strings.Join(services, " "))
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = h.dir, d.env.Err, d.env.Err
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("docker compose up -d %s, in %s: %w", strings.Join(services, " "), h.dir, err)
	}
	return nil
}
