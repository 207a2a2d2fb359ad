package compose

import (
	"context"
	"strings"
	"testing"
)

// TestReplicasOfMergedServices: what extending one file does not bring, because a second file or an include has a say, is
// written out; TestRandomProjects holds that the model is right.
func TestReplicasOfMergedServices(t *testing.T) {
	dir := project(t, map[string]string{
		"compose.yaml": `include: [{path: sub/db.yaml, env_file: sub/.env}]
services:
  web: {image: "web:${TAG:-1}", environment: {A: a, B: "${B:-b}"}, ports: ["80"], depends_on: [db], scale: 2, labels: {k: v}, volumes: ["./d:/d"]}
`,
		"compose.override.yml": `services:
  web: {environment: !override {A: "${A:-z}$$"}, depends_on: !reset [], labels: {k: w}, ports: !reset [], command: ["run", "${X:-y}"], deploy: {resources: {limits: {pids: 9}}}}
`,
		"sub/.env":    "IMAGE=postgres\n",
		"sub/db.yaml": "services: {db: {image: \"${IMAGE}\", deploy: {replicas: 2}, volumes: [\"./data:/data\"]}}\n",
	})
	s, r := inject(t, dir, testConfig)
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	out := string(r.Output)
	for _, want := range []string{
		"  web-2:\n    extends: {file: \"compose.yaml\", service: \"web\"}\n",
		"A: \"${A:-z}$$\"",
		"command: !override\n      - \"run\"\n      - \"${X:-y}\"\n",
		"image: \"postgres\"", // a variable of the include's own env file, which the override does not see
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the override does not hold %q:\n%s", want, out)
		}
	}
	accepted(t, dir, "compose.yaml", "compose.override.yml", meshOutput)
	p, _ := exact(t, s, r.Output)
	web, clone := p.Services["web"], p.Services["web-2"]
	if a, b := *web.Environment["A"], *clone.Environment["A"]; a != "z$" || b != a || len(clone.Environment) != 1 {
		t.Errorf("A is %q and %q, environment %v", a, b, clone.Environment)
	}
	if len(clone.Ports) != 0 || len(p.Services["web-2-mesh-sandbox"].Ports) != 0 {
		t.Errorf("the replica has ports that the user's override took away: %v", clone.Ports)
	}
	if _, ok := clone.DependsOn["db"]; ok {
		t.Errorf("the replica depends on what the user's override took away: %v", clone.DependsOn)
	}
	if src := clone.Volumes[0].Source; src != web.Volumes[0].Source {
		t.Errorf("the replica mounts %s, want %s", src, web.Volumes[0].Source)
	}
}

// TestScale: Config.Scale wins over the files, in both directions.
func TestScale(t *testing.T) {
	dir := project(t, map[string]string{"compose.yaml": `services:
  web: {image: web, deploy: {replicas: 3}}
  db: {image: db}
  off: {image: off, scale: 0}
`})
	cfg := testConfig
	cfg.Scale = map[string]int{"web": 1, "db": 2, "off": 1}
	s, r := inject(t, dir, cfg)
	p, _ := exact(t, s, r.Output)
	for service, want := range map[string]int{"web": 1, "db": 1, "db-2": 1, "off": 1, "off-mesh-sandbox": 1, "web-2": -1, "db-2-mesh-proxy": 1} {
		svc, ok := p.Services[service]
		if got := svc.GetScale(); ok != (want >= 0) || ok && got != want {
			t.Errorf("%s: there %v, scale %d, want %d", service, ok, got, want)
		}
	}
	cfg.Scale = map[string]int{"db": 0}
	s, r = inject(t, dir, cfg)
	p, _ = exact(t, s, r.Output)
	for _, service := range []string{"db", "db-mesh-sandbox", "db-mesh-proxy"} {
		if svc := p.Services[service]; svc.GetScale() != 0 {
			t.Errorf("%s has scale %d, want 0", service, svc.GetScale())
		}
	}
	if _, err := s.Plan(map[string]int{"none": 2}); err == nil {
		t.Error("a service that is not there can be scaled")
	}
	full := cfg
	full.Full, full.Scale = true, map[string]int{"db": 3}
	if _, err := Inject(context.Background(), s, full); err != nil {
		t.Errorf("flattened: %v", err)
	}
}

// TestTraefik: a route without a port is warned of, since Traefik looks for the port where there is none now.
func TestTraefik(t *testing.T) {
	for label, want := range map[string]int{
		"traefik.http.routers.web.rule=Host(`a`)":                 1,
		"traefik.http.services.web.loadbalancer.server.port=80":   0,
		"traefik.enable=false":                                    0,
		"traefik.tcp.services.web.loadbalancer.server.port=5432":  0,
		"traefik.tcp.routers.web.rule=HostSNI(`*`)":               1,
		"com.example.traefik.http.routers.web.rule=not traefik's": 0,
	} {
		dir := project(t, map[string]string{"compose.yaml": "services:\n  web:\n    image: x\n    labels: ['" + strings.ReplaceAll(label, "'", "''") + "']\n"})
		if _, r := inject(t, dir, testConfig); len(r.Warnings) != want {
			t.Errorf("%s: warnings %v, want %d", label, r.Warnings, want)
		}
	}
}
