package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// service is a name that clients dial, with the workloads that answer it.
type service struct {
	host, name, namespace string
	workloads             []*mesh.Workload // by name

	entry *networking.ServiceEntry // nil for a service of the mesh
	ports []snapshot.Port          // of entry
}

// catalog is the services that one proxy sees.
type catalog struct {
	namespace string // of the proxy
	hosts     []string
	services  map[string]*service // by host
	aliases   map[string]string   // every name of a service, to its host
}

func newCatalog(namespace string, workloads []*mesh.Workload) *catalog {
	c := &catalog{namespace: namespace, services: map[string]*service{}, aliases: map[string]string{}}
	for _, w := range workloads {
		for _, name := range w.Services {
			host := fqdn(name, w.Namespace)
			s := c.services[host]
			if s == nil {
				s = &service{host: host, name: strings.ToLower(name), namespace: w.Namespace}
				c.services[host] = s
			}
			if !slices.Contains(s.workloads, w) {
				s.workloads = append(s.workloads, w)
			}
		}
	}
	// A name without namespace is that of the proxy's own, or else of the first that has the service.
	c.hosts = slices.SortedFunc(maps.Keys(c.services), func(a, b string) int {
		return cmp.Or(c.foreign(a)-c.foreign(b), cmp.Compare(a, b))
	})
	for _, host := range c.hosts {
		s := c.services[host]
		for _, alias := range domainsOf(s.name, s.namespace) {
			if _, taken := c.aliases[alias]; !taken {
				c.aliases[alias] = host
			}
		}
	}
	slices.Sort(c.hosts)
	return c
}

func (c *catalog) foreign(host string) int {
	if c.services[host].namespace == c.namespace {
		return 0
	}
	return 1
}

// domainsOf are the names that clients may use for a service: those of Kubernetes, and that of Consul.
func domainsOf(name, namespace string) []string {
	return []string{
		name, name + "." + namespace, name + "." + namespace + ".svc", fqdn(name, namespace), name + consulSuffix,
	}
}

// domains are the aliases that lead to host, and not to another service of the same short name.
func (c *catalog) domains(host string) []string {
	s := c.services[host]
	if s == nil {
		return nil
	}
	if s.entry != nil {
		return []string{host}
	}
	return slices.DeleteFunc(domainsOf(s.name, s.namespace), func(d string) bool { return c.aliases[d] != host })
}

// resolve is the host that a rule of namespace means: a short name is one of the rule's namespace
// (istio.io/docs/reference/config/networking/virtual-service/#Destination), as is a name of Consul, which has no
// namespaces. What is no service's name stays as it is.
func (c *catalog) resolve(host, namespace string) string {
	host = strings.ToLower(host)
	if host == "*" {
		return host
	}
	short := strings.TrimSuffix(host, consulSuffix)
	if !strings.Contains(short, ".") {
		if own := fqdn(short, namespace); short == host || c.services[own] != nil {
			return own
		}
		if known, ok := c.aliases[host]; ok {
			return known
		}
		return fqdn(short, namespace)
	}
	if known, ok := c.aliases[host]; ok {
		return known
	}
	return host
}

// usable are the workloads that get traffic: those that run and are not unhealthy. "starting" counts as healthy, as
// Docker's own DNS does: a container without a healthcheck never says more than that it runs, and one with a
// slow check would be kept out for long. Where every one is unhealthy all are used, since some answer beats none.
func usable(workloads []*mesh.Workload) []string {
	var running, healthy []string
	for _, w := range workloads {
		if !w.Running {
			continue
		}
		running = append(running, w.Name)
		if w.Health != "unhealthy" {
			healthy = append(healthy, w.Name)
		}
	}
	if len(healthy) > 0 {
		return healthy
	}
	return running
}

// portsOf is the union of workloads' declared ports. The first protocol that is declared for a number stands.
func portsOf(workloads []*mesh.Workload) []snapshot.Port {
	protocols := map[uint16]mesh.Protocol{}
	for _, w := range workloads {
		for _, p := range w.Ports {
			protocols[p.Number] = cmp.Or(protocols[p.Number], p.Protocol)
		}
	}
	var ports []snapshot.Port
	for _, n := range slices.Sorted(maps.Keys(protocols)) {
		ports = append(ports, snapshot.Port{Number: n, Protocol: protocols[n]})
	}
	return ports
}

// services are the catalog's, with the subsets and policies of the DestinationRules that apply to them.
func (c *compiler) services() []snapshot.Service {
	var services []snapshot.Service
	for _, host := range c.catalog.hosts {
		s := c.catalog.services[host]
		out := snapshot.Service{Host: host, Name: s.name, Namespace: s.namespace, Ports: portsOf(s.workloads), Endpoints: usable(s.workloads)}
		c.applyRules(&out, s)
		if s.entry != nil {
			out.Ports = s.ports
			if s.entry.Resolution == networking.ServiceEntry_NONE {
				out.Policy.LoadBalancer = snapshot.Passthrough
			}
		}
		services = append(services, out)
	}
	return services
}

// applyRules adds to out what the rules for it say. Several rules for one host are one: their subsets together, and
// the first traffic policy (istio.io/docs/ops/best-practices/traffic-management/#split-virtual-services).
func (c *compiler) applyRules(out *snapshot.Service, s *service) {
	var policy *networking.TrafficPolicy
	own := map[string]*networking.TrafficPolicy{} // by subset
	for _, o := range c.rulesFor(s) {
		rule := o.Spec.(*networking.DestinationRule)
		if policy == nil {
			policy = rule.TrafficPolicy
		}
		for i, subset := range rule.Subsets {
			if slices.ContainsFunc(out.Subsets, func(have snapshot.Subset) bool { return have.Name == subset.Name }) {
				c.problem(o, fmt.Sprintf("spec.subsets[%d].name", i), fmt.Sprintf("an older rule for %s has a subset %q already; this one is not used", s.host, subset.Name))
				continue
			}
			members := slices.DeleteFunc(slices.Clone(s.workloads), func(w *mesh.Workload) bool { return !Selects(subset.Labels, w.Labels) })
			out.Subsets = append(out.Subsets, snapshot.Subset{Name: subset.Name, Endpoints: usable(members)})
			own[subset.Name] = subset.TrafficPolicy
		}
	}
	slices.SortFunc(out.Subsets, func(a, b snapshot.Subset) int { return cmp.Compare(a.Name, b.Name) })
	out.Policy, out.PortPolicies = policies(policy, nil)
	for i := range out.Subsets {
		sub := &out.Subsets[i]
		sub.Policy, sub.PortPolicies = policies(policy, own[sub.Name])
	}
}

// rulesFor are the rules for s in the proxy's namespace, or else in the service's; among them those of the most
// specific host.
func (c *compiler) rulesFor(s *service) []*api.Object {
	for _, namespace := range []string{c.proxy.Namespace, s.namespace} {
		best, rules := "", []*api.Object(nil)
		for _, o := range c.destinationRules {
			if o.Meta.Namespace != namespace || !visible(o, c.proxy.Namespace) {
				continue
			}
			host := c.catalog.resolve(o.Spec.(*networking.DestinationRule).Host, namespace)
			if !covers(host, s.host) {
				continue
			}
			switch {
			case best == "" || moreSpecific(host, best):
				best, rules = host, []*api.Object{o}
			case host == best:
				rules = append(rules, o)
			}
		}
		if rules != nil {
			return rules
		}
	}
	return nil
}
