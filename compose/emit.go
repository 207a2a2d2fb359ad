package compose

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"gopkg.in/yaml.v3"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// moved are the fields that a sandbox takes from its service, with what the engine or Compose says if they stay
// beside network_mode: service:x. networks and sysctls, which move in a way of their own, are not here.
var moved = []string{
	"ports", "expose", // conflicting options: port publishing (exposing) and the container type network mode
	"hostname",              // conflicting options: hostname and the network mode
	"domainname",            // silently ignored
	"dns",                   // conflicting options: dns and the network mode
	"dns_search", "dns_opt", // silently ignored: resolv.conf is that of the namespace's owner
	"extra_hosts",             // conflicting options: custom host-to-IP mapping and the network mode
	"links", "external_links", // container type network can't be used with links
	"mac_address", // conflicting options: mac-address and the network mode
}

// fieldOf is a field of a service of the user's.
type fieldOf struct{ service, field string }

// emitter builds the override.
type emitter struct {
	src  *Source
	plan *Plan
	cfg  Config
	// resolved are the fields whose values are copied with their variables resolved, because as written they
	// don't mean the same in another place.
	resolved map[fieldOf]bool
	// copied are the fields of replicas that extending their service does not bring.
	copied  map[fieldOf]bool
	changes []Change
	added   map[string]bool // services that inject adds
	// installed are labels of planes that belong to no project.
	installed [][2]string
	nodes     int // of the override, as Compose counts them
}

// maxNodes is how many YAML nodes a file may have that Compose 5 reads (compose-go, loader.Options.MaxNodeVisits).
const maxNodes = 100_000

// countNodes counts a node with all below it, but for keys.
func countNodes(n *yaml.Node) int {
	count := 1
	for i, child := range n.Content {
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			count += countNodes(child)
		}
	}
	return count
}

// output is the whole override file for a directory.
func (e *emitter) output(dir string) ([]byte, error) {
	e.changes, e.added = nil, map[string]bool{}
	services := &yaml.Node{Kind: yaml.MappingNode}
	insert := func(name string, n *yaml.Node) error {
		if _, taken := e.src.project.Services[name]; taken {
			return e.src.errorf(name, nil, "inject adds a service of this name itself: rename yours")
		}
		e.added[name] = true
		add(services, name, n)
		return nil
	}
	for _, name := range e.src.services() {
		add(services, name, e.user(name))
		for _, w := range e.plan.replicas(name) {
			if w.Replica > 1 {
				if err := insert(w.Name, e.clone(w)); err != nil {
					return nil, err
				}
			}
			if err := insert(w.Sandbox(), e.sandbox(w)); err != nil {
				return nil, err
			}
			if err := insert(w.Proxy(), e.proxy(w)); err != nil {
				return nil, err
			}
		}
	}
	if len(e.cfg.Ingress) > 0 {
		if err := insert(Gateway, e.gateway(e.networksInMesh())); err != nil {
			return nil, err
		}
	}
	if e.cfg.Egress {
		if err := insert(EgressGateway, e.egressGateway(e.networksInMesh())); err != nil {
			return nil, err
		}
	}
	if e.cfg.External == "" {
		for _, p := range planes {
			if err := insert(p.service(), e.plane(p)); err != nil {
				return nil, err
			}
		}
	}
	volumes := e.volumes()
	for i := 0; i < len(volumes.Content); i += 2 {
		v := volumes.Content[i].Value
		if _, taken := e.src.project.Volumes[v]; taken {
			return nil, fmt.Errorf("%s: volumes.%s: inject adds a volume of this name itself: rename yours", e.src.locate([]string{"volumes", v}), v)
		}
	}
	e.nodes = countNodes(services)
	file := mapping("services", services, "volumes", volumes)
	if e.cfg.External == "" || e.cfg.Egress {
		if _, taken := e.src.project.Networks[EgressNetwork]; taken {
			return nil, fmt.Errorf("%s: networks.%s: inject adds a network of this name itself: rename yours", e.src.locate([]string{"networks", EgressNetwork}), EgressNetwork)
		}
		add(file, "networks", e.ownNetworks())
	}
	return e.src.render(dir, e.cfg, encode(file)), nil
}

// user is what the override says about a service of the user's; nil is nothing.
func (e *emitter) user(name string) *yaml.Node {
	if w := e.plan.workload(name); w != nil {
		return e.app(w)
	}
	for _, j := range e.plan.Joiners {
		if j.Service == name {
			return e.joiner(j)
		}
	}
	if slices.Contains(e.plan.Linked, name) {
		links := e.links(name)
		e.change(name, "links", e.src.project.Services[name].Links, line(links), "the names now belong to the sandboxes")
		depends := e.linkedTo(name)
		depends.Content = append(depends.Content, e.completed(name).Content...)
		return mapping("links", override(links), "depends_on", depends)
	}
	if depends := e.completed(name); len(depends.Content) > 0 {
		e.change(name, "depends_on", nil, line(depends), "a job has ended when its sandbox and its proxy have")
		return mapping("depends_on", depends)
	}
	return nil
}

func (e *emitter) change(service, path string, from any, to, why string) {
	if path == "ports" || path == "expose" {
		from = portsNode(from)
	}
	e.changes = append(e.changes, Change{Service: service, Path: path, From: line(from), To: to, Why: why})
}

// app is the service itself: it joins its sandbox and gives its network fields away.
func (e *emitter) app(w *Workload) *yaml.Node {
	written := e.src.rawService(w.Service)
	n := mapping("network_mode", types.ServicePrefix+w.Sandbox())
	e.change(w.Name, "network_mode", written["network_mode"], types.ServicePrefix+w.Sandbox(), "the sandbox owns the network namespace")
	for _, field := range append([]string{"networks"}, moved...) {
		if v, ok := written[field]; ok {
			add(n, field, reset())
			e.change(w.Name, field, v, "services."+w.Sandbox()+"."+field, "the network namespace is the sandbox's")
		}
	}
	if net, rest := e.sysctls(w.Service); len(net) > 0 {
		if len(rest) > 0 {
			add(n, "sysctls", override(rest))
		} else {
			add(n, "sysctls", reset())
		}
		e.change(w.Name, "sysctls", net, "services."+w.Sandbox()+".sysctls", "net.* belongs to the network namespace")
	}
	e.scaled(n, w)
	depends := mapping(w.Sandbox(), started(true), w.Proxy(), healthy())
	depends.Content = append(depends.Content, e.linkedTo(w.Service).Content...)
	depends.Content = append(depends.Content, e.completed(w.Service).Content...)
	add(n, "depends_on", depends)
	e.change(w.Name, "depends_on", nil, line(depends), "it starts when it is protected and its proxy is ready")
	own := e.member(mesh.RoleApp, w)
	add(n, "labels", own)
	e.change(w.Name, "labels", nil, line(own), "the keeper knows it by them")
	return n
}

// joiner is a service in the namespace of a workload: it follows it into the sandbox.
func (e *emitter) joiner(j Joiner) *yaml.Node {
	owner := e.plan.workload(j.Owner)
	svc := e.src.project.Services[j.Service]
	depends := mapping(owner.Sandbox(), started(true), owner.Proxy(), healthy())
	if target := e.src.joined(svc); strings.HasPrefix(svc.NetworkMode, types.ServicePrefix) && !e.dependsOn(j.Service, target) {
		add(depends, target, started(true)) // what network_mode: service:x implied
	}
	e.change(j.Service, "network_mode", svc.NetworkMode, types.ServicePrefix+owner.Sandbox(), "the namespace of "+j.Owner+" is its sandbox's")
	depends.Content = append(depends.Content, e.completed(j.Service).Content...)
	return mapping("network_mode", types.ServicePrefix+owner.Sandbox(), "depends_on", depends)
}

// completed are the sandbox and the proxy of each job that a service waits for. The keeper ends them with the job, and
// who waits for it waits for them, too: otherwise `docker compose up --wait` would take their end for a failure.
func (e *emitter) completed(service string) *yaml.Node {
	n := mapping()
	for _, target := range e.plan.jobsOf(e.src, service) {
		for _, w := range e.plan.replicas(target) {
			for _, sidecar := range []string{w.Proxy(), w.Sandbox()} {
				add(n, sidecar, inline("condition", types.ServiceConditionCompletedSuccessfully, "required", false, "restart", false))
			}
		}
	}
	return n
}

// projectName is a variable that Compose sets: with it, -p and another clone's directory change nothing.
const projectName = "${COMPOSE_PROJECT_NAME}"

// member are the labels that say what a container is in the mesh; a plane has no workload.
func (e *emitter) member(role mesh.Role, w *Workload) *yaml.Node {
	n := mapping(labels.Mesh, e.meshName(), labels.Role, string(role))
	if w != nil {
		add(n, labels.Workload, e.workloadName(w))
	}
	return n
}

// holder are the labels of a proxy, which holds the workload's certificate, and of its sandbox.
func (e *emitter) holder(role mesh.Role, w *Workload) *yaml.Node {
	n := e.member(role, w)
	add(n, labels.Namespace, e.namespace(w))
	add(n, labels.ServiceAccount, w.ServiceAccount)
	add(n, noUpdates, "false")
	return n
}

// noUpdates keeps Watchtower from replacing one container of a namespace alone.
const noUpdates = "com.centurylinklabs.watchtower.enable"

func started(restart bool) *yaml.Node {
	return inline("condition", types.ServiceConditionStarted, "restart", restart)
}

func healthy() *yaml.Node {
	return inline("condition", types.ServiceConditionHealthy, "restart", false)
}

// dependsOn reports whether a service has a depends_on entry of the user's own.
func (e *emitter) dependsOn(service, target string) bool {
	deps, _ := e.src.modelService(service)["depends_on"].(map[string]any) // as written a name may be a variable
	_, ok := deps[target]
	return ok
}

// linkedTo are the dependencies that the links of a service implied, which go with them.
func (e *emitter) linkedTo(service string) *yaml.Node {
	n := mapping()
	for _, link := range e.src.project.Services[service].Links {
		target, _, _ := strings.Cut(link, ":")
		if !e.dependsOn(service, target) && child(n, target) == nil {
			add(n, target, started(true))
		}
	}
	return n
}

// links are the links of a service, with the sandboxes in the place of the workloads.
func (e *emitter) links(service string) []string {
	written, _ := e.field(service, "links").([]any)
	var links []string
	for _, l := range written {
		link, _ := l.(string)
		target, alias, ok := strings.Cut(link, ":")
		if !ok {
			alias = target
		}
		if e.plan.workload(target) != nil {
			link = sandboxOf(target) + ":" + alias
		}
		links = append(links, link)
	}
	return links
}

// field is the value of a service's field as written, or resolved where that had to be.
func (e *emitter) field(service, field string) any {
	if !e.resolved[fieldOf{service, field}] {
		return e.src.rawService(service)[field]
	}
	return e.resolvedField(service, field)
}

// resolvedField is the value of a service's field with its variables resolved.
func (e *emitter) resolvedField(service, field string) any {
	var all map[string]any
	svc := e.src.project.Services[service]
	if field != "build" {
		svc.Build = nil // its ssh keys have no JSON
	}
	b, err := json.Marshal(svc)
	if err == nil {
		d := json.NewDecoder(strings.NewReader(string(b)))
		d.UseNumber()
		err = d.Decode(&all)
	}
	if err != nil { // the model comes from YAML: JSON holds all of it
		return e.src.rawService(service)[field]
	}
	return cloned(all, escape)[field]
}

// sandbox is the container that takes the service's place in its networks.
func (e *emitter) sandbox(w *Workload) *yaml.Node {
	n := e.ours("sandbox")
	add(n, "user", "0:0")
	add(n, "cap_drop", flow("ALL"))
	add(n, "cap_add", flow("NET_ADMIN", "NET_RAW", "SETUID", "SETGID", "SETPCAP"))
	add(n, "security_opt", flow("no-new-privileges:true"))
	add(n, "read_only", true)
	add(n, "tmpfs", flow("/run")) // the lock of iptables
	e.follow(n, w)
	add(n, "stop_grace_period", "1s")
	add(n, "networks", e.networks(w))
	for _, field := range moved {
		switch field {
		case "ports":
			add(n, field, e.ports(w))
		case "expose":
			add(n, field, portsNode(e.field(w.Service, field)))
		case "links":
			add(n, field, e.links(w.Service))
		default:
			add(n, field, e.field(w.Service, field))
		}
	}
	net, _ := e.sysctls(w.Service)
	add(n, "sysctls", net)
	environment := mapping()
	for _, v := range [][2]string{
		{"COMPOSURE_EXCLUDE_INBOUND_PORTS", w.ExcludeInboundPorts},
		{"COMPOSURE_EXCLUDE_OUTBOUND_PORTS", w.ExcludeOutboundPorts},
		{"COMPOSURE_EXCLUDE_OUTBOUND_CIDRS", w.ExcludeOutboundCIDRs},
	} {
		if v[1] != "" {
			add(environment, v[0], v[1])
		}
	}
	add(n, "environment", environment)
	own := e.holder(mesh.RoleSandbox, w)
	if e.plan.jobs[w.Service] {
		add(own, labels.Job, "true")
	}
	add(n, "labels", facts(own, w))
	return n
}

// facts adds the labels that tell the keeper what a workload serves.
func facts(n *yaml.Node, w *Workload) *yaml.Node {
	add(n, labels.Services, strings.Join(w.Services, ","))
	if len(w.Ports) > 0 {
		add(n, labels.Ports, portList(w.Ports))
	}
	for _, k := range slices.Sorted(maps.Keys(w.Labels)) {
		add(n, labels.SubsetPrefix+k, escape(w.Labels[k]))
	}
	return n
}

// ours begins a service of the mesh's own.
func (e *emitter) ours(component string) *yaml.Node {
	prefix, policy := e.cfg.ImagePrefix, types.PullPolicyMissing
	if prefix == "" {
		prefix, policy = "composure", types.PullPolicyNever
	}
	tag := e.cfg.Version
	if component == "sandbox" {
		tag = or(e.cfg.SandboxTag, tag)
	}
	return mapping("image", prefix+"/"+component+":"+tag, "pull_policy", policy, "attach", false)
}

// follow copies what decides whether and where a service's containers run.
func (e *emitter) follow(n *yaml.Node, w *Workload) {
	svc, written := e.src.project.Services[w.Service], e.src.rawService(w.Service)
	add(n, "restart", restart(svc))
	add(n, "profiles", written["profiles"])
	add(n, "userns_mode", written["userns_mode"])
	switch {
	case e.plan.containers(w) > 0:
	case svc.GetScale() > 0:
		add(n, "scale", 0)
	default:
		scale := written["scale"]
		if deploy, ok := written["deploy"].(map[string]any); ok && scale == nil {
			scale = deploy["replicas"]
		}
		add(n, "scale", scale)
	}
}

// restart is the restart policy of a service's sandbox and proxy. They come back after a restart of the engine
// whatever the service's own policy is, for one that ends well or was stopped by the engine would else stay down under
// a service that is started again; and they stay down when somebody stopped them, unless the service itself does not.
func restart(svc types.ServiceConfig) string {
	always := svc.Restart == types.RestartPolicyAlways
	if svc.Restart == "" && svc.Deploy != nil && svc.Deploy.RestartPolicy != nil {
		always = slices.Contains([]string{"any", ""}, svc.Deploy.RestartPolicy.Condition)
	}
	if always {
		return types.RestartPolicyAlways
	}
	return types.RestartPolicyUnlessStopped
}
