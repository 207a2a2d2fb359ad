package compose

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"gopkg.in/yaml.v3"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/settings"
)

// Gateway is the compose service of the ingress gateway, and its workload.
const Gateway = "istio-ingressgateway"

// The volumes that inject adds: the planes' sockets, and the planes' state.
const (
	runVolume     = "composure-run"
	pilotVolume   = "composure-pilot"
	citadelVolume = "composure-citadel"
	mixerVolume   = "composure-mixer"
)

// plane is one of the mesh's control services.
type plane struct {
	role    mesh.Role
	uid     int
	state   string // its volume at mesh.StateDir
	fetches bool   // it is on EgressNetwork
}

// planes in the order of the file.
var planes = []plane{
	{role: mesh.RoleKeeper, uid: mesh.UIDKeeper},
	{role: mesh.RolePilot, uid: mesh.UIDPilot, state: pilotVolume},
	{role: mesh.RoleCitadel, uid: mesh.UIDCitadel, state: citadelVolume, fetches: true},
	{role: mesh.RoleMixer, uid: mesh.UIDMixer, state: mixerVolume, fetches: true},
}

func (p plane) service() string { return "composure-" + string(p.role) }

// dockerSocket mounts the engine's socket; rootless engines have theirs elsewhere. Where there is none, the engine
// says so and makes no directory of its name.
func dockerSocket() *yaml.Node {
	return mapping("type", types.VolumeTypeBind, "source", "${COMPOSURE_DOCKER_SOCK:-/var/run/docker.sock}",
		"target", "/var/run/docker.sock", "bind", mapping("create_host_path", false))
}

// plane is the service of one plane. A fresh shared volume takes the planes' directories, with their owners, from the
// image of the keeper alone, which is created first: engines fail to fill one volume from two containers at once.
func (e *emitter) plane(p plane) *yaml.Node {
	n := e.ours(string(p.role))
	run := runVolume + ":" + mesh.RunDir
	if p.role != mesh.RoleKeeper {
		run += ":nocopy"
	}
	volumes := value([]string{run})
	if p.state != "" {
		volumes.Content = append(volumes.Content, value(p.state+":"+mesh.StateDir))
	}
	options := []string{"no-new-privileges:true"}
	if p.role == mesh.RoleKeeper {
		// It starts as root to find a way to the engine's socket, and drops what it does not need of that. In the
		// host's pid namespace the kernel tells it the pids of its callers; an engine with userns-remap wants the
		// host's user namespace with it.
		add(n, "user", "0:0")
		add(n, "pid", "host")
		add(n, "userns_mode", "host")
		volumes.Content = append(volumes.Content, dockerSocket())
		options = append(options, "label=disable")
		add(n, "cap_drop", flow("ALL"))
		add(n, "cap_add", flow("SETUID", "SETGID", "CHOWN"))
	} else {
		add(n, "user", fmt.Sprintf("%d:%d", p.uid, p.uid))
		add(n, "cap_drop", flow("ALL"))
	}
	add(n, "security_opt", flow(options...))
	if p.fetches {
		add(n, "networks", append([]string{EgressNetwork}, e.cfg.Joins.of(p.role)...))
	} else {
		add(n, "network_mode", "none")
	}
	add(n, "read_only", true)
	add(n, "tmpfs", flow(fmt.Sprintf("/run/admin:mode=0700,uid=%d,gid=%d", p.uid, p.uid)))
	add(n, "volumes", volumes)
	if p.role != mesh.RoleKeeper {
		add(n, "depends_on", mapping("composure-keeper", started(false)))
	}
	add(n, "restart", "unless-stopped")
	settings := e.settings(e.cfg.LogLevel)
	if p.role == mesh.RoleCitadel && e.cfg.CertLifetime > 0 {
		add(settings, "COMPOSURE_CERT_LIFETIME", e.cfg.CertLifetime.String())
	}
	if p.role == mesh.RoleCitadel && e.cfg.MutualTLS != "" {
		add(settings, "COMPOSURE_MTLS", e.cfg.MutualTLS)
	}
	add(n, "environment", settings)
	identity := e.member(p.role, nil)
	add(identity, noUpdates, "false")
	for _, label := range e.installed {
		add(identity, label[0], label[1])
	}
	add(n, "labels", identity)
	return n
}

// settings is the environment that all components share.
func (e *emitter) settings(logLevel string) *yaml.Node {
	n := mapping("COMPOSURE_MESH", e.meshName())
	if logLevel != "" {
		add(n, "COMPOSURE_LOG_LEVEL", logLevel)
	}
	if e.cfg.TrustDomain != "" {
		add(n, "COMPOSURE_TRUST_DOMAIN", e.cfg.TrustDomain)
	}
	return n
}

// proxy is the sidecar of a workload, in its sandbox's network namespace.
func (e *emitter) proxy(w *Workload) *yaml.Node {
	n := e.dataPlane(or(w.ProxyLogLevel, e.cfg.LogLevel), nil, w.ProxySettings)
	e.follow(n, w)
	add(n, "network_mode", "service:"+w.Sandbox())
	if w.ProxyMemory != "" {
		add(n, "mem_limit", w.ProxyMemory)
	}
	depends := mapping(w.Sandbox(), started(true))
	depends.Content = append(depends.Content, e.onPlanes().Content...)
	add(n, "depends_on", depends)
	add(n, "labels", e.holder(mesh.RoleProxy, w))
	return n
}

// dataPlane begins a proxy or gateway.
func (e *emitter) dataPlane(logLevel string, gatewayPorts []string, set map[string]string) *yaml.Node {
	n := e.ours("proxy")
	add(n, "user", fmt.Sprintf("%d:%d", mesh.UIDProxy, mesh.UIDProxy))
	add(n, "cap_drop", flow("ALL"))
	add(n, "security_opt", flow("no-new-privileges:true"))
	add(n, "volumes", flow(runVolume+":"+mesh.RunDir+":ro,nocopy"))
	environment := e.settings(logLevel)
	if e.cfg.AccessLog != "" {
		add(environment, "COMPOSURE_ACCESS_LOG", e.cfg.AccessLog)
	}
	if len(gatewayPorts) > 0 {
		add(environment, "COMPOSURE_GATEWAY_PORTS", strings.Join(gatewayPorts, ","))
	}
	for i := range settings.All {
		if v, ok := set[settings.All[i].Name]; ok {
			add(environment, settings.All[i].Env(), v)
		}
	}
	add(n, "environment", environment)
	// The probe blocks: it answers as soon as the proxy is ready, and fails after 25 s in which it never was.
	// Four of them give a slow machine more than 100 s for the first certificate and snapshot. The interval is what
	// a start waits before the first of them, and costs nothing after it: later ones last 25 s. A start_period
	// would make engines from version 25 probe every 5 s at first, start_interval is unknown to older ones.
	add(n, "healthcheck", mapping("test", flow("CMD", "/proxy", "ready", "--wait", "25s"),
		"interval", "200ms", "timeout", "30s", "retries", 4))
	grace := settings.Drain(set["drain"]).Truncate(time.Second) + 10*time.Second
	add(n, "stop_grace_period", strconv.Itoa(int(grace/time.Second))+"s")
	return n
}

// onPlanes are the dependencies on the planes; Compose knows nothing of those of another project.
func (e *emitter) onPlanes() *yaml.Node {
	n := mapping()
	if e.cfg.External != "" {
		return n
	}
	for _, p := range planes {
		add(n, p.service(), started(false))
	}
	return n
}

// networksInMesh are the networks with workloads, sorted.
func (e *emitter) networksInMesh() []string {
	var names []string
	for i := range e.plan.Workloads {
		for name := range e.src.project.Services[e.plan.Workloads[i].Service].Networks {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// onlyInternal reports whether no network with workloads has a way out.
func (e *emitter) onlyInternal() bool {
	return !slices.ContainsFunc(e.networksInMesh(), func(name string) bool { return !e.src.project.Networks[name].Internal })
}

// gateway is the ingress gateway: a proxy in a container of its own, on the given networks.
func (e *emitter) gateway(networks []string) *yaml.Node {
	var published, ports []string
	var known []mesh.Port
	for _, p := range e.cfg.Ingress {
		port := strconv.Itoa(int(p.Gateway))
		published = append(published, p.Host+":"+port)
		ports = append(ports, port)
		if port := (mesh.Port{Number: p.Gateway, Protocol: mesh.ProtocolHTTP}); !slices.ContainsFunc(known, func(k mesh.Port) bool { return k.Number == p.Gateway }) {
			known = append(known, port)
		}
	}
	n := e.edge(unique(ports), e.cfg.IngressSettings, networks, published)
	w := &Workload{
		Service: Gateway, Name: Gateway, Replica: 1, Services: []string{Gateway}, ServiceAccount: Gateway,
		Labels: map[string]string{"app": Gateway, "istio": "ingressgateway"}, Ports: known,
	}
	add(n, "labels", facts(e.holder(mesh.RoleGateway, w), w))
	return n
}

// EgressGateway is the compose service of the egress gateway, and its workload.
const EgressGateway = "istio-egressgateway"

// egressGateway is the proxy by which workloads reach what is outside: on their networks, and on one with a way out where
// theirs have none. It publishes nothing. Namespace and ports are those of Istio's own, which its users' files name; a project
// that shares a mesh has one in its own namespace.
func (e *emitter) egressGateway(networks []string) *yaml.Node {
	n := e.edge([]string{"80", "443"}, nil, append(networks[:len(networks):len(networks)], EgressNetwork), nil)
	w := &Workload{
		Service: EgressGateway, Name: EgressGateway, Replica: 1, Services: []string{EgressGateway}, ServiceAccount: EgressGateway,
		Labels: map[string]string{"app": EgressGateway, "istio": "egressgateway"},
		Ports:  []mesh.Port{{Number: 80, Protocol: mesh.ProtocolHTTP}, {Number: 443, Protocol: mesh.ProtocolHTTPS}},
	}
	if e.cfg.External == "" {
		w.Namespace = "istio-system"
	}
	add(n, "labels", facts(e.holder(mesh.RoleGateway, w), w))
	return n
}

// edge begins a gateway: a proxy in a container of its own.
func (e *emitter) edge(ports []string, set map[string]string, networks, published []string) *yaml.Node {
	n := e.dataPlane(e.cfg.LogLevel, ports, set)
	add(n, "restart", "unless-stopped")
	add(n, "networks", networks)
	add(n, "ports", published)
	// Ports below 1024 need no privilege then; engines from version 20.10 set it by themselves.
	add(n, "sysctls", mapping("net.ipv4.ip_unprivileged_port_start", "0"))
	add(n, "depends_on", e.onPlanes())
	return n
}
