package cli

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/images"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// fakeEngine runs containers that are nothing but their labels and an HTTP API each.
type fakeEngine struct {
	client.APIClient
	containers []container.Summary
	apis       map[string]*httptest.Server // by container id
}

func (e *fakeEngine) ContainerList(context.Context, container.ListOptions) ([]container.Summary, error) {
	return e.containers, nil
}

func (e *fakeEngine) Architecture() string { return "amd64" }

func (e *fakeEngine) Dial(ctx context.Context, id string, command ...string) (net.Conn, error) {
	api := e.apis[id]
	if api == nil || len(command) != 2 || command[1] != "dial" {
		return nil, errors.New("no such container or command")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", api.Listener.Addr().String())
}

func (e *fakeEngine) LoadImages(context.Context, *images.Set, func(string)) error { return nil }

// run starts a container of a mesh with an API.
func (e *fakeEngine) run(t *testing.T, meshName, dir string, role mesh.Role, workload string, handler http.Handler) {
	t.Helper()
	id := strings.Join([]string{meshName, string(role), workload}, "/")
	e.containers = append(e.containers, container.Summary{
		ID: id, Names: []string{"/" + id}, Image: "composure/" + string(role) + ":1.2.3",
		Labels: map[string]string{labels.Mesh: meshName, labels.Role: string(role), labels.Workload: workload, composeProject: meshName, composeWorkingDir: dir},
	})
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	e.apis[id] = s
}

// running is an engine with meshes whose planes serve the real resource APIs.
func running(t *testing.T, meshes ...string) *fakeEngine {
	t.Helper()
	e := &fakeEngine{apis: map[string]*httptest.Server{}}
	for _, name := range meshes {
		for role, kinds := range map[mesh.Role][]*api.Kind{mesh.RolePilot: slices.Concat(api.Networking(), api.Core()), mesh.RoleCitadel: api.Security(), mesh.RoleMixer: api.Config()} {
			mux := http.NewServeMux()
			mux.Handle("/", apiserver.New(apiserver.Config{Kinds: kinds, Store: apiserver.NewMemory(1), Version: "test", Log: slog.New(slog.DiscardHandler)}))
			mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
				_, _ = w.Write([]byte("metrics of " + name + " at " + r.URL.Path))
			})
			e.run(t, name, "/projects/"+name, role, "", mux)
		}
	}
	return e
}

type outcome struct {
	out, err string
	code     int
}

// in runs meshctl in a directory against an engine.
func in(t *testing.T, e *fakeEngine, dir, stdin string, args ...string) outcome {
	t.Helper()
	var out, errs bytes.Buffer
	env := &Env{In: strings.NewReader(stdin), Out: &out, Err: &errs, Getenv: func(string) string { return "" }, Dir: dir, engine: e}
	code := Run(t.Context(), env, args)
	return outcome{out.String(), errs.String(), code}
}

func check(t *testing.T, got outcome, code int, out, err string) {
	t.Helper()
	if got.code != code || !strings.Contains(got.out, out) || !strings.Contains(got.err, err) {
		t.Errorf("exit %d\nstdout %q\nstderr %q\nwant exit %d, stdout with %q, stderr with %q", got.code, got.out, got.err, code, out, err)
	}
}

func TestFindsTheMesh(t *testing.T) {
	one, two := running(t, "shop"), running(t, "blog", "shop")
	for _, c := range []struct {
		name     string
		engine   *fakeEngine
		dir      string
		args     []string
		code     int
		out, err string
	}{
		{"the only one", one, "/", nil, 0, "metrics of shop", ""},
		{"by directory", two, "/projects/blog", nil, 0, "metrics of blog", ""},
		{"by a directory below", two, "/projects/shop/src/web", nil, 0, "metrics of shop", ""},
		{"by -p", two, "/projects/blog", []string{"-p", "shop"}, 0, "metrics of shop", ""},
		{"several", two, "/", nil, exitUsage, "", "choose one with -p; running: blog, shop"},
		{"none by that name", one, "/", []string{"-p", "blog"}, exitUnreachable, "", `no mesh "blog" is running; running: shop`},
		{"none", running(t), "/", nil, exitUnreachable, "", "meshctl compose inject"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check(t, in(t, c.engine, c.dir, "", append(slices.Clone(c.args), "metrics")...), c.code, c.out, c.err)
		})
	}
}

// An installed mesh is found from its projects' directories, and from anywhere else.
func TestFindsTheInstalledMesh(t *testing.T) {
	e := running(t, "composure", "blog")
	for i, c := range e.containers {
		if c.Labels[labels.Mesh] == "composure" {
			e.containers[i].Labels[labels.Shared] = "[]"
		}
	}
	for _, project := range []string{"shop", "news"} {
		e.run(t, "composure", "/projects/"+project, mesh.RoleProxy, "web."+project, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte("proxy of " + project))
		}))
		e.containers[len(e.containers)-1].Labels[composeProject] = project
	}
	run := func(dir, stdin string, args ...string) outcome { return in(t, e, dir, stdin, args...) }
	check(t, run("/projects/shop/src", "", "metrics"), 0, "metrics of composure", "")
	check(t, run("/", "", "metrics"), 0, "metrics of composure", "")
	check(t, run("/projects/blog", "", "metrics"), 0, "metrics of blog", "")
	check(t, run("/", "", "-p", "news", "metrics"), 0, "metrics of composure", "")
	check(t, run("/projects/composure", "", "-p", "blog", "metrics"), 0, "metrics of blog", "")
	check(t, run("/projects/news", "", "proxy-config", "stats", "web"), 0, "proxy of news", "")
	check(t, run("/", "", "proxy-config", "stats", "web.shop"), 0, "proxy of shop", "")
	check(t, run("/", "", "proxy-config", "stats", "web"), exitNotFound, "", "it has: web.news, web.shop")

	check(t, run("/projects/shop", rule, "apply", "-f", "-"), 0, "destinationrule/reviews created", "")
	check(t, run("/projects/news", "", "get", "dr"), 0, "", "no destinationrules")
	check(t, run("/projects/news", "", "get", "dr", "-n", "shop", "-o", "name"), 0, "destinationrule/reviews", "")
	check(t, run("/projects/shop", "", "delete", "dr", "reviews"), 0, "deleted", "")
}

func TestPlaneAway(t *testing.T) {
	e := running(t, "shop")
	e.containers = slices.DeleteFunc(e.containers, func(c container.Summary) bool { return c.Labels[labels.Role] == string(mesh.RolePilot) })
	check(t, in(t, e, "/", "", "get", "vs"), exitUnreachable, "", "docker compose up -d composure-pilot")
}

const route = `# a route
apiVersion: networking.istio.io/v1alpha3
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{route: [{destination: {host: reviews, subset: v1}, weight: 100}]}]
`

const rule = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
`

// A plane that takes the check and not the write leaves what was written before; the error says what that is.
func TestApplyHalfway(t *testing.T) {
	e := running(t, "shop")
	api := e.apis["shop/pilot/"]
	serve := api.Config.Handler
	api.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && strings.Contains(r.URL.Path, "virtualservices") && !r.URL.Query().Has("dryRun") {
			http.Error(w, "the disk is full", http.StatusInternalServerError)
			return
		}
		serve.ServeHTTP(w, r)
	})
	second := strings.ReplaceAll(route, "reviews", "ratings")
	got := in(t, e, "/", route+"---\n"+rule+"---\n"+second, "apply", "-f", "-")
	check(t, got, exitFailed, "destinationrule/reviews created\n", "the disk is full")
	check(t, got, exitFailed, "", "in force as the files say: destinationrule/reviews\nnot written: virtualservice/reviews, virtualservice/ratings\n")
	check(t, in(t, e, "/", second, "apply", "-f", "-"), exitFailed, "", "in force as the files say: nothing\n")
}

func TestResources(t *testing.T) {
	e := running(t, "shop")
	run := func(stdin string, args ...string) outcome { return in(t, e, "/", stdin, args...) }

	check(t, run(route+"---\n"+rule, "apply", "-f", "-"), 0, "destinationrule/reviews created\nvirtualservice/reviews created\n", "")
	check(t, run(route, "apply", "-f", "-"), 0, "virtualservice/reviews unchanged", "")
	check(t, run(strings.Replace(route, "weight: 100", "weight: 1", 1), "apply", "-f", "-", "--dry-run"), 0, "configured (dry run)", "")
	check(t, run("", "get", "vs", "reviews", "-o", "yaml"), 0, "weight: 100", "")
	check(t, run(strings.Replace(route, "weight: 100", "weight: 1", 1), "apply", "-f", "-"), 0, "virtualservice/reviews configured", "")
	check(t, run("", "get", "virtualservices"), 0, "NAME", "")
	check(t, run("", "get", "VirtualService", "-o", "name"), 0, "virtualservice/reviews\n", "")
	check(t, run("", "get", "dr", "-A"), 0, "NAMESPACE", "")
	check(t, run("", "get", "gw"), 0, "", "no gateways")
	check(t, run("", "get", "vs", "ratings"), exitNotFound, "", "not found")
	check(t, run("", "get", "pods.example.com"), exitUsage, "", "it has: ")
	check(t, run("", "get", "vs", "-o", "xml"), exitUsage, "", "want one of table, yaml, json, name")
	check(t, run("", "delete", "vs"), exitUsage, "", "want -f FILE, or a kind and names")
	check(t, run(route, "delete", "-f", "-"), 0, "virtualservice/reviews deleted", "")
	check(t, run("", "delete", "dr", "reviews", "ratings"), exitNotFound, "destinationrule/reviews deleted", "ratings")
}

func TestApplyIsAllOrNothing(t *testing.T) {
	e := running(t, "shop")
	dir := t.TempDir()
	file := filepath.Join(dir, "mesh.yaml")
	for _, c := range []struct{ name, content, want string }{
		{"malformed", "kind: [", "mesh.yaml: document 0: yaml: line 1"},
		{"second is malformed", rule + "---\nkind: [", "mesh.yaml: document 1: yaml: line 6"},
		{"second has an unknown field", rule + "---\n" + strings.Replace(route, "hosts:", "host:", 1), "mesh.yaml:11: VirtualService reviews: spec.host: unknown field"},
		{"no kind", "metadata: {name: x}\n", "mesh.yaml:1: x: apiVersion: "},
		{"no name", strings.Replace(rule, "{name: reviews}", "{}", 1), "mesh.yaml:3: DestinationRule: metadata.name: "},
		{"unknown kind", strings.Replace(rule, "DestinationRule", "DestinationRole", 1), `kind: "DestinationRole"`},
		{"an adapter that is not built", "apiVersion: config.istio.io/v1alpha2\nkind: statsd\nmetadata: {name: a}\nspec: {}\n", "mesh.yaml:2: statsd a: kind: statsd of Mixer is not built: want a prometheus handler"},
		{"only comments", "# nothing\n", "no document in it"},
		{"a list", "- a\n", "mesh.yaml:1: document 0: want an object"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(c.content), 0o644); err != nil {
				t.Fatal(err)
			}
			got := in(t, e, "/", "", "apply", "-f", dir)
			check(t, got, exitFailed, "", c.want)
			if left := in(t, e, "/", "", "get", "dr", "-o", "name"); left.out != "" {
				t.Errorf("something was written: %s", left.out)
			}
		})
	}
	check(t, in(t, e, "/", "", "apply", "-f", filepath.Join(dir, "none.yaml")), exitFailed, "", "none.yaml")
	check(t, in(t, e, "/", "", "apply"), exitFailed, "", "filename")
}

func TestVersion(t *testing.T) {
	e := running(t, "shop")
	e.run(t, "shop", "/projects/shop", mesh.RoleProxy, "web", http.NotFoundHandler())
	check(t, in(t, e, "/", "", "version"), 0, "proxy       1.2.3 (web)", "")
	check(t, in(t, running(t), "/", "", "version"), 0, "meshctl", "no mesh is running")
	check(t, in(t, e, "/", "", "version", "--client", "-o", "json"), 0, `"client": "dev"`, "")
}

func TestProxyAdmitsOnlyThisMachine(t *testing.T) {
	h := localOnly(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for _, c := range []struct {
		host, origin string
		want         int
	}{
		{"127.0.0.1:8001", "", 200},
		{"localhost:8001", "http://localhost:8001", 200},
		{"[::1]:8001", "", 200},
		{"evil.example", "", 403},                         // DNS rebinding
		{"127.0.0.1.evil.example:8001", "", 403},          // and its cousin
		{"127.0.0.1:8001", "https://evil.example", 403},   // another site's page
		{"127.0.0.1:8001", "null", 403},                   // a sandboxed frame
		{"localhost:8001", "http://localhost:30080", 403}, // a page of another port: any application's
	} {
		r := httptest.NewRequest(http.MethodGet, "/apis", http.NoBody)
		r.Host = c.host
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("Host %q, Origin %q: %d, want %d", c.host, c.origin, w.Code, c.want)
		}
	}
}

func TestProxyConfig(t *testing.T) {
	e := running(t, "shop")
	e.run(t, "shop", "/projects/shop", mesh.RoleProxy, "web", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/config_dump":
			_, _ = w.Write([]byte(`{"virtualHosts":[{"name":"db","domains":["db","db.default"],"routes":[
				{"matches":[{"uri":{"prefix":"/a"},"headers":[{"name":"end-user","value":{"exact":"jason"}}]}],
				 "destinations":[{"service":"db","subset":"v1","weight":9},{"service":"db","subset":"v2","weight":1}],"resource":"virtualservice/default/db"}]}],
				"workloads":[{"name":"db","addresses":["10.0.0.2"],"identity":"spiffe://td/ns/default/sa/db"}],
				"services":[{"host":"db","name":"db","endpoints":["db"]}]}`))
		case r.URL.Path == "/logging" && r.Method == http.MethodPost && r.URL.Query().Get("level") == "debug":
			_, _ = w.Write([]byte("debug\n"))
		default:
			http.Error(w, "unknown level", http.StatusBadRequest)
		}
	}))
	run := func(args ...string) outcome { return in(t, e, "/", "", append([]string{"proxy-config"}, args...)...) }
	check(t, run("routes", "web"), 0, "path=/a* and end-user=jason", "")
	check(t, run("routes", "web"), 0, "db/v1 (9), db/v2 (1)", "")
	check(t, run("endpoints", "web", "-o", "json"), 0, `"identity": "spiffe://td/ns/default/sa/db"`, "")
	check(t, run("clusters", "web"), 0, "LEAST_REQUEST", "")
	check(t, run("log", "web", "--level", "debug"), 0, "debug", "")
	check(t, run("log", "web", "--level", "loud"), exitFailed, "", "unknown level")
	check(t, run("routes", "api"), exitNotFound, "", "it has: web")
	check(t, run("routes"), exitUsage, "", "--help")
}
