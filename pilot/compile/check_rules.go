package compile

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// checkReachable finds rules that no request can reach: those behind one that matches everything, and those whose every
// match stands in a rule before.
func (c *compiler) checkReachable(o *api.Object, vs *networking.VirtualService) {
	type place struct{ rule, match int }
	var seen []*networking.HTTPMatchRequest
	var places []place
	everything := -1
	for i, r := range vs.Http {
		path := fmt.Sprintf("spec.http[%d]", i)
		if everything >= 0 {
			c.report(UnreachableRule, o, path, fmt.Sprintf("the rule is not used: spec.http[%d] matches every request", everything))
			continue
		}
		used := len(r.Match) == 0
		for j, m := range r.Match {
			k := slices.IndexFunc(seen, func(s *networking.HTTPMatchRequest) bool { return sameMatch(s, m) })
			switch {
			case k < 0:
				used = true
				seen, places = append(seen, m), append(places, place{i, j})
			case places[k].rule == i:
				c.report(IneffectiveMatch, o, fmt.Sprintf("%s.match[%d]", path, j), fmt.Sprintf("the match is that of match[%d]", places[k].match))
			default:
				c.report(IneffectiveMatch, o, fmt.Sprintf("%s.match[%d]", path, j), fmt.Sprintf("the match is not used: spec.http[%d].match[%d] is the same", places[k].rule, places[k].match))
			}
		}
		if !used {
			c.report(UnreachableRule, o, path, "the rule is not used: rules before it have all its matches")
		}
		if catchesAll(r.Match) {
			everything = i
		}
	}
}

// sameMatch compares what two matches ask for, not what they are called.
func sameMatch(a, b *networking.HTTPMatchRequest) bool {
	a, b = proto.Clone(a).(*networking.HTTPMatchRequest), proto.Clone(b).(*networking.HTTPMatchRequest)
	a.Name, b.Name, a.StatPrefix, b.StatPrefix = "", "", "", ""
	return proto.Equal(a, b)
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
		for _, g := range c.gateways {
			if g.Meta.Namespace+"/"+g.Meta.Name != qualify(name, o.Meta.Namespace) {
				continue
			}
			met := slices.ContainsFunc(g.Spec.(*networking.Gateway).Servers, func(s *networking.Server) bool {
				return len(c.serverDomains(g, s, o)) > 0
			})
			if !met {
				c.report(HostNotFoundInGateway, o, fmt.Sprintf("spec.gateways[%d]", i), fmt.Sprintf("no server of Gateway %s has one of the hosts %s: nothing comes from there", name, strings.Join(vs.Hosts, ", ")))
			}
		}
	}
}

// checkSubsets finds subsets without a workload.
func (c *compiler) checkSubsets(o *api.Object, rule *networking.DestinationRule) {
	s := c.catalog.services[c.catalog.resolve(rule.Host, o.Meta.Namespace)]
	if s == nil {
		return
	}
	for i, subset := range rule.Subsets {
		if !slices.ContainsFunc(s.workloads, func(w *mesh.Workload) bool { return Selects(subset.Labels, w.Labels) }) {
			c.report(SubsetSelectsNothing, o, fmt.Sprintf("spec.subsets[%d]", i), fmt.Sprintf("no workload of %s has the labels of subset %q", s.host, subset.Name))
		}
	}
}

// checkServers finds servers that another Gateway of the same proxies has too.
func (c *compiler) checkServers(o *api.Object, gw *networking.Gateway) {
	for _, other := range c.gateways {
		spec := other.Spec.(*networking.Gateway)
		if other == o || other.String() == o.String() || !maps.Equal(spec.Selector, gw.Selector) {
			continue
		}
		for i, server := range gw.Servers {
			for _, theirs := range spec.Servers {
				both := slices.DeleteFunc(slices.Clone(server.Hosts), func(h string) bool { return !slices.Contains(theirs.Hosts, h) })
				if server.Port.Number == theirs.Port.Number && len(both) > 0 {
					c.report(ConflictingGateways, o, fmt.Sprintf("spec.servers[%d].hosts", i), fmt.Sprintf("%s has a server for %s on port %d too", other, strings.Join(both, ", "), server.Port.Number))
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
