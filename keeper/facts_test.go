package keeper

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

func TestBuildWorkload(t *testing.T) {
	boxes := workloadBoxes("reviews-v1", "172.20.0.2")
	sandbox, proxy, app := &boxes[0], &boxes[1], &boxes[2]
	for _, c := range []*Container{sandbox, proxy, app} {
		c.Labels[labels.Services] = "reviews, reviews-v1,"
		c.Labels[labels.Ports] = "9080/HTTP,9090,9091/grpc"
		c.Labels[labels.SubsetPrefix+"version"] = "v1"
		c.Labels[labels.SubsetPrefix+"app"] = "reviews"
	}
	sandbox.Published = map[uint16][]string{9080: {"127.0.0.1:8080"}}
	sandbox.Endpoints = []Endpoint{
		{NetworkID: "n1", IPv4: "172.20.0.2", IPv6: "fd00::2"},
		{NetworkID: "n0", IPv4: "10.0.0.2"},
		{NetworkID: "gone", IPv4: "10.1.0.2"},
		{NetworkID: "n1b"},
	}
	app.Health, app.Exposed = "healthy", []uint16{9080, 9999}
	back := mesh.Network{Name: "back", ID: "n0", Internal: true}
	unused := mesh.Network{Name: "unused", ID: "n1b"}

	got, problems := Build(testScope, boxes, []mesh.Network{testNetwork, back, unused})
	if len(problems) != 0 {
		t.Errorf("problems: %q", problems)
	}
	want := mesh.Facts{
		Project: "shop",
		Workloads: []mesh.Workload{{
			Name: "reviews-v1", Namespace: "default", ServiceAccount: "reviews-v1",
			Identity: "spiffe://cluster.local/ns/default/sa/reviews-v1", Role: mesh.RoleApp,
			Services: []string{"reviews", "reviews-v1"}, Labels: map[string]string{"version": "v1", "app": "reviews"},
			Meshed: true, Running: true, Health: "healthy",
			Addresses: []mesh.Address{{Network: "back", IPv4: "10.0.0.2"}, {Network: "shop_default", IPv4: "172.20.0.2", IPv6: "fd00::2"}},
			Ports: []mesh.Port{
				{Number: 9080, Protocol: "http", Published: []string{"127.0.0.1:8080"}}, {Number: 9090},
				{Number: 9091, Protocol: "grpc"}, {Number: 9999},
			},
		}},
		Networks: []mesh.Network{back, testNetwork},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestBuildNeighbour(t *testing.T) {
	db := Container{ID: id("db2"), Name: "shop-db-2", Running: true, Health: "starting", Exposed: []uint16{5432},
		Published: map[uint16][]string{5432: {"5432"}}, Labels: map[string]string{labelProject: "shop", labelService: "db", labelNumber: "2"},
		Endpoints: []Endpoint{{NetworkID: "n1", IPv4: "172.20.0.9", Aliases: []string{"shop-db-2", "postgres", "db"}}}}
	got, problems := Build(testScope, []Container{db}, []mesh.Network{testNetwork})
	want := []mesh.Workload{{
		Name: "db-2", Namespace: "default", ServiceAccount: "db", Role: mesh.RoleApp, Services: []string{"db", "postgres", "shop-db-2"},
		Running: true, Health: "starting", Addresses: []mesh.Address{{Network: "shop_default", IPv4: "172.20.0.9"}},
		Ports: []mesh.Port{{Number: 5432, Published: []string{"5432"}}},
	}}
	if diff := cmp.Diff(want, got.Workloads); diff != "" || len(problems) != 0 {
		t.Errorf("problems %q, workloads (-want +got):\n%s", problems, diff)
	}
}

func TestBuildGateway(t *testing.T) {
	gw := box("istio-ingressgateway", mesh.RoleGateway, "istio-ingressgateway", map[string]string{labels.SubsetPrefix + "istio": "ingressgateway"})
	gw.Health = "healthy"
	gw.Endpoints = []Endpoint{{NetworkID: "n1", IPv4: "172.20.0.7"}}
	gw.Published = map[uint16][]string{80: {"30080"}}
	got, problems := Build(testScope, []Container{gw, box("composure-pilot", mesh.RolePilot, "")}, []mesh.Network{testNetwork})
	want := []mesh.Workload{{
		Name: "istio-ingressgateway", Namespace: "default", ServiceAccount: "istio-ingressgateway",
		Identity: "spiffe://cluster.local/ns/default/sa/istio-ingressgateway", Role: mesh.RoleGateway,
		Services: []string{"istio-ingressgateway"}, Labels: map[string]string{"istio": "ingressgateway"}, Running: true, Health: "healthy",
		Addresses: []mesh.Address{{Network: "shop_default", IPv4: "172.20.0.7"}}, Ports: []mesh.Port{{Number: 80, Published: []string{"30080"}}},
	}}
	if diff := cmp.Diff(want, got.Workloads); diff != "" || len(problems) != 0 {
		t.Errorf("problems %q, workloads (-want +got):\n%s", problems, diff)
	}
}

func TestBuildDecides(t *testing.T) {
	web := func(change func(sandbox, proxy, app *Container)) []Container {
		boxes := workloadBoxes("web", "172.20.0.3")
		change(&boxes[0], &boxes[1], &boxes[2])
		return boxes
	}
	for name, test := range map[string]struct {
		in      []Container
		check   func(mesh.Workload) bool // nil: no workload
		problem string
	}{
		"a stopped app gets no traffic": {in: web(func(_, _, app *Container) { app.Running = false }), check: func(w mesh.Workload) bool { return !w.Running && w.Meshed }},
		"nor one whose sandbox is down": {in: web(func(sandbox, _, _ *Container) { sandbox.Running = false }), check: func(w mesh.Workload) bool { return !w.Running }},
		"nor one not yet created":       {in: web(func(_, _, app *Container) { app.Labels[labels.Mesh] = "elsewhere" }), check: func(w mesh.Workload) bool { return !w.Running && w.Meshed }},
		"without a proxy the identity stays": {in: web(func(_, proxy, _ *Container) { proxy.Labels[labels.Mesh] = "elsewhere" }), check: func(w mesh.Workload) bool {
			return w.Identity == "spiffe://cluster.local/ns/default/sa/web" && w.Meshed
		}},
		"the identity is the proxy's": {in: web(func(_, proxy, _ *Container) { proxy.Labels[labels.Namespace] = "prod" }), check: func(w mesh.Workload) bool {
			return w.Identity == "spiffe://cluster.local/ns/prod/sa/web" && w.Namespace == "prod"
		}},
		"nobody takes the planes' namespace": {in: web(func(_, proxy, _ *Container) { proxy.Labels[labels.Namespace] = mesh.SystemNamespace }), problem: "kept for the mesh's own planes"},
		"an application needs a sandbox":     {in: web(func(sandbox, _, _ *Container) { sandbox.Labels[labels.Mesh] = "elsewhere" }), problem: "workload web has no sandbox"},
		"compose run is no endpoint":         {in: []Container{{ID: "x", Name: "shop-job-run-1", Labels: map[string]string{labelProject: "shop", labelOneOff: "True"}}}},
		"other meshes are not ours":          {in: []Container{{ID: "x", Name: "x", Labels: map[string]string{labels.Mesh: "other", labels.Role: "app", labels.Workload: "x"}}}},
		"an unknown role is named":           {in: []Container{box("x", "butler", "x")}, problem: `container x: label composure.role is "butler"`},
		"a missing workload is named":        {in: []Container{box("x", mesh.RoleProxy, "")}, problem: "container x: label composure.workload is missing"},
		"a bad port is named":                {in: web(func(_, _, app *Container) { app.Labels[labels.Ports] = "70000/http,80" }), check: func(w mesh.Workload) bool { return len(w.Ports) == 1 && w.Ports[0].Number == 80 }, problem: `"70000/http", want <port from 1 to 65535>`},
		"excluded ports are told": {in: web(func(_, _, app *Container) { app.Labels[labels.ExcludeInboundPorts] = "9000, 80,x" }), check: func(w mesh.Workload) bool {
			return len(w.PlainPorts) == 2 && w.PlainPorts[0] == 80 && w.PlainPorts[1] == 9000
		}, problem: `"x", want a port from 1 to 65535`},
		"a workload is not gateway and app": {in: append(web(func(_, _, _ *Container) {}), box("gw", mesh.RoleGateway, "web")), problem: "a gateway and an application at once"},
		"while replaced, what runs is it":   {in: append(web(func(_, _, app *Container) { app.Running, app.Created = false, time.Unix(9, 0) }), box("new", mesh.RoleApp, "web")), check: func(w mesh.Workload) bool { return w.Running }},
		"if none runs, the newer":           {in: append(web(func(_, _, app *Container) { app.Running, app.Health = false, "old" }), Container{ID: "n", Name: "new", Created: time.Unix(9, 0), Health: "new", Labels: box("new", mesh.RoleApp, "web").Labels}), check: func(w mesh.Workload) bool { return w.Health == "new" }},
		"of one name there is one":          {in: append(web(func(_, _, _ *Container) {}), Container{ID: "z", Name: "z", Labels: map[string]string{labelProject: "shop", labelService: "web"}}), check: func(w mesh.Workload) bool { return w.Meshed }, problem: "workload web: there are two of this name"},
		"a neighbour may name its mesh service": {in: []Container{{ID: "z", Name: "z", Labels: map[string]string{labelProject: "shop", labelService: "pg", labels.Service: "db", labels.Version: "14"}}}, check: func(w mesh.Workload) bool {
			return w.CanonicalService() == "db" && w.Serves("pg") && w.Version() == "14"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, problems := Build(testScope, test.in, []mesh.Network{testNetwork})
			switch {
			case test.check == nil && len(got.Workloads) != 0:
				t.Errorf("workloads: %+v", got.Workloads)
			case test.check != nil && (len(got.Workloads) != 1 || !test.check(got.Workloads[0])):
				t.Errorf("workloads: %+v", got.Workloads)
			}
			if text := strings.Join(problems, "; "); (test.problem == "") != (text == "") || !strings.Contains(text, test.problem) {
				t.Errorf("problems are %q, want %q", text, test.problem)
			}
		})
	}
}

// Equal facts are equal bytes, in whatever order the engine lists.
func TestBuildIsDeterministic(t *testing.T) {
	var all []Container
	for _, name := range []string{"web", "api", "worker", "cart"} {
		all = append(all, workloadBoxes(name, "172.20.0.5")...)
	}
	all = append(all, box("gw", mesh.RoleGateway, "gw"), Container{ID: "db", Name: "shop-db-1", Labels: map[string]string{labelProject: "shop", labelService: "db"}})
	encode := func() string {
		f, problems := Build(testScope, all, []mesh.Network{testNetwork})
		b, err := json.Marshal([]any{f, problems})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := encode()
	for range 50 {
		rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		if got := encode(); got != want {
			t.Fatalf("facts depend on the order:\n%s\n%s", want, got)
		}
	}
}

// Two projects that share a mesh may have services and neighbours of the same name.
func TestBuildSharedMesh(t *testing.T) {
	scope := Scope{Mesh: "composure", TrustDomain: "cluster.local"}
	var containers []Container
	for i, project := range []string{"shop", "blog"} {
		boxes := workloadBoxes("web."+project, "172.20.0."+string(rune('3'+i)))
		for _, c := range boxes {
			c.Labels[labels.Mesh], c.Labels[labelProject] = scope.Mesh, project
			c.Labels[labels.Namespace], c.Labels[labels.ServiceAccount], c.Labels[labels.Services] = project, "web", "web"
			c.ID = id(project + c.Name)
			containers = append(containers, c)
		}
		db := box("db", "", "")
		db.ID, db.Labels = id(project+"db"), map[string]string{labelProject: project, labelService: "db"}
		containers = append(containers, db)
	}
	other := box("web-mesh-proxy", mesh.RoleProxy, "web", map[string]string{labels.Mesh: "prod"})
	facts, problems := Build(scope, append(containers, other), []mesh.Network{testNetwork})
	if len(problems) != 0 {
		t.Errorf("problems: %q", problems)
	}
	var got []string
	for _, w := range facts.Workloads {
		got = append(got, w.Name+" "+w.Namespace+" "+w.Services[0]+" "+w.Identity)
	}
	want := []string{
		"db.blog blog db ", "db.shop shop db ",
		"web.blog blog web spiffe://cluster.local/ns/blog/sa/web", "web.shop shop web spiffe://cluster.local/ns/shop/sa/web",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workloads (-want +got):\n%s", diff)
	}
}
