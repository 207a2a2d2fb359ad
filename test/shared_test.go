//go:build suites

package test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/volume"
)

// sharedService answers with its own name and that of its project, on a network that projects share.
func sharedService(name, net string) string {
	return `
  ` + name + `:
    image: ` + image + `
    command: [python3, -c, "import http.server as h; open('name', 'w').write('` + name + ` of $COMPOSE_PROJECT_NAME'); h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=8000)"]
    init: true
    environment: {DATABASE_URL: hunter2-environment}
    labels: {com.example.owner: hunter2-label}
    working_dir: /tmp
    networks: [` + net + `]
    healthcheck:
      test: [CMD, curl, -fsS, "http://localhost:8000/name"]
      interval: 1s
      retries: 30
`
}

// installMesh makes a shared mesh's name and a network, and takes both away in the end. It does not install.
func installMesh(t *testing.T) (name, net string) {
	t.Helper()
	suffix := make([]byte, 3)
	_, _ = rand.Read(suffix)
	name = "composure-mesh-" + hex.EncodeToString(suffix)
	net = name + "-net"
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			for _, c := range meshContainers(ctx, name) {
				out, _ := exec.CommandContext(ctx, "docker", "logs", "--tail", "40", c.ID).CombinedOutput()
				t.Logf("--- %s (%s)\n%s", strings.Join(c.Names, " "), c.Status, out)
			}
		}
		if out, err := exec.CommandContext(ctx, meshctl, "-p", name, "uninstall", "--volumes").CombinedOutput(); err != nil {
			t.Errorf("uninstall %s: %v\n%s", name, err, out)
		}
		for _, c := range meshContainers(ctx, name) {
			t.Errorf("container %s was left behind", strings.Join(c.Names, " "))
			_ = engine.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
		}
		left := must(engine.VolumeList(ctx, volume.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+name))}))
		for _, v := range left.Volumes {
			t.Errorf("volume %s was left behind", v.Name)
			_ = engine.VolumeRemove(ctx, v.Name, true)
		}
		for _, n := range must(engine.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+name))})) {
			t.Errorf("network %s was left behind", n.Name)
			_ = engine.NetworkRemove(ctx, n.ID)
		}
		_ = engine.NetworkRemove(ctx, net)
	})
	must(engine.NetworkCreate(t.Context(), net, network.CreateOptions{Driver: "bridge"}))
	return name, net
}

// meshContainers are the containers of an installed mesh's own project.
func meshContainers(ctx context.Context, name string) []container.Summary {
	return must(engine.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", "com.docker.compose.project="+name))}))
}

// TestSharedMesh puts two projects into one installed mesh. Both have a service web; they meet on a shared network.
func TestSharedMesh(t *testing.T) {
	name, net := installMesh(t)
	networks := "networks:\n  shared: {external: true, name: " + net + "}\n"
	shop := newProject(t, map[string]string{"compose.yaml": "services:" + sharedService("web", "shared") + `
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    networks: [shared]
` + networks})
	blog := newProject(t, map[string]string{"compose.yaml": "services:" + sharedService("web", "shared") + sharedService("api", "shared") + networks})
	external := []string{"compose", "inject", "--control-plane", "external", "--mesh", name}

	if r := shop.tryMeshctl(external...); r.code != 0 || !strings.Contains(r.stderr, "run `meshctl -p "+name+" install` first") {
		t.Errorf("inject without an installed mesh: exit %d, %s", r.code, r.stderr)
	}
	refused(t, shop.tryMeshctl("compose", "up", "--detach"), name, "is not installed", "install")

	shop.meshctl("-p", name, "install", "--ingress", "127.0.0.1:0", "--network", net)
	before := ids(meshContainers(t.Context(), name))
	if len(before) != 5 {
		t.Fatalf("%d containers were installed, want four planes and a gateway", len(before))
	}
	shop.meshctl("-p", name, "install")
	if again := ids(meshContainers(t.Context(), name)); !slices.Equal(again, before) {
		t.Errorf("a second install made other containers: %s, then %s", before, again)
	}
	blog.meshctl(external...)
	shop.up()
	blog.up()

	call := func(url string) string {
		return shop.exec("client", "curl", "-sS", "-m", "5", "--fail", url)
	}
	for url, want := range map[string]string{
		"http://web:8000/name":                   "web of " + shop.name,
		"http://web." + blog.name + ":8000/name": "web of " + blog.name,
		"http://web." + shop.name + ":8000/name": "web of " + shop.name,
		"http://api:8000/name":                   "api of " + blog.name,
	} {
		for range 10 { // Docker's DNS has both addresses of web, in any order
			if got := call(url); got != want {
				t.Errorf("%s: %q, want %q", url, got, want)
				break
			}
		}
	}

	t.Run("identities", func(t *testing.T) {
		client, api := fmt.Sprintf(`source_principal="spiffe://cluster.local/ns/%s/sa/client"`, shop.name), fmt.Sprintf(`destination_principal="spiffe://cluster.local/ns/%s/sa/api"`, blog.name)
		eventually(t, "a request from shop to blog in the metrics", func() string {
			metrics := shop.meshctl("metrics")
			for line := range strings.Lines(metrics) {
				if strings.HasPrefix(line, "istio_requests_total") && strings.Contains(line, client) && strings.Contains(line, api) && strings.Contains(line, `connection_security_policy="mutual_tls"`) {
					return ""
				}
			}
			return "there is none"
		})
	})

	t.Run("a route", func(t *testing.T) {
		blog.write(map[string]string{"route.yaml": "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: api}\nspec: {hosts: [api], http: [{route: [{destination: {host: web}}]}]}\n"})
		blog.meshctl("apply", "-f", "route.yaml")
		eventually(t, "api leads to web", func() string {
			if got := call("http://api:8000/name"); got != "web of "+blog.name {
				return got
			}
			return ""
		})
		if out := shop.meshctl("get", "vs", "-o", "name"); out != "" {
			t.Errorf("the other project's namespace has %q", out)
		}
		if out := blog.meshctl("get", "pods", "-A"); strings.Count(out, "\n") != 6 { // a header, four workloads, the gateway
			t.Errorf("pods of the mesh's projects, and of no other:\n%s", out)
		}
	})

	t.Run("meshctl", func(t *testing.T) {
		if out := shop.meshctl("proxy-config", "endpoints", "client"); !strings.Contains(out, "api."+blog.name) {
			t.Errorf("endpoints of client in its own project:\n%s", out)
		}
		if out := shop.meshctl("proxy-status"); strings.Count(out, "SYNCED") != 3*5 {
			t.Errorf("proxy-status, want four sidecars and a gateway in sync with the three planes:\n%s", out)
		}
		if r := shop.tryMeshctl("doctor"); r.code != 0 || !strings.Contains(r.stdout, "have a service web on network "+net) {
			t.Errorf("doctor: exit %d, want 0 and a note on the name that both have\n%s%s", r.code, r.stdout, r.stderr)
		}
		shop.meshctl("-p", name, "events")
	})

	t.Run("bug report", func(t *testing.T) {
		shop.exec("client", "curl", "-sS", "-o", "/dev/null", "-H", "Authorization: Bearer hunter2-header", "http://api:8000/name?token=hunter2-query")
		blog.write(map[string]string{"secret.yaml": "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: secret}\nspec:\n  hosts: [web]\n  http:\n" +
			"  - match: [{headers: {authorization: {exact: hunter2-match}}}]\n    route: [{destination: {host: api}}]\n  - route: [{destination: {host: web}}]\n"})
		blog.meshctl("apply", "-f", "secret.yaml")
		path := filepath.Join(t.TempDir(), "report.tar.gz")
		shop.meshctl("bug-report", "-o", path)
		files := readReport(t, path)
		for file, content := range files {
			for _, secret := range []string{"hunter2", "PRIVATE KEY"} {
				if strings.Contains(content, secret) {
					t.Errorf("%s holds %s:\n%s", file, secret, content)
				}
			}
		}
		for _, want := range []string{
			"doctor.json", "version.json", "engine.json", "networks.json", "projects/" + shop.name + ".json", "resources/virtualservices.json",
			"containers/" + name + "-composure-pilot-1/proxies.json", "containers/" + name + "-composure-citadel-1/certs.json", "containers/" + name + "-composure-keeper-1/log.txt",
			"containers/" + shop.name + "-client-mesh-proxy-1/config.json", "containers/" + shop.name + "-client-mesh-proxy-1/log.txt", "containers/" + shop.name + "-client-1/state.json",
		} {
			if len(files["composure-bug-report/"+want]) < 3 {
				t.Errorf("%s is missing or empty; there are %s", want, slices.Sorted(maps.Keys(files)))
			}
		}
	})

	t.Run("doctor finds missing rules", func(t *testing.T) {
		sandbox := blog.container("api-mesh-sandbox")
		for _, backend := range []string{"nft", "legacy"} { // one of them holds the rules; the other may not work here at all
			out, err := exec.Command("docker", "exec", "--user", "0", sandbox, "/usr/sbin/iptables-"+backend, "-t", "nat", "-F").CombinedOutput()
			t.Logf("flush of iptables-%s: %v %s", backend, err, out)
		}
		refused(t, blog.tryMeshctl("doctor"), "api-mesh-sandbox-1: the capture rules are not in force", "docker restart")
	})

	refused(t, shop.tryMeshctl("-p", name, "uninstall"), "in use by projects", shop.name, blog.name)
	if now := ids(meshContainers(t.Context(), name)); !slices.Equal(now, before) {
		t.Errorf("a refused uninstall touched something")
	}
	for _, p := range []*project{shop, blog} {
		p.compose("down", "--timeout", "5", "--volumes")
	}
	shop.meshctl("-p", name, "uninstall")
	if left := meshContainers(t.Context(), name); len(left) != 0 {
		t.Errorf("%d containers are left", len(left))
	}
	if r := shop.tryMeshctl("-p", name, "uninstall"); r.code != 0 || !strings.Contains(r.stderr, "nothing to do") {
		t.Errorf("a second uninstall: exit %d, %s", r.code, r.stderr)
	}
}

// readReport is the files of a bug report.
func readReport(t *testing.T, path string) map[string]string {
	t.Helper()
	f := must(os.Open(path))
	defer f.Close()
	files := map[string]string{}
	for archive := tar.NewReader(must(gzip.NewReader(f))); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(must(io.ReadAll(archive)))
	}
}

// ids are containers' ids, in one string to compare.
func ids(list []container.Summary) []string {
	var all []string
	for _, c := range list {
		all = append(all, c.ID)
	}
	slices.Sort(all)
	return all
}
