package keeper

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/keeper/heal"
)

// TestEvents has an application that the engine has given up, from the fake engine to the reader of the events.
func TestEvents(t *testing.T) {
	s := serve(t, webProxy)
	if status, answer := s.do("GET", "http://admin/events", nil); status != http.StatusOK || answer != "[]" {
		t.Errorf("no events are %d %s", status, answer)
	}
	if status, _ := s.do(http.MethodGet, "http://keeper/events", nil); status != http.StatusNotFound {
		t.Errorf("the mesh's own socket answers %d for events", status)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://admin/events?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()

	boxes := workloadBoxes("web", "172.20.0.3")
	sandbox, app := boxes[0], boxes[2]
	sandbox.State, app.State, app.Running = "running", "exited", false
	app.NetworkOf, app.Error = sandbox.ID, "cannot join network of a non running container: "+sandbox.ID
	s.engine.put(sandbox)
	s.engine.put(app)
	stream := <-s.engine.streams
	stream.send(Event{Container: sandbox.ID}) // the first look may be over
	stream.send(Event{Container: app.ID})

	dec := json.NewDecoder(resp.Body)
	var e heal.Event
	if err := dec.Decode(&e); err != nil {
		t.Fatal(err)
	}
	if e.Seq != 1 || e.What != heal.Start || e.Workload != "web" || e.Container != "web" || e.Result != "done" ||
		!strings.HasPrefix(e.Why, "it could not join its sandbox's network") || time.Since(e.Time) > time.Minute {
		t.Errorf("event: %+v", e)
	}
	s.engine.mu.Lock()
	if got := strings.Join(s.engine.begun, ", "); got != "start web" {
		t.Errorf("the engine was told: %s", got)
	}
	s.engine.mu.Unlock()
	var list []heal.Event
	if _, answer := s.do("GET", "http://admin/events", nil); json.Unmarshal([]byte(answer), &list) != nil || len(list) != 1 || list[0] != e {
		t.Errorf("the list of events is %s", answer)
	}
}

// TestWatcherReportsToTheHealer checks what the healer is told beyond an inspection.
func TestWatcherReportsToTheHealer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := workloadBoxes("web", "172.20.0.3")
		self := box("self", "app", "self")
		self.PID = os.Getpid()
		w := watch(t, append(boxes, self)...)
		_, stream := w.settle() // it is quiet until the next event
		var seen map[string]heal.Container
		w.report = func(list []heal.Container) {
			seen = map[string]heal.Container{}
			for _, c := range list {
				seen[c.Name] = c
			}
		}
		stream.send(Event{Container: id("web"), Signal: 15})
		w.after(time.Second)
		if !seen["web"].Stopping || seen["web-mesh-proxy"].Stopping {
			t.Errorf("web is told to end, its proxy is not: %+v", seen)
		}
		if seen["self"].Ticks == 0 {
			t.Error("the beginning of a process that exists is unknown")
		}
		if c := seen["web-mesh-sandbox"]; c.Role != "sandbox" || c.Workload != "web" || c.Service != "web-mesh-sandbox" {
			t.Errorf("sandbox: %+v", c)
		}
	})
}

// TestCutOffIsNotRunning has an application in a dead namespace: nobody must be sent to it.
func TestCutOffIsNotRunning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := workloadBoxes("web", "172.20.0.3")
		sandbox, app := boxes[0], boxes[2]
		sandbox.StartedAt, app.StartedAt = time.Now(), time.Now()
		app.State, app.NetworkOf, sandbox.PID, app.PID = "running", sandbox.ID, 0, 0
		w := watch(t, sandbox, boxes[1], app)
		f, stream := w.settle()
		if !f.Workloads[0].Running {
			t.Fatal("it does not run though all is well")
		}
		sandbox.StartedAt = time.Now()
		w.engine.put(sandbox)
		stream.send(Event{Container: sandbox.ID})
		if f := w.after(time.Second); f.Workloads[0].Running {
			t.Error("it runs though its sandbox has begun anew")
		}
		app.StartedAt = time.Now()
		w.engine.put(app)
		stream.send(Event{Container: app.ID})
		if f := w.after(time.Second); !f.Workloads[0].Running {
			t.Error("it does not run though it has followed its sandbox")
		}
	})
}

func TestBare(t *testing.T) {
	const head = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo\n"
	root := t.TempDir()
	dev := func(pid, lines string) {
		if err := os.MkdirAll(filepath.Join(root, pid, "net"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, pid, "net", "dev"), []byte(head+lines), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dev("1", "    lo:    2922      45    0    0\n  eth0:     180       2    0    0\n")
	dev("2", "    lo:    2922      45    0    0\n")
	one := []Endpoint{{NetworkID: "n"}}
	for _, tc := range []struct {
		name string
		c    Container
		want bool
	}{
		{"connected", Container{PID: 1, Endpoints: one}, false},
		{"the engine does not know that it is", Container{PID: 1}, false},
		{"without an interface", Container{PID: 2, Endpoints: one}, true},
		{"connected, as far as can be told", Container{PID: 3, Endpoints: one}, false},
		{"disconnected, as far as can be told", Container{PID: 3}, true},
	} {
		if got := bare(root, tc.c); got != tc.want {
			t.Errorf("%s: bare is %v", tc.name, got)
		}
	}
}
