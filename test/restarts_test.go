//go:build suites

package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
)

// restartsCompose has a server that is torn at, another beside it, one of two replicas, and a client with a steady load on
// them all; bare-server and bare-client are the same without a mesh.
func restartsCompose(serverImage string) string {
	server := func(name, image, command, more string) string {
		return fmt.Sprintf(`  %s:
    image: %s
    command: [%s]
    restart: unless-stopped
    environment: {NAME: %s}
    mem_limit: 64m
    memswap_limit: 64m
    healthcheck: {test: [CMD, /workload, get, "http://127.0.0.1:8000/health"], interval: 1s, retries: 2}
%s`, name, image, command, name, more)
	}
	client := func(name, command, more string) string {
		return fmt.Sprintf("  %s:\n    image: %s\n    command: [%s]\n    restart: unless-stopped\n%s", name, workloadImage, command, more)
	}
	const outside = "    labels: {composure.inject: \"false\"}\n"
	return "services:\n" +
		server("server", serverImage, "serve", "") +
		server("other", workloadImage, "serve", "") +
		server("rolled", workloadImage, "serve", "    deploy: {replicas: 2}\n") +
		server("bare-server", serverImage, "serve, bare", outside) +
		client("client", `load, "server=http://server:8000/", "other=http://other:8000/", "rolled=http://rolled:8000/"`, "") +
		client("bare-client", `load, bare, "server=http://bare-server:8000/"`, outside)
}

// counts are what became of a client's requests, by target. It is what the workload program tells.
type counts map[string]struct {
	Passed, Lost int
	LastLost     time.Time
	LastError    string
	Oldest       time.Duration
}

// torn is a project that cells tear at.
type torn struct {
	healing
	load, bareLoad string // ids of the clients
	rows           []string
}

func (h *torn) counts(client string) counts {
	h.t.Helper()
	out, err := exec.CommandContext(h.t.Context(), "docker", "exec", client, "/workload", "get", "http://127.0.0.1:9000/").Output()
	if err != nil {
		h.t.Fatalf("ask the client for its counts: %v", err)
	}
	var c counts
	must("", json.Unmarshal(out, &c))
	return c
}

// calm waits until five requests to a target have passed without a loss between them, and none hangs, and returns what became
// of all. How often it asks must not matter.
func (h *torn) calm(client, target, after string) counts {
	h.t.Helper()
	var since, now counts // since is the latest loss
	eventually(h.t, "requests to "+target+" after "+after, func() string {
		now = h.counts(client)
		c := now[target]
		if since == nil || c.Lost > since[target].Lost {
			since = now
		}
		if c.Passed < since[target].Passed+5 || c.Oldest > time.Second {
			return fmt.Sprintf("%d passed, %d are lost, one is under way for %s; the last error: %s", c.Passed, c.Lost, c.Oldest, c.LastError)
		}
		return ""
	})
	return now
}

// A cell is something that happens to a part of a workload or of the mesh.
type cell struct {
	what  string
	parts []string
	// telling are the parts that are tried in make test, too.
	telling []string
	do      func(h *torn, service string)
	// lossless says that no request may be lost when it happens to a part that is not the application or the sandbox.
	lossless bool
}

var parts = []string{"app", "proxy", "sandbox", "keeper", "pilot", "citadel", "mixer"}

// serviceOf is the compose service that is a part of server's workload, or of the mesh.
func serviceOf(part string) string {
	switch part {
	case "app":
		return "server"
	case "proxy", "sandbox":
		return "server-mesh-" + part
	}
	return "composure-" + part
}

var cells = []cell{
	{"restart", parts, []string{"app", "sandbox"}, func(h *torn, s string) { h.docker("restart", h.container(s)) }, true},
	{"kill -9", parts, []string{"app", "proxy", "pilot"}, (*torn).killed, false},
	{"stop, start", parts, []string{"keeper"}, func(h *torn, s string) { h.docker("stop", h.container(s)); h.docker("start", h.container(s)) }, true},
	{"recreate", parts, []string{"proxy"}, (*torn).recreated, true},
	{"up with a new image", []string{"app"}, []string{"app"}, (*torn).renewed, true},
	{"out of memory", []string{"app"}, []string{"app"}, (*torn).outOfMemory, true},
	{"pause, unpause", parts, []string{"proxy", "citadel"}, func(h *torn, s string) {
		h.docker("pause", h.container(s))
		time.Sleep(2 * time.Second) // what happens is that it lasts
		h.docker("unpause", h.container(s))
	}, true},
	{"network disconnect, connect", []string{"sandbox"}, []string{"sandbox"}, (*torn).disconnected, true},
	{"health flips", []string{"app"}, []string{"app"}, (*torn).unwell, true},
}

// without are the cells that have no meaning, and why.
const without = `
Cells without meaning: *up with a new image* of any part but the application is *recreate* for that part, and the mesh's own
upgrade has a suite of its own; *out of memory* is SIGKILL by the kernel, so *kill -9*, for what has no memory limit; a
*network* is the sandbox's alone, and the planes meet the proxies on unix sockets; nobody acts on the *health* of a plane, and
that of a proxy is asked for at a start only.
`

func (h *torn) killed(service string) {
	before := h.inspect(service)
	h.killProcess(service)
	eventually(h.t, service+" to be started again", func() string {
		if now := h.inspect(service).State; !now.Running || now.StartedAt == before.State.StartedAt {
			return now.Status
		}
		return ""
	})
}

func (h *torn) recreated(service string) {
	services := []string{service}
	if service == serviceOf("sandbox") { // alone, it leaves the others behind: see TestHealer
		services = append(services, serviceOf("proxy"), serviceOf("app"))
	}
	h.compose(append([]string{"up", "--detach", "--no-deps", "--force-recreate"}, services...)...)
}

func (h *torn) renewed(service string) {
	const next = "composure-test/workload:2"
	h.docker("tag", workloadImage, next)
	h.write(map[string]string{"docker-compose.yml": restartsCompose(next)})
	h.inject()
	before := h.container(service)
	h.compose("up", "--detach", service)
	if h.container(service) == before {
		h.t.Error("the container is still the old one")
	}
}

func (h *torn) outOfMemory(service string) {
	before := h.inspect(service).RestartCount
	_ = exec.CommandContext(h.t.Context(), "docker", "exec", h.container(service), "/workload", "get", "http://127.0.0.1:8000/eat").Run()
	eventually(h.t, service+" to run out of memory", func() string {
		if now := h.inspect(service); now.RestartCount == before || !now.State.Running {
			return now.State.Status
		}
		return ""
	})
}

func (h *torn) disconnected(service string) {
	c := h.inspect(service)
	for network, endpoint := range c.NetworkSettings.Networks {
		h.docker("network", "disconnect", network, c.ID)
		args := []string{"network", "connect"}
		for _, alias := range endpoint.Aliases {
			if alias != c.ID[:12] {
				args = append(args, "--alias", alias)
			}
		}
		h.docker(append(args, network, c.ID)...)
	}
}

func (h *torn) unwell(service string) {
	id := h.container(service)
	for _, step := range [][2]string{{"sick", container.Unhealthy}, {"well", container.Healthy}} {
		h.docker("exec", id, "/workload", "get", "http://127.0.0.1:8000/"+step[0])
		eventually(h.t, service+" to be found "+step[1], func() string {
			if got := must(engine.ContainerInspect(h.t.Context(), id)).State.Health.Status; got != step[1] {
				return "it is " + got
			}
			return ""
		})
	}
}

// tear lets a cell happen and checks what it has cost.
func (h *torn) tear(t *testing.T, c cell, part string) {
	t.Helper()
	h.t = t
	what := c.what + " of " + part
	before := h.calm(h.load, "server", "the last cell")
	began := time.Now()
	c.do(h, serviceOf(part))
	eventually(t, "the mesh after "+what, func() string {
		if r := h.tryMeshctl("doctor"); r.code != 0 {
			return r.stdout + r.stderr
		}
		return ""
	})
	sound := time.Now()
	after := h.calm(h.load, "server", what)
	if last := after["server"].LastLost; last.After(began) && after["server"].Lost > before["server"].Lost {
		sound = last
	}
	lost := after["server"].Lost - before["server"].Lost
	for target := range after {
		if n := after[target].Lost - before[target].Lost; target != "server" && n > 0 {
			t.Errorf("%d requests to %s are lost, which nothing has happened to: %s", n, target, after[target].LastError)
		}
	}
	plain, allowed := "–", 0
	if !c.lossless {
		allowed = oneSecond // those that are on the way when a process is killed are fewer
	}
	if part == "app" || part == "sandbox" && c.what != "network disconnect, connect" {
		base := h.counts(h.bareLoad)
		c.do(h, "bare-server")
		n := h.calm(h.bareLoad, "server", what+" without a mesh")["server"].Lost - base["server"].Lost
		plain = strconv.Itoa(n)
		// The same event takes its time, which is not twice the same: what was sent while there was no application counts as
		// lost without a mesh, too.
		away := must(time.Parse(time.RFC3339Nano, h.inspect("server").State.StartedAt)).Sub(began)
		allowed = max(n, int(away.Seconds()*oneSecond)) + oneSecond
	}
	if part != "sandbox" && lost > allowed { // without one there is no such event
		t.Errorf("%d requests are lost, want at most %d; without a mesh it is %s: %s", lost, allowed, plain, after["server"].LastError)
	}
	row := fmt.Sprintf("| %s | %s | %.1f s | %d | %s | 0 |", c.what, part, sound.Sub(began).Seconds(), lost, plain)
	t.Log(row)
	if t.Failed() {
		h.explain(began)
	} else {
		h.rows = append(h.rows, row)
	}
}

// explain prints what the proxies have said of requests that were lost since a moment.
func (h *torn) explain(since time.Time) {
	h.t.Helper()
	for _, service := range []string{"client-mesh-proxy", "server-mesh-proxy"} {
		out, err := exec.CommandContext(h.t.Context(), "docker", "logs", "--since", since.Format(time.RFC3339Nano), h.container(service)).CombinedOutput()
		if err != nil {
			out = []byte(err.Error())
		}
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, `" 200 `) {
				h.t.Logf("%s: %s", service, line)
			}
		}
	}
}

// oneSecond is the requests of a second, by which two single events may differ.
const oneSecond = 20

// TestRestarts is the matrix: events by what they happen to, on one project under a steady load. The whole of it runs where
// COMPOSURE_RESULTS names a file for its table, as make test-restarts does.
func TestRestarts(t *testing.T) {
	importWorkload(t, engine)
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", "composure-test/workload:2").Run() })
	h := &torn{healing: healing{project: newProject(t, map[string]string{"docker-compose.yml": restartsCompose(workloadImage)})}}
	guard := guardWorkloads(t)
	h.inject()
	h.up()
	h.load, h.bareLoad = h.container("client"), h.container("bare-client")
	all := os.Getenv(resultsFile) != ""

	for _, c := range cells {
		for _, part := range c.parts {
			if all || slices.Contains(c.telling, part) {
				t.Run(c.what+" of "+part, func(t *testing.T) { h.tear(t, c, part) })
			}
		}
	}
	t.Run("rolling update", h.rolling)
	t.Run("a request in flight at a stop", h.stopped)
	t.Run("a request in flight at a stop by Compose 5", func(t *testing.T) {
		h.t = t
		h.compose("up", "--detach", "--wait", "other")
		withCompose5(t)
		h.stopped(t)
	})
	h.t = t
	guard.stop()
	report(t, "Events under load", fmt.Sprintf("A client sends %d requests a second to `server`, which the event happens to, and as many to each of two other services.\n\n", oneSecond)+
		"| event | of | whole again after | requests lost | the same without a mesh | lost to others |\n|---|---|---|---|---|---|\n"+strings.Join(h.rows, "\n")+"\n"+without)
}

// rolling replaces one replica of two after the other.
func (h *torn) rolling(t *testing.T) {
	h.t = t
	before := h.calm(h.load, "rolled", "the last cell")
	for _, service := range []string{"rolled", "rolled-2"} {
		h.compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", service)
	}
	after := h.calm(h.load, "rolled", "the update")
	lost := after["rolled"].Lost - before["rolled"].Lost
	if lost > 0 {
		t.Fatalf("%d requests are lost in a rolling update: %s", lost, after["rolled"].LastError)
	}
	h.rows = append(h.rows, fmt.Sprintf("| rolling update | two replicas | – | %d | – | 0 |", lost))
}

// stopped stops a workload while a request is under way.
func (h *torn) stopped(t *testing.T) {
	t.Helper()
	h.t = t
	type answer struct {
		out []byte
		err error
	}
	done := make(chan answer)
	go func() {
		out, err := exec.CommandContext(t.Context(), "docker", "exec", h.load, "/workload", "get", "http://other:8000/slow", "2m").CombinedOutput()
		done <- answer{out, err}
	}()
	other := h.container("other")
	eventually(t, "the request to arrive", func() string {
		out, err := exec.CommandContext(t.Context(), "docker", "exec", other, "/workload", "get", "http://127.0.0.1:8000/busy").CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) == "0" {
			return string(out)
		}
		return ""
	})
	h.compose("stop", "other", "other-mesh-proxy", "other-mesh-sandbox")
	if a := <-done; a.err != nil || strings.TrimSpace(string(a.out)) != "other" {
		t.Errorf("the request in flight: %v, %s", a.err, a.out)
	}
	var ends []time.Time
	for _, service := range []string{"other", "other-mesh-proxy", "other-mesh-sandbox"} {
		s := h.inspect(service).State
		ends = append(ends, must(time.Parse(time.RFC3339Nano, s.FinishedAt)))
		if s.ExitCode != 0 {
			t.Errorf("%s ended with exit code %d", service, s.ExitCode)
		}
	}
	if !slices.IsSortedFunc(ends, time.Time.Compare) {
		t.Errorf("application, proxy and sandbox ended at %v, want them in this order", ends)
	}
}

// resultsFile is the variable that names the file for the results of all rounds and cells.
const resultsFile = "COMPOSURE_RESULTS"

// report adds a section to the results.
func report(t *testing.T, title, text string) {
	t.Helper()
	path := os.Getenv(resultsFile)
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintf(f, "\n## %s\n\n%s", title, text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Errorf("write the results: %v", err)
	}
}
