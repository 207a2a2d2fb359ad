package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/compose"
	"github.com/composure-mesh/composure/mesh"
)

type reportOptions struct {
	output string
	lines  int
}

func newBugReport(env *Env) *cobra.Command {
	o := &reportOptions{}
	c := &cobra.Command{
		Use:   "bug-report",
		Short: "Pack what helps to understand a problem into one file, without secrets",
		Long: "Pack what helps to understand a problem into one file: what doctor finds, versions, the state of the mesh's containers\n" +
			"and networks, the logs of the mesh's own containers, each proxy's configuration, certificates and counters, the resources\n" +
			"that were applied. Left out: the applications' logs, the project's files, the values of environment variables, private\n" +
			"keys, tokens, and whatever stands beside a name such as authorization, cookie, password or token. Look through it before\n" +
			"you pass it on: names, plain labels, addresses and routes of yours are in it.",
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runBugReport(c.Context(), env, o) },
	}
	c.Flags().StringVarP(&o.output, "output", "o", "", "file to write, - for stdout; default: composure-bug-report-<mesh>.tar.gz")
	c.Flags().IntVar(&o.lines, "lines", 1000, "lines of each log")
	return c
}

func runBugReport(ctx context.Context, env *Env, o *reportOptions) error {
	d := &doctor{env: env}
	found, err := d.examine(ctx)
	if err != nil {
		return err
	}
	r := &bugReport{doctor: d, lines: o.lines}
	r.json("doctor.json", diagnosis{Mesh: d.mesh, Findings: append([]finding{}, found...)})
	r.gather(ctx)
	if o.output == "-" {
		return r.write(env.Out)
	}
	name := o.output
	if name == "" {
		name = "composure-bug-report.tar.gz"
		if d.mesh != "" {
			name = "composure-bug-report-" + d.mesh + ".tar.gz"
		}
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(env.Dir, name)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(r.write(f), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(name))
	}
	env.talk("wrote %s: %d files. Look through it before you pass it on: names, plain labels, addresses and routes of yours are in it", name, len(r.files))
	return nil
}

// bugReport is a report in the making. Every file passes redactText or redactJSON.
type bugReport struct {
	*doctor
	lines int
	files []reportFile
}

type reportFile struct {
	name    string
	content []byte
}

// json adds a value.
func (r *bugReport) json(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		r.missing(name, err)
		return
	}
	r.files = append(r.files, reportFile{name, redactJSON(b)})
}

func (r *bugReport) text(name, content string) {
	r.files = append(r.files, reportFile{name, []byte(redactText(content))})
}

// missing says why a file is not there: a part of the mesh that does not answer is why there is a report.
func (r *bugReport) missing(name string, err error) { r.text(name+".error", err.Error()+"\n") }

func (r *bugReport) write(w io.Writer) error {
	gz := gzip.NewWriter(w)
	t := tar.NewWriter(gz)
	slices.SortFunc(r.files, func(a, b reportFile) int { return strings.Compare(a.name, b.name) })
	for _, f := range r.files {
		if err := t.WriteHeader(&tar.Header{Name: "composure-bug-report/" + f.name, Mode: 0o600, Size: int64(len(f.content)), ModTime: time.Now()}); err != nil {
			return err
		}
		if _, err := t.Write(f.content); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), gz.Close())
}

func (r *bugReport) gather(ctx context.Context) {
	r.machine(ctx)
	for _, c := range r.containers {
		dir := "containers/" + name(c) + "/"
		r.json(dir+"state.json", stateOf(c))
		// An application's log is the user's own, and may hold anything.
		if own := role(c); own == "" || own == mesh.RoleApp {
			continue
		}
		if log, err := r.log(ctx, c.ID); err != nil {
			r.missing(dir+"log.txt", err)
		} else {
			r.text(dir+"log.txt", log)
		}
		if c.State.Running {
			r.pages(ctx, dir, c)
		}
	}
	r.networks(ctx)
	r.overrides(ctx)
	r.resources(ctx)
}

// machine is the engine's and the host's part.
func (r *bugReport) machine(ctx context.Context) {
	if v, err := r.env.versions(ctx); err != nil {
		r.missing("version.json", err)
	} else {
		r.json("version.json", v)
	}
	info, err := r.engine.Info(ctx)
	if err != nil {
		r.missing("engine.json", err)
		return
	}
	r.json("engine.json", map[string]any{
		"serverVersion": info.ServerVersion, "operatingSystem": info.OperatingSystem, "osType": info.OSType, "kernelVersion": info.KernelVersion,
		"architecture": info.Architecture, "ncpu": info.NCPU, "memTotal": info.MemTotal, "driver": info.Driver, "cgroupDriver": info.CgroupDriver,
		"cgroupVersion": info.CgroupVersion, "securityOptions": info.SecurityOptions, "ipv4Forwarding": info.IPv4Forwarding,
		"liveRestore": info.LiveRestoreEnabled, "runtime": info.DefaultRuntime,
		"defaultAddressPools": info.DefaultAddressPools, "containers": info.Containers, "containersRunning": info.ContainersRunning,
		"systemTime": info.SystemTime, "warnings": info.Warnings,
	})
}

// stateOf is what the report tells about a container: a choice, so that what a new engine adds is not in it unseen.
func stateOf(c container.InspectResponse) map[string]any {
	state := map[string]any{
		"id": c.ID, "name": name(c), "image": c.Config.Image, "imageID": c.Image, "created": c.Created, "restartCount": c.RestartCount,
		"status": c.State.Status, "exitCode": c.State.ExitCode, "error": c.State.Error, "oomKilled": c.State.OOMKilled,
		"startedAt": c.State.StartedAt, "finishedAt": c.State.FinishedAt, "user": c.Config.User,
		"environment": redactEnvironment(c.Config.Env), "labels": ownLabels(c.Config.Labels),
		"networkMode": c.HostConfig.NetworkMode, "restartPolicy": c.HostConfig.RestartPolicy, "privileged": c.HostConfig.Privileged,
		"capAdd": c.HostConfig.CapAdd, "capDrop": c.HostConfig.CapDrop, "readOnly": c.HostConfig.ReadonlyRootfs, "memory": c.HostConfig.Memory,
		"runtime": c.HostConfig.Runtime, "portBindings": c.HostConfig.PortBindings,
	}
	if c.State.Health != nil {
		state["health"], state["failingStreak"] = c.State.Health.Status, c.State.Health.FailingStreak
		if r := role(c); (r == mesh.RoleProxy || r == mesh.RoleGateway) && len(c.State.Health.Log) > 0 {
			state["probe"] = c.State.Health.Log[len(c.State.Health.Log)-1].Output
		}
	}
	if c.NetworkSettings != nil {
		state["networks"], state["ports"] = c.NetworkSettings.Networks, c.NetworkSettings.Ports
	}
	var mounts []string
	for _, m := range c.Mounts {
		mounts = append(mounts, fmt.Sprintf("%s %s → %s (rw: %t)", m.Type, m.Name, m.Destination, m.RW))
	}
	state["mounts"] = mounts
	return state
}

// ownLabels are the labels of the mesh and of Compose; a user's own may hold anything.
func ownLabels(all map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range all {
		if strings.HasPrefix(k, "composure.") || strings.HasPrefix(k, "com.docker.compose.") {
			out[k] = v
		}
	}
	return out
}

func (r *bugReport) log(ctx context.Context, id string) (string, error) {
	stream, err := r.engine.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Tail: strconv.Itoa(r.lines)})
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, stream)
	return out.String(), err
}

// reportPages are the pages of each role's admin API that go into a report.
var reportPages = map[mesh.Role]map[string]string{
	mesh.RoleProxy:   proxyPages,
	mesh.RoleGateway: proxyPages,
	mesh.RoleKeeper:  {"events.json": "/events"},
	mesh.RolePilot:   {"proxies.json": "/debug/proxies"},
	mesh.RoleCitadel: {"certs.json": "/debug/certs", "proxies.json": "/debug/proxies"},
	mesh.RoleMixer:   {"metrics.txt": "/metrics", "proxies.json": "/debug/proxies"},
}

var proxyPages = map[string]string{
	"config.json": "/config_dump", "clusters.json": "/clusters", "certs.json": "/certs", "info.json": "/server_info", "stats.txt": "/stats",
	"namespace.json": "/namespace",
}

func (r *bugReport) pages(ctx context.Context, dir string, c container.InspectResponse) {
	program := "/" + string(role(c))
	if role(c) == mesh.RoleGateway {
		program = "/proxy"
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	p, err := r.env.peer(ctx, name(c), c.ID, program)
	if err != nil {
		r.missing(dir+"admin", err)
		return
	}
	defer p.http.CloseIdleConnections()
	for file, path := range reportPages[role(c)] {
		switch b, err := p.get(ctx, path); {
		case err != nil:
			r.missing(dir+file, err)
		case strings.HasSuffix(file, ".json"):
			r.files = append(r.files, reportFile{dir + file, redactJSON(b)})
		default:
			r.text(dir+file, string(b))
		}
	}
}

func (r *bugReport) networks(ctx context.Context) {
	list, err := r.engine.NetworkList(ctx, network.ListOptions{})
	if err != nil {
		r.missing("networks.json", err)
		return
	}
	used := map[string]bool{}
	for _, c := range r.containers {
		if c.NetworkSettings != nil {
			for _, n := range c.NetworkSettings.Networks {
				used[n.NetworkID] = true
			}
		}
	}
	out := []map[string]any{}
	for _, n := range list {
		if used[n.ID] {
			out = append(out, map[string]any{"name": n.Name, "id": n.ID, "driver": n.Driver, "internal": n.Internal, "ipv6": n.EnableIPv6, "ipam": n.IPAM.Config})
		}
	}
	r.json("networks.json", out)
}

// overrides are the headers of the files that inject wrote; what else is in them was the user's.
func (r *bugReport) overrides(ctx context.Context) {
	for _, project := range r.projects() {
		h, ok := r.home(project)
		if !ok {
			continue
		}
		opts := r.env.projectOptions(compose.Options{Files: h.files, ProjectDir: h.dir, EnvFiles: h.envFiles})
		opts.WorkingDir, opts.ProjectName = h.dir, project
		source, err := compose.Load(ctx, opts)
		if err != nil {
			r.missing("projects/"+project+".json", err)
			continue
		}
		path, header := source.Written()
		r.json("projects/"+project+".json", map[string]any{"file": filepath.Base(path), "version": header.Version, "flags": header.Flags, "stale": source.Stale(path, header)})
	}
}

// resources are what people have applied, in all namespaces.
func (r *bugReport) resources(ctx context.Context) {
	if r.mesh == "" {
		return
	}
	client, err := r.env.resources(ctx)
	if err != nil {
		r.missing("resources", err)
		return
	}
	for _, k := range client.kinds {
		if !k.preferred {
			continue
		}
		var list map[string]any
		if err := client.send(ctx, k, "GET", k.path("", ""), nil, nil, &list); err != nil {
			r.missing("resources/"+k.Name, err)
			continue
		}
		r.json("resources/"+k.Name+".json", withoutValues(k, withoutManaged(list)))
	}
}

// withoutValues leaves out what Secrets hold: the names of their keys say enough.
func withoutValues(k kind, list map[string]any) map[string]any {
	items, _ := list["items"].([]any)
	for _, i := range items {
		o, _ := i.(map[string]any)
		if data, ok := o["data"].(map[string]any); ok && k.Kind == "Secret" {
			for key := range data {
				data[key] = removed
			}
		}
	}
	return list
}

// withoutManaged leaves out the copy of a whole object that kubectl apply keeps in an annotation, as text in which names
// and values can't be told apart.
func withoutManaged(list map[string]any) map[string]any {
	items, _ := list["items"].([]any)
	for _, i := range items {
		o, _ := i.(map[string]any)
		m, _ := o["metadata"].(map[string]any)
		if a, ok := m["annotations"].(map[string]any); ok {
			delete(a, "kubectl.kubernetes.io/last-applied-configuration")
		}
	}
	return list
}
