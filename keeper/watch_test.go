package keeper

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// watched is a watcher that runs in a bubble.
type watched struct {
	t      *testing.T
	engine *fakeEngine
	*watcher

	mu       sync.Mutex
	reported []heal.Container // at the last look
}

// seen are the containers of the last look whose role is given.
func (w *watched) seen(role mesh.Role) []heal.Container {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.reported), func(c heal.Container) bool { return c.Role != role })
}

func watch(t *testing.T, containers ...Container) *watched {
	t.Helper()
	w := &watched{t: t, engine: newFakeEngine(containers...)}
	w.watcher = newWatcher(testScope, w.engine, newFeed(), quiet(t))
	w.report = func(all []heal.Container) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.reported = all
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return w
}

// after lets time pass and returns the facts.
func (w *watched) after(d time.Duration) mesh.Facts {
	w.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	line, _ := w.feed.get()
	var f mesh.Facts
	if line != nil {
		if err := json.Unmarshal(line, &f); err != nil {
			w.t.Fatal(err)
		}
	}
	return f
}

// settle lets the first looks pass.
func (w *watched) settle() (mesh.Facts, *fakeStream) {
	w.t.Helper()
	f := w.after(time.Second)
	return f, <-w.engine.streams
}

func TestWatchSeesAChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, workloadBoxes("web", "172.20.0.3")...)
		f, stream := w.settle()
		if f.Revision != 1 || len(f.Workloads) != 1 || !f.Workloads[0].Running {
			t.Fatalf("first facts: %+v", f)
		}
		app := w.engine.containers[id("web")]
		app.Running = false
		w.engine.put(app)
		before := w.engine.inspections()
		stream.send(Event{Container: app.ID})
		if f := w.after(50 * time.Millisecond); f.Revision != 2 || f.Workloads[0].Running {
			t.Errorf("50 ms after a die event: %+v", f)
		}
		if n := w.engine.inspections() - before; n != 1 {
			t.Errorf("%d containers inspected, want the one that changed", n)
		}
		for _, c := range workloadBoxes("api", "172.20.0.4") {
			w.engine.put(c)
		}
		stream.send(Event{Container: id("api"), Labels: w.engine.containers[id("api")].Labels})
		if f := w.after(50 * time.Millisecond); f.Revision != 3 || len(f.Workloads) != 2 {
			t.Errorf("50 ms after a start event: %+v", f)
		}
		w.engine.remove(id("api-mesh-sandbox"))
		w.engine.remove(id("api"))
		w.engine.remove(id("api-mesh-proxy"))
		stream.send(Event{Container: id("api")})
		if f := w.after(50 * time.Millisecond); len(f.Workloads) != 1 {
			t.Errorf("50 ms after a destroy event: %+v", f)
		}
		if f := w.after(10 * time.Minute); f.Revision != 4 {
			t.Errorf("revision %d while nothing changed, want 4", f.Revision)
		}
	})
}

func TestWatchLeavesAnEndingAppAlone(t *testing.T) {
	for name, test := range map[string]struct {
		stopSignal, signal int
		ends               bool
	}{
		"SIGTERM":            {15, 15, true},
		"SIGKILL":            {15, 9, true},
		"its own signal":     {3, 3, true},
		"SIGHUP is a reload": {15, 1, false},
		"another's signal":   {15, 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				boxes := workloadBoxes("web", "172.20.0.3")
				boxes[2].StopSignal = test.stopSignal
				w := watch(t, boxes...)
				_, stream := w.settle()
				stream.send(Event{Container: id("web"), Signal: test.signal})
				if f := w.after(50 * time.Millisecond); f.Workloads[0].Running == test.ends {
					t.Errorf("running is %v", f.Workloads[0].Running)
				}
				if f := w.after(time.Minute); f.Workloads[0].Running == test.ends {
					t.Errorf("a minute later, running is %v", f.Workloads[0].Running)
				}
				app := w.engine.containers[id("web")]
				app.PID++
				w.engine.put(app)
				stream.send(Event{Container: id("web")})
				if f := w.after(50 * time.Millisecond); !f.Workloads[0].Running {
					t.Error("not running after it started again")
				}
			})
		})
	}
}

// TestWatchTellsHowItEnded: the healer ends the workload of what has ended by itself only, and that of a
// `docker compose run` that is gone.
func TestWatchTellsHowItEnded(t *testing.T) {
	const web = "web"
	signal := func(n int) Event { return Event{Container: id(web), Signal: n} }
	started, died := Event{Container: id(web), Change: Started}, Event{Container: id(web), Change: Ended}
	for name, test := range map[string]struct {
		events []Event
		want   bool
	}{
		"by itself":                           {[]Event{died}, true},
		"after SIGHUP":                        {[]Event{signal(1), died}, true},
		"stopped":                             {[]Event{signal(15), died}, false},
		"stopped the hard way":                {[]Event{signal(15), signal(9), died}, false},
		"stopped, started, ended by itself":   {[]Event{signal(15), died, started, died}, true},
		"ended by itself, started, stopped":   {[]Event{died, started, signal(9), died}, false},
		"it runs again":                       {[]Event{died, started}, false},
		"nobody knows, the stream was broken": {nil, false},
	} {
		for _, apart := range []bool{false, true} { // all events in one look, or each in one
			synctest.Test(t, func(t *testing.T) {
				w := watch(t, workloadBoxes(web, "172.20.0.3")...)
				_, stream := w.settle()
				for _, e := range test.events {
					stream.send(e)
					if apart {
						w.after(time.Second)
					}
				}
				w.after(time.Minute)
				if got := w.seen(mesh.RoleApp)[0].ByItself; got != test.want {
					t.Errorf("%s: by itself is %v", name, got)
				}
			})
		}
	}

	synctest.Test(t, func(t *testing.T) {
		boxes := workloadBoxes(web, "172.20.0.3")
		now := time.Now()
		for i := range boxes {
			boxes[i].StartedAt = now
		}
		w := watch(t, boxes...)
		left := func() time.Time { return w.seen(mesh.RoleSandbox)[0].LeftAt }
		_, stream := w.settle()
		run := map[string]string{labelProject: "shop", labels.Mesh: testScope.Mesh, labels.Workload: web, labels.Role: "app", labelOneOff: "True"}
		stream.send(Event{Container: "4u4", Labels: run, Change: Ended, Time: now.Add(time.Minute)})
		if w.after(time.Minute); !left().Equal(now.Add(time.Minute)) {
			t.Errorf("the last end is %s", left())
		}
		sandbox := w.engine.containers[id(web+"-mesh-sandbox")]
		sandbox.StartedAt = now.Add(2 * time.Minute)
		w.engine.put(sandbox)
		stream.send(Event{Container: sandbox.ID, Change: Started})
		if w.after(time.Minute); !left().IsZero() {
			t.Errorf("after the sandbox began anew, the last end is %s", left())
		}
	})
}

// What can't be read stays as it was, and nothing is missed when the engine is back.
func TestWatchOutlivesTheEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, workloadBoxes("web", "172.20.0.3")...)
		_, stream := w.settle()
		if err := w.health(); err != nil {
			t.Errorf("health: %v", err)
		}
		w.engine.breakWith(errEngine)
		stream.cut <- errEngine
		if f := w.after(5 * time.Minute); f.Revision != 1 || len(f.Workloads) != 1 {
			t.Errorf("facts without an engine: %+v", f)
		}
		if w.health() == nil {
			t.Error("healthy without an engine")
		}
		w.engine.remove(id("web"))
		w.engine.breakWith(nil)
		if f := w.after(3 * time.Second); len(f.Workloads) != 1 || f.Workloads[0].Running {
			t.Errorf("facts after the engine came back: %+v", f)
		}
		if err := w.health(); err != nil {
			t.Errorf("health after the engine came back: %v", err)
		}
	})
}

func TestWatchWaitsForAnEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newFakeEngine(workloadBoxes("web", "172.20.0.3")...)
		e.breakWith(errEngine)
		w := &watched{t: t, engine: e, watcher: newWatcher(testScope, e, newFeed(), quiet(t))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.run(ctx) }()
		w.after(time.Minute)
		if line, _ := w.feed.get(); line != nil {
			t.Errorf("facts from a silent engine: %s", line)
		}
		e.breakWith(nil)
		if f := w.after(3 * time.Second); len(f.Workloads) != 1 {
			t.Errorf("facts: %+v", f)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A lost event is made up for.
func TestWatchListsRegularly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, workloadBoxes("web", "172.20.0.3")...)
		w.settle()
		sandbox := w.engine.containers[id("web-mesh-sandbox")]
		sandbox.Endpoints = []Endpoint{{NetworkID: "n1", IPv4: "172.20.0.99"}}
		w.engine.put(sandbox)
		before := w.engine.inspections()
		if f := w.after(10*listPeriod + time.Second); f.Workloads[0].Addresses[0].IPv4 != "172.20.0.99" {
			t.Errorf("addresses: %+v", f.Workloads[0].Addresses)
		}
		if n := w.engine.inspections() - before; n != 1 {
			t.Errorf("%d containers inspected in five minutes, want the one that changed", n)
		}
	})
}

// With an external control plane a mesh spans compose projects; each brings its neighbours.
func TestWatchSeesTheProjectsOfTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := workloadBoxes("cart", "172.20.0.8")
		for i := range other {
			other[i].Labels[labelProject] = "cart-project"
		}
		all := append(workloadBoxes("web", "172.20.0.3"), other...)
		for _, p := range []string{"shop", "cart-project", "elsewhere"} {
			all = append(all, Container{ID: id(p), Name: p + "-db-1", Labels: map[string]string{labelProject: p, labelService: p + "-db"}})
		}
		all = append(all, Container{ID: id("x"), Name: "x", Labels: map[string]string{labelProject: "shop", labels.Mesh: "other", labels.Role: "app", labels.Workload: "x"}})
		w := watch(t, all...)
		f, _ := w.settle()
		var names []string
		for _, wl := range f.Workloads {
			names = append(names, wl.Name)
		}
		if len(names) != 4 || names[0] != "cart" || names[1] != "cart-project-db.cart-project" || names[2] != "shop-db" || names[3] != "web" {
			t.Errorf("workloads: %v", names)
		}
	})
}

// Other projects on the same engine cost nothing.
func TestWatchIgnoresStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, workloadBoxes("web", "172.20.0.3")...)
		_, stream := w.settle()
		lists := w.engine.listings()
		stream.send(Event{Container: id("ci"), Labels: map[string]string{labelProject: "ci", labels.Mesh: "other"}})
		stream.send(Event{Container: id("ci")})
		w.after(time.Second)
		if n := w.engine.listings() - lists; n != 0 {
			t.Errorf("listed %d times for another project's events", n)
		}
		stream.send(Event{Container: id("new"), Labels: map[string]string{labelProject: "shop"}})
		w.after(time.Second)
		if n := w.engine.listings() - lists; n == 0 {
			t.Error("not listed for a new neighbour")
		}
	})
}

// What happened while the stream was cut is not known, so everything is asked again.
func TestWatchAsksAgainAfterACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, workloadBoxes("web", "172.20.0.3")...)
		_, stream := w.settle()
		before := w.engine.inspections()
		stream.cut <- errEngine
		w.after(time.Second)
		if n := w.engine.inspections() - before; n != 3 {
			t.Errorf("%d containers inspected after a cut, want all 3", n)
		}
		if len(w.engine.streams) != 1 {
			t.Errorf("%d new streams, want 1", len(w.engine.streams))
		}
	})
}

func TestWatchGoesOnBesideAnUnreadableContainer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, append(workloadBoxes("web", "172.20.0.3"), workloadBoxes("api", "172.20.0.4")...)...)
		_, stream := w.settle()
		w.engine.mu.Lock()
		w.engine.unreadable = id("web")
		w.engine.mu.Unlock()
		for _, name := range []string{"web", "api"} {
			c := w.engine.containers[id(name)]
			c.Running = false
			w.engine.put(c)
			stream.send(Event{Container: c.ID})
		}
		f := w.after(time.Second)
		if len(f.Workloads) != 2 || f.Workloads[0].Running || !f.Workloads[1].Running {
			t.Fatalf("want api stopped and web as it was known: %+v", f.Workloads)
		}
		if err := w.health(); err != nil {
			t.Errorf("health: %v", err)
		}
		w.engine.mu.Lock()
		w.engine.unreadable = ""
		w.engine.mu.Unlock()
		if f = w.after(2 * lastRetry); f.Workloads[1].Running {
			t.Errorf("readable again, without an event: %+v", f.Workloads)
		}
	})
}
