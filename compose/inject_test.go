package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/labels"
)

const plain = "services: {web: {image: web, ports: [\"80:80\"]}}\n"

// project writes files below a new directory.
func project(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		cfg        Config
		want       []string // parts of the error
	}{
		{name: "malformed", yaml: "services:\n  web: [", want: []string{"compose.yaml", "line 2"}},
		{name: "null namespace", yaml: "services:\n  web:\n    image: x\n    pid:", want: []string{"compose.yaml:4: services.web.pid: null, at which Compose fails"}},
		{name: "malformed name", yaml: "services:\n  \"a b\": {image: x}", want: []string{"compose.yaml", "a b"}},
		{name: "wrong type", yaml: "services:\n  web: {image: x, prots: [], ports: {a: b}}", want: []string{"compose.yaml", "services.web.ports"}},
		{name: "replicas with a name", yaml: "services:\n  web:\n    image: x\n    container_name: xyz", cfg: Config{Scale: map[string]int{"web": 2}},
			want: []string{"compose.yaml:4: services.web.container_name: 2 replicas"}},
		{name: "replicas with an address", yaml: "services:\n  web:\n    image: x\n    scale: 2\n    networks:\n      n:\n        ipv4_address: 10.0.0.2\nnetworks: {n: {ipam: {config: [{subnet: 10.0.0.0/24}]}}}",
			want: []string{"compose.yaml:7: services.web.networks.n.ipv4_address: 2 replicas"}},
		{name: "replicas with a hardware address", yaml: "services:\n  web:\n    image: x\n    scale: 2\n    mac_address: 02:42:ac:11:00:03", want: []string{"compose.yaml:5: services.web.mac_address: 2 replicas"}},
		{name: "taken replica", yaml: "services:\n  web: {image: x, scale: 2}\n  web-2: {image: y}", want: []string{"compose.yaml:3: services.web-2: inject adds"}},
		{name: "scale of nothing", yaml: plain, cfg: Config{Scale: map[string]int{"wbe": 2}}, want: []string{"scale wbe=2: the project has no service wbe; it has web"}},
		{name: "scale outside", yaml: "services:\n  web: {image: x}\n  db: {image: x, network_mode: host}", cfg: Config{Scale: map[string]int{"db": 2}}, want: []string{"scale db=2: services.db.network_mode: left out"}},
		{name: "label value", yaml: "services:\n  web:\n    image: x\n    labels:\n      - composure.inject=maybe",
			want: []string{"compose.yaml:5: services.web.labels.composure.inject:", `"maybe" is neither`}},
		{name: "impossible demand", yaml: "services:\n  web:\n    image: x\n    network_mode: host\n    labels: {composure.inject: \"true\"}",
			want: []string{"compose.yaml:4: services.web.network_mode:", "the host's network", "remove one of the two"}},
		{name: "port exclusion", yaml: "services:\n  web: {image: x, labels: {composure.exclude-inbound-ports: \"80,x\"}}", want: []string{"composure.exclude-inbound-ports", `"80,x": want ports`}},
		{name: "network exclusion", yaml: "services:\n  web: {image: x, labels: {composure.exclude-outbound-cidrs: \"10.0.0.0\"}}", want: []string{"want networks such as"}},
		{name: "log level", yaml: "services:\n  web: {image: x, labels: {composure.proxy.log-level: loud}}", want: []string{"debug, info, warn, error"}},
		{name: "setting", yaml: "services:\n  web: {image: x, labels: {composure.proxy.header-size: 9m}}", want: []string{"services.web.labels.composure.proxy.header-size", "want a size from 1k to 8m"}},
		{name: "no setting", yaml: "services:\n  web: {image: x, labels: {composure.proxy.header-sizes: 9k}}", want: []string{"composure.proxy.header-sizes is not a label for users"}},
		{name: "memory", yaml: "services:\n  web: {image: x, labels: {composure.proxy.memory: lots}}", want: []string{"want a size such as 64m"}},
		{name: "protocol port", yaml: "services:\n  web: {image: x, labels: {composure.protocol.http: http}}", want: []string{"services.web.labels.composure.protocol.http: it ends in no port"}},
		{name: "service name", yaml: "services:\n  web: {image: x, labels: {composure.service: \"a,b\"}}", want: []string{"services.web.labels.composure.service", `"a,b"`}},
		{name: "reserved label", yaml: "services:\n  web:\n    image: x\n    labels:\n      composure.role: proxy", want: []string{"compose.yaml:5: services.web.labels.composure.role: composure.role is not a label for users"}},
		{name: "reserved label outside", yaml: "services:\n  ok: {image: x}\n  web: {image: x, network_mode: host, labels: [composure.mesh=shop]}", want: []string{"services.web.labels.composure.mesh: "}},
		{name: "reserved label of a joiner", yaml: "services:\n  ok: {image: x}\n  web: {image: x, network_mode: \"service:ok\", labels: [composure.workload=ok]}", want: []string{"services.web.labels.composure.workload: "}},
		{name: "reserved label of an image", yaml: "services:\n  web: {build: {context: ., labels: {composure.label.version: v1}}}", want: []string{"services.web.build.labels.composure.label.version: "}},
		{name: "misspelt label", yaml: "services:\n  web: {image: x, labels: {composure.injcet: \"false\"}}", want: []string{"services.web.labels.composure.injcet: "}},
		{name: "taken service", yaml: "services:\n  web: {image: x}\n  web-mesh-proxy: {image: y}", want: []string{"compose.yaml:3: services.web-mesh-proxy: inject adds a service of this name"}},
		{name: "taken plane", yaml: "services:\n  web: {image: x}\n  composure-pilot: {image: y}", want: []string{"services.composure-pilot"}},
		{name: "taken gateway", yaml: "services:\n  web: {image: x}\n  istio-ingressgateway: {image: y}", cfg: Config{Ingress: []PortMap{{"80", 80}}}, want: []string{"services.istio-ingressgateway"}},
		{name: "taken volume", yaml: "services:\n  web: {image: x}\nvolumes:\n  composure-run:", want: []string{"compose.yaml:4: volumes.composure-run"}},
		{name: "taken network", yaml: "services:\n  web: {image: x}\nnetworks:\n  mesh-egress:", want: []string{"compose.yaml:4: networks.mesh-egress"}},
		{name: "unknown network to join", yaml: plain, cfg: Config{Joins: Joins{{"citadel", "nowhere"}}}, want: []string{"--join citadel=nowhere", `no network "nowhere"`}},
		{name: "another mesh's planes on a network", yaml: plain, cfg: Config{External: "m", Joins: Joins{{"mixer", "default"}}}, want: []string{"--join mixer=default", "meshctl install"}},
		{name: "another mesh's mode", yaml: plain, cfg: Config{External: "m", MutualTLS: "STRICT"}, want: []string{"--mtls", "meshctl install"}},
		{name: "nothing", yaml: "services:\n  web: {image: x, network_mode: host}", want: []string{"no service of the project can be in the mesh", "services.web.network_mode"}},
		{name: "own output", yaml: plain, cfg: Config{Out: "compose.yaml"}, want: []string{"-o compose.yaml", "own compose files"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := project(t, map[string]string{"compose.yaml": tc.yaml})
			s, err := Load(context.Background(), Options{WorkingDir: dir, Env: testEnv})
			if err == nil {
				tc.cfg.Version = "1"
				_, err = Inject(context.Background(), s, tc.cfg)
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tc.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if files, _ := os.ReadDir(dir); len(files) != 1 {
				t.Errorf("something was written: %v", files)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	dir := project(t, map[string]string{"mesh.yaml": "x-composure: {version: \"1\", inputs: {}, hash: \"\"}\nservices: {}\n"})
	for _, tc := range []struct {
		opts Options
		want string
	}{
		{Options{}, "no compose file"},
		{Options{Files: []string{"-"}}, "read compose file: standard input is read by `meshctl compose inject` alone"},
		{Options{Files: []string{"-", "-"}, Stdin: strings.NewReader(plain)}, "standard input can be read once"},
		{Options{Files: []string{"-"}, Stdin: strings.NewReader("")}, "empty compose file"},
		{Options{Files: []string{"-"}, Stdin: iotest.ErrReader(errors.New("gone"))}, "read compose file: gone"},
		{Options{Files: []string{"absent.yaml"}}, "absent.yaml"},
		{Options{Files: []string{"mesh.yaml"}}, "what meshctl wrote itself"},
		{Options{Env: []string{"COMPOSE_FILE=other.yaml"}}, "other.yaml"},
		{Options{EnvFiles: []string{"absent.env"}}, "absent.env"},
	} {
		tc.opts.WorkingDir = dir
		if _, err := Load(context.Background(), tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want %q", tc.opts, err, tc.want)
		}
	}
}

// TestStdin is about a compose file on standard input: it means what it would mean as a file of the working directory.
func TestStdin(t *testing.T) {
	for name, tc := range map[string]struct {
		files  map[string]string
		opts   Options
		config Config
		dir    string // of the project
		path   string
		flags  []string
	}{
		"override": {path: "compose.mesh.yaml", flags: []string{"-f", "-", "-f", "compose.mesh.yaml"}},
		"whole":    {config: Config{Full: true, Out: "-"}},
		"with a file": {
			files: map[string]string{"deploy/prod.yml": "services: {web: {restart: always}}\n"}, opts: Options{Files: []string{"-", "deploy/prod.yml"}},
			dir: "deploy", path: "compose.mesh.yaml", flags: []string{"-f", "-", "-f", "deploy/prod.yml", "-f", "compose.mesh.yaml"},
		},
		"beside a compose file": {files: map[string]string{"compose.yaml": "services: {other: {image: x}}\n"}, path: "compose.mesh.yaml", flags: []string{"-f", "-", "-f", "compose.mesh.yaml"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := project(t, tc.files)
			opts := tc.opts
			opts.WorkingDir, opts.Env, opts.Stdin = dir, testEnv, strings.NewReader(plain)
			if opts.Files == nil {
				opts.Files = []string{"-"}
			}
			config := tc.config
			config.Version = testConfig.Version
			s, err := Load(t.Context(), opts)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Inject(t.Context(), s, config)
			if err != nil {
				t.Fatal(err)
			}
			if want := filepath.Join(dir, tc.dir); s.Dir != want {
				t.Errorf("the project's directory is %s, want %s", s.Dir, want)
			}
			if want := filepath.Join(dir, tc.path); tc.path != "" && r.Path != want || tc.path == "" && r.Path != "" {
				t.Errorf("written to %q, want %q", r.Path, tc.path)
			}
			if !slices.Equal(r.Flags, tc.flags) {
				t.Errorf("flags %q, want %q", r.Flags, tc.flags)
			}
			if _, ok := s.project.Services["other"]; ok {
				t.Error("a file that was not named was read")
			}
			if h, _ := ReadHeader(r.Output); h.Inputs["-"] != digest([]byte(plain)) && tc.config.Out == "" {
				t.Errorf("inputs %v, want that of standard input", h.Inputs)
			}
		})
	}
}

// TestTargets is about which files are read and which is written.
func TestTargets(t *testing.T) {
	generated := func() string { // what inject writes for plain
		_, r := inject(t, project(t, map[string]string{"compose.yaml": plain}), testConfig)
		return string(r.Output)
	}()
	override := "services: {web: {labels: {a: b}}}\n"
	for _, tc := range []struct {
		name      string
		files     map[string]string
		opts      Options
		cfg       Config
		inputs    []string
		path      string
		automatic bool
		line      string
		gone      string
	}{
		{name: "plain", files: map[string]string{"compose.yaml": plain}, inputs: []string{"compose.yaml"}, path: autoOutput, automatic: true},
		{name: "old name", files: map[string]string{"docker-compose.yml": plain}, inputs: []string{"docker-compose.yml"}, path: autoOutput, automatic: true},
		{name: "again", files: map[string]string{"compose.yaml": plain, autoOutput: generated}, inputs: []string{"compose.yaml"}, path: autoOutput, automatic: true},
		{name: "user's override", files: map[string]string{"compose.yaml": plain, "compose.override.yml": override},
			inputs: []string{"compose.yaml", "compose.override.yml"}, path: meshOutput, line: "COMPOSE_FILE=compose.yaml:compose.override.yml:compose.mesh.yaml"},
		{name: "user's later override", files: map[string]string{"compose.yaml": plain, autoOutput: generated, "docker-compose.override.yml": override},
			inputs: []string{"compose.yaml", "docker-compose.override.yml"}, path: meshOutput, gone: autoOutput,
			line: "COMPOSE_FILE=compose.yaml:docker-compose.override.yml:compose.mesh.yaml"},
		{name: "flags", files: map[string]string{"a/one.yaml": plain, "two.yaml": override}, opts: Options{Files: []string{"a/one.yaml", "two.yaml"}},
			inputs: []string{"a/one.yaml", "two.yaml"}, path: "a/" + meshOutput, line: "COMPOSE_FILE=a/one.yaml:two.yaml:a/compose.mesh.yaml"},
		{name: "COMPOSE_FILE in .env", files: map[string]string{".env": "COMPOSE_FILE=one.yaml,compose.mesh.yaml\nCOMPOSE_PATH_SEPARATOR=,\n", "one.yaml": plain, meshOutput: generated},
			inputs: []string{"one.yaml"}, path: meshOutput, line: "COMPOSE_FILE=one.yaml,compose.mesh.yaml"},
		{name: "parent directory", files: map[string]string{"compose.yaml": plain, "sub/x": ""}, opts: Options{WorkingDir: "sub"}, inputs: []string{"compose.yaml"}, path: autoOutput, automatic: true},
		{name: "-o", files: map[string]string{"compose.yaml": plain}, cfg: Config{Out: "mesh/out.yaml"}, inputs: []string{"compose.yaml"}, path: "mesh/out.yaml", line: "COMPOSE_FILE=compose.yaml:mesh/out.yaml"},
		{name: "-o -", files: map[string]string{"compose.yaml": plain}, cfg: Config{Out: "-"}, inputs: []string{"compose.yaml"}},
		{name: "full", files: map[string]string{"compose.yaml": plain}, cfg: Config{Full: true}, inputs: []string{"compose.yaml"}, path: meshOutput, line: "COMPOSE_FILE=compose.mesh.yaml"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := project(t, tc.files)
			tc.opts.WorkingDir, tc.opts.Env = filepath.Join(dir, tc.opts.WorkingDir), testEnv
			s, err := Load(context.Background(), tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			tc.cfg.Version = "1"
			r, err := Inject(context.Background(), s, tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			var inputs []string
			for _, f := range s.Files {
				inputs = append(inputs, relative(dir, f))
			}
			got := []any{inputs, "", r.Automatic, r.ComposeFile}
			if r.Path != "" {
				got[1] = relative(dir, r.Path)
			}
			if diff := cmp.Diff([]any{tc.inputs, tc.path, tc.automatic, tc.line}, got); diff != "" {
				t.Errorf("inputs, path, automatic, line (-want +got):\n%s", diff)
			}
			if r.Path == "" {
				return
			}
			if err := os.MkdirAll(filepath.Dir(r.Path), 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Write(); err != nil {
				t.Fatal(err)
			}
			if tc.gone != "" && fileExists(filepath.Join(dir, tc.gone)) {
				t.Errorf("%s is still there: it hides the user's override", tc.gone)
			}
		})
	}
}

// TestNotOurs: a file of the user's is never replaced or removed.
func TestNotOurs(t *testing.T) {
	dir := project(t, map[string]string{"compose.yaml": plain, meshOutput: "services: {}\n"})
	_, r := inject(t, dir, Config{Version: "1", Out: meshOutput})
	if _, err := r.Write(); !errors.Is(err, ErrNotOurs) {
		t.Errorf("write over a file of the user's: %v, want ErrNotOurs", err)
	}
	_, r = inject(t, dir, testConfig)
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	edited := append(slices.Clone(r.Output), "# a note\n"...)
	if err := os.WriteFile(r.Path, edited, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write(); !errors.Is(err, ErrEdited) {
		t.Errorf("write over an edited output: %v, want ErrEdited", err)
	}
	if _, err := Uninject(Options{WorkingDir: dir}); !errors.Is(err, ErrEdited) {
		t.Errorf("uninject an edited output: %v, want ErrEdited", err)
	}
	if now, err := os.ReadFile(r.Path); err != nil || !bytes.Equal(now, edited) {
		t.Errorf("the edited output was changed (%v)", err)
	}
	if err := os.Remove(r.Path); err != nil {
		t.Fatal(err)
	}
	if removed, err := Uninject(Options{WorkingDir: dir}); err != nil || len(removed) != 0 {
		t.Errorf("uninject without an output: %v, %v", removed, err)
	}
	if !fileExists(filepath.Join(dir, meshOutput)) {
		t.Error("uninject removed a file of the user's")
	}
}

// TestMerged: services from include, extends and several files, and the inputs that the header names.
func TestMerged(t *testing.T) {
	dir := project(t, map[string]string{
		"compose.yaml": `include: [sub/db.yaml]
services:
  web:
    extends: {file: common.yaml, service: base}
    depends_on: [db]
`,
		"common.yaml":          "services: {base: {image: \"web:${TAG:-1}\", ports: [\"${PORT:-80}:80\"], networks: [front]}}\nnetworks: {front: }\n",
		"sub/db.yaml":          "services: {db: {image: db, volumes: [\"./data:/data\"], hostname: \"${DBHOST:-db1}\"}}\n",
		"compose.override.yml": "services: {web: {ports: [\"${TLS:-443}:443\"]}}\nnetworks: {front: }\n",
	})
	s, r := inject(t, dir, testConfig)
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	out := string(r.Output)
	for _, want := range []string{"\"${PORT:-80}:80\"", "\"${TLS:-443}:443\"", "hostname: \"${DBHOST:-db1}\"", "      front:\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the override does not hold %s:\n%s", want, out)
		}
	}
	accepted(t, dir, "compose.yaml", "compose.override.yml", meshOutput)
	h, ok := ReadHeader(r.Output)
	if !ok || h.Edited(r.Output) {
		t.Fatalf("header %+v, %v", h, ok)
	}
	var inputs []string
	for f := range h.Inputs {
		inputs = append(inputs, f)
	}
	slices.Sort(inputs)
	if diff := cmp.Diff([]string{"common.yaml", "compose.override.yml", "compose.yaml", "sub/db.yaml"}, inputs); diff != "" {
		t.Errorf("inputs (-want +got):\n%s", diff)
	}
	if stale := s.Stale(r.Path, h); stale != "" {
		t.Errorf("%s is stale at once", stale)
	}
	if err := os.WriteFile(filepath.Join(dir, "sub/db.yaml"), []byte("services: {db: {image: db2}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	later, _ := inject(t, dir, testConfig)
	if stale := later.Stale(r.Path, h); stale != "sub/db.yaml" {
		t.Errorf("stale input is %q, want sub/db.yaml", stale)
	}
}

// TestEnvFile: names for Consul count from an env file too, and only they make the override stale.
func TestEnvFile(t *testing.T) {
	dir := project(t, map[string]string{
		"compose.yaml": `services:
  web:
    image: web
    env_file: [absent.env, {path: web.env, required: false}]
    environment: {SERVICE_TAGS: version|v2}
  db: {image: db, env_file: db.env}
`,
		"web.env": "NAME=shop\nSERVICE_NAME=${NAME}-web\nSERVICE_TAGS=version|v1\nSERVICE_8080_NAME=admin\nPASSWORD=secret\n",
		"db.env":  "PASSWORD=secret\n",
	})
	_, r := inject(t, dir, testConfig)
	for _, want := range []string{"composure.services: \"shop-web,admin,web\"", "composure.label.version: \"v2\"", "- \"shop-web\"\n", "- \"admin\"\n"} {
		if !strings.Contains(string(r.Output), want) {
			t.Errorf("the override does not hold %s:\n%s", want, r.Output)
		}
	}
	h, _ := ReadHeader(r.Output)
	if _, ok := h.Inputs["db.env"]; ok || h.Inputs["web.env"] == "" {
		t.Errorf("inputs %v, want web.env and not db.env", h.Inputs)
	}
	stale := func(content string) string {
		if err := os.WriteFile(filepath.Join(dir, "web.env"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		s, _ := inject(t, dir, testConfig)
		return s.Stale(filepath.Join(dir, autoOutput), h)
	}
	if got := stale("PASSWORD=other\nSERVICE_8080_NAME=admin\nSERVICE_NAME=shop-web\n"); got != "" {
		t.Errorf("a changed password makes %s stale", got)
	}
	if got := stale("SERVICE_NAME=other\n"); got != "web.env" {
		t.Errorf("a changed name makes %q stale, want web.env", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "db.env"), []byte("SERVICE_NAME='\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(context.Background(), Options{WorkingDir: dir, Env: testEnv}); err == nil || !strings.Contains(err.Error(), "compose.yaml:6: services.db.env_file: ") {
		t.Errorf("error %v of a malformed env file", err)
	}
}

// TestRestart is the restart policy of a sandbox and its proxy by the service's own.
func TestRestart(t *testing.T) {
	for written, want := range map[string]string{
		"": "unless-stopped", "restart: \"no\"": "unless-stopped", "restart: on-failure:3": "unless-stopped", "restart: unless-stopped": "unless-stopped", "restart: always": "always",
		"deploy: {restart_policy: {condition: any}}": "always", "deploy: {restart_policy: {condition: on-failure}}": "unless-stopped", "deploy: {restart_policy: {condition: none}}": "unless-stopped",
	} {
		dir := project(t, map[string]string{"compose.yaml": "services:\n  web:\n    image: web\n    " + written + "\n"})
		s, r := inject(t, dir, testConfig)
		p, _ := exact(t, s, r.Output)
		for _, name := range []string{"web-mesh-sandbox", "web-mesh-proxy"} {
			if got := p.Services[name].Restart; got != want {
				t.Errorf("%q: restart of %s is %s, want %s", written, name, got, want)
			}
		}
	}
}

// TestResolvedWhereItMust: values that mean something else in another place as written are copied resolved.
func TestResolvedWhereItMust(t *testing.T) {
	dir := project(t, map[string]string{
		".env": "NET=front\nPORTS=8080-8081\n",
		"compose.yaml": `services:
  web:
    image: web
    networks: ["${NET}"]
    ports: ["${PORTS}:80-81", "9000:9000"]
networks: {front: {}}
`})
	_, r := inject(t, dir, testConfig)
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	if out := string(r.Output); !strings.Contains(out, "      front:\n        aliases:") {
		t.Errorf("the network's name is not resolved:\n%s", out)
	}
	accepted(t, dir, "compose.yaml", autoOutput)
}

// TestFull: the flattened file says the same as project and override, variables and dollars intact.
func TestFull(t *testing.T) {
	dir := project(t, map[string]string{
		".env": "D=/srv\n",
		"compose.yaml": `include: [sub/db.yaml]
services:
  web:
    image: "web:${TAG:-1}"
    command: ["sh", "-c", "echo $$HOME"]
    volumes: ["${D}/x:/x", "./data:/data", "named:/named"]
    ports: ["${PORT:-80}:80"]
    environment: {A: "pa$$word", B: "${B:-c}"}
    depends_on: [db]
volumes: {named: }
`,
		"sub/db.yaml": "services: {db: {image: db, volumes: [\"./data:/data\"]}}\n",
	})
	_, r := inject(t, dir, Config{Version: "1", Full: true})
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	out := string(r.Output)
	for _, want := range []string{"${TAG:-1}", "echo $$HOME", "pa$$word", "${B:-c}", "web-mesh-sandbox:", "${PORT:-80}:80"} {
		if !strings.Contains(out, want) {
			t.Errorf("the file does not hold %s:\n%s", want, out)
		}
	}
	accepted(t, dir, meshOutput)
	if _, again := inject(t, dir, Config{Version: "1", Full: true}); !bytes.Equal(again.Output, r.Output) {
		t.Error("a second run gives other bytes")
	}
}

func TestParsePortMap(t *testing.T) {
	for in, want := range map[string]PortMap{
		"30080":              {"30080", 80},
		"30443:443":          {"30443", 443},
		"127.0.0.1:30080":    {"127.0.0.1:30080", 80},
		"127.0.0.1:30080:81": {"127.0.0.1:30080", 81},
		"0":                  {"0", 80},
		"[::1]:30080":        {"[::1]:30080", 80},
		"[::1]:30080:8080":   {"[::1]:30080", 8080},
		"":                   {}, "x": {}, "80:x": {}, "80:0": {}, "1.2.3:80": {}, "80:80:80": {}, "70000": {},
	} {
		got, err := ParsePortMap(in)
		if got != want || (err == nil) != (want != PortMap{}) {
			t.Errorf("ParsePortMap(%q) = %v, %v, want %v", in, got, err, want)
		}
	}
}

// TestChanges: the list of changes covers every key that the override has for a service of the user's.
func TestChanges(t *testing.T) {
	dir := project(t, map[string]string{"compose.yaml": plain})
	_, r := inject(t, dir, testConfig)
	want := []Change{
		{"web", "network_mode", "", "service:web-mesh-sandbox", "the sandbox owns the network namespace"},
		{"web", "ports", "['80:80']", "services.web-mesh-sandbox.ports", "the network namespace is the sandbox's"},
		{"web", "depends_on", "", `{web-mesh-sandbox: {condition: service_started, restart: true}, web-mesh-proxy: {condition: service_healthy, restart: false}}`,
			"it starts when it is protected and its proxy is ready"},
		{"web", "labels", "", "{composure.mesh: '${COMPOSE_PROJECT_NAME}', composure.role: app, composure.workload: web}", "the keeper knows it by them"},
	}
	if diff := cmp.Diff(want, r.Changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// TestVerifyRefuses: what an override changes beside the moves is found.
func TestVerifyRefuses(t *testing.T) {
	dir := project(t, map[string]string{"compose.yaml": `services:
  web: {image: web, ports: ["80:80"], hostname: h, networks: {n: {aliases: [a]}}}
  db: {image: db, environment: {A: b}}
networks: {n: , default: }
`})
	s, r := inject(t, dir, testConfig)
	plan, err := s.Plan(nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &emitter{src: s, plan: plan, cfg: testConfig, resolved: map[fieldOf]bool{}}
	if _, err := e.output(dir); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ old, new, field string }{
		{"- \"80:80\"", "- \"81:80\"", "services.web-mesh-sandbox.ports"},
		{"hostname: \"h\"", "hostname: \"other\"", "services.web-mesh-sandbox.hostname"},
		{"- \"a\"\n", "- \"b\"\n", "services.web-mesh-sandbox.networks.n.aliases"},
		{"    network_mode: \"service:web-mesh-sandbox\"\n    networks: !reset null\n", "    image: \"other\"\n    network_mode: \"service:web-mesh-sandbox\"\n    networks: !reset null\n", "services.web.image"},
		{"    hostname: !reset null\n", "", "services.web.hostname"},
		{"  db:\n", "  db:\n    environment: {A: \"c\"}\n", "services.db.environment"},
		{"service:db-mesh-sandbox\"\n    depends_on", "service:web-mesh-sandbox\"\n    depends_on", "services.db.network_mode"},
	} {
		bad := strings.Replace(string(r.Output), tc.old, tc.new, 1)
		if bad == string(r.Output) {
			t.Errorf("%s: there is nothing to break", tc.field)
			continue
		}
		diffs, err := e.prove(context.Background(), []byte(bad))
		if err != nil {
			t.Errorf("%s: %v", tc.field, err)
			continue
		}
		if len(diffs) == 0 || !strings.HasPrefix(diffs[0].Error(), tc.field+":") {
			t.Errorf("differences %v, want one at %s", diffs, tc.field)
		}
	}
}

// TestParts: a project of several parts comes out of merge as it comes out of Compose.
func TestParts(t *testing.T) {
	outside := strings.Replace(bigProject(4*partSize+1), "image:", "labels: {composure.inject: \"false\"}\n    image:", 2*partSize)
	for name, yaml := range map[string]string{"big": bigProject(2*partSize + 1), "outside": outside} {
		if !checkProject(t, name, yaml, "") {
			t.Errorf("%s: the project was not injected", name)
		}
	}
}

// TestProjectName: the name given to docker compose later is the mesh's name, in labels, environment and aliases.
func TestProjectName(t *testing.T) {
	dir := project(t, map[string]string{"compose.yaml": plain})
	_, r := inject(t, dir, testConfig)
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	s, err := Load(context.Background(), Options{WorkingDir: dir, ProjectName: "other", Env: testEnv})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := Inject(context.Background(), s, testConfig); err != nil || !bytes.Equal(again.Output, r.Output) {
		t.Errorf("with -p the output differs (%v)", err)
	}
	p, _ := exact(t, s, r.Output)
	sandbox := p.Services["web-mesh-sandbox"]
	if got := []string{sandbox.Labels[labels.Mesh], *p.Services["composure-keeper"].Environment["COMPOSURE_MESH"], sandbox.Networks["default"].Aliases[1]}; !slices.Equal(got, []string{"other", "other", "other-web-1"}) {
		t.Errorf("label, environment and alias are %v, want the name other in all", got)
	}
}

// TestComposeVariables: the variables that steer docker compose itself mean for inject what they mean for it, in the
// environment and in .env.
func TestComposeVariables(t *testing.T) {
	const plain, merged = "compose.yaml", "compose.yaml b.yaml"
	for _, tc := range []struct {
		name, dotenv string
		env          []string
		below        string // the .env of a folder below the project's, in which the command runs
		files        string
		want         string // name and image; or a part of the error
		fails        bool
	}{
		{name: "none", dotenv: "A=dot", files: plain, want: "shop dot--shop"},
		{name: "files", env: []string{"COMPOSE_FILE=compose.yaml:b.yaml"}, files: merged, want: "shop --shop"},
		{name: "files in .env", dotenv: "COMPOSE_FILE=compose.yaml:b.yaml", files: merged, want: "shop --shop"},
		{name: "separator", env: []string{"COMPOSE_FILE=compose.yaml@b.yaml", "COMPOSE_PATH_SEPARATOR=@"}, files: merged, want: "shop --shop"},
		{name: "separator in .env", dotenv: "COMPOSE_FILE=compose.yaml@b.yaml\nCOMPOSE_PATH_SEPARATOR=@", files: merged, want: "shop --shop"},
		{name: "name", env: []string{"COMPOSE_PROJECT_NAME=foo"}, dotenv: "A=dot", files: plain, want: "foo dot--foo"},
		{name: "name in .env", dotenv: "COMPOSE_PROJECT_NAME=foo", files: plain, want: "foo --foo"},
		{name: "bad name", dotenv: "COMPOSE_PROJECT_NAME=Foo", want: "invalid project name", fails: true},
		{name: "env files", env: []string{"COMPOSE_ENV_FILES=one.env,,two.env"}, dotenv: "A=dot", files: plain, want: "shop one-two-shop"},
		{name: "env files in .env", dotenv: "COMPOSE_ENV_FILES=one.env,two.env", files: plain, want: "shop --shop"},
		{name: "an env file that steers", env: []string{"COMPOSE_ENV_FILES=steer.env"}, files: merged, want: "bar --bar"},
		{name: "no such env file", env: []string{"COMPOSE_ENV_FILES=absent.env"}, want: "absent.env", fails: true},
		{name: "profiles", env: []string{"COMPOSE_PROFILES=p"}, dotenv: "A=${COMPOSE_PROFILES}", files: plain, want: "shop p--shop"},
		{name: "below", dotenv: "A=dot\nB=dot", below: "B=below\nCOMPOSE_PROJECT_NAME=foo", files: plain, want: "foo dot-below-foo"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := project(t, map[string]string{
				"compose.yaml": `services: {web: {image: "${A}-${B}-${COMPOSE_PROJECT_NAME}"}, only: {image: x, profiles: [p]}}`,
				"b.yaml":       "services: {web: {tty: true}}", ".env": tc.dotenv, "one.env": "A=one", "two.env": "B=two",
				"steer.env": "COMPOSE_FILE=compose.yaml:b.yaml\nCOMPOSE_PROJECT_NAME=bar", "below/.env": tc.below,
			})
			opts := Options{WorkingDir: dir, Env: append(tc.env, testEnv...)}
			if tc.below != "" {
				opts.WorkingDir = filepath.Join(dir, "below")
			}
			s, err := Load(t.Context(), opts)
			if tc.fails {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var files []string
			for _, f := range s.Files {
				files = append(files, filepath.Base(f))
			}
			if got := strings.Join(files, " "); got != tc.files {
				t.Errorf("files are %s, want %s", got, tc.files)
			}
			if got := s.Name + " " + s.project.Services["web"].Image; got != tc.want {
				t.Errorf("name and image are %q, want %q", got, tc.want)
			}
			if names := s.services(); len(names) != 2 {
				t.Errorf("services are %v, want those of all profiles", names)
			}
			if pluginError() != nil {
				return
			}
			cmd := exec.CommandContext(t.Context(), plugin[0], append(plugin[1:len(plugin):len(plugin)], "config", "--format", "json")...)
			cmd.Dir, cmd.Env = opts.WorkingDir, opts.Env
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("docker compose config: %v", err)
			}
			var asked struct {
				Name     string
				Services map[string]struct{ Image string }
			}
			if err := json.Unmarshal(out, &asked); err != nil {
				t.Fatal(err)
			}
			if got := asked.Name + " " + asked.Services["web"].Image; got != tc.want {
				t.Errorf("docker compose has %q, want %q", got, tc.want)
			}
		})
	}
}

// TestEnvironmentValues: the value of a secret or a config that is a variable of the environment is in no output, and
// the project loads with each.
func TestEnvironmentValues(t *testing.T) {
	dir := t.TempDir()
	content := `services: {web: {image: x, secrets: [s], configs: [c]}}
secrets: {s: {environment: SECRET}}
configs: {c: {environment: SECRET}}
`
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := Load(t.Context(), Options{WorkingDir: dir, Env: append([]string{"SECRET=hush"}, testEnv...)})
	if err != nil {
		t.Fatal(err)
	}
	for _, full := range []bool{false, true} {
		cfg := testConfig
		cfg.Full = full
		r, err := Inject(t.Context(), s, cfg)
		if err != nil {
			t.Errorf("full %v: %v", full, err)
			continue
		}
		if bytes.Contains(r.Output, []byte("hush")) {
			t.Errorf("full %v: the value is in the output:\n%s", full, r.Output)
		}
		if full && bytes.Count(r.Output, []byte("SECRET")) != 2 {
			t.Errorf("want the names of both variables:\n%s", r.Output)
		}
	}
}
