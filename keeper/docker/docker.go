// Package docker is the keeper's engine.
package docker

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/client"
	"github.com/docker/go-connections/nat"
	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/keeper"
	"github.com/composure-mesh/composure/mesh"
)

// callTimeout bounds one question; an engine under load answers in seconds.
const callTimeout = 10 * time.Second

// A start mounts and connects; a stop has the container's own time to stop in it, which can be minutes.
const (
	startTimeout = 2 * time.Minute
	stopTimeout  = 15 * time.Minute
)

// Engine is a Docker engine behind a unix socket. It implements keeper.Engine.
type Engine struct {
	api *client.Client

	mu      sync.Mutex
	settled bool
}

// New makes the client; it connects with the first question.
func New(socket string) (*Engine, error) {
	api, err := client.NewClientWithOpts(client.WithHost("unix://" + socket))
	if err != nil {
		return nil, fmt.Errorf("docker engine: %w", err)
	}
	return &Engine{api: api}, nil
}

// settle agrees with the engine on a version of the API. What may come first calls it: the client's own way to do so is
// a data race where the first two questions are asked at once.
func (e *Engine) settle(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.settled {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ping, err := e.api.Ping(ctx)
	if err != nil {
		return fmt.Errorf("docker engine: %w", err)
	}
	e.api.NegotiateAPIVersionPing(ping)
	e.settled = true
	return nil
}

// List implements keeper.Engine.
func (e *Engine) List(ctx context.Context, key, value string) ([]keeper.Listed, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := e.settle(ctx); err != nil {
		return nil, err
	}
	all, err := e.api.ContainerList(ctx, container.ListOptions{
		All: true, Filters: filters.NewArgs(filters.Arg("label", key+"="+value)),
	})
	if err != nil {
		return nil, fmt.Errorf("list containers of the docker engine: %w", err)
	}
	list := make([]keeper.Listed, len(all))
	for i, c := range all {
		list[i] = keeper.Listed{ID: c.ID, Print: fingerprint(c), Labels: c.Labels}
	}
	return list, nil
}

func fingerprint(c container.Summary) string {
	var parts []string
	if c.NetworkSettings != nil {
		for _, ep := range c.NetworkSettings.Networks {
			if ep != nil {
				parts = append(parts, ep.NetworkID+"="+ep.IPAddress+","+ep.GlobalIPv6Address)
			}
		}
	}
	for _, p := range c.Ports {
		parts = append(parts, fmt.Sprintf("%d/%s=%s:%d", p.PrivatePort, p.Type, p.IP, p.PublicPort))
	}
	slices.Sort(parts)
	return c.State + health(c.Status) + " " + strings.Join(parts, " ")
}

// health is the bracketed end of a status such as "Up 3 seconds (healthy)".
func health(status string) string {
	if i := strings.LastIndexByte(status, '('); i >= 0 && strings.HasSuffix(status, ")") {
		return status[i:]
	}
	return ""
}

// Inspect implements keeper.Engine.
func (e *Engine) Inspect(ctx context.Context, id string) (keeper.Container, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := e.settle(ctx); err != nil {
		return keeper.Container{}, err
	}
	c, err := e.api.ContainerInspect(ctx, id)
	if err != nil {
		return keeper.Container{}, wrap("inspect container", id, err)
	}
	if c.ContainerJSONBase == nil || c.State == nil || c.Config == nil {
		return keeper.Container{}, fmt.Errorf("inspect container %.12s: the docker engine's answer is incomplete", id)
	}
	return convert(c), nil
}

func convert(c container.InspectResponse) keeper.Container {
	out := keeper.Container{
		ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), Labels: c.Config.Labels, PID: c.State.Pid,
		Running:    c.State.Running && !c.State.Restarting,
		StopSignal: signalNumber(c.Config.StopSignal),
		Exposed:    exposed(c.Config.ExposedPorts),
		State:      c.State.Status,
		Error:      c.State.Error,
		ExitCode:   c.State.ExitCode,
	}
	if c.HostConfig != nil {
		out.RestartPolicy = cmp.Or(string(c.HostConfig.RestartPolicy.Name), string(container.RestartPolicyDisabled))
		if c.HostConfig.NetworkMode.IsContainer() {
			out.NetworkOf = c.HostConfig.NetworkMode.ConnectedContainer()
		}
	}
	out.StartedAt, _ = time.Parse(time.RFC3339Nano, c.State.StartedAt) // zero for one that never was
	out.Created, _ = time.Parse(time.RFC3339Nano, c.Created)           // orders recreated containers; zero does
	if c.State.Health != nil && c.State.Health.Status != container.NoHealthcheck {
		out.Health = c.State.Health.Status
	}
	if c.State.Paused {
		// It answers nobody for now. The engine itself says so of one that has a healthcheck.
		out.Health = container.Unhealthy
	}
	if c.NetworkSettings == nil {
		return out
	}
	out.Published = published(c.NetworkSettings.Ports)
	for _, ep := range c.NetworkSettings.Networks {
		if ep == nil || ep.NetworkID == "" {
			continue // configured but never connected
		}
		out.Endpoints = append(out.Endpoints, keeper.Endpoint{
			NetworkID: ep.NetworkID, IPv4: ep.IPAddress, IPv6: ep.GlobalIPv6Address, Aliases: names(c.ID, ep),
		})
	}
	slices.SortFunc(out.Endpoints, func(a, b keeper.Endpoint) int { return strings.Compare(a.NetworkID, b.NetworkID) })
	return out
}

// names are the endpoint's DNS names but the container's id, which the engine adds by itself.
func names(id string, ep *network.EndpointSettings) []string {
	all := slices.Concat(ep.Aliases, ep.DNSNames)
	all = slices.DeleteFunc(all, func(n string) bool { return n == "" || strings.HasPrefix(id, n) && len(n) >= 12 })
	slices.Sort(all)
	return slices.Compact(all)
}

func exposed(ports nat.PortSet) []uint16 {
	var list []uint16
	for p := range ports {
		if n, ok := tcp(p); ok {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list
}

func published(ports nat.PortMap) map[uint16][]string {
	m := map[uint16][]string{}
	for p, bindings := range ports {
		n, ok := tcp(p)
		if !ok || len(bindings) == 0 {
			continue
		}
		for _, b := range bindings {
			m[n] = append(m[n], hostPort(b))
		}
		slices.Sort(m[n])
		m[n] = slices.Compact(m[n])
	}
	return m
}

func tcp(p nat.Port) (uint16, bool) {
	number, proto, _ := strings.Cut(string(p), "/")
	n, err := strconv.ParseUint(number, 10, 16)
	return uint16(n), err == nil && n != 0 && (proto == "tcp" || proto == "")
}

// hostPort is the port alone where it is bound on every address.
func hostPort(b nat.PortBinding) string {
	ip, err := netip.ParseAddr(b.HostIP)
	if err != nil || ip.IsUnspecified() {
		return b.HostPort
	}
	if ip.Is6() {
		return "[" + b.HostIP + "]:" + b.HostPort
	}
	return b.HostIP + ":" + b.HostPort
}

// signalNumber reads a stop signal such as SIGQUIT, QUIT or 3; the default is SIGTERM.
func signalNumber(name string) int {
	if n, err := strconv.Atoi(name); err == nil {
		return n
	}
	upper := strings.ToUpper(name)
	if !strings.HasPrefix(upper, "SIG") {
		upper = "SIG" + upper
	}
	if n := unix.SignalNum(upper); n != 0 {
		return int(n)
	}
	return int(unix.SIGTERM)
}

// Network implements keeper.Engine.
func (e *Engine) Network(ctx context.Context, id string) (mesh.Network, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := e.api.NetworkInspect(ctx, id, network.InspectOptions{})
	if err != nil {
		return mesh.Network{}, wrap("inspect network", id, err)
	}
	return convertNetwork(n), nil
}

func convertNetwork(n network.Inspect) mesh.Network {
	out := mesh.Network{Name: n.Name, ID: n.ID, Internal: n.Internal}
	for _, c := range n.IPAM.Config {
		subnet, err := netip.ParsePrefix(c.Subnet)
		if err != nil {
			continue
		}
		out.Subnets = append(out.Subnets, subnet.Masked().String())
		if a, ok := gateway(n.Driver, subnet, c); ok {
			out.Gateways = append(out.Gateways, a.String())
		}
	}
	slices.Sort(out.Subnets)
	slices.Sort(out.Gateways)
	return out
}

// gateway is the address of the host in a subnet. Engines write it with a prefix length or without; older ones
// (20.10 was tried) not at all where the user gave a subnet alone: then a bridge has the first address of the
// range, but never the subnet's own.
func gateway(driver string, subnet netip.Prefix, c network.IPAMConfig) (netip.Addr, bool) {
	if p, err := netip.ParsePrefix(c.Gateway); err == nil {
		return p.Addr(), true
	}
	if a, err := netip.ParseAddr(c.Gateway); err == nil {
		return a, true
	}
	if driver != "bridge" {
		return netip.Addr{}, false
	}
	first := subnet.Masked().Addr()
	if r, err := netip.ParsePrefix(c.IPRange); err == nil && r.Masked().Addr() != first {
		return r.Masked().Addr(), true
	}
	return first.Next(), true
}

// Events implements keeper.Engine.
func (e *Engine) Events(ctx context.Context, f func(keeper.Event)) error {
	if err := e.settle(ctx); err != nil {
		return err
	}
	args := filters.NewArgs(filters.Arg("type", string(events.ContainerEventType)), filters.Arg("type", string(events.NetworkEventType)))
	for _, a := range []events.Action{
		events.ActionCreate, events.ActionStart, events.ActionDie, events.ActionStop, events.ActionKill, events.ActionPause,
		events.ActionUnPause, events.ActionHealthStatus, events.ActionDestroy, events.ActionRename, events.ActionConnect,
		events.ActionDisconnect,
	} {
		args.Add("event", string(a))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	messages, errs := e.api.Events(ctx, events.ListOptions{Filters: args}) // returns when the request was answered
	select {
	case err := <-errs:
		return fmt.Errorf("events of the docker engine: %w", err)
	default:
		f(keeper.Event{})
	}
	for {
		select {
		case m := <-messages:
			if ev, ok := event(m); ok {
				f(ev)
			}
		case err := <-errs:
			return fmt.Errorf("events of the docker engine: %w", err)
		}
	}
}

func event(m events.Message) (keeper.Event, bool) {
	if m.Type == events.NetworkEventType {
		id := m.Actor.Attributes["container"]
		return keeper.Event{Container: id}, id != ""
	}
	ev := keeper.Event{Container: m.Actor.ID, Labels: m.Actor.Attributes, Time: time.Unix(0, m.TimeNano)}
	switch m.Action {
	case events.ActionKill:
		ev.Signal = signalNumber(m.Actor.Attributes["signal"])
	case events.ActionStart:
		ev.Change = keeper.Started
	case events.ActionDie:
		ev.Change = keeper.Ended
	}
	return ev, true
}

// Start implements keeper.Engine.
func (e *Engine) Start(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := e.api.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return wrap("start container", id, err)
	}
	return nil
}

// Restart implements keeper.Engine.
func (e *Engine) Restart(ctx context.Context, id string, grace *time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	var opts container.StopOptions
	if grace != nil {
		seconds := int(grace.Round(time.Second).Seconds())
		opts.Timeout = &seconds
	}
	if err := e.api.ContainerRestart(ctx, id, opts); err != nil {
		return wrap("restart container", id, err)
	}
	return nil
}

// Stop implements keeper.Engine.
func (e *Engine) Stop(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := e.api.ContainerStop(ctx, id, container.StopOptions{}); err != nil {
		return wrap("stop container", id, err)
	}
	return nil
}

func wrap(what, id string, err error) error {
	if cerrdefs.IsNotFound(err) {
		return fmt.Errorf("%s %.12s: %w", what, id, keeper.ErrNotFound)
	}
	return fmt.Errorf("%s %.12s: docker engine: %w", what, id, err)
}

// Ping tells whether the engine answers.
func (e *Engine) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := e.api.Ping(ctx)
	return err
}

// Close ends idle connections.
func (e *Engine) Close() error { return e.api.Close() }
