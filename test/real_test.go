//go:build suites

package test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// realFiles is a project of the network fields that move, so that the engine and not only the model says that they
// work where they went.
var realFiles = map[string]string{"compose.yaml": `version: '2'
services:
  web:
    image: ` + image + `
    command: sleep infinity
    init: true
    hostname: web1
    domainname: example.org
    ports: ["127.0.0.1:0:80"]
    links: ["db:linked"]
    extra_hosts: ["old:10.0.0.1"]
    dns_search: [example.org]
    sysctls: {net.core.somaxconn: 1024}
    labels: ["a=b"]
    depends_on: [db]
  db:
    image: ` + image + `
    container_name: ${COMPOSE_PROJECT_NAME}-the-db
    command: sleep infinity
    init: true
    labels: {c: d}
    volumes: ["data:/data"]
    networks:
      default: {aliases: [store]}
      back: {ipv4_address: 10.213.77.10}
    healthcheck: {test: [CMD, "true"], interval: 1s}
  exporter:
    image: ` + image + `
    command: sleep infinity
    init: true
    network_mode: "service:web"
volumes:
  data:
networks:
  back:
    ipam: {config: [{subnet: 10.213.77.0/24}]}
`}

// TestReal: names, addresses, ports and settings of a network are with the sandboxes, and all of a service sees them.
func TestReal(t *testing.T) {
	p := newProject(t, realFiles)
	p.inject("--ingress", "127.0.0.1:0")
	p.up()
	rows := strings.Fields(p.compose("ps", "--all", "--format", "{{.Service}}={{.State}}"))
	for _, want := range []string{"web", "web-mesh-sandbox", "web-mesh-proxy", "db", "db-mesh-sandbox", "db-mesh-proxy", "exporter",
		"composure-keeper", "composure-pilot", "composure-citadel", "composure-mixer", "istio-ingressgateway"} {
		if !slices.Contains(rows, want+"=running") {
			t.Errorf("%s does not run: %v", want, rows)
		}
	}
	for _, name := range []string{"db", "store", "linked", p.name + "-the-db", "old"} { // service, alias, link, container, extra host
		if r := p.tryExec("web", "getent", "hosts", name); r.code != 0 {
			t.Errorf("%s does not resolve in web: %s", name, r.stderr)
		}
	}
	for _, service := range []string{"web", "exporter"} { // exporter is in web's namespace
		if out := strings.TrimSpace(p.exec(service, "hostname", "--fqdn")); out != "web1.example.org" {
			t.Errorf("the name of %s is %q, want web1.example.org", service, out)
		}
	}
	if out := p.exec("web", "cat", "/etc/resolv.conf", "/proc/sys/net/core/somaxconn"); !strings.Contains(out, "search example.org") || !strings.HasSuffix(out, "\n1024\n") {
		t.Errorf("resolv.conf and somaxconn in web: %q", out)
	}
	if out := p.exec("db", "ip", "-4", "-o", "addr"); !strings.Contains(out, "10.213.77.10/24") {
		t.Errorf("db has not its static address: %s", out)
	}
	if out := p.published("web-mesh-sandbox", 80); strings.HasSuffix(out, ":0") {
		t.Errorf("port 80 is published at %q", out)
	}
	p.hardened()

	// The plain project is there again, its volume untouched, after uninject.
	p.exec("db", "sh", "-c", "echo kept > /data/file")
	p.meshctl("compose", "uninject")
	p.up("--remove-orphans")
	if got := strings.TrimSpace(p.exec("db", "cat", "/data/file")); got != "kept" {
		t.Errorf("the volume holds %q after uninject, want what was written before", got)
	}
	if got := p.compose("ps", "--all", "--format", "{{.Service}}"); strings.Contains(got, "mesh") {
		t.Errorf("containers of the mesh are left:\n%s", got)
	}
	for _, v := range []string{"run", "pilot", "citadel"} { // the plain project does not know them
		if out, err := exec.Command("docker", "volume", "rm", p.name+"_composure-"+v).CombinedOutput(); err != nil {
			t.Errorf("remove the volume: %v\n%s", err, out)
		}
	}
}

// hardened checks how the mesh's own containers are fenced in.
func (p *project) hardened() {
	p.t.Helper()
	pilot := must(engine.ContainerInspect(p.t.Context(), p.container("composure-pilot")))
	if h := pilot.HostConfig; !h.ReadonlyRootfs || h.NetworkMode != "none" || h.Tmpfs["/run/admin"] != "mode=0700,uid=1341,gid=1341" || pilot.Config.User != "1341:1341" {
		p.t.Errorf("pilot's container: user %s, read-only %v, network %s, tmpfs %v", pilot.Config.User, h.ReadonlyRootfs, h.NetworkMode, h.Tmpfs)
	}
	sandbox := must(engine.ContainerInspect(p.t.Context(), p.container("web-mesh-sandbox")))
	if status := string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", sandbox.State.Pid)))); !strings.Contains(status, "NoNewPrivs:\t1") {
		p.t.Errorf("the sandbox may gain privileges:\n%s", status)
	}
	if h := sandbox.HostConfig; !h.ReadonlyRootfs || h.Privileged || len(h.CapDrop) != 1 || len(h.CapAdd) != 5 {
		p.t.Errorf("the sandbox's container: read-only %v, capabilities -%v +%v", h.ReadonlyRootfs, h.CapDrop, h.CapAdd)
	}
}
