//go:build suites

package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRealUp brings an injected project up on the engine, with placeholders for the mesh's images: it proves that
// Compose and the engine accept and create all that inject writes. Whether the mesh works is test/'s to prove.
func TestRealUp(t *testing.T) {
	const placeholder = "debian:bookworm-slim"
	if err := exec.Command("docker", "image", "inspect", placeholder).Run(); err != nil {
		t.Skipf("it needs a Docker engine that has %s", placeholder)
	}
	tag := fmt.Sprintf("cmptest%d", os.Getpid())
	buildPlaceholders(t, placeholder, tag)
	dir := filepath.Join(t.TempDir(), "cmpreal-"+tag)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range realProject {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	_, r := inject(t, dir, Config{Version: tag, Ingress: []PortMap{{Host: "127.0.0.1:38980", Gateway: 80}}})
	if _, err := r.Write(); err != nil {
		t.Fatal(err)
	}
	compose := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "docker", append([]string{"compose"}, args...)...)
		cmd.Dir, cmd.Env = dir, testEnv
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("docker compose %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
		}
		return string(out)
	}
	t.Cleanup(func() {
		compose("down", "-v", "-t", "0", "--remove-orphans")
		for _, v := range []string{runVolume, pilotVolume, citadelVolume} { // the plain project does not know them
			if out, err := exec.Command("docker", "volume", "rm", filepath.Base(dir)+"_"+v).CombinedOutput(); err != nil {
				t.Errorf("remove the volume: %v\n%s", err, out)
			}
		}
	})
	compose("up", "-d")
	checkRunning(t, compose)

	// The plain project is there again, its volume untouched, after uninject.
	compose("exec", "-T", "db", "sh", "-c", "echo kept > /data/file")
	if _, err := Uninject(Options{WorkingDir: dir, Env: testEnv}); err != nil {
		t.Fatal(err)
	}
	compose("up", "-d", "--remove-orphans", "-t", "0")
	if got := strings.TrimSpace(compose("exec", "-T", "db", "cat", "/data/file")); got != "kept" {
		t.Errorf("the volume holds %q after uninject, want what was written before", got)
	}
	if got := compose("ps", "-a", "--format", "{{.Service}}"); strings.Contains(got, "mesh") {
		t.Errorf("containers of the mesh are left:\n%s", got)
	}
}

func checkRunning(t *testing.T, compose func(...string) string) {
	t.Helper()
	type row struct{ Service, State, Health string }
	var services []string
	for l := range strings.SplitSeq(strings.TrimSpace(compose("ps", "-a", "--format", "json")), "\n") {
		var r row
		if err := json.Unmarshal([]byte(l), &r); err != nil {
			t.Fatalf("%v: %s", err, l)
		}
		if r.State != "running" {
			t.Errorf("%s is %s, want running", r.Service, r.State)
		}
		services = append(services, r.Service)
	}
	for _, want := range []string{"web", "web-mesh-sandbox", "web-mesh-proxy", "db", "db-mesh-proxy", "exporter",
		"composure-keeper", "composure-pilot", "composure-citadel", "composure-mixer", Gateway} {
		if !slices.Contains(services, want) {
			t.Errorf("%s does not run, but %v", want, services)
		}
	}
	for _, name := range []string{"db", "store", "the-db"} { // service, alias, container name
		if out := compose("exec", "-T", "web", "getent", "hosts", name); !strings.Contains(out, name) {
			t.Errorf("%s does not resolve in web: %s", name, out)
		}
	}
	if out := strings.TrimSpace(compose("exec", "-T", "web", "hostname")); out != "web1" {
		t.Errorf("hostname in web is %q, want web1", out)
	}
	if out := compose("port", "web-mesh-sandbox", "80"); !strings.Contains(out, "38981") {
		t.Errorf("port 80 is published at %q, want 38981", out)
	}
	if out := compose("exec", "-T", "exporter", "hostname"); strings.TrimSpace(out) != "web1" {
		t.Errorf("exporter is not in web's namespace: hostname %q", out)
	}
	if out := compose("exec", "-T", "composure-pilot", "sh", "-c", "stat -c '%u %a' /run/admin; id -u; touch /x 2>&1 || true"); !strings.Contains(out, "1341 700") || !strings.Contains(out, "Read-only") {
		t.Errorf("pilot's container is not as it should be: %s", out)
	}
	if out := compose("exec", "-T", "web-mesh-sandbox", "sh", "-c", "grep -E 'CapBnd|NoNewPrivs' /proc/1/status"); !strings.Contains(out, "NoNewPrivs:\t1") || !strings.Contains(out, "00000000000031c0") {
		t.Errorf("the sandbox's container is not as it should be: %s", out)
	}
}

// buildPlaceholders tags an image that sleeps, and whose proxy is always ready, as the mesh's.
func buildPlaceholders(t *testing.T, from, tag string) {
	t.Helper()
	dir := t.TempDir()
	dockerfile := "FROM " + from + "\nRUN printf '#!/bin/sh\\nexit 0\\n' > /proxy && chmod 755 /proxy && " +
		"mkdir -p /run/composure/keeper /var/lib/composure\nCMD [\"sleep\", \"infinity\"]\nSTOPSIGNAL SIGKILL\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker", "build", "-q", "-t", "composure/sandbox:"+tag, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("no placeholder images here: %v\n%s", err, out)
	}
	images := []string{"composure/sandbox:" + tag}
	for _, component := range []string{"proxy", "keeper", "pilot", "citadel", "mixer"} {
		image := "composure/" + component + ":" + tag
		if out, err := exec.Command("docker", "tag", images[0], image).CombinedOutput(); err != nil {
			t.Fatalf("docker tag: %v\n%s", err, out)
		}
		images = append(images, image)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("docker", append([]string{"rmi"}, images...)...).CombinedOutput(); err != nil {
			t.Errorf("remove the placeholder images: %v\n%s", err, out)
		}
	})
}

var realProject = map[string]string{
	"compose.yaml": `version: '2'
services:
  web:
    image: debian:bookworm-slim
    command: sleep infinity
    hostname: web1
    domainname: example.org
    stop_signal: SIGKILL
    ports: ["127.0.0.1:38981:80"]
    links: ["db:linked"]
    extra_hosts: ["old:10.0.0.1"]
    dns_search: [example.org]
    sysctls: {net.core.somaxconn: 1024}
    labels: ["a=b"]
    depends_on: [db]
  db:
    image: debian:bookworm-slim
    container_name: the-db
    command: sleep infinity
    stop_signal: SIGKILL
    labels: {c: d}
    volumes: ["data:/data"]
    networks:
      default: {aliases: [store]}
      back: {ipv4_address: 10.213.77.10}
    healthcheck: {test: [CMD, "true"], interval: 1s}
  exporter:
    image: debian:bookworm-slim
    command: sleep infinity
    stop_signal: SIGKILL
    network_mode: "service:web"
volumes:
  data:
networks:
  back:
    ipam: {config: [{subnet: 10.213.77.0/24}]}
`}
