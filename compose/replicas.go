package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"gopkg.in/yaml.v3"
)

// network_mode: service:x joins the first container of x, whatever its number of replicas. So each replica is a
// compose service of its own, <service>-<n>, with a sandbox and a proxy. It extends the service as it stands in its
// file, so that the override holds no copy of what the user goes on editing; a field that does not come out the same
// that way, since a second file changes it, is written out after all, which verify finds. An included service is written
// out with its variables resolved: they may come from an env file of the include.

// unroll adds the workloads of a service: one for each replica, and the first for none too.
func (p *Plan) unroll(s *Source, w Workload, scale map[string]int) error {
	svc := s.project.Services[w.Service]
	n, set := scale[w.Service]
	if !set {
		n = svc.GetScale()
	}
	p.scale[w.Service] = n
	p.Workloads = append(p.Workloads, w)
	if n < 2 {
		return nil
	}
	if svc.ContainerName != "" {
		return s.errorf(w.Service, []string{"container_name"}, "%d replicas can't have one container name: remove it, or scale to 1", n)
	}
	if svc.MacAddress != "" {
		return s.errorf(w.Service, []string{"mac_address"}, "%d replicas can't have one address: remove it, or scale to 1", n)
	}
	for _, name := range slices.Sorted(maps.Keys(svc.Networks)) {
		for field, address := range addresses(svc.Networks[name]) {
			if address != "" {
				return s.errorf(w.Service, []string{"networks", name, field}, "%d replicas can't have one address: remove it, or scale to 1", n)
			}
		}
	}
	if ports := once(svc.Ports); len(ports) > 0 {
		p.Warnings = append(p.Warnings, Warning{Service: w.Service, Field: "ports",
			Reason: fmt.Sprintf("only the first of %d replicas publishes %s, since a host port can be published once", n, strings.Join(ports, ", ")),
			Do:     "publish a range such as 8080-8089:80 if the host must reach each of them"})
	}
	for replica := 2; replica <= n; replica++ {
		w.Replica, w.Name = replica, fmt.Sprintf("%s-%d", w.Service, replica)
		p.Workloads = append(p.Workloads, w)
	}
	return nil
}

// unscalable says why a service's number of replicas is none of ours.
func (p *Plan) unscalable(s *Source, service string) string {
	if _, ok := s.project.Services[service]; !ok {
		return fmt.Sprintf("the project has no service %s; it has %s", service, strings.Join(s.services(), ", "))
	}
	for _, w := range p.Warnings {
		if w.Service == service {
			return w.String()
		}
	}
	return fmt.Sprintf("%s shares the network of another service: its replicas would share it too", service)
}

// addresses are the fields of a service's network that hold an address of its container.
func addresses(n *types.ServiceNetworkConfig) map[string]string {
	if n == nil {
		return nil
	}
	return map[string]string{"ipv4_address": n.Ipv4Address, "ipv6_address": n.Ipv6Address, "mac_address": n.MacAddress}
}

// isOnce reports whether a port can be published by one container only: of a range, and of no host port at all, the
// engine takes one that is free.
func isOnce(p types.ServicePortConfig) bool {
	return p.Published != "" && p.Published != "0" && !strings.Contains(p.Published, "-")
}

// once lists the host ports that one container only can publish.
func once(ports []types.ServicePortConfig) []string {
	var list []string
	for _, p := range ports {
		if isOnce(p) {
			list = append(list, p.Published)
		}
	}
	return list
}

// publishable are the ports that a replica publishes.
func publishable(ports []types.ServicePortConfig, replica int) []types.ServicePortConfig {
	if replica == 1 {
		return ports
	}
	return slices.DeleteFunc(slices.Clone(ports), isOnce)
}

// replicas are the workloads of a service.
func (p *Plan) replicas(service string) []*Workload {
	var list []*Workload
	for i := range p.Workloads {
		if p.Workloads[i].Service == service {
			list = append(list, &p.Workloads[i])
		}
	}
	return list
}

// clones are the names of the replicas after the first.
func (p *Plan) clones() []string {
	var names []string
	for _, w := range p.Workloads {
		if w.Replica > 1 {
			names = append(names, w.Name)
		}
	}
	return names
}

// containers is how many containers the compose service of a workload has: one, or none.
func (p *Plan) containers(w *Workload) int { return min(p.scale[w.Service], 1) }

// scaled sets the number of containers where the service's own is another.
func (e *emitter) scaled(n *yaml.Node, w *Workload) {
	svc, want := e.src.project.Services[w.Service], e.plan.containers(w)
	if svc.GetScale() == want {
		return
	}
	why := "each replica is a service of its own"
	if want == 0 {
		why = "it is scaled to 0"
	}
	replicas := svc.Deploy != nil && svc.Deploy.Replicas != nil
	if svc.Scale != nil || !replicas {
		add(n, "scale", want)
		e.change(w.Name, "scale", svc.GetScale(), line(want), why)
	}
	if replicas {
		add(n, "deploy", mapping("replicas", want))
		e.change(w.Name, "deploy.replicas", svc.GetScale(), line(want), why)
	}
}

// clone is a replica after the first: the service as its file has it, in a network of its own.
func (e *emitter) clone(w *Workload) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	file := e.src.definedIn(w.Service)
	if file != "" {
		add(n, "extends", inline("file", escape(relative(e.src.Dir, file)), "service", w.Service))
	}
	own := e.app(w)
	if svc := e.src.project.Services[w.Service]; svc.Image == "" && svc.Build != nil {
		add(n, "image", builtImage(projectName, w.Service)) // one image, however many replicas
	}
	for _, field := range e.copies(w, file == "") {
		v := e.src.rawService(w.Service)[field]
		if !strings.HasPrefix(field, "x-") && (file == "" || e.resolved[fieldOf{w.Name, field}]) {
			v = e.resolvedField(w.Service, field)
		}
		switch overlay := child(own, field); {
		case field == "extends" || child(n, field) != nil:
		case overlay == nil:
			n.Content = append(n.Content, keyNode(field), replacing(v))
		case overlay[1].Kind == yaml.MappingNode && overlay[1].Tag != "!override": // the service's, and ours
			*overlay[1] = *override(mergedNodes(value(v), overlay[1]))
		}
	}
	n.Content = append(n.Content, own.Content...)
	return n
}

// extensions is what compareServices calls the x-* keys of a service together.
const extensions = "#extensions"

// copies are the fields of a service that a replica of it does not get by extending it, or all.
func (e *emitter) copies(w *Workload, all bool) []string {
	var fields []string
	if all {
		fields = slices.Collect(maps.Keys(e.src.rawService(w.Service)))
	}
	for f := range e.copied {
		switch {
		case f.service != w.Name:
		case f.field == extensions:
			for key := range e.src.rawService(w.Service) {
				if strings.HasPrefix(key, "x-") {
					fields = append(fields, key)
				}
			}
		default:
			fields = append(fields, f.field)
		}
	}
	slices.Sort(fields)
	return slices.Compact(fields)
}

// replacing is a value that takes the place of an earlier one; nil takes it away.
func replacing(v any) *yaml.Node {
	switch n := value(v); {
	case n == nil:
		return reset()
	case n.Kind == yaml.ScalarNode:
		return n
	default:
		return override(n)
	}
}

// mergedNodes is a mapping with another's entries over its own.
func mergedNodes(base, over *yaml.Node) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if base != nil && base.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(base.Content); i += 2 {
			if child(over, base.Content[i].Value) == nil {
				n.Content = append(n.Content, base.Content[i:i+2]...)
			}
		}
	}
	n.Content = append(n.Content, over.Content...)
	return n
}

// builtImage is the name that Compose gives to the image it builds for a service.
func builtImage(project, service string) string { return project + "-" + service }

// definedIn is the first of the project's own files that has the service; empty for an included one.
func (s *Source) definedIn(service string) string {
	for _, f := range s.Files {
		var doc struct {
			Services map[string]yaml.Node `yaml:"services"`
		}
		if err := yaml.Unmarshal(s.inputs[f], &doc); err != nil {
			continue
		}
		if _, ok := doc.Services[service]; ok {
			return f
		}
	}
	return ""
}

// meantReplica is what one of a service's replicas is meant to be, but for its network: one container, or none.
func (e *emitter) meantReplica(svc types.ServiceConfig, w *Workload) types.ServiceConfig {
	svc.Name = w.Name
	if w.Replica > 1 && svc.Image == "" && svc.Build != nil {
		svc.Image = builtImage(e.src.Name, w.Service)
	}
	want := e.plan.containers(w)
	if svc.GetScale() == want {
		return svc
	}
	replicas := svc.Deploy != nil && svc.Deploy.Replicas != nil
	if replicas {
		deploy := *svc.Deploy
		deploy.Replicas = &want
		svc.Deploy = &deploy
	}
	if svc.Scale != nil || !replicas {
		svc.Scale = &want
	}
	return svc
}
