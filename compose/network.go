package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"gopkg.in/yaml.v3"
)

// networks are the service's networks as written, with the names on each that the service's own container would
// have answered to, and its names in the mesh.
func (e *emitter) networks(w *Workload) *yaml.Node {
	svc := e.src.project.Services[w.Service]
	written, _ := e.field(w.Service, "networks").(map[string]any)
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, name := range slices.Sorted(maps.Keys(svc.Networks)) {
		settings, _ := written[name].(map[string]any)
		resolved := svc.Networks[name]
		if resolved == nil {
			resolved = &types.ServiceNetworkConfig{}
		}
		var aliases []string
		if resolved.ServiceNameAliasEnabled() {
			aliases = append(aliases, w.Service) // of all replicas
		}
		aliases = append(aliases, w.given...) // the user's own aliases belong to one network each
		aliases = append(aliases, e.containerName(w))
		if e.cfg.External != "" {
			for _, name := range w.Services { // the same name in another project's namespace has another address
				aliases = append(aliases, name+"."+e.namespace(w))
			}
		}
		if own, ok := settings["aliases"].([]any); ok {
			for _, a := range own {
				aliases = append(aliases, fmt.Sprint(a))
			}
		}
		node := mapping("aliases", unique(aliases))
		for _, k := range slices.Sorted(maps.Keys(settings)) {
			if k != "aliases" {
				add(node, k, settings[k])
			}
		}
		add(n, name, node)
	}
	return n
}

func unique(list []string) []string {
	var out []string
	for _, v := range list {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

// containerName is the DNS name that Docker gives a service's container.
func (e *emitter) containerName(w *Workload) string {
	if name, ok := e.src.rawService(w.Service)["container_name"].(string); ok {
		return name
	}
	return fmt.Sprintf("%s-%s-%d", projectName, w.Service, w.Replica)
}

// sysctls splits the service's sysctls into those of the network namespace and the rest.
func (e *emitter) sysctls(service string) (net, rest map[string]any) {
	net, rest = map[string]any{}, map[string]any{}
	put := func(key string, v any) {
		if strings.HasPrefix(key, "net.") {
			net[key] = v
		} else {
			rest[key] = v
		}
	}
	switch written := e.field(service, "sysctls").(type) {
	case map[string]any:
		for k, v := range written {
			put(k, v)
		}
	case []any:
		for _, entry := range written {
			k, v, _ := strings.Cut(fmt.Sprint(entry), "=")
			put(k, v)
		}
	}
	return net, rest
}

// ports are the ports that the sandbox publishes: as written for the first of several replicas, those that can be
// published more than once for the others.
func (e *emitter) ports(w *Workload) *yaml.Node {
	all := e.src.project.Services[w.Service].Ports
	switch left := publishable(all, w.Replica); len(left) {
	case len(all):
		return portsNode(e.field(w.Service, "ports"))
	case 0:
		return nil
	default:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		resolved, _ := e.resolvedField(w.Service, "ports").([]any)
		for i, p := range resolved {
			if m, ok := p.(map[string]any); ok && !isOnce(all[i]) {
				n.Content = append(n.Content, value(m))
			}
		}
		return n
	}
}

// portsNode writes ports and exposed ports as quoted strings, and long where a short form does not say it all.
func portsNode(v any) *yaml.Node {
	written, ok := v.([]any)
	if !ok {
		return nil
	}
	n := &yaml.Node{Kind: yaml.SequenceNode}
	for _, entry := range written {
		if m, ok := entry.(map[string]any); ok {
			n.Content = append(n.Content, portNode(m))
		} else {
			n.Content = append(n.Content, value(fmt.Sprint(entry)))
		}
	}
	return n
}

func portNode(m map[string]any) *yaml.Node {
	for k, v := range m {
		switch k {
		case "target":
			if _, ok := v.(uint32); !ok {
				if _, ok := v.(int); !ok {
					return value(m)
				}
			}
		case "mode":
			if v != "ingress" {
				return value(m)
			}
		case "host_ip":
			if ip := fmt.Sprint(v); strings.ContainsAny(ip, ":$") || m["published"] == nil {
				return value(m)
			}
		case "published":
			if strings.ContainsAny(fmt.Sprint(v), "$:") {
				return value(m)
			}
		case "protocol":
			if v != "tcp" && v != "udp" {
				return value(m)
			}
		default:
			return value(m)
		}
	}
	short := fmt.Sprint(m["target"])
	if p := m["published"]; p != nil && p != "" {
		short = fmt.Sprint(p) + ":" + short
	}
	if ip := m["host_ip"]; ip != nil && ip != "" {
		short = fmt.Sprint(ip) + ":" + short
	}
	if m["protocol"] == "udp" {
		short += "/udp"
	}
	return value(short)
}
