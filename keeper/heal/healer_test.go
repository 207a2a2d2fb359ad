package heal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// fakeEngine is an engine whose containers take a second to stop, and whose proxies take one to become ready.
type fakeEngine struct {
	mu         sync.Mutex
	containers map[string]Container
	calls      []string // "12s start web"
	atOnce     int
	mostAtOnce int
	inspected  int
	broken     error      // Inspect's answer, if set
	arrives    *Container // is created while the next Stop is on its way
	refuses    error      // Start's and Restart's answer, if set
	began      time.Time
	healer     *Healer
}

// run runs a healer on the containers until the end of the test.
func run(t *testing.T, containers ...Container) *fakeEngine {
	t.Helper()
	e := &fakeEngine{containers: map[string]Container{}, began: time.Now()}
	e.healer = New(Config{Engine: e, Journal: NewJournal(), Log: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.healer.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for _, c := range containers {
		e.containers[c.ID] = c
	}
	e.report()
	return e
}

// report tells the healer what there is, as the watcher does after an event.
func (e *fakeEngine) report() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reportLocked()
}

func (e *fakeEngine) reportLocked() {
	var list []Container
	for _, c := range e.containers {
		list = append(list, c)
	}
	e.healer.Update(list)
}

// change changes a container; quietly is without an event.
func (e *fakeEngine) change(id string, quietly bool, changes ...change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containers[id] = changed(e.containers[id], changes)
	if !quietly {
		e.reportLocked()
	}
}

func (e *fakeEngine) Inspect(_ context.Context, id string) (Container, bool, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inspected++
	c, ok := e.containers[id]
	return c, ok, e.broken
}

func (e *fakeEngine) Start(ctx context.Context, id string) error {
	return e.start("start", id, 0)
}

func (e *fakeEngine) Restart(ctx context.Context, id string, grace *time.Duration) error {
	verb := "restart"
	if grace != nil {
		verb += "(" + grace.String() + ")"
	}
	return e.start(verb, id, time.Second)
}

func (e *fakeEngine) Stop(_ context.Context, id string) error {
	e.mu.Lock()
	c := e.containers[id]
	e.calls = append(e.calls, fmt.Sprintf("%s stop %s", time.Since(e.began).Round(time.Second), c.Service))
	refuses, arrives := e.refuses, e.arrives
	e.arrives = nil
	e.mu.Unlock()
	time.Sleep(time.Second)
	e.mu.Lock()
	defer e.mu.Unlock()
	if refuses != nil {
		return refuses
	}
	if arrives != nil {
		e.containers[arrives.ID] = *arrives
	}
	c.State = Exited
	e.containers[id] = c
	e.reportLocked()
	return nil
}

func (e *fakeEngine) Workload(_ context.Context, name string) ([]Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []Container
	for _, c := range e.containers {
		if c.Workload == name {
			c.ByItself, c.LeftAt, c.Stopping = false, time.Time{}, false // an inspection does not show it
			list = append(list, c)
		}
	}
	return list, e.broken
}

func (e *fakeEngine) start(verb, id string, takes time.Duration) error {
	e.mu.Lock()
	c := e.containers[id]
	e.calls = append(e.calls, fmt.Sprintf("%s %s %s", time.Since(e.began).Round(time.Second), verb, c.Service))
	e.atOnce++
	e.mostAtOnce = max(e.mostAtOnce, e.atOnce)
	refuses := e.refuses
	e.mu.Unlock()
	time.Sleep(takes)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.atOnce--
	if refuses != nil {
		return refuses
	}
	c.State, c.Error, c.StartedAt, c.Bare = Running, "", time.Now(), false
	if c.Role == mesh.RoleProxy {
		c.Health = "starting"
		time.AfterFunc(time.Second, func() { e.change(id, false, health("healthy")) })
	}
	e.containers[id] = c
	e.reportLocked()
	return nil
}

func (e *fakeEngine) expect(t *testing.T, want ...string) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if got := strings.Join(e.calls, ", "); got != strings.Join(want, ", ") {
		t.Errorf("the healer did\n%s\nwant\n%s", got, strings.Join(want, ", "))
	}
}

// seen is what the engine was asked and told so far.
func (e *fakeEngine) seen() (calls []string, inspected, mostAtOnce int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.calls), e.inspected, e.mostAtOnce
}

func (e *fakeEngine) journal() string {
	var lines []string
	events, _ := e.healer.cfg.Journal.After(0)
	for _, ev := range events {
		lines = append(lines, fmt.Sprintf("%s %s %s: %s", ev.What, ev.Workload, ev.Container, ev.Result))
	}
	return strings.Join(lines, "\n")
}

func began0(t time.Time) change { return func(c *Container) { c.StartedAt = t } }

func TestDeadNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		e := run(t, sandbox(began0(now)), proxy(began0(now.Add(-time.Minute))), app(began0(now.Add(-time.Minute))))
		time.Sleep(time.Hour)
		e.expect(t, "1s restart(0s) web-mesh-proxy", "2s restart web") // the application when the proxy runs
		want := "restart web shop-web-mesh-proxy-1: done\nrestart web shop-web-1: done"
		if got := e.journal(); got != want {
			t.Errorf("journal:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestComposeRestarts has Compose restart sandbox, proxy and application itself: nothing is left to do.
func TestComposeRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		e := run(t, sandbox(began0(now)), proxy(began0(now.Add(-time.Minute))), app(began0(now.Add(-time.Minute))))
		time.Sleep(100 * time.Millisecond)
		e.change("b10c5", false, stopping) // takes its time
		time.Sleep(8 * time.Second)
		e.change("b10c5", false, func(c *Container) { c.Stopping, c.StartedAt, c.Health = false, time.Now(), "starting" })
		e.change("a44", false, stopping)
		time.Sleep(8 * time.Second)
		e.change("a44", false, func(c *Container) { c.Stopping, c.StartedAt = false, time.Now() })
		e.change("b10c5", false, health("healthy"))
		time.Sleep(time.Hour)
		e.expect(t)
	})
}

// TestBare: a sandbox that the engine has lost the interfaces of is restarted, and its joiners after it; of one that somebody
// has disconnected a user is told once.
func TestBare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(bareOf(1)), proxy(), app())
		time.Sleep(time.Hour)
		e.expect(t, "15s restart(0s) web-mesh-sandbox", "17s restart(0s) web-mesh-proxy", "18s restart web")
		e.change(sandboxID, false, bareOf(0))
		time.Sleep(time.Hour)
		want := "restart web shop-web-mesh-sandbox-1: done\nrestart web shop-web-mesh-proxy-1: done\nrestart web shop-web-1: done\n" +
			"tell web shop-web-mesh-sandbox-1: docker compose up -d --force-recreate web-mesh-sandbox web-mesh-proxy web"
		if got := e.journal(); got != want {
			t.Errorf("journal:\n%s\nwant:\n%s", got, want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(bareOf(1)), proxy(), app())
		time.Sleep(10 * time.Second)
		e.change(sandboxID, true, func(c *Container) { c.Bare = false }) // it is back before its time
		time.Sleep(time.Hour)
		e.expect(t)
	})
}

func TestGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(state(Exited)), app(state(Exited)))
		time.Sleep(10 * time.Second)
		// The engine reports no event when it gives them up.
		e.change("b10c5", true, failed(notRunning))
		e.change("a44", true, failed(notRunning))
		time.Sleep(time.Hour)
		e.expect(t, "15s start web-mesh-proxy", "16s start web") // it looks after 1, 3, 7 and 15 s
	})
}

// TestClockSetBack has a joiner that seems to be older than its sandbox however often it is restarted.
func TestClockSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		later := time.Now().Add(24 * time.Hour)
		e := run(t, sandbox(began0(later)), app())
		time.Sleep(time.Hour)
		e.expect(t, "1s restart web")
		e.change("a44", false, failed(notRunning))
		time.Sleep(time.Hour)
		e.expect(t, "1s restart web", "1h0m0s start web")
	})
}

func TestProxyThatNeverBecomesReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(health("unhealthy")), app(failed(notRunning)))
		time.Sleep(time.Hour)
		e.expect(t, "30s start web")
	})
}

// TestStoppedByUser stops the application between the plan and its execution.
func TestStoppedByUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		e := run(t, sandbox(began0(now)), proxy(began0(now)), app(began0(now.Add(-time.Minute))))
		e.change("a44", true, state(Exited))
		time.Sleep(time.Hour)
		e.expect(t)
		if got := e.journal(); got != "" {
			t.Errorf("journal:\n%s", got)
		}
	})
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(), app(failed(notRunning)))
		e.mu.Lock()
		e.refuses = errors.New("no space left on device")
		e.mu.Unlock()
		time.Sleep(3*time.Minute + 30*time.Second)
		e.expect(t, "0s start web", "1s start web", "3s start web", "7s start web", "15s start web", "31s start web",
			"1m3s start web", "2m3s start web", "3m3s start web")
		if !strings.HasPrefix(e.journal(), "start web shop-web-1: failed: no space left on device\n") {
			t.Errorf("journal:\n%s", e.journal())
		}

		// What has been well for a while begins from the start.
		e.mu.Lock()
		e.refuses, e.calls = nil, nil
		e.mu.Unlock()
		time.Sleep(10 * time.Minute)
		e.expect(t, "4m3s start web")
		e.change("a44", false, failed(notRunning))
		time.Sleep(time.Second)
		e.expect(t, "4m3s start web", "13m30s start web")
	})
}

// TestCrashLoop has a sandbox that dies again and again: its application must not be restarted each time.
func TestCrashLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), app())
		for range 200 {
			time.Sleep(3 * time.Second)
			e.change(sandboxID, false, began0(time.Now()))
		}
		calls, _, _ := e.seen()
		if n := len(calls); n < 8 || n > 18 {
			t.Errorf("%d restarts in ten minutes:\n%s", n, strings.Join(calls, "\n"))
		}
	})
}

func TestSilentEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(), app(failed(notRunning)))
		e.mu.Lock()
		e.broken = errors.New("connection refused")
		e.mu.Unlock()
		time.Sleep(10 * time.Minute)
		e.expect(t)
		if _, n, _ := e.seen(); n > 60 {
			t.Errorf("a silent engine was asked %d times in ten minutes", n)
		}
		e.mu.Lock()
		e.broken = nil
		e.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if calls, _, _ := e.seen(); len(calls) != 1 {
			t.Errorf("calls: %v", calls)
		}
	})
}

func TestBoundedWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		var all []Container
		for i := range 50 {
			name := fmt.Sprint("w", i)
			rename := func(c *Container) {
				c.ID, c.Workload = name+c.ID, name
				if c.NetworkOf != "" {
					c.NetworkOf = name + c.NetworkOf
				}
			}
			all = append(all, sandbox(began0(now), rename), proxy(began0(now.Add(-time.Minute)), rename), app(began0(now.Add(-time.Minute)), rename))
		}
		e := run(t, all...)
		time.Sleep(10 * time.Minute)
		calls, _, most := e.seen()
		if len(calls) != 100 {
			t.Errorf("%d calls, want 100", len(calls))
		}
		if most != parallel {
			t.Errorf("%d calls at a time, want %d", most, parallel)
		}
	})
}

// TestRecreatedSandbox tells once of what only Compose can repair, and again when it happens again.
func TestRecreatedSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(joins(goneID)), app(joins(goneID)))
		time.Sleep(10 * time.Second)
		if got := e.journal(); got != "" {
			t.Errorf("told at once: %s", got) // Compose may be replacing them one after the other
		}
		time.Sleep(time.Hour)
		want := "tell web shop-web-mesh-proxy-1: docker compose up -d web-mesh-proxy\ntell web shop-web-1: docker compose up -d web"
		if got := e.journal(); got != want {
			t.Errorf("journal:\n%s\nwant:\n%s", got, want)
		}
		e.change("a44", false, joins(sandboxID))
		time.Sleep(time.Minute)
		e.change("a44", false, joins(goneID))
		time.Sleep(time.Hour)
		want += "\ntell web shop-web-1: docker compose up -d web"
		if got := e.journal(); got != want {
			t.Errorf("journal:\n%s\nwant:\n%s", got, want)
		}
		e.expect(t)
	})
}

// TestJob has a job end: its proxy goes, and then its sandbox.
func TestJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(), app(policy("no")))
		time.Sleep(10 * time.Second)
		e.expect(t)
		e.change("a44", false, over(0))
		time.Sleep(time.Hour)
		e.expect(t, "10s stop web-mesh-proxy", "11s stop web-mesh-sandbox")
		if got := e.journal(); got != "end web shop-web-mesh-sandbox-1: done" {
			t.Errorf("journal:\n%s", got)
		}
		// docker compose up starts the sandbox, the proxy, and when that is ready the application.
		e.change(sandboxID, false, state(Running), began0(time.Now()))
		e.change("b10c5", false, state(Running), began0(time.Now()))
		time.Sleep(time.Minute)
		e.change("a44", false, state(Running), began0(time.Now()), func(c *Container) { c.ByItself = false })
		time.Sleep(time.Minute)
		e.change("a44", false, over(1))
		time.Sleep(time.Hour)
		e.expect(t, "10s stop web-mesh-proxy", "11s stop web-mesh-sandbox", "1h2m10s stop web-mesh-proxy", "1h2m11s stop web-mesh-sandbox")
	})
}

// TestAnotherRun begins a `docker compose run` while the proxy of the last one is on its way out.
func TestAnotherRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		another := app(oneOff, state(Created), func(c *Container) { c.ID = "4u4" })
		e := run(t, sandbox(), proxy())
		e.mu.Lock()
		e.arrives = &another
		e.mu.Unlock()
		time.Sleep(time.Minute)
		e.change(sandboxID, false, func(c *Container) { c.LeftAt = at(60) })
		time.Sleep(time.Minute)
		e.expect(t, "1m10s stop web-mesh-proxy", "1m11s start web-mesh-proxy")
		if got := e.journal(); got != "end web shop-web-mesh-sandbox-1: called off" {
			t.Errorf("journal:\n%s", got)
		}
	})
}

// TestJobThatCannotBeStopped is tried again, each time later.
func TestJobThatCannotBeStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(), app(policy("no"), over(0)))
		e.mu.Lock()
		e.refuses = errors.New("no such process")
		e.mu.Unlock()
		time.Sleep(12 * time.Second)
		e.expect(t, "0s stop web-mesh-proxy", "2s stop web-mesh-proxy", "5s stop web-mesh-proxy", "10s stop web-mesh-proxy")
		if !strings.HasPrefix(e.journal(), "end web shop-web-mesh-sandbox-1: failed: no such process\n") {
			t.Errorf("journal:\n%s", e.journal())
		}
	})
}

// TestNothingToDo costs next to nothing.
func TestNothingToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := run(t, sandbox(), proxy(), app(state(Exited)))
		time.Sleep(time.Hour)
		if _, n, _ := e.seen(); n > 130 { // each half minute
			t.Errorf("%d inspections in an hour", n)
		}
		e.expect(t)
	})
}

func TestJournal(t *testing.T) {
	j := NewJournal()
	none, changed := j.After(0)
	if len(none) != 0 {
		t.Errorf("a new journal has %v", none)
	}
	for range journalSize + 10 {
		j.add(Event{What: Start})
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the events")
	}
	all, _ := j.After(0)
	if len(all) != journalSize || all[0].Seq != 11 || all[len(all)-1].Seq != journalSize+10 {
		t.Errorf("%d events, from %d to %d", len(all), all[0].Seq, all[len(all)-1].Seq)
	}
	if some, _ := j.After(journalSize + 8); len(some) != 2 {
		t.Errorf("%d events after the last but two", len(some))
	}
	if none, _ := j.After(journalSize + 10); len(none) != 0 {
		t.Errorf("%d events after the last", len(none))
	}
}
