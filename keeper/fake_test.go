package keeper

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// fakeEngine is an engine in memory.
type fakeEngine struct {
	mu         sync.Mutex
	containers map[string]Container
	networks   map[string]mesh.Network
	broken     error    // every question's answer, if set
	unreadable string   // id of a container whose inspection fails
	begun      []string // "start web"
	inspected  int
	listed     int
	streams    chan *fakeStream
}

// fakeStream is one subscription to events.
type fakeStream struct {
	send func(Event)
	cut  chan error
}

func newFakeEngine(containers ...Container) *fakeEngine {
	e := &fakeEngine{
		containers: map[string]Container{}, networks: map[string]mesh.Network{"n1": testNetwork},
		streams: make(chan *fakeStream, 16),
	}
	for _, c := range containers {
		e.containers[c.ID] = c
	}
	return e
}

var testNetwork = mesh.Network{Name: "shop_default", ID: "n1", Subnets: []string{"172.20.0.0/16"}, Gateways: []string{"172.20.0.1"}}

func (e *fakeEngine) put(c Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.containers[c.ID] = c
}

func (e *fakeEngine) remove(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.containers, id)
}

func (e *fakeEngine) breakWith(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.broken = err
}

func (e *fakeEngine) inspections() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.inspected
}

func (e *fakeEngine) listings() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.listed
}

func (e *fakeEngine) List(_ context.Context, key, value string) ([]Listed, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listed++
	var list []Listed
	for _, c := range e.containers {
		if v, ok := c.Labels[key]; ok && v == value {
			list = append(list, Listed{ID: c.ID, Print: fmt.Sprint(c.Running, c.State, c.Health, c.Endpoints, c.Published), Labels: c.Labels})
		}
	}
	return list, e.broken
}

func (e *fakeEngine) Inspect(_ context.Context, id string) (Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.inspected++
	if e.broken != nil {
		return Container{}, e.broken
	}
	if id == e.unreadable {
		return Container{}, errEngine
	}
	c, ok := e.containers[id]
	if !ok {
		return Container{}, ErrNotFound
	}
	return c, nil
}

func (e *fakeEngine) Network(_ context.Context, id string) (mesh.Network, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, ok := e.networks[id]
	if !ok {
		return mesh.Network{}, ErrNotFound
	}
	return n, e.broken
}

func (e *fakeEngine) Events(ctx context.Context, f func(Event)) error {
	e.mu.Lock()
	broken := e.broken
	e.mu.Unlock()
	if broken != nil {
		return broken
	}
	f(Event{})
	s := &fakeStream{send: f, cut: make(chan error, 1)}
	e.streams <- s
	select {
	case err := <-s.cut:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *fakeEngine) Start(_ context.Context, id string) error {
	return e.begin("start", id)
}

func (e *fakeEngine) Restart(_ context.Context, id string, _ *time.Duration) error {
	return e.begin("restart", id)
}

func (e *fakeEngine) Stop(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	e.begun = append(e.begun, "stop "+c.Name)
	c.State, c.Running, c.PID = "exited", false, 0
	e.containers[id] = c
	return e.broken
}

func (e *fakeEngine) begin(verb, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.containers[id]
	e.begun = append(e.begun, verb+" "+c.Name)
	c.State, c.Running, c.Error, c.StartedAt = "running", true, "", time.Now()
	e.containers[id] = c
	return e.broken
}

var errEngine = errors.New("engine: connection refused")

var testScope = Scope{Mesh: "shop", TrustDomain: "cluster.local"}

// box makes a running container of the mesh.
func box(name string, role mesh.Role, workload string, more ...map[string]string) Container {
	c := Container{ID: id(name), Name: name, Running: true, PID: 100, StopSignal: 15, Labels: map[string]string{
		labels.Mesh: "shop", labels.Role: string(role), labelProject: "shop", labelService: name,
	}}
	if workload != "" {
		c.Labels[labels.Workload] = workload
	}
	for _, m := range more {
		maps.Copy(c.Labels, m)
	}
	return c
}

// id makes a container id of 64 hexadecimal digits of a name.
func id(name string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(name)))
}

// workloadBoxes are the sandbox, proxy and application of a meshed service.
func workloadBoxes(name, ipv4 string) []Container {
	more := map[string]string{labels.Services: name, labels.ServiceAccount: name}
	sandbox := box(name+"-mesh-sandbox", mesh.RoleSandbox, name, more)
	sandbox.Endpoints = []Endpoint{{NetworkID: "n1", IPv4: ipv4}}
	return []Container{sandbox, box(name+"-mesh-proxy", mesh.RoleProxy, name, more), box(name, mesh.RoleApp, name, more)}
}

func quiet(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}
