//go:build suites

package test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBadInput checks that each mistake gets an error that names what to mend, and that nothing is half written.
func TestBadInput(t *testing.T) {
	t.Run("compose file", func(t *testing.T) {
		for _, c := range []struct {
			name, file string
			want       []string
		}{
			{"malformed YAML", "services:\n  web:\n    image: [\n", []string{"docker-compose.yml"}},
			{"wrong type", "services:\n  web:\n    image: x\n    ports: {a: b}\n", []string{"docker-compose.yml", "web", "ports"}},
			{"no such service", "services:\n  web:\n    image: x\n    depends_on: [db]\n", []string{"web", "db"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				p := newProject(t, map[string]string{"docker-compose.yml": c.file})
				r := p.tryMeshctl("compose", "inject")
				refused(t, r, c.want...)
				if _, err := os.Stat(filepath.Join(p.dir, "compose.override.yaml")); !os.IsNotExist(err) {
					t.Errorf("an override was written all the same")
				}
				// The project can't be taken down with a file that does not load.
				p.write(map[string]string{"docker-compose.yml": "services: {}\n"})
			})
		}
	})

	t.Run("a field of a compose file that is not known", func(t *testing.T) {
		p := newProject(t, map[string]string{"docker-compose.yml": "services:\n  web:\n    image: x\n    prots: ['80:80']\n"})
		r := p.tryMeshctl("compose", "inject")
		if note := "docker-compose.yml:4: services.web.prots: not known"; r.code != 0 || !strings.Contains(r.stderr, note) || !strings.Contains(r.stderr, "did you mean ports?") {
			t.Errorf("exit %d, stderr %q; want the note %q and what was meant", r.code, r.stderr, note)
		}
		refused(t, p.tryMeshctl("compose", "inject", "--strict"), "--strict", "services.web.prots")
		// The installed Compose does not know it either: it decides, and says so. A command that loads the project shows it.
		refused(t, p.tryMeshctl("compose", "up", "-d"), "prots")
		p.write(map[string]string{"docker-compose.yml": "services: {}\n"})
	})

	p := newProject(t, map[string]string{"docker-compose.yml": walkCompose})
	p.inject()
	p.up()
	for _, c := range []struct {
		name, file string
		want       []string
	}{
		{"malformed YAML", "kind: [\n", []string{"bad.yaml"}},
		{"unknown field", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: server}\nspec:\n  hosts: [server]\n  http:\n  - rout: []\n",
			[]string{"bad.yaml", "spec.http[0].rout"}},
		{"second of two is bad", someRoute + "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: other}\nspec: {hosts: []}\n",
			[]string{"bad.yaml", "other", "spec.hosts"}},
		{"unknown kind", "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: x}\n", []string{"bad.yaml", "VirtualServise"}},
		{"not built yet", "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: server}\nspec:\n  hosts: [server]\n  http:\n  - fault: {abort: {http2Error: CANCEL}}\n    route: [{destination: {host: server}}]\n",
			[]string{"spec.http[0].fault.abort.http2Error", "not supported"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			p.write(map[string]string{"bad.yaml": c.file})
			refused(t, p.tryMeshctl("apply", "-f", "bad.yaml"), c.want...)
			if out := p.meshctl("get", "vs", "-o", "name"); strings.TrimSpace(out) != "" {
				t.Errorf("something was written: %s", out)
			}
		})
	}
	p.t = t

	t.Run("a route to a subset that does not exist is warned about", func(t *testing.T) {
		p.write(map[string]string{"subset.yaml": strings.Replace(someRoute, "host: server}", "host: server, subset: v9}", 1)})
		r := p.tryMeshctl("apply", "-f", "subset.yaml")
		if r.code != 0 || !strings.Contains(r.stderr, "warning") || !strings.Contains(r.stderr, "v9") {
			t.Errorf("exit %d, stderr %q; want a warning that names v9", r.code, r.stderr)
		}
		p.meshctl("delete", "-f", "subset.yaml")
	})
	t.Run("a gateway port that is not published is warned about", func(t *testing.T) {
		p.write(map[string]string{"gateway.yaml": "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n  - {port: {number: 8088, name: http, protocol: HTTP}, hosts: ['*']}\n"})
		r := p.tryMeshctl("apply", "-f", "gateway.yaml")
		if r.code != 0 || !strings.Contains(r.stderr, "warning") {
			t.Errorf("exit %d, stderr %q; want a warning", r.code, r.stderr)
		}
	})
	t.Run("a host that nobody serves", func(t *testing.T) {
		if r := p.tryMeshctl("get", "vs", "nobody"); r.code != 3 {
			t.Errorf("exit %d, want 3 (not found): %s", r.code, r.stderr)
		}
		if r := p.tryMeshctl("-p", "no-such-mesh", "get", "vs"); r.code != 4 || !strings.Contains(r.stderr, "no-such-mesh") {
			t.Errorf("exit %d, %q; want 4 and the name", r.code, r.stderr)
		}
		if r := p.tryMeshctl("get", "vs", "--no-such-flag"); r.code != 2 {
			t.Errorf("exit %d, want 2 (usage): %s", r.code, r.stderr)
		}
	})
}

// TestBadMachine checks what is said where the machine lacks something.
func TestBadMachine(t *testing.T) {
	t.Run("no engine", func(t *testing.T) {
		p := newProject(t, map[string]string{"docker-compose.yml": walkCompose})
		t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
		r := p.tryMeshctl("get", "vs")
		refused(t, r, "/nowhere/docker.sock", "running")
		if r.code != 4 {
			t.Errorf("exit %d, want 4", r.code)
		}
		// Injection needs no engine.
		if r := p.tryMeshctl("compose", "inject"); r.code != 0 || !strings.Contains(r.stderr, "docker.sock") {
			t.Errorf("inject without an engine: exit %d, %q; want 0 and a word on the images", r.code, r.stderr)
		}
		os.Unsetenv("DOCKER_HOST")
	})
	t.Run("a port in use", func(t *testing.T) {
		l := must(net.Listen("tcp", "127.0.0.1:0"))
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		p := newProject(t, map[string]string{"docker-compose.yml": strings.Replace(walkCompose, "    working_dir: /etc", "    working_dir: /etc\n    ports: ['127.0.0.1:"+port+":8000']", 1)})
		p.inject()
		refused(t, p.tryCompose("up", "--detach"), port, "in use")
	})
	t.Run("no NET_ADMIN", func(t *testing.T) {
		p := newProject(t, map[string]string{"docker-compose.yml": walkCompose})
		p.inject()
		sandbox := ""
		for line := range strings.Lines(p.compose("config", "--images")) {
			if strings.Contains(line, "composure/sandbox") {
				sandbox = strings.TrimSpace(line)
			}
		}
		r := p.run(t.Context(), "docker", "run", "--rm", "--cap-drop", "ALL", "--tmpfs", "/run", sandbox)
		refused(t, r, "NET_ADMIN")
	})
}

func refused(t *testing.T, r result, want ...string) {
	t.Helper()
	if r.code == 0 {
		t.Errorf("it was accepted: %s%s", r.stdout, r.stderr)
	}
	for _, w := range want {
		if !strings.Contains(r.stderr+r.stdout, w) {
			t.Errorf("the error does not say %q: %s%s", w, r.stdout, r.stderr)
		}
	}
}
