//go:build suites

package test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// commandsFiles is a project on which every command of Compose has something to do.
var commandsFiles = map[string]string{
	"compose.yaml": `
services:
  web:
    image: ` + image + `
    command: [python3, -u, /app/web.py]
    init: true
    volumes: ["./app:/app:ro"]
    ports: ["127.0.0.1:0:8000"]
    healthcheck: {test: [CMD, curl, -fsS, "http://localhost:8000/hello"], interval: 1s, retries: 60}
    develop:
      watch:
        - {action: sync, path: ./src, target: /srv/files}
        - {action: sync+restart, path: ./conf, target: /srv/conf}
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    environment: {GREETING: good day}
    depends_on: {web: {condition: service_healthy}}
  job:
    image: ` + image + `
    command: [sh, -c, "curl -sS http://web:8000/hello; exit 7"]
    depends_on: {web: {condition: service_healthy}}
    profiles: [jobs]
  slow:
    image: ` + image + `
    command: [sh, -c, "sleep 8; exit 7"] # long enough that docker compose wait finds it running
    init: true
    profiles: [slow]
`,
	"app/web.py": `
import http.server, signal

class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *a): pass # a client that did not wait

class Web(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def do_GET(self):
        body = self.headers.get("X-Forwarded-Client-Cert", "nobody") if self.path == "/caller" else "hello from web"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode() + b"\n")

signal.signal(signal.SIGHUP, lambda *a: print("told to reload", flush=True))
print("web is up", flush=True)
Server(("", 8000), Web).serve_forever()
`,
	"src/first.txt":  "first\n",
	"conf/first.txt": "first\n",
}

// twins are one project twice: as it is, and in the mesh.
type twins struct{ plain, meshed *project }

// same runs a command of docker compose on both, and wants both to say what is wanted, and the same.
func (w twins) same(t *testing.T, code int, want string, args ...string) {
	t.Helper()
	var plain, meshed result
	var both sync.WaitGroup
	both.Go(func() { plain = w.plain.tryCompose(args...) })
	both.Go(func() { meshed = w.meshed.tryCompose(args...) })
	both.Wait()
	what := "docker compose " + strings.Join(args, " ")
	if plain.code != code || !strings.Contains(plain.stdout, want) {
		t.Errorf("%s without the mesh: exit %d, want %d; says %q, want %q\n%s", what, plain.code, code, plain.stdout, want, plain.stderr)
	}
	if meshed.code != plain.code {
		t.Errorf("%s in the mesh: exit %d, want %d\n%s%s", what, meshed.code, plain.code, meshed.stdout, meshed.stderr)
	}
	if d := cmp.Diff(w.plain.anonymous(plain.stdout), w.meshed.anonymous(meshed.stdout)); d != "" {
		t.Errorf("%s differs (-plain +mesh)\n%s", what, d)
	}
}

var (
	anID     = regexp.MustCompile(`\b[0-9a-f]{12,64}\b`)
	anAge    = regexp.MustCompile(`(About a|Less than a|\d+) (second|minute)s?( ago)?`)
	blanks   = regexp.MustCompile(`(?m) +$| {2,}`)
	ofTop    = regexp.MustCompile(`(?m)^(\S+ +\d+ +\S+) .*\d\d:\d\d:\d\d +(.*)$`)
	ofHealth = regexp.MustCompile(` \((healthy|health: starting)\)`)
)

// anonymous is output without what differs from one project, container or moment to the next.
func (p *project) anonymous(out string) string {
	out = strings.ReplaceAll(out, p.name, "PROJECT")
	out = anID.ReplaceAllString(out, "ID")
	out = anAge.ReplaceAllString(out, "AGE")
	out = ofHealth.ReplaceAllString(out, "")
	out = ofTop.ReplaceAllString(out, "$1 $2")
	return blanks.ReplaceAllString(out, "  ")
}

// TestCommands runs the commands of docker compose on a project and on its twin in the mesh: they do the same. What
// cannot be the same is in the last tests, and in docs/compose.md.
func TestCommands(t *testing.T) {
	w := twins{newProject(t, commandsFiles), newProject(t, commandsFiles)}
	w.meshed.inject()
	const hello = "hello from web"
	reaches := func(t *testing.T) {
		t.Helper()
		for _, p := range []*project{w.plain, w.meshed} {
			eventually(t, "client → web", func() string {
				if r := p.tryExec("client", "curl", "-sS", "-m", "5", "--fail", "http://web:8000/hello"); r.code != 0 {
					return r.stderr
				}
				return ""
			})
		}
	}
	// healthy waits for the health checks, which the engine calls failed while a container is paused.
	healthy := func(t *testing.T) {
		t.Helper()
		for _, p := range []*project{w.plain, w.meshed} {
			eventually(t, "the health of all", func() string {
				if out := p.compose("ps", "--format", "{{.Service}} {{.Health}}"); strings.Contains(out, "unhealthy") {
					return out
				}
				return ""
			})
		}
		reaches(t)
	}

	t.Run("run, before anything is up", func(t *testing.T) {
		w.same(t, 0, hello, "run", "--rm", "client", "curl", "-sS", "http://web:8000/hello")
		w.same(t, 0, "web\n", "ps", "--format", "{{.Service}}", "web", "client") // and no more than what it needs
	})
	t.Run("up --wait", func(t *testing.T) {
		w.same(t, 0, "", "up", "--detach", "--wait", "--wait-timeout", "120")
		reaches(t)
		w.same(t, 0, "-web-1 web running healthy\n", "ps", "--format", "{{.Name}} {{.Service}} {{.State}} {{.Health}}", "web")
		w.same(t, 0, "running", "ps", "--format", "{{.Name}} {{.Service}} {{.State}} {{.Health}}", "client")
	})
	t.Run("run", func(t *testing.T) {
		w.same(t, 9, "", "run", "--rm", "client", "sh", "-c", "exit 9")
		w.same(t, 0, "a good day\n", "run", "--rm", "--env", "A=a", "client", "sh", "-c", "echo $A $GREETING")
		w.same(t, 0, hello, "run", "--rm", "--no-deps", "client", "curl", "-sS", "http://web:8000/hello")
		w.same(t, 0, "nobody\n/etc\n", "run", "--rm", "--user", "nobody", "--workdir", "/etc", "--entrypoint", "sh", "client", "-c", "id -un; pwd")
		w.same(t, 0, "first\n", "run", "--rm", "--volume", "./src:/mnt", "client", "cat", "/mnt/first.txt")
		out := w.meshed.compose("run", "--rm", "client", "curl", "-sS", "http://web:8000/caller")
		if !strings.Contains(out, "/sa/client") {
			t.Errorf("web was called by %q, want the identity of client", out)
		}
	})
	t.Run("run --detach", func(t *testing.T) {
		for _, p := range []*project{w.plain, w.meshed} {
			name := p.name + "-one-off"
			p.compose("run", "--detach", "--name", name, "client", "curl", "-sS", "http://web:8000/hello")
			eventually(t, "the log of what was run", func() string {
				if out := p.run(t.Context(), "docker", "logs", name); !strings.Contains(out.stdout, hello) {
					return out.stdout + out.stderr
				}
				return ""
			})
			p.must(p.run(t.Context(), "docker", "rm", "--force", name), "docker rm", []string{name})
		}
	})
	t.Run("exec", func(t *testing.T) {
		w.same(t, 3, "/tmp\nnobody\na good day\n", "exec", "-T", "--env", "A=a", "--workdir", "/tmp", "--user", "nobody", "client", "sh", "-c", "pwd; id -un; echo $A $GREETING; exit 3")
		w.same(t, 0, hello, "exec", "-T", "client", "curl", "-sS", "http://web:8000/hello")
		w.same(t, 0, "", "exec", "--detach", "client", "true")
	})
	t.Run("cp", func(t *testing.T) {
		w.same(t, 0, "", "cp", "src/first.txt", "client:/tmp/copied.txt")
		w.same(t, 0, "first\n", "exec", "-T", "client", "cat", "/tmp/copied.txt")
		w.same(t, 0, "", "cp", "client:/tmp/copied.txt", "back.txt")
		for _, p := range []*project{w.plain, w.meshed} {
			if b := must(os.ReadFile(filepath.Join(p.dir, "back.txt"))); string(b) != "first\n" {
				t.Errorf("copied back: %q", b)
			}
		}
	})
	t.Run("top, stats and images", func(t *testing.T) {
		w.same(t, 0, "python3 -u /app/web.py", "top", "web")
		w.same(t, 0, "-web-1\n", "stats", "--no-stream", "--format", "{{.Name}}", "web")
		w.same(t, 0, "composure-test/debian", "images", "web")
	})
	t.Run("pause and unpause", func(t *testing.T) {
		w.same(t, 0, "", "pause", "web")
		w.same(t, 0, "paused", "ps", "--format", "{{.Service}} {{.State}}", "web")
		w.same(t, 28, "", "exec", "-T", "client", "curl", "-sS", "-m", "1", "http://web:8000/hello") // 28: no answer in time
		w.same(t, 0, "", "unpause", "web")
		healthy(t)
		w.same(t, 0, "", "pause")
		w.same(t, 0, "paused", "ps", "--format", "{{.Service}} {{.State}}", "web", "client")
		w.same(t, 0, "", "unpause")
		healthy(t)
	})
	t.Run("kill -s and events", func(t *testing.T) {
		since := time.Now()
		w.same(t, 0, "", "kill", "-s", "HUP", "web")
		for _, p := range []*project{w.plain, w.meshed} {
			eventually(t, "web hears of the signal", func() string {
				if out := p.compose("logs", "--no-color", "--no-log-prefix", "web"); !strings.Contains(out, "told to reload") {
					return out
				}
				return ""
			})
			if got := p.events(t, since, "web"); !slices.Contains(got, "web kill") {
				t.Errorf("events of web: %v", got)
			}
		}
		w.same(t, 0, "web is up\ntold to reload\n", "logs", "--no-color", "--no-log-prefix", "web")
	})
	t.Run("logs", func(t *testing.T) {
		// Without a service: the mesh's own are not attached, and keep out of it.
		w.same(t, 0, "web-1  | web is up\nweb-1  | told to reload\n", "logs", "--no-color")
		w.same(t, 0, "web-1  | told to reload\n", "logs", "--no-color", "--tail", "1", "web")
	})
	t.Run("restart", func(t *testing.T) {
		w.same(t, 0, "", "restart", "web")
		reaches(t)
		w.same(t, 0, "", "restart", "client")
		reaches(t)
	})
	t.Run("stop, start and rm", func(t *testing.T) {
		w.same(t, 0, "", "stop", "client")
		w.same(t, 0, "client exited 143\n", "ps", "--all", "--format", "{{.Service}} {{.State}} {{.ExitCode}}", "client")
		w.same(t, 0, "", "start", "client")
		reaches(t)
		w.same(t, 0, "", "rm", "--stop", "--force", "client")
		w.same(t, 0, "", "ps", "--all", "--quiet", "client")
		w.same(t, 0, "", "up", "--detach", "client")
		reaches(t)
	})
	t.Run("up --no-deps --force-recreate", func(t *testing.T) {
		for _, p := range []*project{w.plain, w.meshed} {
			client, web := p.container("client"), p.container("web")
			p.compose("up", "--detach", "--no-deps", "--force-recreate", "--wait", "web")
			if p.container("web") == web {
				t.Error("web was not re-created")
			}
			if p.container("client") != client {
				t.Error("client was re-created with it")
			}
		}
		reaches(t)
	})
	t.Run("watch", func(t *testing.T) {
		for _, p := range []*project{w.plain, w.meshed} {
			p.watch(t, func() {
				p.write(map[string]string{"src/second.txt": "second\n", "conf/second.txt": "second\n"})
				eventually(t, "the file is synchronized", func() string {
					return p.tryExec("web", "cat", "/srv/files/second.txt", "/srv/conf/second.txt").stderr
				})
				eventually(t, "the service is restarted", func() string {
					if n := strings.Count(p.compose("logs", "--no-color", "web"), "web is up"); n != 2 {
						return fmt.Sprintf("web was started %d times, want twice", n)
					}
					return ""
				})
			})
		}
		reaches(t)
	})
	t.Run("wait", func(t *testing.T) {
		w.same(t, 0, "", "up", "--detach", "slow")
		w.same(t, 7, "exited with status code 7", "wait", "slow")
	})
	t.Run("up, attached", func(t *testing.T) {
		w.same(t, 7, hello, "up", "--no-color", "--exit-code-from", "job", "job")
	})
	t.Run("what differs", func(t *testing.T) {
		w.same(t, 0, "", "up", "--detach", "--wait")
		for _, tc := range []struct {
			name          string
			args          []string
			plain, meshed string   // of the output
			before        []string // a command that comes first
		}{
			{"ps has the mesh's own rows", []string{"ps", "--format", "{{.Service}}"}, "client\nweb\n", "client\nclient-mesh-proxy\nclient-mesh-sandbox\ncomposure-citadel\n", nil},
			{"logs with the project's name has no file to know what is attached", []string{"--project-name", "NAME", "logs"}, "web is up", "snapshot in force", nil},
			{"port asks the service's container", []string{"port", "web", "8000"}, "127.0.0.1:", "no port 8000/tcp", nil},
			{"the port is the sandbox's", []string{"port", "web-mesh-sandbox", "8000"}, "is not running", "127.0.0.1:", nil},
			{"run -p", []string{"run", "--rm", "--publish", "8000", "client", "echo", "ran"}, "ran", "conflicting options: port publishing and the container type network mode", nil},
			{"the name of a stopped service stays, and its proxy answers", []string{"exec", "-T", "client", "sh", "-c", "curl -sS -m 5 http://web:8000/hello 2>&1"}, "Could not resolve host", "no healthy upstream", []string{"stop", "web"}},
			{"run --no-deps has no network of its own", []string{"run", "--rm", "--no-deps", "client", "echo", "ran"}, "ran", "cannot share network namespace with service client-mesh-sandbox", []string{"down", "--timeout", "5"}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				for p, want := range map[*project]string{w.plain: tc.plain, w.meshed: tc.meshed} {
					if tc.before != nil {
						p.compose(tc.before...)
					}
					args := slices.Clone(tc.args)
					for i, a := range args {
						args[i] = strings.ReplaceAll(a, "NAME", p.name)
					}
					if r := p.tryCompose(args...); !strings.Contains(r.stdout+r.stderr, want) {
						t.Errorf("docker compose %s: exit %d, want %q in\n%s%s", strings.Join(args, " "), r.code, want, r.stdout, r.stderr)
					}
				}
			})
		}
	})
	t.Run("create and start", func(t *testing.T) {
		w.same(t, 0, "", "create")
		w.same(t, 0, "created", "ps", "--all", "--format", "{{.Service}} {{.State}}", "web", "client")
		w.same(t, 0, "", "start")
		reaches(t)
	})
}

// events are the events of a service since then, exec's and health's left out: "<service> <action>".
func (p *project) events(t *testing.T, since time.Time, service string) []string {
	t.Helper()
	stamp := func(at time.Time) string { return fmt.Sprintf("%d.%09d", at.Unix(), at.Nanosecond()) }
	// The exit code is 1 where the stream ends, with the mesh or without.
	r := p.tryCompose("events", "--json", "--since", stamp(since), "--until", stamp(time.Now()), service)
	var out []string
	for line := range strings.Lines(r.stdout) {
		var e struct{ Service, Action string }
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("docker compose events says %q: %v", line, err)
		}
		if !strings.HasPrefix(e.Action, "exec_") && !strings.HasPrefix(e.Action, "health_") {
			out = append(out, e.Service+" "+e.Action)
		}
	}
	return out
}

// watch runs f while docker compose watch watches.
func (p *project) watch(t *testing.T, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := composeCommand(ctx, "watch", "--no-up")
	cmd.Dir, cmd.Env = p.dir, append(os.Environ(), "COMPOSE_PROJECT_NAME="+p.name)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out := must(cmd.StdoutPipe())
	cmd.Stderr = cmd.Stdout
	must("", cmd.Start())
	defer func() {
		cancel()
		_ = cmd.Wait() // interrupted
	}()
	lines, said := bufio.NewScanner(out), []string{}
	for lines.Scan() {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), "Watch enabled") {
			go func() { // nobody else reads on, and watch must not wait for that
				for lines.Scan() {
				}
			}()
			f()
			return
		}
	}
	t.Fatalf("docker compose watch does not watch: %s", strings.Join(said, "\n"))
}
