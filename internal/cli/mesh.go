package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/spf13/cobra"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// The labels that Compose writes on its containers.
const (
	composeProject    = "com.docker.compose.project"
	composeNetwork    = "com.docker.compose.network"
	composeWorkingDir = "com.docker.compose.project.working_dir"
)

// runningMesh is a mesh whose containers run on the engine.
type runningMesh struct {
	Name string
	// Shared says that its planes belong to no project: meshctl install made them.
	Shared bool
	// Project is the compose project that the command is about, empty if it is about none of several.
	Project    string
	containers []container.Summary
}

// mesh finds the mesh to talk to as `docker compose` finds its project: by -p or COMPOSE_PROJECT_NAME, which may name
// the mesh or a project in it, by the directory of one of its projects, the only one that runs, or the only one that is
// installed.
func (e *Env) mesh(ctx context.Context) (*runningMesh, error) {
	all, err := e.meshes(ctx)
	if err != nil {
		return nil, err
	}
	want := e.Project
	if want == "" {
		want = e.Getenv("COMPOSE_PROJECT_NAME")
	}
	if want != "" {
		for _, m := range all {
			if m.Name == want || slices.Contains(m.projects(), want) {
				m.Project = want
				return m, nil
			}
		}
		return nil, withCode(exitUnreachable, fmt.Errorf("no mesh %q is running%s", want, names(all)))
	}
	for dir := e.Dir; ; dir = filepath.Dir(dir) {
		for _, m := range all {
			if p := m.projectAt(dir); p != "" {
				m.Project = p
				return m, nil
			}
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	installed := slices.DeleteFunc(slices.Clone(all), func(m *runningMesh) bool { return !m.Shared })
	switch {
	case len(all) == 0:
		return nil, withCode(exitUnreachable, errors.New("no mesh is running; start one with `meshctl compose inject` and `docker compose up -d`"))
	case len(all) == 1:
		return all[0].alone(), nil
	case len(installed) == 1:
		return installed[0].alone(), nil
	}
	return nil, withCode(exitUsage, fmt.Errorf("several meshes are running; choose one with -p%s", names(all)))
}

func names(all []*runningMesh) string {
	if len(all) == 0 {
		return "; none is"
	}
	var s []string
	for _, m := range all {
		s = append(s, m.Name)
	}
	return "; running: " + strings.Join(s, ", ")
}

func (e *Env) meshes(ctx context.Context) ([]*runningMesh, error) {
	engine, err := e.Engine(ctx)
	if err != nil {
		return nil, err
	}
	list, err := engine.ContainerList(ctx, container.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labels.Role))})
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("list containers: %w", err))
	}
	byName := map[string]*runningMesh{}
	for _, c := range list {
		name := c.Labels[labels.Mesh]
		m := byName[name]
		if m == nil {
			m = &runningMesh{Name: name}
			byName[name] = m
		}
		m.containers = append(m.containers, c)
		if _, ok := c.Labels[labels.Shared]; ok {
			m.Shared = true
		}
	}
	var all []*runningMesh
	for _, m := range byName {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *runningMesh) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// projects are the compose projects with workloads in the mesh, sorted.
func (m *runningMesh) projects() []string {
	var list []string
	for _, c := range m.containers {
		if p := c.Labels[composeProject]; p != "" && (p != m.Name || !m.Shared) {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// projectAt is the project of the mesh with the given directory.
func (m *runningMesh) projectAt(dir string) string {
	for _, c := range m.containers {
		if p := c.Labels[composeProject]; c.Labels[composeWorkingDir] == dir && (p != m.Name || !m.Shared) {
			return p
		}
	}
	return ""
}

// alone takes the mesh's only project for the one that is meant.
func (m *runningMesh) alone() *runningMesh {
	if list := m.projects(); len(list) == 1 {
		m.Project = list[0]
	}
	return m
}

// namespace is where the resources and workloads of the project are that the command is about.
func (m *runningMesh) namespace() string {
	if !m.Shared || m.Project == "" || m.Project == m.Name {
		return mesh.DefaultNamespace
	}
	return m.Project
}

// find is the container of the mesh with a role.
func (m *runningMesh) find(role mesh.Role) (container.Summary, bool) {
	for _, c := range m.containers {
		if c.Labels[labels.Role] == string(role) {
			return c, true
		}
	}
	return container.Summary{}, false
}

// proxies are the mesh's proxies, gateways included, by workload.
func (m *runningMesh) proxies() []container.Summary {
	var list []container.Summary
	for _, c := range m.containers {
		if r := mesh.Role(c.Labels[labels.Role]); r == mesh.RoleProxy || r == mesh.RoleGateway {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b container.Summary) int {
		return strings.Compare(a.Labels[labels.Workload], b.Labels[labels.Workload])
	})
	return list
}

// peer is an HTTP API inside one of the mesh's containers.
type peer struct {
	name string // for errors: pilot
	http *http.Client
}

// plane is the admin API of one of the planes.
func (e *Env) plane(ctx context.Context, role mesh.Role) (*peer, error) {
	m, err := e.mesh(ctx)
	if err != nil {
		return nil, err
	}
	c, ok := m.find(role)
	if !ok {
		return nil, withCode(exitUnreachable, fmt.Errorf("%s of mesh %s is not running; start it with `%s`", role, m.Name, m.start(role)))
	}
	return e.peer(ctx, string(role), c.ID, "/"+string(role))
}

// addNamespace adds the flag that chooses a namespace.
func addNamespace(c *cobra.Command, namespace *string) {
	c.Flags().StringVarP(namespace, "namespace", "n", "", "namespace of what names none; default: "+mesh.DefaultNamespace+", in a mesh that projects share the project's name")
}

// namespace is the one that a flag names, or the project's.
func (e *Env) namespace(ctx context.Context, flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	m, err := e.mesh(ctx)
	if err != nil {
		return "", err
	}
	return m.namespace(), nil
}

// start is the command that starts a plane.
func (m *runningMesh) start(role mesh.Role) string {
	if m.Shared {
		return "docker start " + m.Name + "-composure-" + string(role) + "-1"
	}
	return "docker compose up -d composure-" + string(role)
}

// proxyAdmin is the admin API of a workload's proxy.
func (e *Env) proxyAdmin(ctx context.Context, workload string) (*peer, error) {
	m, err := e.mesh(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{workload, workload + "." + m.Project} { // as inject names those of a shared mesh
		for _, c := range m.proxies() {
			if c.Labels[labels.Workload] == name {
				return e.peer(ctx, "proxy of "+name, c.ID, "/proxy")
			}
		}
	}
	var have []string
	for _, c := range m.proxies() {
		have = append(have, c.Labels[labels.Workload])
	}
	return nil, withCode(exitNotFound, fmt.Errorf("mesh %s has no running proxy of workload %q; it has: %s", m.Name, workload, strings.Join(have, ", ")))
}

func (e *Env) peer(ctx context.Context, name, containerID, program string) (*peer, error) {
	engine, err := e.Engine(ctx)
	if err != nil {
		return nil, err
	}
	return &peer{name: name, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return engine.Dial(ctx, containerID, program, "dial")
		},
		MaxIdleConnsPerHost: 4,
	}}}, nil
}

// do sends a request for a path and returns the response whatever its status.
func (p *peer) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("%s: %w", p.name, err))
	}
	return resp, nil
}

// get fetches a path; an answer that is not 200 is an error with the server's words.
func (p *peer) get(ctx context.Context, path string) ([]byte, error) {
	return p.ask(ctx, http.MethodGet, path, nil)
}

func (p *peer) ask(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	resp, err := p.do(ctx, method, path, nil, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, withCode(exitUnreachable, fmt.Errorf("%s: %w", p.name, err))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s %s: %s: %s", p.name, method, path, resp.Status, strings.TrimSpace(string(b)))
	}
	return b, nil
}

// getJSON fetches a path and decodes it into v.
func (p *peer) getJSON(ctx context.Context, path string, v any) error {
	b, err := p.get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: GET %s: %w", p.name, path, err)
	}
	return nil
}

// postJSON sends body to a path and decodes the answer into v.
func (p *peer) postJSON(ctx context.Context, path string, body, v any) error {
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	b, err := p.ask(ctx, http.MethodPost, path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: POST %s: %w", p.name, path, err)
	}
	return nil
}
