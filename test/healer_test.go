//go:build suites

package test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	images "github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/composure-mesh/composure/keeper/heal"
)

// workloadImage is what the healer's services run: a static program, so that an engine of its own has it in a
// moment.
const workloadImage = "composure-test/workload:1"

// importWorkload builds the program and makes the image on an engine.
func importWorkload(t *testing.T, on *client.Client) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "workload")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the workload: %v\n%s", err, out)
	}
	program := must(os.ReadFile(bin))
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	must("", w.WriteHeader(&tar.Header{Name: "workload", Mode: 0o755, Size: int64(len(program))}))
	must(w.Write(program))
	must("", w.Close())
	resp := must(on.ImageImport(t.Context(), images.ImportSource{Source: &archive, SourceName: "-"}, workloadImage,
		images.ImportOptions{Changes: []string{`ENTRYPOINT ["/workload"]`, `CMD ["serve"]`}}))
	var done bytes.Buffer
	must(done.ReadFrom(resp))
	must("", resp.Close())
}

// healerCompose has workloads of the given names, all alike.
func healerCompose(names ...string) string {
	var s strings.Builder
	s.WriteString("services:\n")
	for _, n := range names {
		fmt.Fprintf(&s, "  %s:\n    image: %s\n    restart: unless-stopped\n    environment: {NAME: %s}\n", n, workloadImage, n)
	}
	return s.String()
}

// calls makes a request from a service to another and says what is wrong with the answer.
func calls(p *project, from, to string) string {
	r := p.tryExec(from, "/workload", "get", "http://"+to+":8000/")
	if r.code != 0 {
		return fmt.Sprintf("%s → %s: %s%s", from, to, r.stdout, r.stderr)
	}
	if strings.TrimSpace(r.stdout) != to {
		return fmt.Sprintf("%s → %s: the answer is %q", from, to, r.stdout)
	}
	return ""
}

// healing is a project whose keeper heals.
type healing struct {
	*project
	last uint64 // the newest event that was seen
}

// events are the keeper's events since the last call.
func (h *healing) events() []heal.Event {
	h.t.Helper()
	var all, fresh []heal.Event
	if err := json.Unmarshal([]byte(h.meshctl("events", "-o", "json")), &all); err != nil {
		h.t.Fatal(err)
	}
	for _, e := range all {
		if e.Seq > h.last {
			fresh = append(fresh, e)
			h.last = e.Seq
		}
	}
	return fresh
}

// line is events in short: verb and container.
func line(events []heal.Event) string {
	var s []string
	for _, e := range events {
		s = append(s, string(e.What)+" "+e.Container+": "+e.Result)
	}
	return strings.Join(s, "\n")
}

// whole waits until client and server reach each other, and logs how long that took.
func (h *healing) whole(after string, since time.Time) {
	h.t.Helper()
	eventually(h.t, "the mesh after "+after, func() string {
		return or(calls(h.project, "client", "server"), calls(h.project, "server", "client"))
	})
	h.t.Logf("after %s: whole again in %s", after, time.Since(since).Round(100*time.Millisecond))
}

func (h *healing) inspect(service string) container.InspectResponse {
	h.t.Helper()
	return must(engine.ContainerInspect(h.t.Context(), h.container(service)))
}

func (h *healing) docker(args ...string) {
	h.t.Helper()
	if out, err := exec.CommandContext(h.t.Context(), "docker", args...).CombinedOutput(); err != nil {
		h.t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (h *healing) killProcess(service string) {
	h.t.Helper()
	pid := strconv.Itoa(h.inspect(service).State.Pid)
	if out, err := exec.CommandContext(h.t.Context(), "kill", "-9", pid).CombinedOutput(); err != nil {
		h.t.Fatalf("kill -9 %s: %v\n%s", pid, err, out)
	}
}

// TestHealer tears workloads apart in every way but a restart of the engine.
func TestHealer(t *testing.T) {
	importWorkload(t, engine)
	h := &healing{project: newProject(t, map[string]string{"docker-compose.yml": healerCompose("client", "server")})}
	h.inject()
	guard := guardWorkloads(t)
	h.up()
	h.whole("the start", time.Now())
	if out := h.meshctl("doctor"); !strings.Contains(out, "is as it should be") {
		t.Errorf("doctor: %s", out)
	}
	sandbox := h.container("server-mesh-sandbox")
	both := "restart " + h.name + "-server-mesh-proxy-1: done\nrestart " + h.name + "-server-1: done"

	healed := func(what, want string, tear func()) {
		t.Helper()
		began := time.Now()
		tear()
		h.whole(what, began)
		if got := line(h.events()); got != want {
			t.Errorf("after %s the keeper did\n%s\nwant\n%s", what, got, want)
		}
	}
	healed("a restart of the sandbox", both, func() { h.docker("restart", sandbox) })
	healed("a kill and a start of the sandbox", both, func() { h.docker("kill", sandbox); h.docker("start", sandbox) })
	healed("the death of the sandbox's process", both, func() { h.killProcess("server-mesh-sandbox") })
	// Compose restarts the joiners itself. The keeper leaves it half a second for that: what it does then is the same.
	began := time.Now()
	h.compose("restart", "server-mesh-sandbox")
	h.whole("a restart of the sandbox by compose", began)
	for _, e := range h.events() {
		if got := line([]heal.Event{e}); !strings.Contains(both, got) {
			t.Errorf("after a restart of the sandbox by compose the keeper did\n%s", got)
		}
	}
	healed("a joiner that was given up", strings.Replace(both, "restart "+h.name+"-server-1", "start "+h.name+"-server-1", 1), func() {
		h.docker("stop", sandbox)
		h.killProcess("server") // the engine's restart policy tries once
		eventually(t, "the engine to give the application up", func() string {
			if s := h.inspect("server").State; s.Error == "" || s.Restarting {
				return s.Status
			}
			return ""
		})
		h.docker("start", sandbox)
	})

	t.Run("a user's stop", func(t *testing.T) {
		h.docker("stop", h.container("server"))
		h.docker("restart", sandbox)
		eventually(t, "the proxy to be healed", func() string {
			if s := h.inspect("server-mesh-proxy").State; s.StartedAt < h.inspect("server-mesh-sandbox").State.StartedAt || s.Health.Status != "healthy" {
				return s.StartedAt + " " + s.Health.Status
			}
			return ""
		})
		healed("a restart of another sandbox", "restart "+h.name+"-server-mesh-proxy-1: done\n"+strings.ReplaceAll(both, "-server-", "-client-"), func() {
			h.docker("restart", h.container("client-mesh-sandbox"))
			eventually(t, "the other workload to be healed", func() string {
				if s := h.inspect("client").State; s.StartedAt < h.inspect("client-mesh-sandbox").State.StartedAt {
					return s.StartedAt
				}
				return ""
			})
			if s := h.inspect("server").State.Status; s != "exited" {
				t.Errorf("the application that a user has stopped is %s", s)
			}
			h.docker("start", h.container("server"))
		})
	})

	t.Run("a sandbox without an interface", func(t *testing.T) {
		healed("the loss of its interface", "restart "+h.name+"-server-mesh-sandbox-1: done\n"+both, func() {
			before, pid := h.inspect("server-mesh-sandbox").State.StartedAt, strconv.Itoa(h.inspect("server-mesh-sandbox").State.Pid)
			if out, err := exec.CommandContext(t.Context(), "nsenter", "-t", pid, "-n", "ip", "link", "del", "eth0").CombinedOutput(); err != nil {
				t.Fatalf("delete the interface: %v\n%s", err, out)
			}
			h.docker("kill", "--signal", "CONT", sandbox) // an event, at which the keeper looks; else it does every 30 s
			r := h.tryMeshctl("doctor")
			if r.code != 1 || !strings.Contains(r.stdout, "no interface but the loopback") {
				t.Errorf("doctor: exit %d\n%s%s", r.code, r.stdout, r.stderr)
			}
			eventually(t, "the keeper to restart the application", func() string {
				s := h.inspect("server").State
				if box := h.inspect("server-mesh-sandbox").State.StartedAt; box == before || s.StartedAt < box || !s.Running {
					return s.StartedAt
				}
				return ""
			})
		})
		h.docker("network", "disconnect", h.name+"_default", sandbox)
		advice := "docker compose up -d --force-recreate server-mesh-sandbox server-mesh-proxy server"
		r := h.tryMeshctl("doctor")
		if r.code != 1 || !strings.Contains(r.stdout, "it is connected to no network") || !strings.Contains(r.stdout, advice) {
			t.Errorf("doctor: exit %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		var told []heal.Event
		eventually(t, "the keeper to tell", func() string {
			if told = append(told, h.events()...); len(told) == 0 {
				return "it has told nothing"
			}
			return ""
		})
		if got, want := line(told), "tell "+h.name+"-server-mesh-sandbox-1: "+advice; got != want {
			t.Errorf("told\n%s\nwant\n%s", got, want)
		}
		began := time.Now()
		h.compose(strings.Fields(strings.TrimPrefix(advice, "docker compose "))...)
		sandbox = h.container("server-mesh-sandbox")
		h.whole("what was advised", began)
	})

	t.Run("a sandbox made anew alone", func(t *testing.T) {
		h.compose("up", "--detach", "--no-deps", "--force-recreate", "server-mesh-sandbox")
		var told []heal.Event
		eventually(t, "the keeper to tell", func() string {
			if told = append(told, h.events()...); len(told) < 2 {
				return fmt.Sprintf("it told %d things: %s", len(told), line(told))
			}
			return ""
		})
		want := "tell " + h.name + "-server-mesh-proxy-1: docker compose up -d server-mesh-proxy\ntell " + h.name + "-server-1: docker compose up -d server"
		if got := line(told); got != want {
			t.Errorf("told\n%s\nwant\n%s", got, want)
		}
		if calls(h.project, "client", "server") == "" {
			t.Error("a server without a namespace answers")
		}
		r := h.tryMeshctl("doctor")
		if r.code != 1 || !strings.Contains(r.stdout, "docker compose up -d server ") {
			t.Errorf("doctor: exit %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		began := time.Now()
		if out := h.meshctl("doctor", "--fix"); !strings.Contains(out, "is as it should be") {
			t.Errorf("doctor --fix: %s", out)
		}
		h.whole("doctor --fix", began)
	})
	guard.stop()
}

// TestDoctor checks what doctor finds without the healer's help, and what --fix does.
func TestDoctor(t *testing.T) {
	importWorkload(t, engine)
	// One listens on the loopback alone, at a port that it declares.
	private := healerCompose("private") + "    expose: [\"8000\"]\n"
	private = strings.Replace(private, "NAME: private", "NAME: private, LISTEN: 127.0.0.1", 1)
	files := private + strings.TrimPrefix(healerCompose("client", "server"), "services:\n")
	h := &healing{project: newProject(t, map[string]string{"docker-compose.yml": files})}
	h.inject()
	h.up()
	h.docker("stop", h.container("composure-keeper"), h.container("composure-mixer"))
	h.docker("restart", h.container("server-mesh-sandbox"))
	h.docker("stop", h.container("client-mesh-proxy"))
	h.write(map[string]string{"docker-compose.yml": files + "    read_only: true\n"})
	r := h.tryMeshctl("doctor", "-o", "json")
	var d struct {
		Mesh     string
		Findings []struct{ Workload, Container, Problem, Advice string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &d); r.code != 1 || err != nil {
		t.Fatalf("doctor: exit %d, %v\n%s%s", r.code, err, r.stdout, r.stderr)
	}
	var got []string
	for _, f := range d.Findings {
		got = append(got, strings.TrimPrefix(f.Container, h.name+"-")+": "+f.Problem+" → "+f.Advice)
	}
	for _, want := range []string{
		"composure-keeper-1: keeper does not run", "composure-mixer-1: mixer does not run", "→ docker compose up -d composure-mixer",
		"server-mesh-proxy-1: it is in a dead network namespace", "server-1: it is in a dead network namespace",
		"client-mesh-proxy-1: the proxy does not run", "compose.override.yaml is older than docker-compose.yml",
		"→ meshctl compose inject, then docker compose up -d",
		"private-1: it listens on 127.0.0.1:8000 only: peers are refused → make it listen on 0.0.0.0",
	} {
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("doctor does not find %q in\n%s", want, strings.Join(got, "\n"))
		}
	}
	if len(got) != 7 {
		t.Errorf("%d findings, want 7:\n%s", len(got), strings.Join(got, "\n"))
	}
	if calls(h.project, "client", "private") == "" {
		t.Error("a peer reaches what listens on the loopback alone")
	}
	h.write(map[string]string{"docker-compose.yml": strings.Replace(files, ", LISTEN: 127.0.0.1", "", 1)})
	h.inject()
	h.compose("up", "--detach", "private")
	if r := h.tryMeshctl("doctor", "--fix"); r.code != 0 || !strings.Contains(r.stdout, "is as it should be") {
		t.Errorf("doctor --fix: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	h.whole("doctor --fix", time.Now())
}
