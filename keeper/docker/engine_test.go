package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/keeper"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

const (
	engineSocket = "/var/run/docker.sock"
	image        = "keeper-test-caller"
	prefix       = "keeper-test-"
)

// engine skips the test where there is none, and gives a directory that containers can mount.
func engine(t *testing.T) *Engine {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a Docker engine")
	}
	e, err := New(engineSocket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	if err := e.Ping(t.Context()); err != nil {
		t.Skipf("no Docker engine at %s: %v", engineSocket, err)
	}
	return e
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func try(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), name, args...) // also used to clean up
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// build makes a scratch image of a program under the given path in it.
func build(t *testing.T, tag, pkg, path string) {
	t.Helper()
	dir := t.TempDir()
	run(t, "go", "build", "-o", filepath.Join(dir, "program"), pkg)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY program "+path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "docker", "build", "-q", "-t", tag, dir)
	t.Cleanup(func() { _, _ = try(t, "docker", "rmi", "-f", tag) })
}

// socketDir is a directory that the users of containers may enter.
func socketDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs a keeper in this process, which must see the pids of containers.
func start(t *testing.T, e *Engine, dir, name string) *keeper.Keeper {
	t.Helper()
	k, err := keeper.New(keeper.Config{
		Scope: keeper.Scope{Mesh: name, TrustDomain: mesh.DefaultTrustDomain}, Engine: e,
		Socket: filepath.Join(dir, "keeper.sock"), BundleFile: filepath.Join(dir, "bundle.pem"), AttestKey: filepath.Join(dir, "attest.pub"),
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("keeper: %v", err)
		}
	})
	return k
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// A container of the mesh is attested as what its labels say; any other process is refused with the reason.
func TestAttestOnDocker(t *testing.T) {
	e := engine(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: a keeper of another user may not see the cgroups of containers")
	}
	build(t, image, "./testdata/caller", "/caller")
	dir := socketDir(t)
	start(t, e, dir, "keepertest")
	call := func(user string, labels map[string]string, args ...string) string {
		command := []string{"run", "--rm", "--network", "none", "--user", user, "-v", dir + ":/k:ro"}
		for k, v := range labels {
			command = append(command, "--label", k+"="+v)
		}
		out, err := try(t, "docker", append(append(command, image, "/caller", "/k/keeper.sock"), args...)...)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	body, err := json.Marshal(attest.Request{KeyHash: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	web := map[string]string{"composure.mesh": "keepertest", "composure.role": "proxy", "composure.workload": "web"}
	for name, test := range map[string]struct {
		user   string
		labels map[string]string
		args   []string
		want   string
	}{
		"a proxy":           {"1337", web, []string{"POST", "/v1/attest", string(body)}, `"identity":"spiffe://cluster.local/ns/default/sa/web"`},
		"root in a proxy":   {"0", web, []string{"POST", "/v1/attest", string(body)}, "403 {\"error\":\"not a process of this mesh"},
		"another mesh":      {"1337", map[string]string{"composure.mesh": "x", "composure.role": "proxy", "composure.workload": "web"}, []string{"POST", "/v1/attest", string(body)}, `composure.mesh is \"x\", want \"keepertest\"`},
		"any container":     {"1337", nil, []string{"POST", "/v1/attest", string(body)}, "403"},
		"facts for a proxy": {"1337", web, []string{"GET", "/v1/facts"}, "this is for pilot, citadel or mixer, not for proxy"},
		"facts for pilot":   {"1341", map[string]string{"composure.mesh": "keepertest", "composure.role": "pilot"}, []string{"GET", "/v1/facts"}, `200 {"revision":`},
		"the version":       {"0", nil, []string{"GET", "/version"}, `200 {"component":"keeper"`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := call(test.user, test.labels, test.args...); !strings.Contains(got, test.want) {
				t.Errorf("answer is %q, want %q", got, test.want)
			}
		})
	}
	t.Run("a process of the host", func(t *testing.T) {
		bin := filepath.Join(t.TempDir(), "caller")
		run(t, "go", "build", "-o", bin, "./testdata/caller")
		if got := run(t, bin, filepath.Join(dir, "keeper.sock"), "POST", "/v1/attest", string(body)); !strings.Contains(got, "in no Docker container") {
			t.Errorf("answer is %q", got)
		}
	})
}

// The keeper's own program, as inject sets it up, is not root and has no capability.
func TestKeeperDropsPrivileges(t *testing.T) {
	engine(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: it looks at another user's process")
	}
	build(t, "keeper-test-keeper", "../../cmd/keeper", "/keeper")
	name := prefix + "keeper"
	run(t, "docker", "run", "-d", "--name", name, "--network", "none", "--pid", "host", "--user", "0:0", "--read-only",
		"--cap-drop", "ALL", "--cap-add", "SETUID", "--cap-add", "SETGID", "--security-opt", "no-new-privileges:true",
		"--tmpfs", "/run/admin:mode=0700,uid=1340,gid=1340", "--tmpfs", "/run/composure/keeper:mode=0755,uid=1340,gid=1340",
		"-v", engineSocket+":"+engineSocket, "-e", "COMPOSURE_MESH=keepertest", "keeper-test-keeper", "/keeper")
	t.Cleanup(func() { run(t, "docker", "rm", "-f", name) })
	eventually(t, "the keeper to know the engine", func() bool {
		out, _ := try(t, "docker", "logs", name)
		return strings.Contains(out, "the docker engine is read")
	})
	pid := run(t, "docker", "inspect", "-f", "{{.State.Pid}}", name)
	threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	for _, file := range threads {
		status, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, want := range []string{
			"\nUid:\t1340\t1340\t1340\t1340\n", "\nGid:\t1340\t1340\t1340\t1340\n", "\nCapInh:\t0000000000000000\n",
			"\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n", "\nNoNewPrivs:\t1\n",
		} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s has no %q:\n%s", file, want, status)
			}
		}
	}
	dial := exec.CommandContext(t.Context(), "docker", "exec", "-i", name, "/keeper", "dial")
	dial.Stdin = strings.NewReader("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if out, err := dial.CombinedOutput(); err != nil || !strings.HasSuffix(string(out), "{\"status\":\"ok\"}\n") {
		t.Errorf("the admin socket: %v\n%s", err, out)
	}
}

func TestEngineOnDocker(t *testing.T) {
	e := engine(t)
	build(t, image, "./testdata/caller", "/caller")
	name, net := prefix+"web", prefix+"net"
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan keeper.Event, 64)
	done := make(chan error, 1)
	go func() { done <- e.Events(ctx, func(ev keeper.Event) { seen <- ev }) }()
	defer func() { cancel(); <-done }()
	if ev := <-seen; ev.Container != "" {
		t.Fatalf("first event: %+v", ev)
	}
	run(t, "docker", "network", "create", "--internal", "--subnet", "10.213.7.0/24", net)
	t.Cleanup(func() { run(t, "docker", "network", "rm", net) })
	id := run(t, "docker", "run", "-d", "--name", name, "--network", net, "--network-alias", "www", "--expose", "9080",
		"--label", "composure.mesh=keepertest2", image, "/caller", "wait")
	t.Cleanup(func() { run(t, "docker", "rm", "-f", name) })

	listed, err := e.List(t.Context(), "composure.mesh", "keepertest2")
	if err != nil || len(listed) != 1 || listed[0].ID != id || !strings.HasPrefix(listed[0].Print, "running ") || !strings.Contains(listed[0].Print, "=10.213.7.") {
		t.Fatalf("List: %+v, %v", listed, err)
	}
	c, err := e.Inspect(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Running || c.PID == 0 || c.Name != name || len(c.Exposed) != 1 || len(c.Endpoints) != 1 || c.Labels["composure.mesh"] != "keepertest2" || c.Created.IsZero() {
		t.Fatalf("Inspect: %+v", c)
	}
	ep := c.Endpoints[0]
	if !strings.HasPrefix(ep.IPv4, "10.213.7.") || !strings.Contains(strings.Join(ep.Aliases, ","), "www") || strings.Contains(strings.Join(ep.Aliases, ","), id[:12]) {
		t.Errorf("endpoint: %+v", ep)
	}
	n, err := e.Network(t.Context(), ep.NetworkID)
	if err != nil || n.Name != net || !n.Internal || len(n.Subnets) != 1 || n.Subnets[0] != "10.213.7.0/24" || len(n.Gateways) != 1 {
		t.Errorf("Network: %+v, %v", n, err)
	}
	run(t, "docker", "stop", "-t", "10", name)
	want := map[string]bool{"start": true, "kill": true}
	for len(want) > 0 {
		select {
		case ev := <-seen:
			switch {
			case ev.Container != id:
			case ev.Signal == 15:
				delete(want, "kill")
			default:
				delete(want, "start")
			}
		case <-t.Context().Done():
			t.Fatalf("no events: %v", want)
		}
	}
	if c, err := e.Inspect(t.Context(), id); err != nil || c.Running || c.PID != 0 {
		t.Errorf("after stop: %+v, %v", c, err)
	}
	if _, err := e.Inspect(t.Context(), strings.Repeat("0", 64)); !errors.Is(err, keeper.ErrNotFound) {
		t.Errorf("unknown container: %v", err)
	}
	if _, err := e.Network(t.Context(), strings.Repeat("0", 64)); !errors.Is(err, keeper.ErrNotFound) {
		t.Errorf("unknown network: %v", err)
	}
}

func TestEngineAway(t *testing.T) {
	e, err := New(filepath.Join(t.TempDir(), "nothing"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.List(t.Context(), "a", "b"); err == nil {
		t.Error("List of no engine")
	}
	called := false
	if err := e.Events(t.Context(), func(keeper.Event) { called = true }); err == nil || called {
		t.Errorf("Events of no engine: %v, called %v", err, called)
	}
}

// eventually polls what a container does; nothing tells when it has.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("waited 30 s for %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
