//go:build suites

package test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/google/go-cmp/cmp"
)

// fieldsCompose has the fields of a service that an engine of any kind bears: most on web, those that can't be beside
// them on other. Those that it leaves out need hardware, Windows, a plugin, a registry or an engine's leave (gpus, provider,
// models, isolation, credential_spec, cpu_rt_*, storage_opt, runtime, pull_refresh_after, use_api_socket …).
const fieldsCompose = `
x-unused: &probe [sleep, infinity]
services:
  web:
    image: ` + image + `
    attach: false
    cap_add: [SYS_TIME]
    cap_drop: [MKNOD, NET_RAW]
    cgroup: private
    command: *probe
    configs: [{source: conf, target: /conf}]
    container_name: ${NAME:?}-of-web
    cpu_period: 100000
    cpu_quota: 50000
    cpu_shares: 512
    cpuset: "0"
    depends_on: {db: {condition: service_healthy}}
    device_cgroup_rules: ["c 1:3 mr"]
    devices: ["/dev/null:/dev/nothing:r"]
    dns: [192.0.2.53]
    dns_opt: ["timeout:2", "attempts:1"]
    dns_search: [one.example, two.example]
    domainname: example.org
    entrypoint: [env, FROM_ENTRYPOINT=yes]
    env_file: [web.env]
    environment: {A: "${A:-b}", DOLLAR: "$$x"}
    expose: ["7000", "7001/udp"]
    external_links: []
    extra_hosts: ["far.example:192.0.2.7", "host.docker.internal:host-gateway"]
    group_add: ["4242"]
    healthcheck: {test: [CMD, "true"], interval: 1s, timeout: 3s, retries: 5}
    hostname: web-host
    init: true
    ipc: shareable
    label_file: web.labels
    labels: {com.example.a: b, version: v3}
    links: ["db:database"]
    logging: {driver: json-file, options: {max-size: 1m, tag: "x{{.ID}}"}}
    mac_address: "02:42:c0:a8:63:09"
    mem_limit: 96m
    mem_reservation: 64m
    memswap_limit: 128m
    networks:
      front: {ipv4_address: 172.31.251.9, aliases: [shop], priority: 10}
      back: {ipv4_address: 172.31.250.9, aliases: [web-back]}
    oom_score_adj: 100
    pids_limit: 50
    platform: linux/amd64
    ports: ["127.0.0.1::8000", "127.0.0.1::8001/udp", "127.0.0.77:21573-21574:8002-8003"]
    post_start: [{command: [sh, -c, "echo $$A > /scratch/post-start"], user: "0"}]
    pre_stop: [{command: [sh, -c, "echo bye > /data/pre-stop"], user: "0"}]
    pull_policy: never
    read_only: true
    restart: on-failure:3
    scale: 1
    secrets: [secret]
    security_opt: ["no-new-privileges:true"]
    shm_size: 8m
    stdin_open: true
    stop_grace_period: 2s
    stop_signal: SIGINT
    sysctls: {net.core.somaxconn: 321, net.ipv4.tcp_fin_timeout: 31, kernel.shm_rmid_forced: 1}
    tmpfs: ["/scratch:mode=1777,size=1m"]
    tty: true
    ulimits: {nofile: {soft: 2000, hard: 3000}}
    user: "1000:1001"
    volumes: [data:/data, "./web.env:/bound:ro", /anonymous]
    working_dir: /var/tmp
  other:
    image: ` + image + `
    command: [sleep, infinity]
    annotations: {com.example.note: x}
    deploy: {resources: {limits: {memory: 64M, pids: 60}, reservations: {memory: 32M}}, labels: {x: y}}
    develop: {watch: [{path: ., action: sync, target: /x}]}
    init: true
    networks: {back: {ipv4_address: 172.31.250.8}}
    hostname: other-host
    pid: host
    ipc: "service:web"
    uts: ""
    userns_mode: host
    volumes_from: ["web:ro"]
    depends_on: [web]
  db:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    networks: {front: {ipv4_address: 172.31.251.7}, back: {ipv4_address: 172.31.250.7}}
    hostname: db
    cpus: 0.5
    configs: [{source: inline, target: /conf}]
    healthcheck: {test: [CMD, "true"], interval: 1s}
networks:
  front: {ipam: {config: [{subnet: 172.31.251.0/24}]}}
  back: {internal: true, ipam: {config: [{subnet: 172.31.250.0/24}]}}
volumes: {data: }
secrets: {secret: {file: secret.txt}}
configs: {conf: {file: conf.txt}, inline: {content: "debug ${A:-b}"}}
`

// fieldsProbe shows from inside a container what the fields have done.
const fieldsProbe = `
hostname; hostname -d; id; pwd; env | grep -v ^HOME | sort; ulimit -n -H; ulimit -c
cat /etc/resolv.conf /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/tcp_fin_timeout /proc/sys/kernel/shm_rmid_forced
grep -h example /etc/hosts | sort; cat /conf /run/secrets/secret /bound /scratch/post-start
grep -E '^(Cap|NoNewPrivs)' /proc/self/status; cat /proc/self/oom_score_adj; cat /proc/1/comm
ls -l /dev/nothing | cut -c1; df /dev/shm /scratch --output=size,target; touch /refused 2>&1; touch /data/allowed 2>&1
cat /sys/class/net/*/address | sort; for n in $NAMES; do echo $n $(getent ahostsv4 $n | cut -d " " -f 1 | sort -u); done
cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; nproc
`

// elsewhere is where a field of a container's settings is that does not stay with the application's: with the sandbox, or
// nowhere, for the reason given.
var elsewhere = map[string]string{
	"PortBindings": "sandbox", "Dns": "sandbox", "DnsOptions": "sandbox", "DnsSearch": "sandbox", "ExtraHosts": "sandbox",
	"Hostname": "sandbox", "Domainname": "sandbox", "ExposedPorts": "sandbox", "MacAddress": "sandbox",
	"NetworkMode": "the sandbox's container", "Links": "the name of the sandbox that is linked to is another",
	"Sysctls": "split, compared below", "Labels": "those of Compose have hashes; compared below", "networks": "compared below",
	"IpcMode": "with service: a container's id; compared from inside", "VolumesFrom": "a container's id; so are the mounts",
}

// TestFields brings a project with all fields up without the mesh and with it: each of them is set on the application's
// container or its sandbox as it was, and the two look the same from inside.
func TestFields(t *testing.T) {
	p := newProject(t, map[string]string{
		"docker-compose.yml": fieldsCompose, "web.env": "FROM_FILE=yes\nQUOTED=\"a b\"\n", "web.labels": "com.example.file=yes\n",
		"secret.txt": "geheim\n", "conf.txt": "setting\n",
	})
	p.write(map[string]string{".env": "NAME=" + p.name + "\n"})
	services := map[string]string{ // with names that they know
		"web": "web db database far.example web-host", "other": "web other web-back other-host", "db": "db shop web-back",
	}
	plain := map[string]map[string]any{}
	probes := map[string]string{}
	p.up()
	for s, names := range services {
		plain[s] = p.settings(s)
		probes[s] = p.exec(s, "env", "NAMES="+names, "sh", "-c", fieldsProbe)
	}
	p.compose("down", "--timeout", "5")
	p.inject()
	p.up()
	for s, names := range services {
		t.Run(s, func(t *testing.T) {
			app, sandbox := p.settings(s), p.settings(s+"-mesh-sandbox")
			for key, want := range plain[s] {
				got := app[key]
				switch elsewhere[key] {
				case "":
				case "sandbox":
					got = sandbox[key]
				default:
					continue
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-without the mesh +with it):\n%s", key, diff)
				}
			}
			for key, v := range sandbox["Sysctls"].(map[string]any) {
				app["Sysctls"].(map[string]any)[key] = v
			}
			if diff := cmp.Diff(plain[s]["Sysctls"], app["Sysctls"]); diff != "" {
				t.Errorf("sysctls (-without the mesh +with it):\n%s", diff)
			}
			for key, v := range plain[s]["Labels"].(map[string]any) {
				if !strings.HasPrefix(key, "com.docker.compose.") && app["Labels"].(map[string]any)[key] != v {
					t.Errorf("label %s is %v, want %v", key, app["Labels"].(map[string]any)[key], v)
				}
			}
			for name, network := range plain[s]["networks"].(map[string][]string) {
				for _, v := range network {
					if got := sandbox["networks"].(map[string][]string)[name]; !slices.Contains(got, v) {
						t.Errorf("on network %s the sandbox has %v, and lacks %s", name, got, v)
					}
				}
			}
			if got := p.exec(s, "env", "NAMES="+names, "sh", "-c", fieldsProbe); got != probes[s] {
				t.Errorf("from inside (-without the mesh +with it):\n%s", cmp.Diff(strings.Split(probes[s], "\n"), strings.Split(got, "\n")))
			}
		})
	}
	t.Run("pre_stop", func(t *testing.T) {
		p.compose("stop", "web")
		if out := p.exec("db", "true"); out != "" {
			t.Errorf("db says %q", out)
		}
		if out := p.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat", "web", "/data/pre-stop"); strings.TrimSpace(out) != "bye" {
			t.Errorf("pre_stop left %q", out)
		}
	})
}

// settings are those of a service's container, with its addresses and names by network.
func (p *project) settings(service string) map[string]any {
	p.t.Helper()
	c := must(engine.ContainerInspect(p.t.Context(), p.container(service)))
	// Compose keeps these in maps, and writes them in any order.
	slices.Sort(c.Config.Env)
	slices.Sort(c.HostConfig.ExtraHosts)
	slices.SortFunc(c.HostConfig.Ulimits, func(a, b *container.Ulimit) int { return strings.Compare(a.Name, b.Name) })
	all := map[string]any{"Sysctls": map[string]any{}}
	for _, part := range []any{c.Config, c.HostConfig} {
		var m map[string]any
		if err := json.Unmarshal(must(json.Marshal(part)), &m); err != nil {
			p.t.Fatal(err)
		}
		for k, v := range m {
			if v != nil {
				all[k] = v
			}
		}
	}
	networks := map[string][]string{}
	for name, n := range c.NetworkSettings.Networks {
		networks[name] = names(c, n.Aliases)
		if n.IPAMConfig != nil && n.IPAMConfig.IPv4Address != "" {
			networks[name] = append(networks[name], n.IPAMConfig.IPv4Address)
		}
	}
	all["networks"] = networks
	delete(all, "Binds") // their order is the engine's; Mounts, and the probe, have them
	mounts := []string{}
	for _, m := range c.Mounts {
		if m.Type != "volume" || len(m.Name) != 64 {
			mounts = append(mounts, fmt.Sprint(m.Type, " ", m.Name, " ", m.Destination, " ", m.Mode, " ", m.RW, " ", m.Propagation))
		}
	}
	slices.Sort(mounts)
	all["Mounts"] = mounts
	return all
}

// names are the aliases of a container but for its short id, which the engine adds. A name of hexadecimal digits ("db") may well
// begin an id.
func names(c container.InspectResponse, aliases []string) []string {
	return slices.DeleteFunc(slices.Clone(aliases), func(a string) bool { return a == c.ID[:12] })
}
