package compose

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/types"
)

// randomProject is a valid small project made of the fields that inject has to do with.
func randomProject(r *rand.Rand) string {
	var b strings.Builder
	n := 1 + r.IntN(5)
	b.WriteString("services:\n")
	pick := func(options ...string) string { return options[r.IntN(len(options))] }
	maybe := func(format string, args ...any) {
		if r.IntN(3) == 0 {
			fmt.Fprintf(&b, "    "+format+"\n", args...)
		}
	}
	for i := range n {
		fmt.Fprintf(&b, "  s%d:\n    image: \"i${TAG:-1}\"\n", i)
		switch r.IntN(8) {
		case 0:
			b.WriteString("    network_mode: " + pick("host", "none", "bridge", "container:other") + "\n")
		case 1:
			if i > 0 {
				fmt.Fprintf(&b, "    network_mode: service:s%d\n", r.IntN(i))
				break
			}
			fallthrough
		default:
			maybe("ports: [%s]", pick(`"80"`, `"${P:-1}000:80", 81`, `{target: 80, published: 8080, host_ip: "::1"}`, `"127.0.0.1:90-91:90-91/udp"`, `{target: 1, mode: host, app_protocol: grpc}`, `{target: 1, future: 1.50}`))
			maybe("expose: [%s]", pick("1", `"2/udp"`, `"3-4", 5`, `"${E:-6}"`))
			maybe("hostname: %s", pick("h", "${H:-h}"))
			maybe("domainname: example.org")
			maybe("dns: %s", pick("1.1.1.1", `["1.1.1.1", "${DNS:-8.8.8.8}"]`))
			maybe("dns_search: %s", pick("a.b", "[a.b, c.d]"))
			maybe("dns_opt: [\"ndots:1\"]")
			maybe("extra_hosts: %s", pick(`["a:1.2.3.4"]`, `{a: 1.2.3.4}`, `["b=host-gateway"]`))
			maybe("external_links: [x:y]")
			maybe("networks: %s", pick("[a]", "{a: , b: {priority: 1, aliases: [z, \"${Z:-y}\"]}}", "{a: {aliases: [q], future: 1}}", "{default: {aliases: [w]}}", "[a, default]"))
			maybe("sysctls: %s", pick("{net.a: 1, kernel.b: \"2\"}", "[net.a=1]", "[\"kernel.b=$${X}\"]"))
			maybe("container_name: \"c%d${C}\"", i)
		}
		maybe("restart: %s", pick(`"no"`, "always", "on-failure:3", "${R:-unless-stopped}"))
		maybe("profiles: [p]")
		maybe("%s", pick("future: {a: [1, \"${F:-x}\"]}", "healthcheck: {test: [CMD, a], future: 1}", "deploy: {future: [a]}", "prots: [a]", "build: {context: ., future: x}"))
		maybe("labels: %s", pick("[a=b, composure.version=v1]", "{app: x, composure.service: svc}", `{composure.inject: "false"}`, `{q: "$$1"}`, `["composure.inject=true"]`))
		maybe("environment: %s", pick("[SERVICE_NAME=n, A]", `{SERVICE_80_NAME: m, SERVICE_TAGS: "version|v2", B: "$$c"}`))
		maybe("deploy: {replicas: %s}", pick("0", "1", "2", `"${N:-0}"`, `"${N:-3}"`))
		maybe("%s", pick("cap_add: [NET_ADMIN]", "privileged: true", "user: \"1337\"", "user: www", "runtime: kata", "userns_mode: host"))
		if i > 0 {
			maybe("depends_on: %s", pick(fmt.Sprintf("[s%d]", r.IntN(i)), fmt.Sprintf("{s%d: {condition: service_healthy, required: false}}", r.IntN(i)), fmt.Sprintf("[\"s${D:-%d}\"]", r.IntN(i))))
		}
	}
	b.WriteString("networks: {a: , b: {internal: true}}\n")
	b.WriteString(pick("", "", "futures: {a: {b: c}}\n", "volumes: {v: {future: 1}}\n"))
	return b.String()
}

// randomOverride is an override file of the user's for randomProject, in which !reset and !override take things away.
func randomOverride(r *rand.Rand) string {
	lines := []string{
		"ports: !reset []", "ports: !override [\"${Q:-7}000:70\"]", "ports: [\"71\"]", "expose: !reset null", "expose: [\"8\"]", "hostname: !reset null", "hostname: other",
		"networks: !override [b]", "networks: !reset null", "networks: {b: {aliases: [\"o${O:-}\"]}}", "dns: !override 9.9.9.9", "dns: [\"${D:-9.9.9.9}\"]", "extra_hosts: [\"z:1.1.1.1\"]",
		"extra_hosts: !override {z: 1.1.1.1}", "sysctls: {net.b: 2}", "sysctls: !reset null", "labels: !override [x=y]", "labels: {composure.version: v9}", "environment: {SERVICE_NAME: other}",
		"environment: !reset null", "container_name: !reset null", "deploy: !reset null", "scale: 2", "profiles: !reset null", "network_mode: !reset null", "image: \"other$$\"",
		"build: {context: ., args: {A: \"${A}\"}, ssh: [default, \"k=v\"]}", "x-y: {z: [1, null]}", "future: {b: 1}", "future: !reset null", "deploy: {future: [b]}", "command: [\"$$A\", \"${B:-}\"]", "restart: always",
	}
	if r.IntN(3) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("x-top: {a: b}\nservices:\n  s0:\n    tty: true\n")
	seen := map[string]bool{}
	for range 1 + r.IntN(4) {
		line := lines[r.IntN(len(lines))]
		if key, _, _ := strings.Cut(line, ":"); !seen[key] {
			seen[key] = true
			b.WriteString("    " + line + "\n")
		}
	}
	return b.String()
}

// exact loads the project with the override as Compose does, file after file.
func exact(t *testing.T, s *Source, content []byte) (*types.Project, []stray) {
	t.Helper()
	config := s.config
	config.ConfigFiles = append(config.ConfigFiles[:len(config.ConfigFiles):len(config.ConfigFiles)],
		types.ConfigFile{Filename: filepath.Join(s.Dir, meshOutput), Content: content})
	p, strays, err := s.loadTyped(context.Background(), config)
	if err != nil {
		t.Fatalf("project and override do not load together: %v\n%s", err, content)
	}
	return p, strays
}

// TestRandomProjects: whatever loads is injected or refused with a reason; the override loads with it, moves what
// it should and nothing else, and comes out the same again.
func TestRandomProjects(t *testing.T) {
	injected := 0
	for seed := range uint64(80) {
		r := rand.New(rand.NewPCG(seed, 1))
		yaml, override := randomProject(r), randomOverride(r)
		if checkProject(t, fmt.Sprintf("seed %d", seed), yaml, override) {
			injected++
		}
		if t.Failed() {
			t.Fatalf("project of seed %d:\n%s\nand its override:\n%s", seed, yaml, override)
		}
	}
	if injected < 50 {
		t.Errorf("only %d of 80 projects were injected: the generator makes too many that can't be", injected)
	}
}

// checkProject reports whether the project could be injected. An empty override is none.
func checkProject(t *testing.T, name, yaml, override string) bool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "p")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	if override != "" {
		if err := os.WriteFile(filepath.Join(dir, "compose.override.yml"), []byte(override), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Load(context.Background(), Options{WorkingDir: dir})
	if err != nil {
		return false // Compose does not take it either
	}
	cfg := Config{Version: "1", Ingress: []PortMap{{"80", 80}}}
	r, err := Inject(context.Background(), s, cfg)
	if err != nil {
		refused := errors.Is(err, ErrNothing) || strings.Contains(err.Error(), "compose.yaml:") || strings.Contains(err.Error(), "compose.override.yml:")
		lost := strings.Contains(err.Error(), "future: want") // of ports that a replica publishes in part, an unknown field has no place
		if !refused || strings.Contains(err.Error(), "inject would change") && !lost || strings.Contains(err.Error(), "does not load together") {
			t.Errorf("%s: %v", name, err)
		}
		return false
	}
	plan, err := s.Plan(nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &emitter{src: s, plan: plan, cfg: cfg, resolved: map[fieldOf]bool{}}
	if _, err := e.output(dir); err != nil { // fills what verify asks for
		t.Fatal(err)
	}
	whole, strays := exact(t, s, r.Output)
	for _, d := range e.verify(whole) {
		t.Errorf("%s: %v", name, d)
	}
	if unknown := s.Unknown(); len(unknown) != len(r.Unknown) || (len(s.strays) > 0) != (len(unknown) > 0) {
		t.Errorf("%s: %d fields are not known, and %v is told", name, len(s.strays), r.Unknown)
	}
	checkFull(t, name, s, cfg, whole, strays)
	again, err := Inject(context.Background(), s, cfg)
	if err != nil || string(again.Output) != string(r.Output) {
		t.Errorf("%s: a second run differs (%v)", name, err)
	}
	return true
}

// checkFull: the flattened file means what project and override mean together.
func checkFull(t *testing.T, name string, s *Source, cfg Config, want *types.Project, strays []stray) {
	t.Helper()
	cfg.Full = true
	r, err := Inject(context.Background(), s, cfg)
	if err != nil {
		if s.rawErr == nil && !strings.Contains(err.Error(), "how they merge is not known") {
			t.Errorf("%s: --full: %v", name, err)
		}
		return
	}
	config := s.config
	config.ConfigFiles = []types.ConfigFile{{Filename: filepath.Join(s.Dir, meshOutput), Content: r.Output}}
	got, unknown, err := s.loadTyped(context.Background(), config)
	if err != nil {
		t.Errorf("%s: --full: %v\n%s", name, err, r.Output)
		return
	}
	for _, d := range compareStrays(strays, unknown) {
		t.Errorf("%s: --full: %v", name, d)
	}
	if !equal(want.ServiceNames(), got.ServiceNames()) {
		t.Errorf("%s: --full: services %v, want %v", name, got.ServiceNames(), want.ServiceNames())
	}
	for _, service := range want.ServiceNames() {
		for _, d := range compareServices(service, want.Services[service], got.Services[service]) {
			t.Errorf("%s: --full: %v", name, d)
		}
	}
	if !equal(want.Networks, got.Networks) || !equal(want.Volumes, got.Volumes) {
		t.Errorf("%s: --full: networks or volumes differ", name)
	}
}

// FuzzInject feeds whole files, with an override of the user's.
func FuzzInject(f *testing.F) {
	f.Add(plain, "")
	f.Add("services: {s0: {image: x}, s1: {image: x, network_mode: \"service:s0\", depends_on: [\"s${D:-0}\"]}}\n", "")
	f.Add("services: {web: {image: x, future: {a: [b]}, ports: [{target: 80, future: 1}], networks: {n: {future: x}}}}\nnetworks: {n: {future: 1}}\nfutures: {}\n", "services: {web: {future: {c: d}}}\n")
	f.Add("x-a: &a {future: [1]}\nservices: {web: {<<: *a, image: x, build: {context: ., future: {}}, deploy: {replicas: 2, resources: {limits: {future: 1}}}}}\n", "services: {web: {future: !reset null}}\n")
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 2))
		f.Add(randomProject(r), randomOverride(r))
	}
	for _, pattern := range []string{"testdata/*/in.yaml", "testdata/odd/*/project/compose.yaml"} {
		cases, err := filepath.Glob(pattern)
		if err != nil || len(cases) == 0 {
			f.Fatalf("no %s: %v", pattern, err)
		}
		for _, path := range cases {
			content, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(content), randomOverride(rand.New(rand.NewPCG(uint64(len(content)), 3))))
		}
	}
	f.Fuzz(func(t *testing.T, yaml, override string) {
		if both := yaml + override; strings.Contains(both, "include") || strings.Contains(both, "extends") || strings.Contains(both, "file") {
			t.Skip("it reads other files")
		}
		checkProject(t, "input", yaml, override)
	})
}

// FuzzRandomProject takes the fields that inject has to do with apart and together again, which bytes alone seldom do.
func FuzzRandomProject(f *testing.F) {
	f.Add(uint64(1000))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 4))
		yaml, override := randomProject(r), randomOverride(r)
		checkProject(t, "project", yaml, override)
		if t.Failed() {
			t.Logf("the project:\n%s\nand its override:\n%s", yaml, override)
		}
	})
}
