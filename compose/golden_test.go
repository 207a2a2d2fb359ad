package compose

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// shared is where the corpora are, beside the repository.
const shared = "../../shared/corpora"

var testConfig = Config{Version: "1.0.0", SandboxTag: "5a9db0c5"}

// inject loads a project in dir, with files as -f flags, and injects it.
func inject(t *testing.T, dir string, cfg Config, files ...string) (*Source, *Result) {
	t.Helper()
	s, err := Load(context.Background(), Options{WorkingDir: dir, Files: files, Env: testEnv})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Inject(context.Background(), s, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

var testEnv = []string{"HOME=/root", "PATH=" + os.Getenv("PATH")}

// report is what a golden file holds beside the override.
func report(r *Result) []byte {
	var b bytes.Buffer
	b.Write(r.Output)
	for _, w := range r.Warnings {
		b.WriteString("# warning: " + w.String() + "\n")
	}
	for _, n := range r.Notes {
		b.WriteString("# note: " + n + "\n")
	}
	return b.Bytes()
}

// golden compares got with a golden file.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("output differs from %s (-want +got):\n%s", path, diff)
	}
}

// plugin is the docker compose to ask: that of COMPOSURE_COMPOSE, which make sets, or the installed one.
var plugin = strings.Fields(composeCommand())

func composeCommand() string {
	if c := os.Getenv("COMPOSURE_COMPOSE"); c != "" {
		return c
	}
	return "docker compose"
}

var pluginError = sync.OnceValue(func() error {
	return exec.Command(plugin[0], append(plugin[1:len(plugin):len(plugin)], "version")...).Run()
})

// accepted asks docker compose whether it takes the files, where there is one.
func accepted(t *testing.T, dir string, files ...string) {
	t.Helper()
	if err := pluginError(); err != nil {
		t.Logf("not checked with docker compose: there is no plugin: %v", err)
		return
	}
	args := plugin[1:len(plugin):len(plugin)]
	for _, f := range files {
		args = append(args, "-f", f)
	}
	cmd := exec.Command(plugin[0], append(args, "--profile", "*", "config", "-q", "--no-env-resolution")...)
	cmd.Dir, cmd.Env = dir, testEnv
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("docker compose refuses the project with the override: %v\n%s", err, out)
	}
}

// check injects a file in a copy of its own, compares with the golden, and checks what holds for every project.
func check(t *testing.T, in, out string, cfg Config) {
	t.Helper()
	content, err := os.ReadFile(in)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "shop")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "compose.yaml")
	if err := os.WriteFile(base, content, 0o644); err != nil {
		t.Fatal(err)
	}
	_, first := inject(t, dir, cfg)
	golden(t, out, report(first))
	if !first.Automatic || filepath.Base(first.Path) != autoOutput {
		t.Errorf("output is %s (automatic: %v), want compose.override.yaml", first.Path, first.Automatic)
	}
	if changed, err := first.Write(); err != nil || !changed {
		t.Fatalf("first write: changed %v, error %v", changed, err)
	}
	accepted(t, dir, "compose.yaml", autoOutput)

	_, second := inject(t, dir, cfg)
	if !bytes.Equal(first.Output, second.Output) {
		t.Errorf("a second run gives other bytes:\n%s", cmp.Diff(string(first.Output), string(second.Output)))
	}
	if changed, err := second.Write(); err != nil || changed {
		t.Errorf("second write: changed %v, error %v", changed, err)
	}
	removed, err := Uninject(Options{WorkingDir: dir, Env: testEnv})
	if err != nil || len(removed) != 1 || removed[0] != first.Path {
		t.Errorf("uninject removed %v, error %v, want %s", removed, err, first.Path)
	}
	if left, err := os.ReadFile(base); err != nil || !bytes.Equal(left, content) {
		t.Errorf("the user's file was changed (%v)", err)
	}
}

func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, in := range cases {
		dir := filepath.Dir(in)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			cfg := testConfig
			if filepath.Base(dir) == "ingress" {
				cfg.Ingress = []PortMap{{Host: "30080", Gateway: 80}, {Host: "127.0.0.1:30443", Gateway: 443}}
				cfg.IngressSettings = map[string]string{"header-timeout": "30s", "drain": "1m"}
				cfg.LogLevel, cfg.AccessLog, cfg.TrustDomain, cfg.CertLifetime = "debug", "json", "example.org", 5*time.Minute
			}
			cfg.Egress = filepath.Base(dir) == "egress"
			if filepath.Base(dir) == "shared-mesh" {
				cfg.External, cfg.Ingress = "prod", []PortMap{{Host: "30080", Gateway: 80}}
			}
			check(t, in, filepath.Join(dir, "out.yaml"), cfg)
		})
	}
}

// TestOdd injects projects in the ways of files that tools have had trouble with, each a directory: what they are
// after says their first line. Some have an args file with the -f flags.
func TestOdd(t *testing.T) {
	cases, err := filepath.Glob("testdata/odd/*")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, c := range cases {
		t.Run(filepath.Base(c), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "odd")
			if err := os.CopyFS(dir, os.DirFS(filepath.Join(c, "project"))); err != nil {
				t.Fatal(err)
			}
			args, err := os.ReadFile(filepath.Join(c, "args"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			files := strings.Fields(string(args))
			s, r := inject(t, dir, testConfig, files...)
			golden(t, filepath.Join(c, "out.yaml"), bytes.ReplaceAll(report(r), []byte(dir), []byte("/project")))
			if _, err := r.Write(); err != nil {
				t.Fatal(err)
			}
			if len(r.Flags) == 0 {
				accepted(t, dir, filepath.Base(s.Files[0]), autoOutput)
			}
			accepted(t, dir, slices.DeleteFunc(slices.Clone(r.Flags), func(f string) bool { return f == "-f" })...)
			if _, again := inject(t, dir, testConfig, files...); !bytes.Equal(r.Output, again.Output) {
				t.Errorf("a second run gives other bytes:\n%s", cmp.Diff(string(r.Output), string(again.Output)))
			}
			full := testConfig
			full.Full = true
			if r, err = Inject(t.Context(), s, full); err != nil {
				if s.rawErr == nil {
					t.Errorf("--full: %v", err)
				}
				return
			}
			if _, err := r.Write(); err != nil {
				t.Fatal(err)
			}
			accepted(t, dir, r.Path)
		})
	}
}

// TestCorpora injects compose files that others wrote.
func TestCorpora(t *testing.T) {
	files, err := filepath.Glob(shared + "/compose/*/compose.y*ml")
	if err != nil {
		t.Fatal(err)
	}
	consul := shared + "/istio-1.0.6/platform/consul/bookinfo.yaml"
	if _, err := os.Stat(consul); err == nil {
		files = append(files, consul)
	}
	if len(files) == 0 {
		t.Skipf("the corpora are not at %s", shared)
	}
	for _, in := range files {
		name := filepath.Base(filepath.Dir(in))
		t.Run(name, func(t *testing.T) {
			check(t, in, filepath.Join("testdata", "corpora", name+".yaml"), testConfig)
		})
	}
}
