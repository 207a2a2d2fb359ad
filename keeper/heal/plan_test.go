package heal

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// epoch is before the beginning of time in a synctest bubble.
var epoch = time.Date(1999, 12, 31, 12, 0, 0, 0, time.UTC)

// at is a moment, in seconds.
func at(s int) time.Time { return epoch.Add(time.Duration(s) * time.Second) }

const (
	sandboxID = "5a0dbbdb0000aaaa"
	goneID    = "90e0000000000000"
)

// The errors of engines, 20.10 and later.
var (
	notRunning    = "cannot join network of a non running container: " + sandboxID
	notRunning28  = "cannot join network namespace of a non running container: container /web-mesh-sandbox is exited"
	notFound      = "No such container: " + goneID
	isRestarting  = "Container " + sandboxID + " is restarting, wait until the container is running"
	noNamespace   = "failed to create shim task: OCI runtime create failed: namespace path: lstat /proc/4711/ns/net: no such file or directory: unknown"
	joinNamespace = "joining network namespace of container: No such container: " + sandboxID
	portTaken     = "driver failed programming external connectivity on endpoint web: Bind for 0.0.0.0:80 failed: port is already allocated"
	noProgram     = `OCI runtime create failed: exec: "srv": executable file not found in $PATH: unknown`
)

type change func(*Container)

func sandbox(more ...change) Container {
	c := Container{ID: sandboxID, Name: "shop-web-mesh-sandbox-1", Service: "web-mesh-sandbox", Role: mesh.RoleSandbox, Workload: "web", State: Running, StartedAt: at(10)}
	return changed(c, more)
}

func proxy(more ...change) Container {
	c := Container{ID: "b10c5", Name: "shop-web-mesh-proxy-1", Service: "web-mesh-proxy", Role: mesh.RoleProxy, Workload: "web", State: Running, Health: "healthy", StartedAt: at(11), NetworkOf: sandboxID}
	return changed(c, more)
}

func app(more ...change) Container {
	c := Container{ID: "a44", Name: "shop-web-1", Service: "web", Role: mesh.RoleApp, Workload: "web", State: Running, StartedAt: at(12), NetworkOf: sandboxID}
	return changed(c, more)
}

func changed(c Container, more []change) Container {
	for _, f := range more {
		f(&c)
	}
	return c
}

func state(s State) change   { return func(c *Container) { c.State = s } }
func began(s int) change     { return func(c *Container) { c.StartedAt = at(s) } }
func health(h string) change { return func(c *Container) { c.Health = h } }
func joins(id string) change { return func(c *Container) { c.NetworkOf = id } }
func role(r mesh.Role) change {
	return func(c *Container) { c.Role = r }
}
func failed(err string) change {
	return func(c *Container) { c.State, c.Error = Exited, err }
}
func ticks(n uint64) change { return func(c *Container) { c.Ticks = n } }
func stopping(c *Container) { c.Stopping = true }
func policy(p string) change {
	return func(c *Container) { c.RestartPolicy = p }
}

// over is by itself.
func over(code int) change {
	return func(c *Container) { c.State, c.ExitCode, c.ByItself = Exited, code, true }
}

// stopped is at somebody's word.
func stopped(c *Container) { c.State, c.ExitCode, c.ByItself = Exited, 143, false }
func job(c *Container)     { c.Job = true }
func bareOf(networks int) change {
	return func(c *Container) { c.Bare, c.Networks = true, networks }
}
func left(s int) change { return func(c *Container) { c.LeftAt = at(s) } }
func named(id string) change {
	return func(c *Container) { c.ID, c.Name, c.Service, c.Workload = id, id, id, "" }
}
func oneOff(c *Container) { c.OneOff = true }

// TestPlan goes through what can become of a workload. An action is written verb, service, hold.
func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []Container
		want string
	}{
		{"all is well", []Container{sandbox(), proxy(), app()}, ""},
		{"nothing", nil, ""},

		// After a restart of the engine: moby#50326.
		{"the application came before its sandbox", []Container{sandbox(), proxy(), app(failed(notRunning))}, "start web 0s"},
		{"both did", []Container{sandbox(), proxy(failed(notRunning)), app(failed(notRunning))}, "start web-mesh-proxy 0s, start web 30s"},
		{"both did; the proxy runs again", []Container{sandbox(), proxy(health("starting")), app(failed(notRunning))}, "start web 30s"},
		{"both did; the proxy is ready", []Container{sandbox(), proxy(), app(failed(notRunning))}, "start web 0s"},
		{"the proxy did", []Container{sandbox(), proxy(failed(notRunning)), app()}, "start web-mesh-proxy 0s"},
		{"in a newer engine's words", []Container{sandbox(), proxy(), app(failed(notRunning28))}, "start web 0s"},
		{"the sandbox was being restarted", []Container{sandbox(), proxy(), app(failed(isRestarting))}, "start web 0s"},
		{"the sandbox died between two steps", []Container{sandbox(), proxy(), app(failed(noNamespace))}, "start web 0s"},
		{"the engine had not read it yet", []Container{sandbox(), proxy(), app(failed(joinNamespace))}, "start web 0s"},
		{"created, never run", []Container{sandbox(), proxy(), app(failed(notRunning), state(Created))}, "start web 0s"},
		{"the proxy can't start for another reason", []Container{sandbox(), proxy(failed(noProgram)), app(failed(notRunning))}, "start web 0s"},
		{"the proxy is in the engine's restart loop", []Container{sandbox(), proxy(state(Restarting)), app(failed(notRunning))}, "start web 30s"},
		{"the engine still tries", []Container{sandbox(), proxy(), app(failed(notRunning), state(Restarting))}, ""},
		{"the sandbox is not back", []Container{sandbox(state(Exited)), proxy(failed(notRunning)), app(failed(notRunning))}, ""},
		{"the sandbox is in a restart loop", []Container{sandbox(state(Restarting)), proxy(failed(notRunning)), app(failed(notRunning))}, ""},
		{"the sandbox can't start: its port is taken", []Container{sandbox(failed(portTaken)), proxy(failed(notRunning)), app(failed(notRunning))}, ""},

		// A sandbox that was killed, restarted by hand or by the engine.
		{"the sandbox began anew", []Container{sandbox(began(20)), proxy(), app()}, "restart web-mesh-proxy 500ms, restart web 30s"},
		{"the proxy has followed", []Container{sandbox(began(20)), proxy(began(23), health("starting")), app()}, "restart web 500ms"},
		{"the proxy has followed and is ready", []Container{sandbox(began(20)), proxy(began(23)), app()}, "restart web 500ms"},
		{"all have followed", []Container{sandbox(began(20)), proxy(began(23)), app(began(25))}, ""},
		{"the user has stopped the proxy", []Container{sandbox(began(20)), proxy(state(Exited)), app()}, "restart web 500ms"},
		{"the user has stopped the application", []Container{sandbox(began(20)), proxy(), app(state(Exited))}, "restart web-mesh-proxy 500ms"},
		{"there is no proxy", []Container{sandbox(began(20)), app()}, "restart web 500ms"},
		{"one paused stays paused", []Container{sandbox(began(20)), proxy(began(23)), app(state(Paused))}, ""},
		{"the proxy is being restarted by somebody", []Container{sandbox(began(20)), proxy(stopping), app()}, "restart web 30s"},
		{"the application is being restarted by somebody", []Container{sandbox(began(20)), proxy(began(23)), app(stopping)}, ""},
		{"the sandbox is being stopped again", []Container{sandbox(began(20), stopping), proxy(), app(failed(notRunning))}, ""},
		{"given up while the sandbox was stopped", []Container{sandbox(began(20)), proxy(), app(failed(notRunning))}, "restart web-mesh-proxy 500ms, start web 30s"},
		{"the clock was set back since the sandbox began", []Container{sandbox(ticks(100), began(3600)), proxy(ticks(101), began(20)), app(ticks(101), began(21))}, ""},
		{"the clock was set forward since the sandbox began anew", []Container{sandbox(ticks(300)), proxy(ticks(101)), app(ticks(101))}, "restart web-mesh-proxy 500ms, restart web 30s"},
		{"no ticks of the sandbox", []Container{sandbox(began(20)), proxy(ticks(101), began(23)), app(ticks(101))}, "restart web 500ms"},
		{"a paused sandbox", []Container{sandbox(state(Paused)), proxy(), app()}, ""},
		{"the sandbox is stopped", []Container{sandbox(state(Exited)), proxy(), app()},
			"tell web-mesh-proxy 15s: docker compose start web-mesh-sandbox, tell web 15s: docker compose start web-mesh-sandbox"},
		{"everything is stopped", []Container{sandbox(state(Exited)), proxy(state(Exited)), app(state(Exited))}, ""},

		// A user's stop, and what ends by itself.
		{"stopped applications stay stopped", []Container{sandbox(), proxy(), app(state(Exited))}, ""},
		{"so do proxies", []Container{sandbox(), proxy(state(Exited)), app()}, ""},
		{"an application that fails for a reason of its own", []Container{sandbox(), proxy(), app(failed(noProgram))}, ""},
		{"an application with a crash loop of its own", []Container{sandbox(), proxy(), app(state(Restarting))}, ""},
		{"not started yet", []Container{sandbox(), proxy(), app(state(Created))}, ""},
		{"docker compose run", []Container{sandbox(began(20)), proxy(began(23)), app(began(25)), app(oneOff, func(c *Container) { c.ID = "4u4" })}, ""},

		// Jobs, and what is over.
		{"a job has ended", []Container{sandbox(), proxy(), app(policy("no"), over(0))}, "end web-mesh-sandbox 0s"},
		{"a job has failed", []Container{sandbox(), proxy(), app(policy("no"), over(1))}, "end web-mesh-sandbox 0s"},
		{"one that is tried again after a failure has ended", []Container{sandbox(), proxy(), app(policy("on-failure"), over(0))}, "end web-mesh-sandbox 0s"},
		{"it has failed, and the engine tries again", []Container{sandbox(), proxy(), app(policy("on-failure"), over(1), state(Restarting))}, ""},
		{"the engine restarts it whatever its exit code", []Container{sandbox(), proxy(), app(policy("unless-stopped"), over(0))}, ""},
		{"a user has stopped it", []Container{sandbox(), proxy(), app(policy("no"), stopped)}, ""},
		{"a user has stopped one that others wait for", []Container{sandbox(job), proxy(), app(policy("no"), stopped)}, "end web-mesh-sandbox 2s"},
		{"one that others wait for has ended unseen", []Container{sandbox(job), proxy(), app(policy("no"), state(Exited))}, "end web-mesh-sandbox 2s"},
		{"one that others wait for still runs", []Container{sandbox(job), proxy(), app(policy("no"))}, ""},
		{"Compose is about to run it again", []Container{sandbox(job, began(20)), proxy(began(21)), app(policy("no"), over(0))}, ""},
		{"Compose runs it for the first time", []Container{sandbox(job), proxy(), app(policy("no"), state(Created))}, ""},
		{"it could not start", []Container{sandbox(), proxy(), app(policy("no"), failed(noProgram))}, ""},
		{"it is being ended", []Container{sandbox(stopping), proxy(), app(policy("no"), over(0))}, ""},
		{"all of it has ended", []Container{sandbox(state(Exited)), proxy(state(Exited)), app(policy("no"), over(0))}, ""},
		{"somebody else shares its network", []Container{sandbox(), proxy(), app(policy("no"), over(0)), app(role(""), named("exporter"))}, ""},
		{"somebody else is about to", []Container{sandbox(), proxy(), app(policy("no"), over(0)), app(role(""), named("exporter"), state(Created))}, ""},
		{"so has who shared its network", []Container{sandbox(), proxy(), app(policy("no"), over(0)), app(role(""), named("exporter"), policy("no"), over(0))}, "end web-mesh-sandbox 0s"},
		{"docker compose run goes on beside it", []Container{sandbox(), proxy(), app(policy("no"), over(0)), app(oneOff, named("run"))}, ""},
		{"so has docker compose run", []Container{sandbox(), proxy(), app(policy("no"), over(0)), app(oneOff, named("run"), stopped)}, "end web-mesh-sandbox 10s"},
		{"docker compose run has ended and is gone", []Container{sandbox(left(15)), proxy()}, "end web-mesh-sandbox 10s"},
		{"in the sandbox's former life", []Container{sandbox(began(20), left(15)), proxy(began(21))}, ""},
		{"beside an application that runs", []Container{sandbox(left(15)), proxy(), app()}, ""},
		{"beside one that a user has stopped", []Container{sandbox(left(15)), proxy(), app(policy("no"), stopped)}, ""},
		{"beside a job of yesterday", []Container{sandbox(left(15)), proxy(), app(policy("no"), began(5), state(Exited))}, "end web-mesh-sandbox 10s"},
		{"docker compose run prepares", []Container{sandbox(), proxy()}, ""},
		{"the proxy is gone already", []Container{sandbox(), proxy(state(Exited)), app(policy("no"), over(0))}, "end web-mesh-sandbox 0s"},

		// A sandbox without an interface.
		{"connected to no network", []Container{sandbox(bareOf(0)), proxy(), app()},
			"tell web-mesh-sandbox 15s: docker compose up -d --force-recreate web-mesh-sandbox web-mesh-proxy web"},
		{"with others in it", []Container{sandbox(bareOf(0)), app(role(""), named("exporter")), proxy(), app(), app(oneOff, named("run"))},
			"tell web-mesh-sandbox 15s: docker compose up -d --force-recreate web-mesh-sandbox web-mesh-proxy exporter web"},
		{"the engine has lost its interfaces", []Container{sandbox(bareOf(2)), proxy(), app()}, "restart web-mesh-sandbox 15s"},
		{"it is being stopped", []Container{sandbox(bareOf(2), stopping), proxy(), app()}, ""},
		{"it is stopped", []Container{sandbox(bareOf(0), state(Exited)), proxy(state(Exited)), app(state(Exited))}, ""},

		// A sandbox that was re-created alone.
		{"the sandbox is another one", []Container{sandbox(began(20)), proxy(joins(goneID)), app(joins(goneID))},
			"tell web-mesh-proxy 15s: docker compose up -d web-mesh-proxy, tell web 15s: docker compose up -d web"},
		{"and the application has ended since", []Container{sandbox(began(20)), proxy(joins(goneID)), app(joins(goneID), failed(notFound))},
			"tell web-mesh-proxy 15s: docker compose up -d web-mesh-proxy, tell web 15s: docker compose up -d web"},
		{"and was stopped by the user", []Container{sandbox(began(20)), app(joins(goneID), state(Exited))}, ""},
		{"the sandbox was removed", []Container{proxy(joins(goneID)), app(joins(goneID), failed(notFound))},
			"tell web-mesh-proxy 15s: docker compose up -d web-mesh-proxy, tell web 15s: docker compose up -d web"},

		// Others in the namespace, and strangers.
		{"a service that has joined a workload", []Container{sandbox(began(20)), proxy(began(23)), app(role(""))}, "restart web 500ms"},
		{"it waits for the proxy", []Container{sandbox(began(20)), proxy(), app(role(""), failed(notRunning))}, "restart web-mesh-proxy 500ms, start web 30s"},
		{"a stranger in a dead namespace", []Container{sandbox(role(""), began(20)), app(role(""))}, ""},
		{"a stranger that has lost its namespace", []Container{app(role(""), joins(goneID), failed(notFound))}, ""},
		{"two that are not sandboxes", []Container{sandbox(role(mesh.RoleGateway), began(20)), app()}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			actions := Plan(tc.in)
			var got []string
			for _, a := range actions {
				s := fmt.Sprint(a.Verb, " ", a.Container.Service, " ", a.Hold)
				if a.Verb == Tell {
					s += ": " + a.Advice
				}
				if a.Workload != "web" {
					t.Errorf("%s: workload is %q", s, a.Workload)
				}
				if a.Why == "" {
					t.Errorf("%s: no reason", s)
				}
				got = append(got, s)
			}
			if s := strings.Join(got, ", "); s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
		})
	}
}

// TestPlanIsStable holds that the order of the containers makes no difference.
func TestPlanIsStable(t *testing.T) {
	var all []Container
	for i := range 8 {
		name := fmt.Sprint("w", i)
		rename := func(c *Container) {
			c.ID, c.Workload = name+c.ID, name
			if c.NetworkOf != "" {
				c.NetworkOf = name + c.NetworkOf
			}
		}
		all = append(all, sandbox(began(20), rename), proxy(rename), app(rename))
	}
	want := Plan(all)
	if len(want) != 16 {
		t.Fatalf("%d actions, want 16", len(want))
	}
	for range 20 {
		shuffled := slices.Clone(all)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if got := Plan(shuffled); !reflect.DeepEqual(got, want) {
			t.Fatalf("another order gives %v, want %v", got, want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []Container
		want string
	}{
		{"all is well", []Container{sandbox(), proxy(), app()}, ""},
		{"a dead namespace", []Container{sandbox(began(20)), proxy(began(23)), app()}, "a44"},
		{"of one that is stopped", []Container{sandbox(began(20)), proxy(), app(state(Exited))}, "b10c5"},
		{"a sandbox that is gone", []Container{proxy(joins(goneID)), app(joins(goneID))}, "a44 b10c5"},
		{"a stranger", []Container{sandbox(role(""), began(20)), app(), app(role(""), joins(goneID), func(c *Container) { c.ID = "x" })}, ""},
		{"a service that has joined a workload", []Container{sandbox(began(20)), app(role(""))}, "a44"},
		{"without an interface", []Container{sandbox(bareOf(0)), proxy(), app()}, "a44 b10c5"},
	} {
		if got := strings.Join(slices.Sorted(maps.Keys(Cut(tc.in))), " "); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
