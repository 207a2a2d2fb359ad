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
			maybe("ports: [%s]", pick(`"80"`, `"${P:-1}000:80", 81`, `{target: 80, published: 8080, host_ip: "::1"}`, `"127.0.0.1:90-91:90-91/udp"`, `{target: 1, mode: host, app_protocol: grpc}`))
			maybe("expose: [%s]", pick("1", `"2/udp"`, `"3-4", 5`, `"${E:-6}"`))
			maybe("hostname: %s", pick("h", "${H:-h}"))
			maybe("domainname: example.org")
			maybe("dns: %s", pick("1.1.1.1", `["1.1.1.1", "${DNS:-8.8.8.8}"]`))
			maybe("dns_search: %s", pick("a.b", "[a.b, c.d]"))
			maybe("dns_opt: [\"ndots:1\"]")
			maybe("extra_hosts: %s", pick(`["a:1.2.3.4"]`, `{a: 1.2.3.4}`, `["b=host-gateway"]`))
			maybe("external_links: [x:y]")
			maybe("networks: %s", pick("[a]", "{a: , b: {priority: 1, aliases: [z, \"${Z:-y}\"]}}", "{a: {aliases: [q]}}", "{default: {aliases: [w]}}", "[a, default]"))
			maybe("sysctls: %s", pick("{net.a: 1, kernel.b: \"2\"}", "[net.a=1]", "[\"kernel.b=$${X}\"]"))
			maybe("container_name: \"c%d${C}\"", i)
		}
		maybe("restart: %s", pick(`"no"`, "always", "on-failure:3", "${R:-unless-stopped}"))
		maybe("profiles: [p]")
		maybe("labels: %s", pick("[a=b, composure.version=v1]", "{app: x, composure.service: svc}", `{composure.inject: "false"}`, `{q: "$$1"}`, `["composure.inject=true"]`))
		maybe("environment: %s", pick("[SERVICE_NAME=n, A]", `{SERVICE_80_NAME: m, SERVICE_TAGS: "version|v2", B: "$$c"}`))
		maybe("deploy: {replicas: %s}", pick("0", "1", "2", `"${N:-0}"`, `"${N:-3}"`))
		maybe("%s", pick("cap_add: [NET_ADMIN]", "privileged: true", "user: \"1337\"", "user: www", "runtime: kata", "userns_mode: host"))
		if i > 0 {
			maybe("depends_on: %s", pick(fmt.Sprintf("[s%d]", r.IntN(i)), fmt.Sprintf("{s%d: {condition: service_healthy, required: false}}", r.IntN(i)), fmt.Sprintf("[\"s${D:-%d}\"]", r.IntN(i))))
		}
	}
	b.WriteString("networks: {a: , b: {internal: true}}\n")
	return b.String()
}

// exact loads the project with the override as Compose does, file after file.
func exact(t *testing.T, s *Source, content []byte) *types.Project {
	t.Helper()
	config := s.config
	config.ConfigFiles = append(config.ConfigFiles[:len(config.ConfigFiles):len(config.ConfigFiles)],
		types.ConfigFile{Filename: filepath.Join(s.Dir, meshOutput), Content: content})
	p, err := s.loadTyped(context.Background(), config)
	if err != nil {
		t.Fatalf("project and override do not load together: %v\n%s", err, content)
	}
	return p
}

// TestRandomProjects: whatever loads is injected or refused with a reason; the override loads with it, moves what
// it should and nothing else, and comes out the same again.
func TestRandomProjects(t *testing.T) {
	injected := 0
	for seed := range uint64(150) {
		yaml := randomProject(rand.New(rand.NewPCG(seed, 1)))
		if checkProject(t, fmt.Sprintf("seed %d", seed), yaml) {
			injected++
		}
		if t.Failed() {
			t.Fatalf("project of seed %d:\n%s", seed, yaml)
		}
	}
	if injected < 100 {
		t.Errorf("only %d of 150 projects were injected: the generator makes too many that can't be", injected)
	}
}

// checkProject reports whether the project could be injected.
func checkProject(t *testing.T, name, yaml string) bool {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "p")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Load(context.Background(), Options{WorkingDir: dir})
	if err != nil {
		return false // Compose does not take it either
	}
	cfg := Config{Version: "1", Ingress: []PortMap{{"80", 80}}}
	r, err := Inject(context.Background(), s, cfg)
	if err != nil {
		refused := errors.Is(err, ErrNothing) || strings.Contains(err.Error(), "compose.yaml:")
		if !refused || strings.Contains(err.Error(), "inject would change") || strings.Contains(err.Error(), "does not load together") {
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
	for _, d := range e.verify(exact(t, s, r.Output)) {
		t.Errorf("%s: %v", name, d)
	}
	again, err := Inject(context.Background(), s, cfg)
	if err != nil || string(again.Output) != string(r.Output) {
		t.Errorf("%s: a second run differs (%v)", name, err)
	}
	return true
}

// FuzzInject feeds whole files.
func FuzzInject(f *testing.F) {
	f.Add(plain)
	for seed := range uint64(20) {
		f.Add(randomProject(rand.New(rand.NewPCG(seed, 2))))
	}
	cases, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range cases {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(content))
	}
	f.Fuzz(func(t *testing.T, yaml string) {
		if strings.Contains(yaml, "include") || strings.Contains(yaml, "extends") || strings.Contains(yaml, "file") {
			t.Skip("it reads other files")
		}
		checkProject(t, "input", yaml)
	})
}
