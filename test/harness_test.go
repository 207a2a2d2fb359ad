//go:build suites

package test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
)

// image is what the suites' own services run in.
const image = "composure-test/debian:1"

var (
	root    = must(filepath.Abs(".."))
	meshctl = filepath.Join(root, "bin", "meshctl")
	compose = strings.Fields(or(os.Getenv("COMPOSURE_COMPOSE"), "docker compose"))
	engine  = must(client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation()))
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// TestMain loads the mesh's images once, so that no suite's timing has the load in it.
func TestMain(m *testing.M) {
	if out, err := exec.Command(meshctl, "images", "load").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "meshctl images load: %v\n%s", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// project is one compose project in a directory of its own.
type project struct {
	t    *testing.T
	name string
	dir  string
}

// newProject makes a project of the given files, file name to content; it is taken down when the test ends, and
// its logs are printed if the test failed.
func newProject(t *testing.T, files map[string]string) *project {
	t.Helper()
	suffix := make([]byte, 3)
	_, _ = rand.Read(suffix)
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
	name = "composure-" + strings.TrimPrefix(name, "test") + "-" + hex.EncodeToString(suffix)
	p := &project{t: t, name: name, dir: filepath.Join(t.TempDir(), name)}
	p.write(files)
	t.Cleanup(p.cleanup)
	return p
}

func (p *project) write(files map[string]string) {
	p.t.Helper()
	for file, content := range files {
		path := filepath.Join(p.dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *project) cleanup() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if p.t.Failed() {
		p.dump(ctx)
	}
	cmd := composeCommand(ctx, "--project-name", p.name, "--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")
	cmd.Dir = p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Errorf("take project %s down: %v\n%s", p.name, err, out)
	}
	left := must(engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+p.name))}))
	for _, c := range left {
		p.t.Errorf("container %s was left behind", strings.Join(c.Names, " "))
		_ = engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	}
}

// dump prints what helps to understand a failure: the containers and the end of their logs.
func (p *project) dump(ctx context.Context) {
	list, err := engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+p.name))})
	if err != nil {
		p.t.Logf("list containers: %v", err)
		return
	}
	for _, c := range list {
		out, _ := exec.CommandContext(ctx, "docker", "logs", "--tail", "40", c.ID).CombinedOutput()
		health, _ := exec.CommandContext(ctx, "docker", "inspect", "-f", "{{json .State}}", c.ID).CombinedOutput()
		p.t.Logf("--- %s (%s)\n%s%s", strings.Join(c.Names, " "), c.Status, health, out)
	}
}

// composeCommand is docker compose with args.
func composeCommand(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, compose[0], slices.Concat(compose[1:], args)...)
}

// result is the outcome of a program.
type result struct {
	stdout, stderr string
	code           int
}

func (p *project) run(ctx context.Context, name string, args ...string) result {
	p.t.Helper()
	return p.runCommand(exec.CommandContext(ctx, name, args...))
}

func (p *project) runCommand(cmd *exec.Cmd) result {
	p.t.Helper()
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+p.name)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func (p *project) must(r result, what string, args []string) string {
	p.t.Helper()
	if r.code != 0 {
		p.t.Fatalf("%s %s: exit %d\n%s%s", what, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// compose runs docker compose in the project and returns its stdout; it must succeed.
func (p *project) compose(args ...string) string {
	p.t.Helper()
	return p.must(p.tryCompose(args...), "docker compose", args)
}

func (p *project) tryCompose(args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 3*time.Minute)
	defer cancel()
	return p.runCommand(composeCommand(ctx, args...))
}

// composeAfter is compose for a cleanup, where the test's own context has ended.
func (p *project) composeAfter(args ...string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	p.must(p.runCommand(composeCommand(ctx, args...)), "docker compose", args)
}

// meshctl runs meshctl in the project and returns its stdout; it must succeed.
func (p *project) meshctl(args ...string) string {
	p.t.Helper()
	return p.must(p.tryMeshctl(args...), "meshctl", args)
}

func (p *project) tryMeshctl(args ...string) result {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	defer cancel()
	return p.run(ctx, meshctl, args...)
}

// exec runs a command in a service's container; it must succeed.
func (p *project) exec(service string, command ...string) string {
	p.t.Helper()
	return p.compose(append([]string{"exec", "-T", service}, command...)...)
}

func (p *project) tryExec(service string, command ...string) result {
	p.t.Helper()
	return p.tryCompose(append([]string{"exec", "-T", service}, command...)...)
}

// container is the id of a service's container.
func (p *project) container(service string) string {
	p.t.Helper()
	id := strings.TrimSpace(p.compose("ps", "--all", "--quiet", service))
	if id == "" {
		p.t.Fatalf("service %s has no container", service)
	}
	return id
}

// inject and up put the project into the mesh and start it.
func (p *project) inject(args ...string) {
	p.t.Helper()
	p.meshctl(append([]string{"compose", "inject"}, args...)...)
}

func (p *project) up(args ...string) {
	p.t.Helper()
	p.compose(append([]string{"up", "--detach", "--wait", "--wait-timeout", "120"}, args...)...)
}

// published is the host address of a service's published port.
func (p *project) published(service string, port int) string {
	p.t.Helper()
	out := strings.TrimSpace(p.compose("port", service, strconv.Itoa(port)))
	_, hostPort, ok := strings.Cut(out, ":")
	if !ok {
		p.t.Fatalf("port %d of %s: docker compose port says %q", port, service, out)
	}
	return "127.0.0.1:" + hostPort[strings.LastIndex(hostPort, ":")+1:]
}

// eventually asks until condition returns "" and fails with its last word after 30 s.
func eventually(t *testing.T, what string, condition func() string) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		wrong := condition()
		if wrong == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, wrong)
		}
		select {
		case <-t.Context().Done():
			t.Fatalf("%s: %s", what, wrong)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// get fetches a URL from the host.
func get(t *testing.T, url string, header ...string) (status int, body string) {
	t.Helper()
	req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}
