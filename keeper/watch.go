package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

const (
	debounce   = 20 * time.Millisecond // a start is half a dozen events
	listPeriod = 30 * time.Second      // the list is asked for again, in case an event was lost
	firstRetry = 100 * time.Millisecond
	lastRetry  = 2 * time.Second
	parallel   = 4 // questions at a time
	// inspectTimeout is for one container: the engine holds a lock on it while it starts or stops it.
	inspectTimeout = 3 * time.Second
)

// watcher keeps the facts current: it lists when the engine reports an event and asks again about the containers
// that changed. What it can't read it leaves as it was: a silent engine must not empty the mesh.
type watcher struct {
	scope  Scope
	engine Engine
	feed   *feed
	// report is called after each look, with all that was seen.
	report func([]heal.Container)
	log    *slog.Logger

	// blind is the reason why the facts may be old, nil while they are not.
	blind atomic.Pointer[error]

	wake chan struct{}

	mu       sync.Mutex
	pending  changes
	ids      map[string]bool // the containers in known; nil before the first look
	projects map[string]bool // the compose projects that have a part in the mesh

	// The rest belongs to the loop of refresh.
	known    map[string]tracked
	networks map[string]mesh.Network
	stopping map[string]int  // main process of a container that was told to end
	told     map[string]bool // containers that were told to end since they began
	ends     map[string]end  // of containers that have not begun again since, and of some that are gone
	problems string
	// unreadable are the containers that could not be inspected at the last look, and why.
	unreadable map[string]error
}

type tracked struct {
	print string
	Container
	ticks uint64 // when its main process began
}

// end is an end that the engine has reported.
type end struct {
	at       time.Time
	byItself bool   // nobody had told it to
	sandbox  string // id of the container whose network it shared, "" if that was not seen
	workload string // as its label says
	project  string // of compose
}

// changes are what events have reported since the last look.
type changes struct {
	all    bool
	events map[string][]Event // by container, in their order
}

func newChanges() changes { return changes{events: map[string][]Event{}} }

func newWatcher(s Scope, e Engine, f *feed, log *slog.Logger) *watcher {
	w := &watcher{
		scope: s, engine: e, feed: f, report: func([]heal.Container) {}, log: log, wake: make(chan struct{}, 1), pending: newChanges(),
		known: map[string]tracked{}, networks: map[string]mesh.Network{}, stopping: map[string]int{},
		told: map[string]bool{}, ends: map[string]end{},
	}
	starting := errors.New("the docker engine has not answered yet")
	w.blind.Store(&starting)
	return w
}

func (w *watcher) run(ctx context.Context) error { return lifecycle.Run(ctx, w.listen, w.loop) }

// health says why the facts may be old.
func (w *watcher) health() error {
	if err := w.blind.Load(); err != nil {
		return *err
	}
	return nil
}

// listen hears the engine's events and connects again whenever the stream breaks.
func (w *watcher) listen(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		err := w.engine.Events(ctx, func(e Event) {
			if e.Container == "" {
				failures = 0
			}
			w.note(e)
		})
		if failures == 0 && ctx.Err() == nil {
			w.log.Warn("event stream of the docker engine cut; connecting again", "error", err)
		}
		failures++
		pause(ctx, failures)
	}
	return nil
}

// note records an event for the next look.
func (w *watcher) note(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case e.Container == "":
		w.pending.all = true // the stream is new: anything may have happened before
	case !w.concerns(e):
		return
	default:
		w.pending.events[e.Container] = append(w.pending.events[e.Container], e)
	}
	select {
	case w.wake <- struct{}{}:
	default: // it is awake already
	}
}

// concerns reports whether an event is about a container that is in the facts or may belong there.
func (w *watcher) concerns(e Event) bool {
	return w.ids == nil || w.ids[e.Container] || e.Labels[labels.Mesh] == w.scope.Mesh || w.projects[e.Labels[labelProject]]
}

func (w *watcher) take() changes {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.pending
	w.pending = newChanges()
	return p
}

// loop looks after events, regularly, and again after a failure.
func (w *watcher) loop(ctx context.Context) error {
	failures := 0
	all := true
	for ctx.Err() == nil {
		ch := w.take()
		ch.all = ch.all || all
		err := w.refresh(ctx, ch)
		all = err != nil
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if failures == 0 {
				w.log.Warn("the docker engine can't be read; the facts stay as they are", "error", err)
			}
			failures++
			w.blind.Store(&err)
			pause(ctx, failures)
		default:
			failures = 0
			if w.blind.Swap(nil) != nil {
				w.log.Info("the docker engine is read", "containers", len(w.known))
			}
			w.rest(ctx)
		}
	}
	return nil
}

// rest waits for an event and those that come with it, or until it is time to list again, which comes sooner where a
// container could not be inspected.
func (w *watcher) rest(ctx context.Context) {
	period := listPeriod
	if len(w.unreadable) > 0 {
		period = lastRetry
	}
	select {
	case <-ctx.Done():
	case <-w.wake:
		sleep(ctx, debounce)
	case <-time.After(period):
	}
}

// refresh brings known up to date and publishes the facts if they have changed.
func (w *watcher) refresh(ctx context.Context, ch changes) error {
	for id, events := range ch.events {
		for _, e := range events {
			w.follow(id, e)
		}
	}
	listed, projects, err := w.list(ctx)
	if err != nil {
		return err
	}
	known, err := w.inspect(ctx, listed, ch)
	if err != nil {
		return err
	}
	networks, err := w.inspectNetworks(ctx, known, ch.all)
	if err != nil {
		return err
	}
	w.known, w.networks = known, networks
	w.remember(projects)
	maps.DeleteFunc(w.stopping, func(id string, pid int) bool { return known[id].PID != pid })
	maps.DeleteFunc(w.told, func(id string, _ bool) bool { _, ok := known[id]; return !ok })
	maps.DeleteFunc(w.ends, func(id string, e end) bool { _, ok := known[id]; return !ok && w.sandbox(e) == nil })
	return w.publish()
}

// follow keeps the story of one container: an inspection does not show whether it was told to end.
func (w *watcher) follow(id string, e Event) {
	c, seen := w.known[id]
	switch {
	case e.Change == Started:
		delete(w.told, id)
		delete(w.ends, id)
	case e.Change == Ended:
		w.ends[id] = end{at: e.Time, byItself: !w.told[id], sandbox: c.NetworkOf, workload: e.Labels[labels.Workload], project: e.Labels[labelProject]}
	case e.Signal != 0 && c.endedBy(e.Signal): // of one that was not seen yet, the usual signals
		w.told[id] = true
		if seen {
			w.stopping[id] = c.PID
		}
	}
}

// sandbox is the sandbox whose network a container shared until its end, nil if that one is gone or has begun anew since.
func (w *watcher) sandbox(e end) *tracked {
	for id, s := range w.known {
		if mesh.Role(s.Labels[labels.Role]) != mesh.RoleSandbox || e.at.Before(s.StartedAt) {
			continue
		}
		same := e.workload != "" && s.Labels[labels.Workload] == e.workload && s.Labels[labelProject] == e.project
		if id == e.sandbox || e.sandbox == "" && same {
			return &s
		}
	}
	return nil
}

func (w *watcher) remember(projects map[string]bool) {
	ids := make(map[string]bool, len(w.known))
	for id := range w.known {
		ids[id] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ids, w.projects = ids, projects
}

// endedBy reports whether the signal tells the container to end. An application on its way out must get no new
// requests, though it still runs.
func (c Container) endedBy(signal int) bool {
	return signal == int(unix.SIGTERM) || signal == int(unix.SIGKILL) || signal == c.StopSignal
}

// list is every container of the mesh and of the compose projects that have a part in it, and these projects.
func (w *watcher) list(ctx context.Context) (map[string]Listed, map[string]bool, error) {
	ours, err := w.engine.List(ctx, labels.Mesh, w.scope.Mesh)
	if err != nil {
		return nil, nil, err
	}
	all, projects := map[string]Listed{}, map[string]bool{}
	for _, c := range ours {
		all[c.ID] = c
		if p := c.Labels[labelProject]; p != "" {
			projects[p] = true
		}
	}
	for p := range projects {
		more, err := w.engine.List(ctx, labelProject, p)
		if err != nil {
			return nil, nil, err
		}
		for _, c := range more {
			if _, other := c.Labels[labels.Mesh]; !other {
				all[c.ID] = c
			}
		}
	}
	return all, projects, nil
}

// inspect asks about the containers that may have changed and takes over the others. One that can't be inspected,
// while others can, stays as it was known and is asked about again: a container that the engine has lost its own state
// of must not hide what becomes of all others.
func (w *watcher) inspect(ctx context.Context, listed map[string]Listed, ch changes) (map[string]tracked, error) {
	var (
		mu       sync.Mutex
		answered int
		failed   = map[string]error{}
	)
	known := make(map[string]tracked, len(listed))
	var group errgroup.Group
	group.SetLimit(parallel)
	for id, l := range listed {
		if old, ok := w.known[id]; ok && old.print == l.Print && !ch.all && len(ch.events[id]) == 0 {
			mu.Lock()
			known[id] = old
			mu.Unlock()
			continue
		}
		group.Go(func() error {
			asked, cancel := context.WithTimeout(ctx, inspectTimeout)
			defer cancel()
			c, err := w.engine.Inspect(asked, id)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, ErrNotFound): // gone since it was listed
				answered++
			case err != nil:
				failed[id] = err
			default:
				answered++
				known[id] = tracked{l.Print, c, ticks(procRoot, c.PID)}
			}
			return nil
		})
	}
	if err := errors.Join(group.Wait(), ctx.Err()); err != nil {
		return nil, err
	}
	return known, w.unread(listed, known, failed, answered)
}

// unread keeps what is known of the containers that can't be inspected. It is an error if none can.
func (w *watcher) unread(listed map[string]Listed, known map[string]tracked, failed map[string]error, answered int) error {
	if len(failed) > 0 && answered == 0 {
		first := slices.Min(slices.Collect(maps.Keys(failed)))
		return fmt.Errorf("inspect container %.12s: %w", first, failed[first])
	}
	for id, err := range failed {
		if old, ok := w.known[id]; ok {
			old.print = "" // asked again at the next look
			known[id] = old
		}
		if w.unreadable[id] == nil {
			w.log.Warn("a container can't be inspected; it stays as it was known", "container", listed[id].Labels[labelService], "id", id[:min(12, len(id))], "error", err)
		}
	}
	w.unreadable = failed
	return nil
}

func (w *watcher) inspectNetworks(ctx context.Context, known map[string]tracked, all bool) (map[string]mesh.Network, error) {
	networks := map[string]mesh.Network{}
	for _, c := range known {
		for _, ep := range c.Endpoints {
			id := ep.NetworkID
			if _, done := networks[id]; done {
				continue
			}
			if n, ok := w.networks[id]; ok && !all {
				networks[id] = n
				continue
			}
			n, err := w.engine.Network(ctx, id)
			if errors.Is(err, ErrNotFound) {
				continue // a stopped container remembers a network that was removed
			}
			if err != nil {
				return nil, err
			}
			networks[id] = n
		}
	}
	return networks, nil
}

func (w *watcher) publish() error {
	views := make([]heal.Container, 0, len(w.known))
	for id, t := range w.known {
		view := healView(t.Container, procRoot, t.ticks)
		_, view.Stopping = w.stopping[id]
		view.ByItself = w.ends[id].byItself
		views = append(views, view)
	}
	w.addGone(views)
	w.report(views)
	cut := heal.Cut(views)
	containers := make([]Container, 0, len(views))
	for _, view := range views {
		c := w.known[view.ID].Container
		c.Running = c.Running && !view.Stopping && !cut[view.ID] // such a one answers nobody
		containers = append(containers, c)
	}
	facts, problems := Build(w.scope, containers, slices.Collect(maps.Values(w.networks)))
	if text := strings.Join(problems, "; "); text != w.problems {
		w.problems = text
		for _, p := range problems {
			w.log.Warn("left out of the mesh", "problem", p)
		}
	}
	changed, err := w.feed.set(facts)
	if changed {
		w.log.Debug("facts changed", "workloads", len(facts.Workloads), "networks", len(facts.Networks))
	}
	return err
}

// addGone tells the sandboxes of containers that shared their network, have ended and are gone by now, as those of
// `docker compose run --rm` are.
func (w *watcher) addGone(views []heal.Container) {
	for id, e := range w.ends {
		if _, ok := w.known[id]; ok {
			continue
		}
		if s := w.sandbox(e); s != nil {
			i := slices.IndexFunc(views, func(v heal.Container) bool { return v.ID == s.ID })
			if e.at.After(views[i].LeftAt) {
				views[i].LeftAt = e.at
			}
		}
	}
}

// pause waits before another try, the longer the more have failed.
func pause(ctx context.Context, failures int) {
	d := lastRetry
	if failures <= 5 {
		d = min(firstRetry<<(failures-1), lastRetry)
	}
	sleep(ctx, d/2+rand.N(d/2))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
