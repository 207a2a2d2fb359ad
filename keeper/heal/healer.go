package heal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// Engine is what the healer asks of the container engine.
type Engine interface {
	// Inspect describes a container; ok is false if there is none.
	Inspect(ctx context.Context, id string) (c Container, ok bool, err error)
	// Start starts a container; one that runs is no error.
	Start(ctx context.Context, id string) error
	// Restart stops a container and starts it again; nil is the container's own time to stop.
	Restart(ctx context.Context, id string, grace *time.Duration) error
	// Stop stops a container, which its restart policy then leaves alone.
	Stop(ctx context.Context, id string) error
	// Workload describes the containers that are labelled as those of a workload, in whatever mesh.
	Workload(ctx context.Context, name string) ([]Container, error)
}

const (
	parallel     = 4           // workloads that are worked on at a time
	firstBackoff = time.Second // between two attempts at one container; doubled with each
	lastBackoff  = time.Minute
	forgetAfter  = 30 * time.Second // without trouble the next attempt is a first one again

	firstLook = time.Second // after a change; doubled with each look without one
	lastLook  = 30 * time.Second
	// idleShare bounds what looking may cost: after a look comes a pause of so many times its duration.
	idleShare = 10
)

// noGrace is that of proxies and sandboxes: without a network there is nothing to drain, and a proxy would try to, with its
// peers' connections, which are dead too.
var noGrace time.Duration

// Config is what a healer needs; every field is set.
type Config struct {
	Engine  Engine
	Journal *Journal
	Log     *slog.Logger
}

// Healer carries out what Plan says, as often and as much at a time as is good.
type Healer struct {
	cfg  Config
	wake chan struct{}

	mu   sync.Mutex
	news map[string]Container // the last Update, nil once the loop has taken it

	// The rest belongs to the loop of Run.
	known    map[string]Container // by id
	since    map[key]time.Time    // when Plan first said it
	told     map[key]bool
	attempts map[string]attempts  // by container
	settled  map[string]time.Time // StartedAt of what was restarted and still seems to be older than its sandbox
	busy     map[string]bool      // by workload
	finished chan outcome
	lookAt   time.Time     // when to look next
	rested   time.Time     // no look before
	lookNext time.Duration // until the look after that
}

// key tells one reason to act from another.
type key struct {
	verb      Verb
	container string
}

type attempts struct {
	n    int
	last time.Time
}

type outcome struct {
	action Action
	tried  bool
	done   bool                  // and the container runs
	fresh  map[string]*Container // what was learnt on the way; nil is gone
}

// New makes a healer; it does nothing before the first Update.
func New(cfg Config) *Healer {
	return &Healer{
		cfg: cfg, wake: make(chan struct{}, 1), since: map[key]time.Time{}, told: map[key]bool{},
		attempts: map[string]attempts{}, settled: map[string]time.Time{},
		busy: map[string]bool{}, finished: make(chan outcome, parallel),
	}
}

// Update tells the healer all containers of the mesh, and those of its projects. It does not wait.
func (h *Healer) Update(containers []Container) {
	news := make(map[string]Container, len(containers))
	for _, c := range containers {
		news[c.ID] = c
	}
	h.mu.Lock()
	h.news = news
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default: // it is awake already
	}
}

// Run heals until ctx is done.
func (h *Healer) Run(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	for ctx.Err() == nil {
		h.takeNews()
		if h.known != nil && !time.Now().Before(h.lookAt) {
			h.look(ctx)
		}
		next := h.act(ctx, &workers)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-h.wake:
		case o := <-h.finished:
			h.finish(o)
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

func (h *Healer) takeNews() {
	h.mu.Lock()
	news := h.news
	h.news = nil
	h.mu.Unlock()
	if news == nil {
		return
	}
	h.known = news
	h.lookNext = firstLook
	soon := time.Now().Add(firstLook)
	if soon.Before(h.rested) {
		soon = h.rested
	}
	if soon.Before(h.lookAt) {
		h.lookAt = soon
	}
}

// look asks again about joiners that don't run: the engine reports no event when it gives a container up.
func (h *Healer) look(ctx context.Context) {
	began := time.Now()
	for id, c := range h.known {
		if c.NetworkOf == "" || c.State != Exited && c.State != Restarting {
			continue
		}
		if s, ok := h.known[c.NetworkOf]; ok && s.State != Running {
			continue
		}
		fresh, ok, err := h.cfg.Engine.Inspect(ctx, id)
		if err != nil {
			break // the watcher reports an engine that does not answer
		}
		if ok {
			h.learn(id, &fresh)
		}
	}
	now := time.Now()
	h.rested = now.Add(idleShare * now.Sub(began))
	h.lookAt = h.rested
	if at := now.Add(h.lookNext); at.After(h.rested) {
		h.lookAt = at
	}
	h.lookNext = min(2*h.lookNext, lastLook)
}

// learn takes over what an inspection has told.
func (h *Healer) learn(id string, c *Container) {
	if c == nil {
		delete(h.known, id)
		return
	}
	h.known[id] = c.heard(h.known[id])
}

// heard adds what the watcher has heard, which an inspection does not show.
func (c Container) heard(before Container) Container {
	c.Stopping = before.Stopping
	if c.StartedAt.Equal(before.StartedAt) {
		c.ByItself, c.LeftAt = before.ByItself, before.LeftAt
	}
	return c
}

// act begins what is due and returns how long nothing else will be.
func (h *Healer) act(ctx context.Context, workers *sync.WaitGroup) time.Duration {
	if h.known == nil {
		return lastLook
	}
	now := time.Now()
	next := h.lookAt
	containers := make([]Container, 0, len(h.known))
	for _, c := range h.known {
		containers = append(containers, c)
	}
	planned := map[key]bool{}
	for _, a := range Plan(containers) {
		k := key{a.Verb, a.Container.ID}
		planned[k] = true
		if h.since[k].IsZero() {
			h.since[k] = now
		}
		due := h.due(a, k)
		switch {
		case h.told[k]:
		case a.Verb == Restart && h.settled[a.Container.ID].Equal(a.Container.StartedAt): // the clock was set back
		case now.Before(due):
			if due.Before(next) {
				next = due
			}
		case a.Verb == Tell:
			h.told[k] = true
			h.record(a, a.Advice)
		case h.busy[a.Workload] || len(h.busy) >= parallel: // the end of one of them wakes us
		default:
			h.busy[a.Workload] = true
			h.attempts[a.Container.ID] = attempts{h.attempts[a.Container.ID].n, now} // not to be forgotten meanwhile
			if a.Verb == End {
				workers.Go(func() { h.finished <- h.end(ctx, a, containers) })
			} else {
				workers.Go(func() { h.finished <- h.do(ctx, a) })
			}
		}
	}
	h.forget(planned, now)
	return max(next.Sub(now), 0)
}

func (h *Healer) due(a Action, k key) time.Time {
	due := h.since[k].Add(a.Hold)
	if t := h.attempts[a.Container.ID]; t.n > 0 {
		if again := t.last.Add(backoff(t.n)); again.After(due) {
			return again
		}
	}
	return due
}

// backoff is the pause after n attempts.
func backoff(n int) time.Duration {
	return min(firstBackoff<<min(n-1, 10), lastBackoff)
}

// forget drops what Plan no longer says.
func (h *Healer) forget(planned map[key]bool, now time.Time) {
	for k := range h.since {
		if !planned[k] {
			delete(h.since, k)
			delete(h.told, k)
		}
	}
	for id, t := range h.attempts {
		if now.Sub(t.last) > forgetAfter && !planned[key{Start, id}] && !planned[key{Restart, id}] && !planned[key{End, id}] {
			delete(h.attempts, id)
		}
	}
	for id := range h.settled {
		if !planned[key{Restart, id}] {
			delete(h.settled, id)
		}
	}
}

func (h *Healer) finish(o outcome) {
	delete(h.busy, o.action.Workload)
	id := o.action.Container.ID
	if o.tried {
		h.attempts[id] = attempts{h.attempts[id].n + 1, time.Now()}
	}
	for id, c := range o.fresh {
		h.learn(id, c)
	}
	if o.done {
		h.settled[id] = h.known[id].StartedAt
	}
}

// do carries an action out, if the engine still gives reason to: what the plan was made of may be old.
func (h *Healer) do(ctx context.Context, a Action) outcome {
	o := outcome{action: a, fresh: map[string]*Container{}}
	c, ok := h.ask(ctx, &o, a.Container.ID)
	if !ok {
		return o
	}
	if !h.stands(ctx, &o, c, a.Verb) {
		return o
	}
	o.tried = true
	var err error
	switch {
	case a.Verb == Start:
		err = h.cfg.Engine.Start(ctx, c.ID)
	case c.Role == mesh.RoleProxy, c.Role == mesh.RoleSandbox:
		err = h.cfg.Engine.Restart(ctx, c.ID, &noGrace)
	default:
		err = h.cfg.Engine.Restart(ctx, c.ID, nil)
	}
	if ctx.Err() != nil {
		return o
	}
	h.record(a, result(err))
	c, ok = h.ask(ctx, &o, c.ID)
	o.done = ok && err == nil && c.State == Running
	return o
}

// stands reports whether what was just learnt of a container gives the same reason to act.
func (h *Healer) stands(ctx context.Context, o *outcome, c *Container, verb Verb) bool {
	if c.Role == mesh.RoleSandbox {
		again, ok := bare(c)
		return ok && again.Verb == verb
	}
	sandbox, ok := h.ask(ctx, o, c.NetworkOf)
	if !ok {
		return false
	}
	again, ok := decide(c, sandbox)
	return ok && again.Verb == verb
}

// end stops the proxy of a workload and then its sandbox, if they still serve nobody; known is what the plan was made of.
func (h *Healer) end(ctx context.Context, a Action, known []Container) outcome {
	o := outcome{action: a, fresh: map[string]*Container{}}
	over := func() (proxies []Container, over bool) {
		all, ok := h.sharing(ctx, &o, a.Container, known)
		if !ok {
			return nil, false
		}
		for _, c := range all {
			if c.NetworkOf == a.Container.ID && c.Role == mesh.RoleProxy && c.State == Running {
				proxies = append(proxies, c)
			}
		}
		i := slices.IndexFunc(all, func(c Container) bool { return c.ID == a.Container.ID })
		_, over = ended(&all[i], all)
		return proxies, over
	}
	proxies, ok := over()
	if !ok {
		return o
	}
	o.tried = true
	var err error
	for _, p := range proxies {
		err = errors.Join(err, h.cfg.Engine.Stop(ctx, p.ID))
	}
	if _, ok = over(); !ok && ctx.Err() == nil { // somebody has come while the proxy was on its way out
		for _, p := range proxies {
			err = errors.Join(err, h.cfg.Engine.Start(ctx, p.ID))
		}
		h.record(a, "called off")
		return o
	}
	if err == nil {
		err = h.cfg.Engine.Stop(ctx, a.Container.ID)
	}
	if ctx.Err() != nil {
		return o
	}
	h.record(a, result(err))
	over() // learns
	return o
}

// sharing asks again about a sandbox and all who share its network, or may by now. It always has the sandbox if ok.
func (h *Healer) sharing(ctx context.Context, o *outcome, sandbox Container, known []Container) (all []Container, ok bool) {
	heard := map[string]Container{}
	for _, c := range known {
		heard[c.ID] = c
	}
	fresh, err := h.cfg.Engine.Workload(ctx, sandbox.Workload)
	if err != nil {
		o.tried = true
		return nil, false
	}
	for _, c := range fresh {
		if c.ID == sandbox.ID || c.NetworkOf == sandbox.ID {
			o.fresh[c.ID] = &c
			all = append(all, c.heard(heard[c.ID]))
			ok = ok || c.ID == sandbox.ID
		}
	}
	for _, c := range known {
		if c.NetworkOf == sandbox.ID && !slices.ContainsFunc(all, func(f Container) bool { return f.ID == c.ID }) {
			if f, ok := h.ask(ctx, o, c.ID); ok {
				all = append(all, f.heard(c))
			}
		}
	}
	return all, ok
}

// result is what the journal says of an attempt.
func result(err error) string {
	if err != nil {
		return fmt.Sprintf("failed: %v", err)
	}
	return "done"
}

// ask inspects a container and notes the answer. No answer is an attempt, too: the next one waits.
func (h *Healer) ask(ctx context.Context, o *outcome, id string) (*Container, bool) {
	c, ok, err := h.cfg.Engine.Inspect(ctx, id)
	switch {
	case err != nil:
		o.tried = true
		return nil, false
	case !ok:
		o.fresh[id] = nil
		return nil, false
	}
	o.fresh[id] = &c
	return &c, true
}

// record says what was done, in the journal and in the log.
func (h *Healer) record(a Action, result string) {
	h.cfg.Journal.add(Event{
		Time: time.Now().UTC(), Workload: a.Workload, Container: a.Container.Name, What: a.Verb, Why: a.Why, Result: result,
	})
	level, message := slog.LevelInfo, "healed"
	switch {
	case a.Verb == End && result == "done":
		message = "ended"
	case a.Verb == Tell:
		level, message = slog.LevelWarn, "only a user can heal this"
	case result != "done":
		level, message = slog.LevelWarn, "healing failed"
	}
	h.cfg.Log.Log(context.Background(), level, message, "what", a.Verb, "workload", a.Workload, "container", a.Container.Name,
		"why", a.Why, "result", result)
}
