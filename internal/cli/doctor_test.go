package cli

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/go-connections/nat"

	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

func problems(found []finding) string {
	var all []string
	for _, f := range found {
		all = append(all, strings.TrimSpace(f.Level+" "+f.Problem+" → "+f.Advice))
	}
	return strings.Join(all, "\n")
}

func TestDoctorHost(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	sound := func() *host {
		return &host{now: now, info: system.Info{OSType: "linux", ServerVersion: "20.10.24+dfsg1", IPv4Forwarding: true, SystemTime: now.Add(5 * time.Second).Format(time.RFC3339Nano)}}
	}
	if got := problems(sound().findings()); got != "" {
		t.Errorf("a sound host: %s", got)
	}
	for _, c := range []struct {
		name   string
		change func(*host)
		want   string
	}{
		{"old engine", func(h *host) { h.info.ServerVersion = "19.3.15" }, "version 19.3.15 → upgrade Docker to 20.10"},
		{"windows", func(h *host) { h.info.OSType = "windows" }, "windows containers"},
		{"compose", func(h *host) { h.compose = errors.New("docker compose is version 2.10.0, want 2.24.4 or later") }, "version 2.10.0"},
		{"forwarding", func(h *host) { h.info.IPv4Forwarding = false }, "net.ipv4.ip_forward=1"},
		{"clock ahead", func(h *host) { h.info.SystemTime = now.Add(time.Hour).Format(time.RFC3339Nano) }, "by 1h0m0s"},
		{"clock behind", func(h *host) { h.info.SystemTime = now.Add(-2 * time.Minute).Format(time.RFC3339Nano) }, "by 2m0s"},
		{"another socket", func(h *host) { h.socket = "/run/user/1000/docker.sock" }, "COMPOSURE_DOCKER_SOCK=/run/user/1000/docker.sock"},
		{"rootless elsewhere", func(h *host) { h.info.SecurityOptions = []string{"name=rootless"} }, "note the engine is rootless"},
		{"remapped users", func(h *host) { h.info.SecurityOptions = []string{"name=seccomp,profile=default", "name=userns"} }, "userns-remap out of"},
		{"no user namespaces", func(h *host) { h.info.SecurityOptions, h.maxNamespaces = []string{"name=rootless"}, "0" }, "user.max_user_namespaces"},
		{"modules", func(h *host) { h.modules = []string{"xt_owner"} }, "note the kernel seems to lack xt_owner"},
		{"backends", func(h *host) { h.backends = []string{"iptables-legacy", "iptables-nft"} }, "note the host has rules of Docker's in iptables-legacy and in iptables-nft"},
		{"subnets", func(h *host) {
			h.interfaces = []hostInterface{{"tun0", netip.MustParsePrefix("172.20.3.4/22")}}
			h.networks = []network.Summary{{Name: "shop_default", IPAM: network.IPAM{Config: []network.IPAMConfig{{Subnet: "172.20.0.0/16", Gateway: "172.20.0.1"}}}}}
		}, "172.20.0.0/16 of network shop_default overlaps with 172.20.0.0/22 of the host's tun0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := sound()
			c.change(h)
			if got := problems(h.findings()); !strings.Contains(got, c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
	h := sound()
	h.socket, h.socketEnv = "/run/user/1000/docker.sock", "/run/user/1000/docker.sock"
	h.interfaces = []hostInterface{{"br-0123456789ab", netip.MustParsePrefix("172.20.0.1/16")}, {"eth0", netip.MustParsePrefix("10.0.0.2/24")}}
	h.networks = []network.Summary{{Name: "shop_default", IPAM: network.IPAM{Config: []network.IPAMConfig{{Subnet: "172.20.0.0/16", Gateway: "172.20.0.1"}}}}}
	if got := problems(h.findings()); got != "" {
		t.Errorf("a network's own bridge, and a socket that is told: %s", got)
	}
}

func TestMissingModules(t *testing.T) {
	dir := t.TempDir()
	write := func(path, content string) {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got := missingModules(dir, "6.1"); got != nil {
		t.Errorf("nothing can be told: %v", got)
	}
	write("lib/modules/6.1/modules.builtin", "kernel/net/netfilter/nf_conntrack.ko\n")
	write("lib/modules/6.1/modules.dep", "kernel/net/netfilter/xt_REDIRECT.ko.xz: kernel/net/netfilter/nf_nat.ko.xz\n")
	write("proc/modules", "xt_conntrack 16384 3 - Live 0x0\n")
	if got := missingModules(dir, "6.1"); !slices.Equal(got, []string{"xt_owner"}) {
		t.Errorf("missing %v, want xt_owner", got)
	}
}

func inspected(id, service string, role mesh.Role, more map[string]string) container.InspectResponse {
	all := map[string]string{labels.Mesh: "shop", labels.Role: string(role), labels.Workload: "web", composeProject: "shop", composeService: service}
	for k, v := range more {
		all[k] = v
	}
	return container.InspectResponse{
		ContainerJSONBase: &container.ContainerJSONBase{ID: id, Name: "/shop-" + service + "-1", State: &container.State{Running: true}, HostConfig: &container.HostConfig{}},
		Config:            &container.Config{Labels: all},
	}
}

func TestDoctorCertificates(t *testing.T) {
	now := time.Now()
	d := &doctor{mesh: "shop", containers: []container.InspectResponse{
		inspected("a", "a-mesh-proxy", mesh.RoleProxy, nil), inspected("b", "b-mesh-proxy", mesh.RoleProxy, nil),
		inspected("c", "c-mesh-proxy", mesh.RoleProxy, nil), inspected("d", "gw", mesh.RoleGateway, nil), inspected("e", "web", mesh.RoleApp, nil),
	}}
	cert := func(id string, from, to time.Duration) certificate {
		return certificate{Container: id, NotBefore: now.Add(from), NotAfter: now.Add(to)}
	}
	got := problems(d.certificates([]certificate{
		cert("a", -12*time.Hour, 12*time.Hour), cert("b", -23*time.Hour, time.Hour), cert("c", -25*time.Hour, -time.Hour),
	}, now))
	if want := "its certificate was not renewed, and ends in 1h0m0s → docker logs --tail 20 shop-b-mesh-proxy-1\n" +
		"it holds no valid certificate: its peers refuse it → docker logs --tail 20 shop-c-mesh-proxy-1\n" +
		"it holds no valid certificate: its peers refuse it → docker logs --tail 20 shop-gw-1"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	report := status.Report{Proxies: []status.Proxy{{Workload: "web", State: status.Nack, Error: "listed twice"}, {Workload: "api", State: status.Synced}}}
	if got := problems(d.unsynced(mesh.RolePilot, report, true)); strings.Count(got, "\n") != 1 || !strings.Contains(got, "listed twice") || !strings.Contains(got, "no connection to the keeper") {
		t.Errorf("pilot's report: %s", got)
	}
	if got := d.unsynced(mesh.RolePilot, report, false); len(got) != 1 {
		t.Errorf("the keeper does not run, which is a finding of its own: %s", problems(got))
	}
}

func TestDoctorNamesakes(t *testing.T) {
	on := func(id, project, services string, networks ...string) container.InspectResponse {
		c := inspected(id, "web-mesh-sandbox", mesh.RoleSandbox, map[string]string{composeProject: project, labels.Services: services})
		c.NetworkSettings = &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{}}
		for _, n := range networks {
			c.NetworkSettings.Networks[n] = &network.EndpointSettings{NetworkID: n}
		}
		return c
	}
	d := &doctor{mesh: "composure", shared: true, containers: []container.InspectResponse{
		on("a", "shop", "web,www", "shared", "shop_default"), on("b", "blog", "web", "shared", "blog_default"), on("c", "shop", "api", "shared"), on("d", "shop", "api", "shared"),
	}}
	got := problems(d.namesakes())
	if want := "note projects blog, shop have a service web on network shared: what is not HTTP reaches either → dial web.blog, or keep one of them off the network"; got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestDoctorNamespace(t *testing.T) {
	connected := inspected("s", "web-mesh-sandbox", mesh.RoleSandbox, map[string]string{labels.Ports: "80/http,8080"})
	connected.State.Status = "running"
	connected.NetworkSettings = &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{"n": {NetworkID: "n"}}}
	app := inspected("a", "web", mesh.RoleApp, nil)
	app.Config.ExposedPorts = nat.PortSet{"90/tcp": {}, "91/udp": {}}
	d := &doctor{mesh: "shop", containers: []container.InspectResponse{connected, app}}
	at := func(all ...string) namespace {
		n := namespace{Interfaces: []string{"eth0"}}
		for _, a := range all {
			n.Listeners = append(n.Listeners, netip.MustParseAddrPort(a))
		}
		return n
	}
	for _, tc := range []struct {
		name string
		n    namespace
		want string
	}{
		{"nothing", at(), ""},
		{"all addresses", at("0.0.0.0:80", "[::]:8080", "172.20.0.3:90"), ""},
		{"loopback too", at("127.0.0.1:80", "172.20.0.3:80"), ""},
		{"loopback alone", at("127.0.0.1:80", "[::1]:80"), "it listens on 127.0.0.1:80 only: peers are refused → make it listen on 0.0.0.0"},
		{"loopback alone, IPv6", at("[::1]:90"), "it listens on [::1]:90 only: peers are refused → make it listen on 0.0.0.0"},
		{"a port that nobody was told of", at("0.0.0.0:80", "127.0.0.2:91"), "note it listens on 127.0.0.2:91 only: peers are refused → make it listen on 0.0.0.0, unless that is meant"},
		{"no interface", namespace{Listeners: at("127.0.0.1:80").Listeners}, "its network namespace has no interface but the loopback, though the engine takes it to be connected → " +
			"docker restart shop-web-mesh-sandbox-1; the keeper restarts its application and proxy after it"},
	} {
		if got := problems(d.reach("web", tc.n)); got != tc.want {
			t.Errorf("%s: %s\nwant %s", tc.name, got, tc.want)
		}
	}
	d.containers[0].NetworkSettings = &container.NetworkSettings{}
	if got, want := problems(d.namespaces()), "it is connected to no network, so its application reaches nobody → docker compose up -d --force-recreate web-mesh-sandbox"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
