package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// healEngine is the engine as the healer sees it.
type healEngine struct {
	Engine
	procRoot string
}

func (e healEngine) Inspect(ctx context.Context, id string) (heal.Container, bool, error) {
	c, err := e.Engine.Inspect(ctx, id)
	if errors.Is(err, ErrNotFound) {
		return heal.Container{}, false, nil
	}
	if err != nil {
		return heal.Container{}, false, err
	}
	return healView(c, e.procRoot, ticks(e.procRoot, c.PID)), true, nil
}

func healView(c Container, procRoot string, ticks uint64) heal.Container {
	return heal.Container{
		Bare: c.Running && mesh.Role(c.Labels[labels.Role]) == mesh.RoleSandbox && bare(procRoot, c), Networks: len(c.Endpoints),
		ID: c.ID, Name: c.Name, Service: c.Labels[labelService], Role: mesh.Role(c.Labels[labels.Role]),
		Workload: c.Labels[labels.Workload], OneOff: c.Labels[labelOneOff] == "True",
		State: heal.State(c.State), Health: c.Health, Error: c.Error, StartedAt: c.StartedAt, Ticks: ticks,
		NetworkOf: c.NetworkOf, RestartPolicy: c.RestartPolicy, ExitCode: c.ExitCode, Job: c.Labels[labels.Job] == "true",
	}
}

// Workload implements heal.Engine.
func (e healEngine) Workload(ctx context.Context, name string) ([]heal.Container, error) {
	listed, err := e.List(ctx, labels.Workload, name)
	if err != nil {
		return nil, err
	}
	var all []heal.Container
	for _, l := range listed {
		c, ok, err := e.Inspect(ctx, l.ID)
		if err != nil {
			return nil, err
		}
		if ok {
			all = append(all, c)
		}
	}
	return all, nil
}

// bare reports whether a container's network namespace has no interface but the loopback. The kernel knows; where it can't
// be asked, it is what the engine says.
func bare(procRoot string, c Container) bool {
	list, err := os.ReadFile(filepath.Join(procRoot, strconv.Itoa(c.PID), "net", "dev"))
	if c.PID == 0 || err != nil {
		return len(c.Endpoints) == 0
	}
	for line := range strings.Lines(string(list)) { // after two lines of heads: "  eth0: 732 8 …" (proc_pid_net(5))
		if name, _, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) != "lo" {
			return false
		}
	}
	return true
}

// ticks is when a process began, 0 if that can't be read.
func ticks(procRoot string, pid int) uint64 {
	if pid == 0 {
		return 0
	}
	start, err := startTime(procRoot, pid)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(start, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// events tells what the healer has done: a list, or with ?watch=1 a stream of one event a line that goes on.
func (k *Keeper) events(w http.ResponseWriter, r *http.Request) {
	list, changed := k.journal.After(0)
	if r.URL.Query().Get("watch") == "" {
		httpx.JSON(w, append([]heal.Event{}, list...)) // [], not null
		return
	}
	out := newLines(w)
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	if out.send(nil) != nil { // the answer begins, whether there are events or not
		return
	}
	var seen uint64
	for {
		for _, e := range list {
			line, err := json.Marshal(e)
			if err != nil || out.send(line) != nil {
				return
			}
			seen = e.Seq
		}
		select {
		case <-changed:
		case <-tick.C:
			if out.send(nil) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
		list, changed = k.journal.After(seen)
	}
}

// lines writes a stream of JSON, one value a line; an empty line tells that there is nothing new.
type lines struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

func newLines(w http.ResponseWriter) *lines {
	w.Header().Set("Content-Type", "application/x-ndjson")
	return &lines{w, http.NewResponseController(w)}
}

// send writes a line; an error is the end of the stream.
func (l *lines) send(line []byte) error {
	err := l.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil || errors.Is(err, http.ErrNotSupported) {
		_, err = l.w.Write(append(bytes.Clone(line), '\n'))
	}
	return errors.Join(err, l.rc.Flush())
}
