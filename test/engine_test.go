//go:build suites

package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
)

// privateEngine is a dockerd of the test's own, in a network namespace of its own: its bridges and iptables rules
// are not the machine's, and its end is not that of the other suites' containers.
type privateEngine struct {
	t      *testing.T
	dir    string
	netns  string
	client *client.Client
	cmd    *exec.Cmd
	exited chan struct{}
}

func newPrivateEngine(t *testing.T) *privateEngine {
	t.Helper()
	for _, program := range []string{"dockerd", "ip", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs a dockerd to restart: %v", err)
		}
	}
	// Sockets have short paths: the test's temporary directory is too deep.
	e := &privateEngine{t: t, dir: must(os.MkdirTemp("", "engine")), netns: fmt.Sprintf("engine%d", os.Getpid())} //nolint:usetesting // see above
	must("", os.WriteFile(filepath.Join(e.dir, "daemon.json"), []byte("{}"), 0o600))                              // not the machine's
	for _, args := range [][]string{{"netns", "add", e.netns}, {"-n", e.netns, "link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("needs a network namespace: ip %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	t.Cleanup(e.remove)
	e.client = must(client.NewClientWithOpts(client.WithHost("unix://"+e.socket()), client.WithAPIVersionNegotiation()))
	e.start()
	t.Setenv("DOCKER_HOST", "unix://"+e.socket())
	t.Setenv("COMPOSURE_DOCKER_SOCK", e.socket())
	return e
}

func (e *privateEngine) socket() string { return filepath.Join(e.dir, "docker.sock") }

// start starts dockerd and waits until it answers.
func (e *privateEngine) start() {
	e.t.Helper()
	log := must(os.OpenFile(filepath.Join(e.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600))
	defer log.Close()
	e.cmd = exec.Command("nsenter", "--net=/run/netns/"+e.netns, "dockerd", "--config-file", filepath.Join(e.dir, "daemon.json"),
		"--data-root", filepath.Join(e.dir, "data"), "--exec-root", filepath.Join(e.dir, "exec"), "--pidfile", filepath.Join(e.dir, "pid"),
		"--host", "unix://"+e.socket(), "--storage-driver", must(engine.Info(context.Background())).Driver)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must("", e.cmd.Start())
	e.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		_ = cmd.Wait() // however it ended
		close(exited)
	}(e.cmd, e.exited)
	eventually(e.t, "the private engine's start", func() string {
		if _, err := e.client.Ping(context.Background()); err != nil {
			return err.Error() + "\n" + e.log()
		}
		return ""
	})
}

func (e *privateEngine) log() string {
	b, _ := os.ReadFile(filepath.Join(e.dir, "log"))
	lines := strings.Split(string(b), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// stop ends dockerd as a shutdown does.
func (e *privateEngine) stop() {
	e.t.Helper()
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-e.exited:
	case <-time.After(time.Minute):
		e.t.Errorf("the private engine does not end:\n%s", e.log())
		e.kill()
	}
}

// kill ends dockerd, containerd and every container at once, as far as a power cut can be had without one.
func (e *privateEngine) kill() {
	victims := e.processes()
	_ = e.cmd.Process.Kill()
	for _, pid := range victims {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-e.exited
	for _, pid := range e.processes() { // what a shim has started meanwhile
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	// As after a reboot, when /run is empty: dockerd takes the pid of a process that nobody has waited for, or of
	// another program, for a containerd that runs.
	for _, file := range []string{"pid", "exec/containerd/containerd.pid"} {
		_ = os.Remove(filepath.Join(e.dir, file))
	}
}

// processes are containerd and the shims, known by the paths in their command lines, and the main processes of the
// containers, which are the shims' children.
func (e *privateEngine) processes() []int {
	var own []int
	parents := map[int]int{}
	entries := must(os.ReadDir("/proc"))
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		if err != nil {
			continue
		}
		program, _, _ := strings.Cut(string(line), "\x00")
		if strings.HasPrefix(filepath.Base(program), "containerd") && strings.Contains(string(line), e.dir+"/") {
			own = append(own, pid)
		}
		if stat, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat")); err == nil {
			fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	all := slices.Clone(own)
	for pid, parent := range parents {
		if slices.Contains(own, parent) && !slices.Contains(own, pid) {
			all = append(all, pid)
		}
	}
	return all
}

func (e *privateEngine) remove() {
	if e.cmd != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		list, _ := e.client.ContainerList(ctx, container.ListOptions{All: true})
		for _, c := range list {
			_ = e.client.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true})
		}
		e.stop()
		for _, pid := range e.processes() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for l := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(l); len(fields) > 1 && strings.HasPrefix(fields[1], e.dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
	if out, err := exec.Command("ip", "netns", "delete", e.netns).CombinedOutput(); err != nil {
		e.t.Errorf("delete the network namespace: %v\n%s", err, out)
	}
	if err := os.RemoveAll(e.dir); err != nil {
		e.t.Errorf("remove the private engine: %v", err)
	}
}

// restartRounds is how often each of the two ways of restarting the engine is tried. COMPOSURE_RESTARTS raises it.
func restartRounds() int {
	if n, err := strconv.Atoi(os.Getenv("COMPOSURE_RESTARTS")); err == nil && n > 0 {
		return n
	}
	return 1
}

// TestEngineRestart stops an engine with four workloads, and kills it, again and again. No application may ever run
// without capture rules, and the mesh must be whole again by itself.
func TestEngineRestart(t *testing.T) {
	private := newPrivateEngine(t)
	names := []string{"north", "east", "south", "west"}
	importWorkload(t, private.client)
	p := newProject(t, map[string]string{"docker-compose.yml": healerCompose(names...)})
	p.inject() // loads the mesh's images, too
	p.up()
	guard := guardWorkloads(t)
	defer guard.stop()

	whole := func() string {
		for i, from := range names {
			if wrong := calls(p, from, names[(i+1)%len(names)]); wrong != "" {
				return wrong
			}
		}
		return ""
	}
	eventually(t, "the mesh after its start", whole)
	healed := 0
	var rows []string
	for round := range 2 * restartRounds() {
		how := "SIGTERM"
		if round%2 == 0 {
			private.stop()
		} else {
			how = "kill -9 of everything"
			private.kill()
		}
		began := time.Now()
		private.start()
		up := time.Since(began)
		dead, total := private.notRunning(p)
		eventually(t, "the mesh after "+how, whole)
		events := p.meshctl("events", "-o", "json")
		n := strings.Count(events, `"result": "done"`)
		healed += n
		rows = append(rows, fmt.Sprintf("| %s | %d of %d | %d | %.1f s |", how, dead, total, n, (time.Since(began)-up).Seconds()))
		t.Logf("%s, round %d: the engine answers after %s, %d containers are not up then, whole after another %s, %d healed",
			how, round/2+1, up.Round(10*time.Millisecond), dead, (time.Since(began) - up).Round(10*time.Millisecond), n)
		if strings.Contains(events, `"what": "tell"`) || strings.Contains(events, "failed") {
			t.Errorf("the keeper says\n%s", events)
		}
	}
	t.Logf("%d joiners were healed", healed)
	if r := p.tryMeshctl("doctor"); r.code != 0 {
		t.Errorf("doctor: %s%s", r.stdout, r.stderr)
	}
	report(t, "The engine restarted and killed", "A project of four services on an engine of its own.\n\n"+
		"| how | containers that are not up when it answers | started by the healer | whole after another |\n|---|---|---|---|\n"+strings.Join(rows, "\n")+"\n")
}

// notRunning is how many of the project's containers don't run, and how many it has.
func (e *privateEngine) notRunning(p *project) (n, all int) {
	list := must(e.client.ContainerList(e.t.Context(), container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+p.name))}))
	for _, c := range list {
		if c.State != "running" {
			n++
		}
	}
	return n, len(list)
}

// workloadGuard looks into the namespace of every application that runs.
type workloadGuard struct {
	done chan struct{}
	wg   sync.WaitGroup
	once sync.Once
	t    *testing.T

	seen, closed int
}

// guardWorkloads watches the workload program's processes on the host: an engine that is being restarted can't be asked.
func guardWorkloads(t *testing.T) *workloadGuard {
	t.Helper()
	g := &workloadGuard{t: t, done: make(chan struct{})}
	g.wg.Go(func() {
		for {
			select {
			case <-g.done:
				return
			case <-time.After(30 * time.Millisecond):
			}
			g.look()
		}
	})
	t.Cleanup(g.stop)
	return g
}

// isProtected reports whether a command line is that of a test's application in a mesh.
func isProtected(line string) bool {
	for _, what := range []string{"serve", "load"} {
		if rest, ok := strings.CutPrefix(line, "/workload\x00"+what+"\x00"); ok {
			return !strings.HasPrefix(rest, "bare\x00")
		}
	}
	return false
}

// look checks each such process: the capture rules must stand in its namespace, or its sandbox must have
// cut it off from all others until they do.
func (g *workloadGuard) look() {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || !isProtected(string(line)) {
			continue
		}
		pid := strings.Split(file, "/")[2]
		var gate, rules strings.Builder
		// The gate first: it opens when the rules stand.
		if out, err := exec.Command("nsenter", "-t", pid, "-n", "ip", "rule").Output(); err == nil {
			gate.Write(out)
		}
		for _, save := range []string{"iptables-save", "iptables-legacy-save"} {
			out, err := exec.Command("nsenter", "-t", pid, "-n", save, "-t", "nat").Output()
			if err == nil {
				rules.Write(out)
			}
		}
		if again, err := os.ReadFile(file); err != nil || string(again) != string(line) {
			continue // it has ended meanwhile
		}
		g.seen++
		closed := strings.Contains(gate.String(), "from all unreachable")
		if closed {
			g.closed++
		}
		if !closed && (!strings.Contains(rules.String(), "15001") || !strings.Contains(rules.String(), "15006")) {
			g.t.Errorf("application %s runs unprotected:\n%s%s", pid, gate.String(), rules.String())
		}
	}
}

func (g *workloadGuard) stop() {
	g.once.Do(func() {
		close(g.done)
		g.wg.Wait()
		g.t.Logf("%d looks at running applications, %d of them behind a closed gate", g.seen, g.closed)
		if g.seen < 50 {
			g.t.Errorf("applications were looked at %d times only", g.seen)
		}
	})
}
