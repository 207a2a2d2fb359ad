package compile

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"
	istiotype "istio.io/api/type/v1beta1"

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

	places map[*mesh.Workload]place // of the workloads of an entry that are more than a workload
}

// labels are those of w that subsets of s select.
func (s *service) labels(w *mesh.Workload) map[string]string {
	if p, ok := s.places[w]; ok {
		return p.labels
	}
	return w.Labels
}

// compiledPlaces are the places that say something.
func (s *service) compiledPlaces() (places []snapshot.Place) {
	for _, p := range s.places {
		if p.Address != "" || p.Weight > 1 || len(p.Ports) > 0 || p.Identity != "" {
			places = append(places, p.Place)
		}
	}
	slices.SortFunc(places, func(a, b snapshot.Place) int { return cmp.Compare(a.Workload, b.Workload) })
	return places
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

func (c *catalog) clone() *catalog {
	return &catalog{namespace: c.namespace, hosts: slices.Clone(c.hosts), services: maps.Clone(c.services), aliases: maps.Clone(c.aliases)}
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
		services = append(services, c.serviceOf(c.catalog.services[host]))
	}
	return services
}

func (c *compiler) serviceOf(s *service) snapshot.Service {
	out := snapshot.Service{Host: s.host, Name: s.name, Namespace: s.namespace, Ports: portsOf(s.workloads), Endpoints: usable(s.workloads)}
	c.applyRules(&out, s)
	if s.entry != nil {
		out.Ports, out.Places = s.ports, s.compiledPlaces()
		verify(&out, s.entry.SubjectAltNames)
		if passthrough(s.entry) {
			out.Policy.LoadBalancer = snapshot.Passthrough
		}
	}
	return out
}

// verify gives the names of an entry's certificates to the TLS that has none of its own
// (istio.io/docs/reference/config/networking/service-entry/#ServiceEntry-subject_alt_names).
func verify(s *snapshot.Service, names []string) {
	if len(names) == 0 {
		return
	}
	give := func(p *snapshot.Policy, ports []snapshot.PortPolicy) {
		for t := range allTLS(p, ports) {
			if len(t.SubjectAltNames) == 0 && !t.Unverified {
				t.SubjectAltNames = names
			}
		}
	}
	give(&s.Policy, s.PortPolicies)
	for i := range s.Subsets {
		give(&s.Subsets[i].Policy, s.Subsets[i].PortPolicies)
	}
}

// allTLS are the TLS settings for servers outside of the mesh.
func allTLS(p *snapshot.Policy, ports []snapshot.PortPolicy) iter.Seq[*snapshot.ClientTLS] {
	return func(yield func(*snapshot.ClientTLS) bool) {
		if p.ClientTLS != nil && !yield(p.ClientTLS) {
			return
		}
		for i := range ports {
			if t := ports[i].ClientTLS; t != nil && !yield(t) {
				return
			}
		}
	}
}

// applyRules adds to out what the rules for it say. Several rules for one host are one: their subsets together, and
// the first traffic policy (istio.io/docs/ops/best-practices/traffic-management/#split-virtual-services).
func (c *compiler) applyRules(out *snapshot.Service, s *service) {
	var policy *networking.TrafficPolicy
	var by *api.Object                            // the rule that policy is of
	from := ""                                    // and its name
	own := map[string]*networking.TrafficPolicy{} // by subset
	ownFrom := map[string]string{}
	for _, o := range c.rulesFor(s) {
		rule := o.Spec.(*networking.DestinationRule)
		if policy == nil {
			policy, from, by = rule.TrafficPolicy, o.String(), o
		}
		for i, subset := range rule.Subsets {
			if slices.ContainsFunc(out.Subsets, func(have snapshot.Subset) bool { return have.Name == subset.Name }) {
				c.problem(o, fmt.Sprintf("spec.subsets[%d].name", i), fmt.Sprintf("an older rule for %s has a subset %q already; this one is not used", s.host, subset.Name))
				continue
			}
			members := slices.DeleteFunc(slices.Clone(s.workloads), func(w *mesh.Workload) bool { return !mesh.Selects(subset.Labels, s.labels(w)) })
			out.Subsets = append(out.Subsets, snapshot.Subset{Name: subset.Name, Endpoints: usable(members)})
			own[subset.Name], ownFrom[subset.Name] = subset.TrafficPolicy, o.String()
		}
	}
	slices.SortFunc(out.Subsets, func(a, b snapshot.Subset) int { return cmp.Compare(a.Name, b.Name) })
	out.Policy, out.PortPolicies = policies(policy, nil)
	saysTLS(&out.Policy, out.PortPolicies, from)
	for i := range out.Subsets {
		sub := &out.Subsets[i]
		sub.Policy, sub.PortPolicies = policies(policy, own[sub.Name])
		if own[sub.Name] != nil {
			saysTLS(&sub.Policy, sub.PortPolicies, ownFrom[sub.Name])
		} else {
			saysTLS(&sub.Policy, sub.PortPolicies, from)
		}
		c.clientSecrets(by, &sub.Policy, sub.PortPolicies)
	}
	c.clientSecrets(by, &out.Policy, out.PortPolicies)
}

// saysTLS notes the rule that says whether endpoints are dialled with mutual TLS.
func saysTLS(p *snapshot.Policy, ports []snapshot.PortPolicy, rule string) {
	if p.TLS != "" || p.ClientTLS != nil {
		p.TLSFrom = rule
	}
	for i := range ports {
		if ports[i].TLS != "" || ports[i].ClientTLS != nil {
			ports[i].TLSFrom = rule
		}
	}
}

// clientSecrets completes the names of the Secrets that policies name, and gives them to gateways.
func (c *compiler) clientSecrets(by *api.Object, p *snapshot.Policy, ports []snapshot.PortPolicy) {
	for t := range allTLS(p, ports) {
		for _, cred := range []*snapshot.Credential{&t.Certificate, &t.CA} {
			switch {
			case cred.Secret == "":
			case c.proxy.Role == mesh.RoleGateway:
				cred.Secret = c.needSecret(by, "spec.trafficPolicy.tls.credentialName", cred.Secret)
			default:
				cred.Secret = c.proxy.Namespace + "/" + cred.Secret
			}
		}
	}
}

// rulesFor are the rules for s in the proxy's namespace, else in the service's, else in the root namespace; among them those
// of the most specific host.
func (c *compiler) rulesFor(s *service) []*api.Object {
	for _, namespace := range []string{c.proxy.Namespace, s.namespace, api.RootNamespace} {
		rules := c.rulesIn(namespace)
		if exact := rules.byHost[s.host]; exact != nil {
			return c.closest(exact)
		}
		for _, pattern := range rules.wildcards {
			if covers(pattern, s.host) {
				return c.closest(rules.byHost[pattern])
			}
		}
	}
	return nil
}

// closest are, of rules for one host, those of the oldest that selects the proxy and has its selector; without one, those for
// all: a rule for some workloads stands instead of one for all
// (istio.io/docs/reference/config/networking/destination-rule/#DestinationRule-workload_selector).
func (c *compiler) closest(rules []*api.Object) []*api.Object {
	if c.needed != nil {
		return rules // a check is about no one proxy
	}
	selector := func(o *api.Object) *istiotype.WorkloadSelector {
		return o.Spec.(*networking.DestinationRule).WorkloadSelector
	}
	i := max(slices.IndexFunc(rules, func(o *api.Object) bool { return selector(o) != nil }), 0)
	return slices.DeleteFunc(slices.Clone(rules), func(o *api.Object) bool { return !proto.Equal(selector(o), selector(rules[i])) })
}

// selects reports whether a rule is for the proxy. A check is about the proxies of all workloads.
func (c *compiler) selects(o *api.Object) bool {
	s := o.Spec.(*networking.DestinationRule).WorkloadSelector
	return s == nil || o.Meta.Namespace == c.proxy.Namespace && (c.needed != nil || mesh.Selects(s.MatchLabels, c.proxy.Labels))
}

// hostRules are the DestinationRules of one namespace that the proxy may know.
type hostRules struct {
	byHost    map[string][]*api.Object // the oldest first
	wildcards []string                 // hosts, the most specific first
}

func (c *compiler) rulesIn(namespace string) *hostRules {
	if rules := c.rules[namespace]; rules != nil {
		return rules
	}
	rules := &hostRules{byHost: map[string][]*api.Object{}}
	for _, o := range c.destinationRules {
		if o.Meta.Namespace != namespace || !visible(o, c.proxy.Namespace) || !c.selects(o) {
			continue
		}
		host := c.catalog.resolve(o.Spec.(*networking.DestinationRule).Host, namespace)
		if strings.HasPrefix(host, "*") && rules.byHost[host] == nil {
			rules.wildcards = append(rules.wildcards, host)
		}
		rules.byHost[host] = append(rules.byHost[host], o)
	}
	slices.SortFunc(rules.wildcards, func(a, b string) int { return len(b) - len(a) })
	if c.rules == nil {
		c.rules = map[string]*hostRules{}
	}
	c.rules[namespace] = rules
	return rules
}
