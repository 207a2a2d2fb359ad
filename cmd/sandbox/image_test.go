//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// The tests here run the sandbox as it is run in earnest: as PID 1 of an image that holds it and Debian's
// iptables and nothing else, on the Docker engine.

// capabilities are those that inject gives a sandbox.
var capabilities = []string{"NET_ADMIN", "NET_RAW", "SETUID", "SETGID", "SETPCAP"}

var prefix = fmt.Sprintf("composure-sandbox-test-%d", os.Getpid())

// image builds the image and a network, or skips.
func image(t *testing.T) (ref, network string) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: needs a Docker engine and an image built for the test")
	}
	if out, err := exec.Command("docker", "version").CombinedOutput(); err != nil {
		t.Skipf("needs a Docker engine: %s", out)
	}
	root := t.TempDir()
	tree := filepath.Join("..", "..", "dist", runtime.GOARCH, "iptables") // where make puts it
	if _, err := os.Stat(filepath.Join(tree, "usr")); err != nil {
		tree = filepath.Join(root, "fetched")
		if out, err := exec.Command("../../build/iptables/fetch.sh", runtime.GOARCH, tree).CombinedOutput(); err != nil {
			t.Skipf("needs Debian's iptables, and build/iptables/fetch.sh can't get it: %s", out)
		}
	}
	layer := filepath.Join(root, "layer")
	must(t, "cp", "-a", tree, layer)
	for _, dir := range []string{"run", "var"} {
		if err := os.MkdirAll(filepath.Join(layer, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(layer, "sandbox"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	archive := filepath.Join(root, "layer.tar")
	must(t, "tar", "-C", layer, "--owner=0", "--group=0", "-cf", archive, ".")
	ref = prefix + ":test"
	must(t, "docker", "import", "-c", `ENTRYPOINT ["/sandbox"]`, archive, ref)
	t.Cleanup(func() { must(t, "docker", "rmi", ref) })
	must(t, "docker", "network", "create", prefix)
	t.Cleanup(func() { must(t, "docker", "network", "rm", prefix) })
	return ref, prefix
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

// dockerRun is docker run as inject has it, with all capabilities dropped but the given ones.
func dockerRun(network string, caps []string, more ...string) []string {
	args := []string{"run", "--network", network, "--cap-drop", "ALL", "--read-only", "--tmpfs", "/run", "--security-opt", "no-new-privileges:true"}
	for _, c := range caps {
		args = append(args, "--cap-add", c)
	}
	return append(args, more...)
}

func TestImage(t *testing.T) {
	ref, network := image(t)

	t.Run("serves without a privilege", func(t *testing.T) { testServes(t, ref, network) })

	for _, missing := range capabilities {
		if missing == "NET_RAW" {
			continue // the legacy backend alone needs it
		}
		t.Run("without "+missing, func(t *testing.T) {
			var caps []string
			for _, c := range capabilities {
				if c != missing {
					caps = append(caps, c)
				}
			}
			out, err := exec.Command("docker", dockerRun(network, caps, "--rm", ref)...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), missing) || !strings.Contains(string(out), "cap_add") {
				t.Errorf("%v: want an error that names %s and cap_add:\n%s", err, missing, out)
			}
		})
	}

	t.Run("bad exclusion", func(t *testing.T) {
		out, err := exec.Command("docker", dockerRun(network, capabilities, "--rm", "-e", envOutboundPorts+"=smtp", ref)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), `"smtp"`) {
			t.Errorf("%v: %s", err, out)
		}
	})

	t.Run("dry run without a privilege", func(t *testing.T) {
		out := must(t, "docker", "run", "--rm", "--network", "none", "--cap-drop", "ALL", "--user", "12345", "-e", envOutboundPorts+"=25", ref, "rules", "--dry-run")
		if !strings.Contains(out, "-A COMPOSURE_OUT -p tcp -m tcp --dport 25 -j RETURN") || !strings.Contains(out, "# IPv6") {
			t.Error(out)
		}
	})

	// The engine here may use the other backend; the image must have what both need.
	for _, backend := range []string{"nft", "legacy"} {
		t.Run("iptables-"+backend, func(t *testing.T) {
			ipv4, ipv6, _ := strings.Cut(must(t, "docker", "run", "--rm", "--network", "none", ref, "rules", "--dry-run"), "# IPv6\n")
			for program, rules := range map[string]string{"iptables-": ipv4, "ip6tables-": ipv6} {
				args := dockerRun("none", capabilities, "--rm", "-i", "--entrypoint", "/usr/sbin/"+program+backend+"-restore", ref, "--noflush", "--wait", "5")
				cmd := exec.Command("docker", args...)
				cmd.Stdin = strings.NewReader(rules)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%s%s: %v: %s", program, backend, err, out)
				}
			}
		})
	}
}

func testServes(t *testing.T, ref, network string) {
	t.Helper()
	name := prefix
	must(t, "docker", dockerRun(network, capabilities, "-d", "--name", name, "-e", envInboundPorts+"=22", ref)...)
	t.Cleanup(func() { must(t, "docker", "rm", "-f", name) })

	logs := follow(t, name, "the namespace is protected")
	t.Log(logs)
	pid := strings.TrimSpace(must(t, "docker", "inspect", "-f", "{{.State.Pid}}", name))
	if pid == "0" {
		t.Fatal("it does not run")
	}
	must(t, "docker", "exec", name, "/sandbox", "check")
	before := natRules(t, pid)
	if !strings.Contains(before, "-A COMPOSURE_IN -p tcp -m tcp --dport 22 -j RETURN") {
		t.Errorf("the rules lack the exclusion:\n%s", before)
	}
	must(t, "docker", "exec", name, "/sandbox", "rules")
	if after := natRules(t, pid); after != before {
		t.Errorf("programming again changed the rules from\n%s\nto\n%s", before, after)
	}

	threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of %s: %v, %v", pid, threads, err)
	}
	for _, path := range threads {
		status, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Uid:\t1339\t1339\t1339\t1339\n", "CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(status), want) {
				t.Errorf("%s lacks %q:\n%s", path, want, status)
			}
		}
	}
	must(t, "docker", "stop", name)
	var state struct {
		ExitCode  int
		OOMKilled bool
	}
	if err := json.Unmarshal([]byte(must(t, "docker", "inspect", "-f", "{{json .State}}", name)), &state); err != nil {
		t.Fatal(err)
	}
	if state.ExitCode != 0 {
		t.Errorf("exit status %d, want 0", state.ExitCode)
	}
}

// natRules is the container's nat table, seen from the host.
func natRules(t *testing.T, pid string) string {
	t.Helper()
	for _, program := range []string{"nsenter", "iptables-nft", "iptables-legacy"} {
		if _, err := exec.LookPath(program); err != nil || os.Getuid() != 0 {
			t.Skip("needs root, nsenter and both iptables to see the container's rules from the host")
		}
	}
	out := must(t, "nsenter", "-t", pid, "-n", "iptables-nft", "-t", "nat", "-S")
	out += must(t, "nsenter", "-t", pid, "-n", "iptables-legacy", "-t", "nat", "-S")
	return out
}

// follow reads the container's log until a line says what.
func follow(t *testing.T, name, what string) string {
	t.Helper()
	cmd := exec.Command("docker", "logs", "-f", name)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var seen strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		seen.Write(buf[:n])
		if strings.Contains(seen.String(), what) {
			return seen.String()
		}
		if err != nil {
			t.Fatalf("the container ended without %q:\n%s", what, &seen)
		}
	}
}
