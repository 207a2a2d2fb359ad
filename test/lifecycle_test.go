//go:build suites

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
)

// lifecycleCompose has a server that answers at once, and a client that calls it from its first moment on.
const lifecycleCompose = `
services:
  client:
    image: ` + image + `
    command: [sh, -c, "curl -sS -m 5 http://server:8000/hostname || echo FIRST CALL FAILED; exec sleep infinity"]
    init: true
    depends_on:
      server: {condition: service_healthy}
  server:
    image: ` + image + `
    command: [python3, -c, "import http.server as h; h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=8000)"]
    init: true
    working_dir: /etc
    healthcheck:
      test: [CMD, curl, -fsS, "http://localhost:8000/hostname"]
      interval: 1s
      retries: 30
`

// TestLifecycle checks the order of a start, restarts, and traffic while the planes are away.
func TestLifecycle(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": lifecycleCompose})
	p.inject()
	guard := watchProtection(t, p)
	p.up()

	if log := p.compose("logs", "--no-color", "client"); strings.Contains(log, "FAILED") {
		t.Errorf("the client's first call failed:\n%s", log)
	}
	call := func() string {
		if r := p.tryExec("client", "curl", "-sS", "-m", "5", "--fail", "http://server:8000/hostname"); r.code != 0 {
			return r.stderr
		}
		return ""
	}
	works := func(after string) {
		t.Helper()
		eventually(t, "client → server after "+after, call)
	}
	works("the start")

	for _, service := range []string{
		"server", "server-mesh-proxy", "client", "client-mesh-proxy",
		"composure-keeper", "composure-pilot", "composure-citadel", "composure-mixer",
	} {
		p.compose("restart", "--timeout", "5", service)
		works("a restart of " + service)
	}
	p.compose("kill", "server-mesh-proxy")
	must("", engine.ContainerStart(t.Context(), p.container("server-mesh-proxy"), container.StartOptions{}))
	works("a kill of server-mesh-proxy")
	p.compose("restart", "--timeout", "5", "server-mesh-sandbox")
	works("a restart of server-mesh-sandbox through compose")

	t.Run("planes away", func(t *testing.T) {
		planes := []string{"composure-keeper", "composure-pilot", "composure-citadel", "composure-mixer"}
		p.compose(append([]string{"stop", "--timeout", "5"}, planes...)...)
		for range 20 {
			if wrong := call(); wrong != "" {
				t.Fatalf("client → server with the planes away: %s", wrong)
			}
		}
		// A plain restart of the container, as the engine does it: compose would start what it depends on.
		for _, proxy := range []string{"server-mesh-proxy", "client-mesh-proxy"} {
			id := p.container(proxy)
			ten := 10
			must("", engine.ContainerRestart(t.Context(), id, container.StopOptions{Timeout: &ten}))
			eventually(t, proxy+" ready from its last snapshot", func() string {
				if h := must(engine.ContainerInspect(t.Context(), id)).State.Health.Status; h != "healthy" {
					return "it is " + h
				}
				return ""
			})
		}
		works("a restart of both proxies with the planes away")
		if r := p.tryMeshctl("get", "vs"); r.code != 4 || !strings.Contains(r.stderr, "composure-pilot") {
			t.Errorf("meshctl with pilot away: exit %d, %q; want 4 and how to start it", r.code, r.stderr)
		}
		p.compose(append([]string{"start"}, planes...)...)
		works("the planes' return")
	})
	guard.stop()
}

// TestProxyReplacement replaces a server's proxy under load: new connections wait in the backlog of the
// sandbox's listeners, so none is refused.
func TestProxyReplacement(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": lifecycleCompose})
	p.inject()
	p.up()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var out result
	wg.Go(func() {
		// New connections, one after the other, from inside the client's container.
		script := `ok=0; bad=0; while [ ! -e /tmp/stop ]; do if curl -sS -m 20 --fail -o /dev/null http://server:8000/hostname; then ok=$((ok+1)); else bad=$((bad+1)); fi; done; echo "$ok $bad"`
		out = p.runCommand(composeCommand(ctx, "exec", "-T", "client", "sh", "-c", script))
	})
	for range 2 {
		p.compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", "server-mesh-proxy")
	}
	p.exec("client", "touch", "/tmp/stop")
	wg.Wait()
	var ok, bad int
	if _, err := fmt.Sscan(out.stdout, &ok, &bad); err != nil {
		t.Fatalf("the load says %q %q: %v", out.stdout, out.stderr, err)
	}
	t.Logf("%d requests through two replacements, %d lost", ok+bad, bad)
	if ok < 20 || bad > 0 {
		t.Errorf("%d requests through two replacements, %d lost: %s", ok+bad, bad, out.stderr)
	}
}

// protection watches every running application of a project: the capture rules must stand in its network
// namespace whenever it runs, and its proxy must have been ready before it started.
type protection struct {
	t    *testing.T
	done chan struct{}
	wg   sync.WaitGroup
	once sync.Once
	seen int
}

func watchProtection(t *testing.T, p *project) *protection {
	t.Helper()
	g := &protection{t: t, done: make(chan struct{})}
	g.wg.Go(func() {
		for {
			select {
			case <-g.done:
				return
			case <-time.After(50 * time.Millisecond):
			}
			g.look(p)
		}
	})
	t.Cleanup(g.stop)
	return g
}

func (g *protection) stop() {
	g.once.Do(func() {
		close(g.done)
		g.wg.Wait()
		if g.seen < 20 {
			g.t.Errorf("protection was looked at %d times only", g.seen)
		}
	})
}

func (g *protection) look(p *project) {
	ctx := context.Background()
	apps, err := engine.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(
		filters.Arg("label", "com.docker.compose.project="+p.name), filters.Arg("label", "composure.role=app"))})
	if err != nil {
		return
	}
	for _, app := range apps {
		info, err := engine.ContainerInspect(ctx, app.ID)
		if err != nil || info.State.Pid == 0 {
			continue
		}
		out, err := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(info.State.Pid), "-n", "iptables-save", "-t", "nat").CombinedOutput()
		if err != nil {
			continue // it has just ended
		}
		legacy, _ := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(info.State.Pid), "-n", "iptables-legacy-save", "-t", "nat").CombinedOutput()
		g.seen++
		if rules := string(out) + string(legacy); !strings.Contains(rules, "15001") || !strings.Contains(rules, "15006") {
			if again, err := engine.ContainerInspect(ctx, app.ID); err == nil && again.State.Pid == info.State.Pid {
				g.t.Errorf("%s runs without capture rules:\n%s", strings.Join(app.Names, " "), rules)
			}
		}
	}
}

// TestStartOrder checks that each application started after its own proxy was found healthy.
func TestStartOrder(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": walkCompose})
	p.inject()
	p.up()
	for _, service := range []string{"client", "server"} {
		app := must(engine.ContainerInspect(t.Context(), p.container(service)))
		proxy := must(engine.ContainerInspect(t.Context(), p.container(service+"-mesh-proxy")))
		sandbox := must(engine.ContainerInspect(t.Context(), p.container(service+"-mesh-sandbox")))
		started := must(time.Parse(time.RFC3339Nano, app.State.StartedAt))
		var healthy time.Time
		for _, l := range proxy.State.Health.Log {
			if l.ExitCode == 0 && (healthy.IsZero() || l.End.Before(healthy)) {
				healthy = l.End
			}
		}
		if healthy.IsZero() || started.Before(healthy) {
			log := must(json.Marshal(proxy.State.Health.Log))
			t.Errorf("%s started at %s, before its proxy was first healthy: %s", service, started, log)
		}
		if s := must(time.Parse(time.RFC3339Nano, sandbox.State.StartedAt)); started.Before(s) {
			t.Errorf("%s started before its sandbox", service)
		}
		caps := must(exec.Command("grep", "-h", "CapEff", fmt.Sprintf("/proc/%d/status", sandbox.State.Pid)).Output())
		if !strings.HasSuffix(strings.TrimSpace(string(caps)), "0000000000000000") {
			t.Errorf("the sandbox of %s kept capabilities: %s", service, caps)
		}
	}
}
