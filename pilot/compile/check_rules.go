package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// rules are the routes of one protocol of a VirtualService, as far as finding out goes which of them are ever used.
type rules struct {
	path  string // spec.http
	count int
	// matches are those of a rule, everything whether it takes whatever comes.
	matches    func(rule int) []proto.Message
	everything func(rule int) bool
}

// checkReachable finds rules that nothing can reach: those behind one that matches everything, and those whose every match
// stands in a rule before; and matches that one before takes the requests of.
func (c *compiler) checkReachable(o *api.Object, vs *networking.VirtualService) {
	c.checkRules(o, rules{"spec.http", len(vs.Http),
		func(i int) []proto.Message { return messages(vs.Http[i].Match) },
		func(i int) bool { return catchesAll(vs.Http[i].Match) }})
	c.checkRules(o, rules{"spec.tls", len(vs.Tls),
		func(i int) []proto.Message { return messages(vs.Tls[i].Match) },
		func(int) bool { return false }}) // each names server names
	c.checkRules(o, rules{"spec.tcp", len(vs.Tcp),
		func(i int) []proto.Message { return messages(vs.Tcp[i].Match) },
		func(i int) bool { return len(vs.Tcp[i].Match) == 0 }})
}

func messages[M proto.Message](list []M) []proto.Message {
	out := make([]proto.Message, len(list))
	for i, m := range list {
		out[i] = m
	}
	return out
}

func (c *compiler) checkRules(o *api.Object, r rules) {
	type place struct{ rule, match int }
	var seen []proto.Message
	var places []place
	everything := -1
	for i := range r.count {
		path := fmt.Sprintf("%s[%d]", r.path, i)
		if everything >= 0 {
			c.report(analysis.UnreachableRule, o, path, fmt.Sprintf("the rule is not used: %s[%d] matches everything", r.path, everything))
			continue
		}
		matches := r.matches(i)
		used := len(matches) == 0
		for j, m := range matches {
			k := slices.IndexFunc(seen, func(s proto.Message) bool { return sameMatch(s, m) })
			if k < 0 {
				used = true
				if k = slices.IndexFunc(seen, func(s proto.Message) bool { return takesAll(s, m) }); k >= 0 && (places[k].rule != i || prefixed(m)) {
					c.report(analysis.IneffectiveMatch, o, fmt.Sprintf("%s.match[%d]", path, j), fmt.Sprintf("the match is not used: %s[%d].match[%d] takes all its requests", r.path, places[k].rule, places[k].match))
				}
				seen, places = append(seen, m), append(places, place{i, j})
				continue
			}
			if places[k].rule == i {
				c.report(analysis.IneffectiveMatch, o, fmt.Sprintf("%s.match[%d]", path, j), fmt.Sprintf("the match is that of match[%d]", places[k].match))
			} else {
				c.report(analysis.IneffectiveMatch, o, fmt.Sprintf("%s.match[%d]", path, j), fmt.Sprintf("the match is not used: %s[%d].match[%d] is the same", r.path, places[k].rule, places[k].match))
			}
		}
		if !used {
			c.report(analysis.UnreachableRule, o, path, "the rule is not used: rules before it have all its matches")
		}
		if r.everything(i) {
			everything = i
		}
	}
}

// sameMatch compares what two matches ask for, not what they are called.
func sameMatch(a, b proto.Message) bool { return proto.Equal(unnamed(a), unnamed(b)) }

func unnamed(m proto.Message) proto.Message {
	http, ok := m.(*networking.HTTPMatchRequest)
	if !ok {
		return m
	}
	http = proto.Clone(http).(*networking.HTTPMatchRequest)
	http.Name, http.StatPrefix = "", ""
	return http
}

// prefixed reports whether a match is one of a prefix of the path. Beside a shorter one in the same rule only such are
// told of, as in Istio: whole paths there change nothing, and may be meant for people.
func prefixed(m proto.Message) bool {
	http, ok := m.(*networking.HTTPMatchRequest)
	return ok && http.GetUri().GetPrefix() != ""
}

// takesAll reports whether every request that b matches, a does too, since its prefix of a path is the shorter and all
// else that it asks for b asks for, too.
func takesAll(a, b proto.Message) bool {
	first, ok := unnamed(a).(*networking.HTTPMatchRequest)
	if !ok || first.GetUri().GetPrefix() == "" {
		return false
	}
	then := unnamed(b).(*networking.HTTPMatchRequest)
	if !strings.HasPrefix(then.GetUri().GetPrefix(), first.GetUri().GetPrefix()) && !strings.HasPrefix(then.GetUri().GetExact(), first.GetUri().GetPrefix()) {
		return false
	}
	first.Uri = nil
	all := first.IgnoreUriCase == then.IgnoreUriCase
	first.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		all = all && v.Equal(then.ProtoReflect().Get(f))
		return all
	})
	return all
}

// catchesAll reports whether a rule with these matches takes every request, wherever it comes from.
func catchesAll(matches []*networking.HTTPMatchRequest) bool {
	return len(matches) == 0 || slices.ContainsFunc(matches, func(m *networking.HTTPMatchRequest) bool {
		match := matchOf(m)
		if u := match.URI; u != nil && (u.Prefix == "/" || u.Regex == ".*") {
			match.URI = nil
		}
		return len(m.Gateways) == 0 && m.SourceNamespace == "" && len(m.SourceLabels) == 0 && isEverything(match)
	})
}

// checkGatewayHosts finds hosts that no Gateway of the VirtualService lets in: nothing reaches them from there.
func (c *compiler) checkGatewayHosts(o *api.Object, vs *networking.VirtualService) {
	for i, name := range vs.Gateways {
		if name == api.MeshGateway {
			continue
		}
		met := slices.ContainsFunc(c.gateways, func(g *api.Object) bool {
			return g.Meta.Namespace+"/"+g.Meta.Name == qualify(name, o.Meta.Namespace) && slices.ContainsFunc(g.Spec.(*networking.Gateway).Servers, func(s *networking.Server) bool {
				return len(c.serverDomains(g, s, o)) > 0
			})
		})
		if !met {
			c.report(analysis.HostNotFoundInGateway, o, fmt.Sprintf("spec.gateways[%d]", i), fmt.Sprintf("no server of Gateway %s has one of the hosts %s: nothing comes from there", name, strings.Join(vs.Hosts, ", ")))
		}
	}
}

// checkGatewaySubsets finds destinations without a subset of a VirtualService for gateways, where the host has another
// VirtualService that chooses one: its rules hold for what asks for the host itself, and a gateway's clients don't.
func (c *compiler) checkGatewaySubsets(o *api.Object, vs *networking.VirtualService) {
	if !slices.ContainsFunc(vs.Gateways, func(name string) bool { return name != api.MeshGateway }) {
		return
	}
	for i, r := range vs.Http {
		for j, d := range r.Route {
			if d.Destination.GetSubset() != "" {
				continue
			}
			host := c.catalog.resolve(d.Destination.GetHost(), o.Meta.Namespace)
			if other := c.chooser(host); other != nil && other.String() != o.String() {
				c.report(analysis.RulesNotForGateway, o, fmt.Sprintf("spec.http[%d].route[%d].destination", i, j),
					fmt.Sprintf("the rules of %s choose a subset of %s, and do not hold for what comes from a gateway: it goes to all subsets", other, host))
			}
		}
	}
}

// chooser is the VirtualService for a host that sends its requests to a subset of it, nil if there is none.
func (c *compiler) chooser(host string) *api.Object {
	for _, o := range c.virtualServices {
		vs := o.Spec.(*networking.VirtualService)
		its := func(h string) bool { return c.catalog.resolve(h, o.Meta.Namespace) == host }
		if slices.ContainsFunc(vs.Hosts, its) && slices.ContainsFunc(vs.Http, func(r *networking.HTTPRoute) bool {
			return slices.ContainsFunc(r.Route, func(d *networking.HTTPRouteDestination) bool {
				return d.Destination.GetSubset() != "" && its(d.Destination.GetHost())
			})
		}) {
			return o
		}
	}
	return nil
}

// checkPolicies finds what is questionable about the traffic policies of a rule.
func (c *compiler) checkPolicies(o *api.Object, rule *networking.DestinationRule) {
	c.checkPolicy(o, "spec.trafficPolicy", rule.TrafficPolicy)
	for i, s := range rule.Subsets {
		c.checkPolicy(o, fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), s.TrafficPolicy)
	}
}

func (c *compiler) checkPolicy(o *api.Object, path string, policy *networking.TrafficPolicy) {
	c.checkVerification(o, path, policy.GetTls(), analysis.NoServerVerification)
	c.checkPool(o, path, policy.GetConnectionPool())
	for i, p := range policy.GetPortLevelSettings() {
		at := fmt.Sprintf("%s.portLevelSettings[%d]", path, i)
		c.checkVerification(o, at, p.Tls, analysis.NoServerVerificationAtPort)
		c.checkPool(o, at, p.ConnectionPool)
	}
}

// checkVerification finds TLS to servers of which nothing says whose certificates are right.
func (c *compiler) checkVerification(o *api.Object, path string, t *networking.ClientTLSSettings, code analysis.Code) {
	if (t.GetMode() == networking.ClientTLSSettings_SIMPLE || t.GetMode() == networking.ClientTLSSettings_MUTUAL) &&
		t.CaCertificates == "" && t.CredentialName == "" && !t.InsecureSkipVerify.GetValue() {
		c.report(code, o, path+".tls", "neither caCertificates nor credentialName says which CAs may have signed the server's certificate: any public one that the system knows may")
	}
}

// checkPool finds settings of HTTP/2 connections that the proxies do without.
func (c *compiler) checkPool(o *api.Object, path string, pool *networking.ConnectionPoolSettings) {
	if pool.GetHttp().GetMaxConcurrentStreams() != 0 {
		c.problem(o, path+".connectionPool.http.maxConcurrentStreams", "it is not used: a connection has as many streams as the server allows; http2MaxRequests bounds them all")
	}
	if pool.GetHttp().GetHttp2KeepAlive() != nil {
		c.problem(o, path+".connectionPool.http.http2KeepAlive", "it is not used: no PING is sent; tcp.tcpKeepalive finds servers that are gone")
	}
}

// checkFailover finds a preference for localities that nothing comes of, since no endpoint is ever found failing.
func (c *compiler) checkFailover(o *api.Object, rule *networking.DestinationRule) {
	check := func(path string, lb *networking.LoadBalancerSettings, outlier *networking.OutlierDetection) {
		if l := lb.GetLocalityLbSetting(); len(l.GetFailover())+len(l.GetFailoverPriority()) > 0 && outlier == nil {
			c.problem(o, path+".loadBalancer.localityLbSetting", "it is not used: without outlierDetection no endpoint is found failing, and all are alike")
		}
	}
	whole := func(path string, p *networking.TrafficPolicy, below *networking.TrafficPolicy) {
		check(path, p.GetLoadBalancer(), cmp.Or(p.GetOutlierDetection(), below.GetOutlierDetection()))
		for i, port := range p.GetPortLevelSettings() {
			check(fmt.Sprintf("%s.portLevelSettings[%d]", path, i), port.GetLoadBalancer(), port.GetOutlierDetection())
		}
	}
	whole("spec.trafficPolicy", rule.TrafficPolicy, nil)
	for i, s := range rule.Subsets {
		whole(fmt.Sprintf("spec.subsets[%d].trafficPolicy", i), s.TrafficPolicy, rule.TrafficPolicy)
	}
}

// checkClients finds rules for no workload.
func (c *compiler) checkClients(o *api.Object, rule *networking.DestinationRule) {
	if s := rule.WorkloadSelector; s != nil {
		c.checkSelector(analysis.NoMatchingWorkloads, o, "spec.workloadSelector", s.MatchLabels, func(w *mesh.Workload) bool { return w.Namespace == o.Meta.Namespace })
	}
}

// checkSelector finds a selector without labels, which selects all that may be, and one that selects none of these, which is told by code.
func (c *compiler) checkSelector(code analysis.Code, o *api.Object, path string, labels map[string]string, may func(*mesh.Workload) bool) {
	if len(labels) == 0 {
		c.problem(o, path, "it has no labels: it selects all workloads of namespace "+o.Meta.Namespace)
		return
	}
	if !slices.ContainsFunc(c.sorted, func(w *mesh.Workload) bool { return may(w) && mesh.Selects(labels, w.Labels) }) {
		c.report(code, o, path, "no workload of namespace "+o.Meta.Namespace+" has these labels")
	}
}

// checkSubsets finds subsets without a workload.
func (c *compiler) checkSubsets(o *api.Object, rule *networking.DestinationRule) {
	s := c.catalog.services[c.catalog.resolve(rule.Host, o.Meta.Namespace)]
	if s == nil {
		return
	}
	for i, subset := range rule.Subsets {
		if !slices.ContainsFunc(s.workloads, func(w *mesh.Workload) bool { return mesh.Selects(subset.Labels, w.Labels) }) {
			c.report(analysis.SubsetSelectsNothing, o, fmt.Sprintf("spec.subsets[%d]", i), fmt.Sprintf("no workload of %s has the labels of subset %q", s.host, subset.Name))
		}
	}
}

// checkServers finds servers that another Gateway of the same proxies has too.
func (c *compiler) checkServers(o *api.Object, gw *networking.Gateway) {
	for _, other := range c.gateways {
		spec := other.Spec.(*networking.Gateway)
		if other.String() == o.String() {
			continue
		}
		conflicting := maps.Equal(spec.Selector, gw.Selector) || slices.ContainsFunc(c.sorted, func(w *mesh.Workload) bool {
			return w.Role == mesh.RoleGateway && mesh.Selects(gw.Selector, w.Labels) && mesh.Selects(spec.Selector, w.Labels)
		})
		for i, server := range gw.Servers {
			for _, theirs := range spec.Servers {
				both := slices.DeleteFunc(slices.Clone(server.Hosts), func(h string) bool { return !slices.Contains(theirs.Hosts, h) })
				if name := server.Tls.GetCredentialName(); name != "" && name == theirs.Tls.GetCredentialName() && mesh.Selects(gw.Selector, spec.Selector) {
					c.report(analysis.GatewayDuplicateCertificate, o, fmt.Sprintf("spec.servers[%d].tls.credentialName", i), fmt.Sprintf("%s shows the certificate %s too: a client that uses an HTTP/2 connection to one of them for a host of the other gets 404", other, name))
				}
				if port := server.GetPort().GetNumber(); conflicting && port != 0 && port == theirs.GetPort().GetNumber() && len(both) > 0 {
					c.report(analysis.ConflictingGateways, o, fmt.Sprintf("spec.servers[%d].hosts", i), fmt.Sprintf("%s has a server for %s on port %d too", other, strings.Join(both, ", "), port))
				}
			}
		}
	}
}

func portList(ports []snapshot.Port) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = strconv.Itoa(int(p.Number))
	}
	return strings.Join(list, ", ")
}
