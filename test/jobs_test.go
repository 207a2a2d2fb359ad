//go:build suites

package test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"

	"github.com/composure-mesh/composure/keeper/heal"
)

// jobsCompose has a server, which waits for a job; one that fails once and is tried again; one that fails for good; and one
// that is started by hand.
const jobsCompose = `
services:
  db:
    image: ` + image + `
    command: [python3, -c, "import http.server as h; h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=8000)"]
    init: true
    working_dir: /etc
    healthcheck: {test: [CMD, curl, -fsS, "http://localhost:8000/hostname"], interval: 1s, retries: 30}
  migrate:
    image: ` + image + `
    command: [sh, -c, "test -e /tmp/tried || { touch /tmp/tried; exit 1; }; curl -sS --fail http://db:8000/hostname"]
    restart: on-failure
    depends_on:
      db: {condition: service_healthy}
  web:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    depends_on:
      migrate: {condition: service_completed_successfully}
  report:
    image: ` + image + `
    command: [sh, -c, "curl -sS --fail http://db:8000/hostname"]
    profiles: [tools]
  broken:
    image: ` + image + `
    command: [sh, -c, "exit 3"]
    profiles: [tools]
`

// TestJobs checks that what ends takes its sandbox and proxy with it, and that Compose sees nothing else.
func TestJobs(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": jobsCompose})
	p.inject()
	p.up() // --wait would fail if it found the end of a job's sandbox or proxy to be a failure

	states := func(service string) string {
		var all []string
		for _, s := range []string{service, service + "-mesh-proxy", service + "-mesh-sandbox"} {
			if id := strings.TrimSpace(p.compose("--profile", "*", "ps", "--all", "--quiet", s)); id != "" {
				c := must(engine.ContainerInspect(t.Context(), id)).State
				all = append(all, fmt.Sprint(c.Status, " ", c.ExitCode))
			}
		}
		return strings.Join(all, ", ")
	}
	is := func(service, want string) {
		t.Helper()
		eventually(t, "the containers of "+service, func() string {
			if got := states(service); got != want {
				return "they are " + got + ", want " + want
			}
			return ""
		})
	}
	is("migrate", "exited 0, exited 0, exited 0")
	is("web", "running 0, running 0, running 0")

	t.Run("run", func(t *testing.T) {
		r := p.tryCompose("run", "--rm", "--no-TTY", "report")
		if r.code != 0 || strings.TrimSpace(r.stdout) == "" {
			t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		is("report", "exited 0, exited 0") // no service's container: it was a run
		if r := p.tryCompose("run", "--rm", "--no-TTY", "report", "sh", "-c", "exit 7"); r.code != 7 {
			t.Errorf("exit %d, want 7: %s", r.code, r.stderr)
		}
	})
	t.Run("up ends, and again", func(t *testing.T) {
		if r := p.tryCompose("up", "report"); r.code != 0 {
			t.Errorf("exit %d: %s%s", r.code, r.stdout, r.stderr)
		}
		is("report", "exited 0, exited 0, exited 0")
		p.compose("start", "report")
		is("report", "exited 0, exited 0, exited 0")
	})
	t.Run("what fails", func(t *testing.T) {
		if r := p.tryCompose("up", "--exit-code-from", "broken", "broken"); r.code != 3 {
			t.Errorf("exit %d, want 3: %s%s", r.code, r.stdout, r.stderr)
		}
		is("broken", "exited 3, exited 0, exited 0")
	})
	t.Run("a user's stop", func(t *testing.T) {
		web := p.container("web")
		must("", engine.ContainerStop(t.Context(), web, container.StopOptions{}))
		p.compose("up", "--detach", "report")
		is("report", "exited 0, exited 0, exited 0") // the keeper has looked since
		if got := states("web"); !strings.HasSuffix(got, ", running 0, running 0") {
			t.Errorf("the stopped application and its own are %s", got)
		}
		must("", engine.ContainerStart(t.Context(), web, container.StartOptions{}))
		p.exec("web", "curl", "-sS", "--fail", "http://db:8000/hostname")
	})

	var events []heal.Event
	if err := json.Unmarshal([]byte(p.meshctl("events", "-o", "json")), &events); err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if e.What != heal.End || e.Result != "done" {
			t.Errorf("%s %s: %s, since %s", e.What, e.Container, e.Result, e.Why)
		}
	}
	if r := p.tryMeshctl("doctor"); r.code != 0 {
		t.Errorf("doctor: %s%s", r.stdout, r.stderr)
	}
}
