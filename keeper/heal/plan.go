// Package heal brings workloads back that a restart has torn apart. A workload's proxy and application join the
// network namespace of its sandbox, and nobody but the healer keeps them together: the engine starts joiners in no
// order after its own restart and gives up for good those that came before their sandbox (moby#50326), and a sandbox
// that is started again leaves them in the dead namespace of its former life.
//
// It starts a joiner only if its error names the join, and restarts one only if it runs and began before its
// sandbox: what a user has stopped stays stopped. And it stops the sandbox and the proxy of a job that has ended, so
// that nothing is left of it, as without a mesh.
package heal

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// Container is what the healer knows about one container.
type Container struct {
	ID       string
	Name     string
	Service  string // of compose
	Role     mesh.Role
	Workload string
	// OneOff is a `docker compose run`: whoever runs it looks after it.
	OneOff bool
	State  State
	// Health is "", "starting", "healthy" or "unhealthy".
	Health string
	// Error is why the engine could not start the container the last time.
	Error     string
	StartedAt time.Time
	// Ticks is when the main process began, in any unit since the machine did; 0 is unknown. Clocks are set back now
	// and then, this is not.
	Ticks uint64
	// Stopping is true from the signal that tells it to end until it has: somebody is at it.
	Stopping bool
	// NetworkOf is the id of the container whose network namespace this one joins, "" if it has its own.
	NetworkOf string
	// RestartPolicy is "no", "on-failure", "unless-stopped" or "always".
	RestartPolicy string
	// ExitCode is that of the last end.
	ExitCode int
	// ByItself is true from its end until it begins again, if it was seen to end and nobody had told it to.
	ByItself bool
	// Job, of a sandbox, says that the application is waited for to end: it is over however it has ended.
	Job bool
	// Bare is true of a running sandbox whose network namespace has no interface but the loopback, Networks the number of
	// networks that the engine takes it to be connected to.
	Bare     bool
	Networks int
	// LeftAt, of a sandbox, is when the last of those joiners ended that are gone by now; zero is never since it began.
	LeftAt time.Time
}

// State is a container's state in the engine's words.
type State string

// The states that matter here.
const (
	Created    State = "created"
	Running    State = "running"
	Paused     State = "paused"
	Restarting State = "restarting"
	Exited     State = "exited"
)

// Verb is what there is to do about a container.
type Verb string

// The verbs. End stops the proxy and the sandbox of a job that has ended; Tell is for what only a user can repair.
const (
	Start   Verb = "start"
	Restart Verb = "restart"
	End     Verb = "end"
	Tell    Verb = "tell"
)

// Action is something to do for one container, and why.
type Action struct {
	Verb      Verb
	Container Container
	Workload  string
	Why       string
	// Advice is what a user can do; empty unless the verb is Tell.
	Advice string
	// Hold is how long the reason must have stood: others repair, too, and what is being replaced is no defect.
	Hold time.Duration
}

const (
	// holdRestart lets `docker compose restart` of a sandbox restart its joiners by itself: it tells both to stop some 20 ms
	// after it has started the sandbox.
	holdRestart = 500 * time.Millisecond
	// holdReady is how long an application is kept waiting for its proxy. Without a proxy it reaches nobody.
	holdReady = 30 * time.Second
	// holdJob lets a job that was told to end be on its way to begin again: a restart is a stop and a start.
	holdJob = 2 * time.Second
	// holdOneOff is time for another `docker compose run`: Compose, which has seen that sandbox and proxy run, is not
	// to find them gone when it starts the container.
	holdOneOff = 10 * time.Second
	// holdTell is longer than Compose takes to replace a workload's containers one after the other.
	holdTell = 15 * time.Second
	// holdBare lets whoever disconnects a sandbox from a network connect it to another.
	holdBare = 15 * time.Second
)

// Plan says what there is to do about the containers of a mesh. It has no effects; equal containers in any order
// give equal actions.
func Plan(containers []Container) []Action {
	byID := make(map[string]*Container, len(containers))
	proxies := map[string]*Container{} // by the sandbox's id
	for i := range containers {
		c := &containers[i]
		byID[c.ID] = c
		if c.Role == mesh.RoleProxy && c.NetworkOf != "" {
			proxies[c.NetworkOf] = c
		}
	}
	var actions []Action
	for i := range containers {
		c := &containers[i]
		if c.NetworkOf == "" || c.OneOff || c.Stopping {
			continue
		}
		sandbox := byID[c.NetworkOf]
		if sandbox == nil && c.Role == "" || sandbox != nil && (sandbox.Role != mesh.RoleSandbox || sandbox.Stopping) {
			continue // it joins something that is not ours, or that is about to change
		}
		a, ok := decide(c, sandbox)
		if !ok {
			continue
		}
		if proxy := proxies[c.NetworkOf]; c.Role != mesh.RoleProxy && proxy != nil {
			switch {
			case a.Verb == Start:
				a.Hold = max(a.Hold, waitFor(proxy, sandbox))
			case a.Verb == Restart && (proxy.Stopping || proxy.State == Running && proxy.beganBefore(sandbox)):
				a.Hold = holdReady // one after the other, also where a pause keeps us from the proxy, or somebody else is at it
			}
		}
		actions = append(actions, a)
	}
	for i := range containers {
		if a, ok := ended(&containers[i], containers); ok {
			actions = append(actions, a)
		}
		if a, ok := bare(&containers[i]); ok {
			if a.Verb == Tell {
				a.Advice = "docker compose up -d --force-recreate " + strings.Join(together(&containers[i], containers), " ")
			}
			actions = append(actions, a)
		}
	}
	slices.SortFunc(actions, func(a, b Action) int {
		return cmp.Or(strings.Compare(a.Workload, b.Workload), a.rank()-b.rank(), strings.Compare(a.Container.ID, b.Container.ID))
	})
	return actions
}

// rank puts a workload's proxy before its application.
func (a Action) rank() int {
	if a.Container.Role == mesh.RoleProxy {
		return 0
	}
	return 1
}

// decide is the matrix: the joiner's state and that of the sandbox it is bound to; nil is one that is gone.
func decide(c, sandbox *Container) (Action, bool) {
	a := Action{Container: *c, Workload: c.Workload}
	failed := c.failedToJoin()
	switch {
	case sandbox == nil:
		if !failed && c.State != Running {
			return a, false // stopped, by whoever
		}
		a.Verb, a.Hold = Tell, holdTell
		a.Why = fmt.Sprintf("its sandbox %.12s is gone, and it can't join another", c.NetworkOf)
		a.Advice = "docker compose up -d " + c.Service
		return a, true
	case sandbox.State == Running && failed:
		a.Verb = Start
		a.Why = "it could not join its sandbox's network when it was started: " + c.Error
	case sandbox.State == Running && c.State == Running && c.beganBefore(sandbox):
		a.Verb, a.Hold = Restart, holdRestart
		a.Why = fmt.Sprintf("it is in a dead network namespace: its sandbox began anew at %s",
			sandbox.StartedAt.UTC().Format(time.RFC3339))
	case c.State == Running && (sandbox.State == Exited || sandbox.State == Created):
		a.Verb, a.Hold = Tell, holdTell
		a.Why = "its sandbox is stopped, so it has no network"
		a.Advice = "docker compose start " + sandbox.Service
	default:
		return a, false
	}
	if a.Workload == "" {
		a.Workload = sandbox.Workload // a service that has joined a workload's network
	}
	return a, true
}

// bare is what there is to do about a sandbox without an interface. Where the engine knows of networks it has lost them
// on the way, and a restart makes it connect the sandbox anew; its joiners follow it. Where it knows of none, somebody has
// disconnected it, and only a new container has its networks, addresses and names again.
func bare(sandbox *Container) (Action, bool) {
	a := Action{Verb: Tell, Container: *sandbox, Workload: sandbox.Workload, Hold: holdBare}
	if sandbox.Role != mesh.RoleSandbox || sandbox.State != Running || sandbox.Stopping || !sandbox.Bare {
		return a, false
	}
	a.Why = "it is connected to no network, so its application reaches nobody"
	if sandbox.Networks > 0 {
		a.Verb = Restart
		a.Why = "its network namespace has no interface but the loopback, though the engine takes it to be connected"
	}
	return a, true
}

// together are the compose services of a sandbox and its joiners, each after what it depends on.
func together(sandbox *Container, all []Container) []string {
	var proxies, others []string
	for _, c := range all {
		switch {
		case c.NetworkOf != sandbox.ID || c.OneOff || c.Service == "":
		case c.Role == mesh.RoleProxy:
			proxies = append(proxies, c.Service)
		default:
			others = append(others, c.Service)
		}
	}
	slices.Sort(others)
	return slices.Concat([]string{sandbox.Service}, proxies, others)
}

// waitFor is how long an application that is to be started waits for its proxy to become ready. One that is restarted does
// not wait: it has run without a network, and what it sends before the proxy is there waits in the sandbox's backlog.
func waitFor(proxy, sandbox *Container) time.Duration {
	switch {
	case proxy.failedToJoin(), proxy.State == Restarting:
		return holdReady
	case proxy.State == Running && (proxy.beganBefore(sandbox) || proxy.Health != "" && proxy.Health != "healthy"):
		return holdReady
	}
	return 0 // it is ready, or somebody has stopped it
}

// ended is the end of a sandbox with which nobody shares its network any more, and somebody has.
func ended(sandbox *Container, all []Container) (Action, bool) {
	a := Action{Verb: End, Container: *sandbox, Workload: sandbox.Workload}
	if sandbox.Role != mesh.RoleSandbox || sandbox.State != Running || sandbox.Stopping {
		return a, false
	}
	used := false
	if sandbox.LeftAt.After(sandbox.StartedAt) {
		used, a.Hold = true, holdOneOff
		a.Why = "the last container that shared its network has ended and is gone"
	}
	for i := range all {
		c := &all[i]
		if c.NetworkOf != sandbox.ID || c.Role == mesh.RoleProxy {
			continue
		}
		if !c.isOver(sandbox) {
			return a, false
		}
		if c.beganBefore(sandbox) {
			continue // it ended before
		}
		used = true
		switch {
		case c.OneOff:
			a.Hold = holdOneOff
		case !c.ByItself:
			a.Hold = max(a.Hold, holdJob)
		}
		a.Why = fmt.Sprintf("%s has ended with exit code %d, and nobody else shares its network", c.Name, c.ExitCode)
	}
	return a, used
}

// isOver reports whether a joiner will not begin again without somebody who starts its sandbox, too. One that a user
// has stopped may: `docker start` does not start what it depends on.
func (c *Container) isOver(sandbox *Container) bool {
	switch {
	case c.State != Exited || c.Stopping || c.failedToJoin():
		return false
	case c.OneOff, c.beganBefore(sandbox):
		return true
	case c.RestartPolicy != "no" && c.RestartPolicy != "on-failure":
		return false
	}
	return c.ByItself || sandbox.Job && c.Workload == sandbox.Workload
}

// Cut is the ids of running joiners that have no network: their namespace is dead or bare, or its sandbox is gone.
func Cut(containers []Container) map[string]bool {
	byID := make(map[string]*Container, len(containers))
	for i := range containers {
		byID[containers[i].ID] = &containers[i]
	}
	cut := map[string]bool{}
	for i := range containers {
		c := &containers[i]
		sandbox := byID[c.NetworkOf]
		switch {
		case c.State != Running || c.NetworkOf == "":
		case sandbox == nil && c.Role != "", sandbox != nil && sandbox.Role == mesh.RoleSandbox && (sandbox.Bare || c.beganBefore(sandbox)):
			cut[c.ID] = true
		}
	}
	return cut
}

func (c *Container) beganBefore(sandbox *Container) bool {
	if c.Ticks != 0 && sandbox.Ticks != 0 {
		return c.Ticks < sandbox.Ticks
	}
	return c.StartedAt.Before(sandbox.StartedAt)
}

// failedToJoin reports whether the engine has given the container up because of its network.
func (c *Container) failedToJoin() bool {
	switch c.State {
	case Created, Exited:
		return c.Error != "" && (joinFailed.MatchString(c.Error) || len(c.NetworkOf) >= 12 && strings.Contains(c.Error, c.NetworkOf[:12]))
	}
	return false
}

// joinFailed is what engines say when a joiner finds no namespace to join
// (https://github.com/moby/moby/blob/master/daemon/container_operations.go, getNetworkedContainer). That a container
// is gone or being restarted is said of others, too, and counts by the id that is named.
var joinFailed = regexp.MustCompile(`cannot join (the )?network|joining network namespace|/proc/\d+/ns/net: no such file`)
