package compose

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// Plan is what becomes of each service.
type Plan struct {
	// Workloads are the services that get a sandbox and a proxy, by Service and Replica.
	Workloads []Workload
	// Joiners are services in the network namespace of a workload (network_mode: service:x), by Service: they
	// follow it into its sandbox.
	Joiners []Joiner
	// Linked are services that stay outside but have links to workloads, by Service.
	Linked []string
	// Warnings say which services are left alone and why, and what passes beside the mesh.
	Warnings []Warning

	// jobs are services with a workload that others wait for to end.
	jobs map[string]bool
	// scale is how many containers a service shall have: Config.Scale over what the files say.
	scale map[string]int
}

// Joiner is a service that shares the network namespace of a workload, Owner.
type Joiner struct{ Service, Owner string }

// Warning is something that the user should know about one field of a service.
type Warning struct {
	Service string // compose service
	Field   string // path below the service, such as network_mode
	Reason  string // what is the case
	Do      string // what to do about it; empty if nothing must be done
	left    bool   // the service is left out of the mesh, and not because its label says so
}

// LeftOut reports whether it says that a service is left out of the mesh which its label does not leave out.
func (w Warning) LeftOut() bool { return w.left }

func (w Warning) String() string {
	text := fmt.Sprintf("services.%s.%s: %s", w.Service, w.Field, w.Reason)
	if w.Do != "" {
		text += "; " + w.Do
	}
	return text
}

// workload returns the workload of a service, the first where it has replicas; nil if it has none.
func (p *Plan) workload(service string) *Workload {
	i, ok := slices.BinarySearchFunc(p.Workloads, service, func(w Workload, s string) int { return strings.Compare(w.Service, s) })
	if !ok {
		return nil
	}
	return &p.Workloads[i]
}

// Plan decides on every service, with scale over the numbers of replicas in the files. Its errors name the file, the
// service and the field.
func (s *Source) Plan(scale map[string]int) (*Plan, error) {
	p := &Plan{jobs: map[string]bool{}, scale: map[string]int{}}
	var joining []string
	for _, name := range s.services() {
		svc := s.project.Services[name]
		if err := s.reserved(svc); err != nil {
			return nil, err
		}
		if s.joined(svc) != "" {
			joining = append(joining, name)
			continue
		}
		unfit, err := s.unfit(svc)
		if err != nil {
			return nil, err
		}
		if unfit != nil {
			p.Warnings = append(p.Warnings, *unfit)
			continue
		}
		w, err := s.newWorkload(svc)
		if err != nil {
			return nil, err
		}
		p.Warnings = append(p.Warnings, beside(svc)...)
		if err := p.unroll(s, w, scale); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(scale)) {
		if p.workload(name) == nil {
			return nil, fmt.Errorf("scale %s=%d: %s", name, scale[name], p.unscalable(s, name))
		}
	}
	for _, name := range joining {
		p.join(s, name)
	}
	for _, name := range s.services() {
		for _, job := range p.jobsOf(s, name) {
			p.jobs[job] = true
		}
		if p.workload(name) == nil && slices.ContainsFunc(s.project.Services[name].Links, func(l string) bool {
			target, _, _ := strings.Cut(l, ":")
			return p.workload(target) != nil
		}) {
			p.Linked = append(p.Linked, name)
		}
	}
	return p, nil
}

// jobsOf are the jobs that a service waits for, sorted: services whose sandbox and proxy can end with them, since
// nobody else shares their network and the engine does not restart them.
func (p *Plan) jobsOf(s *Source, service string) []string {
	var jobs []string
	for target, d := range s.project.Services[service].DependsOn {
		if d.Condition != types.ServiceConditionCompletedSuccessfully || p.workload(target) == nil ||
			slices.ContainsFunc(p.Joiners, func(j Joiner) bool { return j.Owner == target }) || isRestarted(s.project.Services[target]) {
			continue
		}
		jobs = append(jobs, target)
	}
	slices.Sort(jobs)
	return jobs
}

// isRestarted reports whether the engine restarts a service that has ended with exit code 0.
func isRestarted(svc types.ServiceConfig) bool {
	policy := svc.Restart
	if policy == "" && svc.Deploy != nil && svc.Deploy.RestartPolicy != nil {
		policy = or(svc.Deploy.RestartPolicy.Condition, "any")
	}
	switch policy {
	case types.RestartPolicyAlways, types.RestartPolicyUnlessStopped, "any":
		return true
	}
	return false
}

// joined is the service whose network namespace svc shares: network_mode service:x, or container:y where y is
// the name of a container of this project. Empty if it has one of its own.
func (s *Source) joined(svc types.ServiceConfig) string {
	if target, ok := strings.CutPrefix(svc.NetworkMode, types.ServicePrefix); ok {
		return target
	}
	if container, ok := strings.CutPrefix(svc.NetworkMode, types.ContainerPrefix); ok {
		for _, name := range s.services() {
			if s.project.Services[name].ContainerName == container {
				return name
			}
		}
	}
	return ""
}

// join follows a service to the owner of its network namespace.
func (p *Plan) join(s *Source, name string) {
	owner := name
	for range s.project.Services { // a circle is an error of Compose's; it must not hang us
		next := s.joined(s.project.Services[owner])
		if next == "" {
			break
		}
		owner = next
	}
	if p.workload(owner) != nil {
		p.Joiners = append(p.Joiners, Joiner{Service: name, Owner: owner})
		p.Warnings = append(p.Warnings, beyond(s.project.Services[name], owner)...)
		return
	}
	p.Warnings = append(p.Warnings, Warning{Service: name, Field: "network_mode", left: s.project.Services[owner].Labels[labels.Inject] != "false",
		Reason: fmt.Sprintf("left out of the mesh: it shares the network of %s, which is not in the mesh", owner)})
}

// unfit says why a service is left out of the mesh; nil if it is in. The label composure.inject overrules what
// is only unwise; demanding what is impossible is an error.
func (s *Source) unfit(svc types.ServiceConfig) (*Warning, error) {
	field := []string{"labels", labels.Inject}
	forced := false
	const left = "left out of the mesh: "
	switch v, set := svc.Labels[labels.Inject]; {
	case !set:
	case v == "false":
		return &Warning{Service: svc.Name, Field: strings.Join(field, "."), Reason: "left out of the mesh as its label says"}, nil
	case v == "true":
		forced = true
	default:
		return nil, s.errorf(svc.Name, field, "%q is neither \"true\" nor \"false\"", v)
	}
	if w := impossible(svc); w != nil {
		if forced {
			return nil, s.errorf(svc.Name, []string{w.Field}, "it can't be in the mesh, since %s, but the label %s demands it: remove one of the two", w.Reason, labels.Inject)
		}
		w.Reason, w.left = left+w.Reason, true
		return w, nil
	}
	if w := unwise(svc); w != nil && !forced {
		w.Reason, w.left = left+w.Reason, true
		w.Do = fmt.Sprintf("label it %s: \"true\" if you want it in the mesh all the same", labels.Inject)
		return w, nil
	}
	return nil, nil
}

// impossible says why a sidecar can't work for a service at all.
func impossible(svc types.ServiceConfig) *Warning {
	because := func(field, reason string) *Warning { return &Warning{Service: svc.Name, Field: field, Reason: reason} }
	uid, gid, _ := strings.Cut(svc.User, ":")
	proxyID := strconv.Itoa(mesh.UIDProxy)
	switch mode := svc.NetworkMode; {
	case svc.Provider != nil:
		return because("provider", "a provider runs it, so there is no container")
	case mode == "host":
		return because("network_mode", "it uses the host's network, where nothing may be captured")
	case mode == "none":
		return because("network_mode", "it has no network")
	case mode != "":
		return because("network_mode", fmt.Sprintf("%s is a network outside the project", mode))
	case uid == proxyID || gid == proxyID:
		return because("user", fmt.Sprintf("user and group %s are the proxy's own, whose traffic is not captured", proxyID))
	case svc.Isolation != "" && svc.Isolation != "default":
		return because("isolation", "it is for Windows containers")
	case svc.CredentialSpec != nil:
		return because("credential_spec", "it is for Windows containers")
	case strings.HasPrefix(svc.Platform, "windows"):
		return because("platform", "it is a Windows container")
	}
	return nil
}

// knownRuntimes use the kernel's network stack, which capture depends on. gVisor, Kata and the WebAssembly
// runtimes have one of their own.
var knownRuntimes = []string{"", "runc", "crun", "youki", "nvidia", "io.containerd.runc.v2"}

// unwise says why a service had better stay outside.
func unwise(svc types.ServiceConfig) *Warning {
	because := func(field, reason string) *Warning { return &Warning{Service: svc.Name, Field: field, Reason: reason} }
	if svc.Privileged {
		return because("privileged", "a privileged container can remove the rules that capture its traffic, and those that can are mostly VPNs and firewalls")
	}
	for _, c := range svc.CapAdd {
		switch strings.TrimPrefix(strings.ToUpper(c), "CAP_") {
		case "NET_ADMIN", "ALL":
			return because("cap_add", fmt.Sprintf("with %s it can remove the rules that capture its traffic, and services that ask for it are mostly VPNs and firewalls", c))
		}
	}
	if !slices.Contains(knownRuntimes, path.Base(svc.Runtime)) && svc.Runtime != "" {
		return because("runtime", fmt.Sprintf("the runtime %s may have a network stack of its own, where nothing can be captured", svc.Runtime))
	}
	return nil
}

// beyond names what a joiner of owner's network can do to it, or wishes in vain.
func beyond(svc types.ServiceConfig, owner string) []Warning {
	var warnings []Warning
	alone := svc
	alone.NetworkMode = ""
	for _, w := range []*Warning{impossible(alone), unwise(alone)} {
		if w != nil {
			w.Reason = fmt.Sprintf("it shares the network of %s, and %s", owner, w.Reason)
			warnings = append(warnings, *w)
		}
	}
	if svc.Labels[labels.Inject] == "false" {
		warnings = append(warnings, Warning{Service: svc.Name, Field: "labels." + labels.Inject,
			Reason: fmt.Sprintf("it shares the network of %s, so its traffic passes the mesh all the same", owner)})
	}
	return warnings
}

// beside names what of a meshed service's traffic does not pass the mesh, or no longer reaches it.
func beside(svc types.ServiceConfig) []Warning {
	return append(unproxied(svc), untold(svc)...)
}

// untold warns where Traefik is to find the service's port by itself: it looks for it on the container that has the
// labels, and its network is the sandbox's.
func untold(svc types.ServiceConfig) []Warning {
	routed := false
	for key := range svc.Labels {
		if strings.HasPrefix(key, "traefik.") && strings.HasSuffix(key, ".loadbalancer.server.port") {
			return nil
		}
		routed = routed || strings.HasPrefix(key, "traefik.http.") || strings.HasPrefix(key, "traefik.tcp.")
	}
	if !routed {
		return nil
	}
	return []Warning{{Service: svc.Name, Field: "labels", Reason: "Traefik does not find the port of a service in the mesh by itself",
		Do: fmt.Sprintf("label it traefik.http.services.%s.loadbalancer.server.port", svc.Name)}}
}

// unproxied names the ports that are not captured.
func unproxied(svc types.ServiceConfig) []Warning {
	var udp []string
	for _, port := range svc.Ports {
		if port.Protocol == "udp" {
			udp = append(udp, fmt.Sprintf("%d/udp", port.Target))
		}
	}
	if len(udp) == 0 {
		return nil
	}
	return []Warning{{Service: svc.Name, Field: "ports",
		Reason: strings.Join(slices.Compact(udp), ", ") + " passes beside the mesh as before: only TCP is captured"}}
}
