package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/pkg/stdcopy"
	"golang.org/x/sync/errgroup"

	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// answers finds planes that run and are not well, and what they know: proxies that have no certificate or not the
// newest configuration.
func (d *doctor) answers(ctx context.Context) []finding {
	var found []finding
	running := map[mesh.Role]container.InspectResponse{}
	for _, c := range d.containers {
		if c.State.Running && slices.Contains(planeRoles, role(c)) {
			running[role(c)] = c
		}
	}
	for _, r := range planeRoles {
		c, ok := running[r]
		if !ok {
			continue // planes has said so
		}
		if err := d.ask(ctx, c, "/healthz", nil); err != nil {
			found = append(found, finding{Container: name(c), Problem: fmt.Sprintf("%s is not well: %v", r, err), Advice: "docker logs --tail 20 " + name(c)})
		}
	}
	for _, r := range apiPlanes {
		c, ok := running[r]
		if !ok {
			continue
		}
		var report status.Report
		if d.ask(ctx, c, "/debug/proxies", &report) == nil {
			_, keeper := running[mesh.RoleKeeper]
			found = append(found, d.unsynced(r, report, keeper)...)
		}
	}
	if c, ok := running[mesh.RoleCitadel]; ok {
		var certs []certificate
		if d.ask(ctx, c, "/debug/certs", &certs) == nil {
			found = append(found, d.certificates(certs, time.Now())...)
		}
	}
	return found
}

func (d *doctor) ask(ctx context.Context, c container.InspectResponse, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	p, err := d.env.peer(ctx, string(role(c)), c.ID, "/"+string(role(c)))
	if err != nil {
		return err
	}
	defer p.http.CloseIdleConnections()
	if v != nil {
		return p.getJSON(ctx, path, v)
	}
	_, err = p.get(ctx, path)
	return err
}

// unsynced finds proxies that do without a plane's newest configuration.
func (d *doctor) unsynced(plane mesh.Role, report status.Report, keeper bool) []finding {
	var found []finding
	if keeper && !report.Keeper {
		found = append(found, finding{
			Problem: fmt.Sprintf("%s has no connection to the keeper: what it knows of the containers may be old", plane),
			Advice:  "docker compose logs composure-keeper composure-" + string(plane),
		})
	}
	for _, p := range report.Proxies {
		if p.State == status.Nack {
			found = append(found, finding{Workload: p.Workload, Problem: fmt.Sprintf("its proxy has refused %s's newest configuration: %s", plane, p.Error),
				Advice: "mend what the reason names; the configuration before stays in force"})
		}
	}
	return found
}

// certificates finds proxies that run without a valid certificate, or with one that is late to be renewed: that is at half
// of its life.
func (d *doctor) certificates(certs []certificate, now time.Time) []finding {
	held := map[string]certificate{}
	for _, c := range certs {
		held[c.Container] = c
	}
	var found []finding
	for _, c := range d.containers {
		if r := role(c); r != mesh.RoleProxy && r != mesh.RoleGateway || !c.State.Running {
			continue
		}
		advice := "docker logs --tail 20 " + name(c)
		cert, ok := held[c.ID]
		life := cert.NotAfter.Sub(cert.NotBefore)
		f := finding{Workload: label(c, labels.Workload), Container: name(c), Advice: advice}
		switch {
		case !ok || !cert.NotAfter.After(now):
			f.Problem = "it holds no valid certificate: its peers refuse it"
		case cert.NotAfter.Sub(now) < life/4:
			f.Problem = fmt.Sprintf("its certificate was not renewed, and ends in %s", cert.NotAfter.Sub(now).Round(time.Second))
		default:
			continue
		}
		found = append(found, f)
	}
	return found
}

// rules finds running sandboxes whose namespaces are not captured: each is asked to compare the rules in force with those
// that it would program.
func (d *doctor) rules(ctx context.Context) []finding {
	var (
		mu    sync.Mutex
		found []finding
		group errgroup.Group
	)
	group.SetLimit(4)
	for _, c := range d.containers {
		if role(c) != mesh.RoleSandbox || !c.State.Running {
			continue
		}
		group.Go(func() error {
			out, code, err := d.exec(ctx, c.ID, "/sandbox", "check")
			if err != nil || code == 0 {
				return nil // an engine that can't run it tells nothing about the rules
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, finding{Workload: label(c, labels.Workload), Container: name(c),
				Problem: "the capture rules are not in force: " + lastLine(out), Advice: "docker restart " + name(c) + "; the keeper restarts its application and proxy after it"})
			return nil
		})
	}
	_ = group.Wait() // no task fails
	slices.SortFunc(found, func(a, b finding) int { return strings.Compare(a.Container, b.Container) })
	return found
}

// namespace is what a proxy's /namespace answers.
type namespace struct {
	Interfaces []string
	Listeners  []netip.AddrPort
}

// unreachable finds applications that listen where their peers can't reach them: each proxy tells what its namespace has.
func (d *doctor) unreachable(ctx context.Context) []finding {
	var (
		mu    sync.Mutex
		found []finding
		group errgroup.Group
	)
	group.SetLimit(4)
	var views []heal.Container
	for _, c := range d.containers {
		views = append(views, healView(c))
	}
	cut := heal.Cut(views) // findings of namespaces
	for _, c := range d.containers {
		if role(c) != mesh.RoleProxy || !c.State.Running || c.State.Paused || cut[c.ID] {
			continue
		}
		group.Go(func() error {
			var n namespace
			if d.ask(ctx, c, "/namespace", &n) != nil {
				return nil // a proxy of before; one that is not well is a finding of others
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, d.reach(label(c, labels.Workload), n)...)
			return nil
		})
	}
	_ = group.Wait() // no task fails
	slices.SortFunc(found, func(a, b finding) int {
		return cmp.Or(strings.Compare(a.Container, b.Container), strings.Compare(a.Problem, b.Problem))
	})
	return found
}

// reach judges a workload's namespace.
func (d *doctor) reach(workload string, n namespace) []finding {
	var app, sandbox *container.InspectResponse
	for i, c := range d.containers {
		switch {
		case label(c, labels.Workload) != workload || !c.State.Running || label(c, composeOneOff) == "True":
		case role(c) == mesh.RoleApp:
			app = &d.containers[i]
		case role(c) == mesh.RoleSandbox:
			sandbox = &d.containers[i]
		}
	}
	switch {
	case app == nil || sandbox == nil:
		return nil
	case len(n.Interfaces) == 0:
		return []finding{{Workload: workload, Container: name(*sandbox), Problem: "its network namespace has no interface but the loopback, though the engine takes it to be connected",
			Advice: "docker restart " + name(*sandbox) + "; the keeper restarts its application and proxy after it"}}
	}
	served := map[uint16]bool{}
	for _, p := range strings.Split(label(*sandbox, labels.Ports), ",") {
		number, _, _ := strings.Cut(p, "/")
		if port, err := strconv.ParseUint(number, 10, 16); err == nil {
			served[uint16(port)] = true
		}
	}
	for p := range app.Config.ExposedPorts {
		served[uint16(p.Int())] = p.Proto() == "tcp" || served[uint16(p.Int())]
	}
	var found []finding
	for _, at := range loopbackAlone(n.Listeners) {
		f := finding{Workload: workload, Container: name(*app), Problem: fmt.Sprintf("it listens on %s only: peers are refused", at), Advice: "make it listen on 0.0.0.0"}
		if !served[at.Port()] {
			f.Level, f.Advice = levelNote, f.Advice+", unless that is meant"
		}
		found = append(found, f)
	}
	return found
}

// loopbackAlone are the listeners whose ports are open on the loopback and on no other address.
func loopbackAlone(all []netip.AddrPort) []netip.AddrPort {
	open := map[uint16]bool{}
	for _, l := range all {
		open[l.Port()] = open[l.Port()] || !l.Addr().IsLoopback()
	}
	var found []netip.AddrPort
	for _, l := range all {
		if !open[l.Port()] {
			open[l.Port()] = true // 127.0.0.1 and ::1 are one finding
			found = append(found, l)
		}
	}
	return found
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// exec runs a command in a container and returns what it prints and its exit code.
func (d *doctor) exec(ctx context.Context, id string, command ...string) (string, int, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	created, err := d.engine.ContainerExecCreate(ctx, id, container.ExecOptions{User: "0:0", Cmd: command, AttachStdout: true, AttachStderr: true})
	if err != nil {
		return "", 0, err
	}
	attached, err := d.engine.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{})
	if err != nil {
		return "", 0, err
	}
	defer attached.Close()
	stop := context.AfterFunc(ctx, attached.Close)
	defer stop()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, attached.Reader); err != nil && !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	result, err := d.engine.ContainerExecInspect(ctx, created.ID)
	return out.String(), result.ExitCode, err
}

// disguised finds processes of applications that have the proxy's own user id, though their containers say another.
func (d *doctor) disguised(ctx context.Context) []finding {
	var found []finding
	sandboxes := map[string]bool{}
	for _, c := range d.containers {
		sandboxes[c.ID] = role(c) == mesh.RoleSandbox
	}
	for _, c := range d.containers {
		if !c.State.Running || role(c) == mesh.RoleProxy || !c.HostConfig.NetworkMode.IsContainer() || !sandboxes[c.HostConfig.NetworkMode.ConnectedContainer()] {
			continue
		}
		top, err := d.engine.ContainerTop(ctx, c.ID, []string{"-eo", "uid,gid,pid,args"})
		if err != nil {
			continue // an engine without ps, or the container has ended
		}
		for _, process := range top.Processes {
			own := strconv.Itoa(mesh.UIDProxy)
			if len(process) < 4 || process[0] != own && process[1] != own {
				continue
			}
			found = append(found, finding{Workload: label(c, labels.Workload), Container: name(c),
				Problem: fmt.Sprintf("its process %s runs as user %s, group %s: %s is the proxy's own, whose traffic is not captured", process[3], process[0], process[1], own),
				Advice:  "let it run as another user"})
			break
		}
	}
	return found
}

// outsiders finds what is on the mesh's networks without a proxy, and names that two projects have there. Neither is an
// error: a database may well stay outside.
func (d *doctor) outsiders(ctx context.Context) ([]finding, error) {
	networks := map[string]string{} // by id
	known := map[string]bool{}
	for _, c := range d.containers {
		known[c.ID] = role(c) != "" || label(c, labels.Inject) == "false"
		if role(c) != mesh.RoleSandbox || c.NetworkSettings == nil {
			continue
		}
		for n, settings := range c.NetworkSettings.Networks {
			networks[settings.NetworkID] = n
		}
	}
	var found []finding
	for _, id := range slices.Sorted(maps.Keys(networks)) {
		if id == "" {
			continue // of a sandbox that does not run
		}
		list, err := d.engine.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("network", id))})
		if err != nil {
			return nil, withCode(exitUnreachable, fmt.Errorf("list containers: %w", err))
		}
		for _, c := range list {
			if known[c.ID] || c.Labels[labels.Inject] == "false" {
				continue
			}
			known[c.ID] = true
			f := finding{Level: levelNote, Container: strings.TrimPrefix(strings.Join(c.Names, " "), "/"), Advice: "inject its project, or label it " + labels.Inject + `: "false" if that is meant`}
			f.Problem = fmt.Sprintf("it is on network %s without a proxy: its traffic with the mesh is plain text", networks[id])
			if m := c.Labels[labels.Mesh]; m != "" && m != d.mesh {
				f.Problem = fmt.Sprintf("it is on network %s and belongs to mesh %s: the two meshes don't trust each other", networks[id], m)
				f.Advice = "give the two projects one mesh: " + externalCommand(d.mesh)
			}
			found = append(found, f)
		}
	}
	return append(found, d.namesakes()...), nil
}

// namesakes finds names that services of two projects have on one network.
func (d *doctor) namesakes() []finding {
	owners := map[[2]string][]string{} // by network and name: projects
	for _, c := range d.containers {
		if role(c) != mesh.RoleSandbox || c.NetworkSettings == nil {
			continue
		}
		for n := range c.NetworkSettings.Networks {
			for s := range strings.SplitSeq(label(c, labels.Services), ",") {
				key, project := [2]string{n, s}, label(c, composeProject)
				if !slices.Contains(owners[key], project) {
					owners[key] = append(owners[key], project)
				}
			}
		}
	}
	var found []finding
	for _, key := range slices.SortedFunc(maps.Keys(owners), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		if list := owners[key]; len(list) > 1 {
			slices.Sort(list)
			found = append(found, finding{Level: levelNote, Problem: fmt.Sprintf("%s have a service %s on network %s: what is not HTTP reaches either", projectList(list), key[1], key[0]),
				Advice: fmt.Sprintf("dial %s.%s, or keep one of them off the network", key[1], list[0])})
		}
	}
	return found
}
