package upstream

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// preference is which endpoints are preferred for where they are: levels of which a further one is used as far as those before
// it fail, each of groups that share its requests by weight
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/priority).
type preference [][]share

// share is the endpoints of a group, and their part of a level.
type share struct {
	group  int
	weight float64
}

// overprovisioning is how much of a level's load its remaining endpoints take on before a further level gets some: with 72 % of
// them in, none is sent away. It is Envoy's factor.
const overprovisioning = 1.4

// locate groups the cluster's own endpoints by where they are, as seen from self. Endpoints that get nothing leave the cluster.
// Without a rule, failing endpoints are replaced by those of the next locality
// (https://istio.io/latest/docs/tasks/traffic-management/locality-load-balancing/).
func (c *Cluster) locate(self *snapshot.Workload) {
	l := c.policy.Locality
	switch {
	case self == nil || l != nil && l.Off:
	case l != nil && len(l.Distribute) > 0:
		c.distribute(l.Distribute, localityOf(self))
	case c.policy.Outlier != nil:
		if l == nil {
			l = &snapshot.Locality{}
		}
		c.failOver(l, self)
	}
}

func (c *Cluster) distribute(rules []snapshot.Distribute, from []string) {
	i := slices.IndexFunc(rules, func(d snapshot.Distribute) bool { return within(from, d.From) })
	if i < 0 {
		return
	}
	level := make([]share, len(rules[i].To))
	for g, to := range rules[i].To {
		level[g] = share{g + 1, float64(to.Weight)}
	}
	c.Endpoints = slices.DeleteFunc(c.Endpoints, func(e *Endpoint) bool {
		e.group = 1 + slices.IndexFunc(rules[i].To, func(to snapshot.LocalityShare) bool { return within(localityOf(e.Workload), to.Locality) })
		return e.group == 0
	})
	c.preference = preference{level}
}

func (c *Cluster) failOver(l *snapshot.Locality, self *snapshot.Workload) {
	ranks := map[int]int{}
	for _, e := range c.Endpoints {
		e.group = 1 + rank(l, self, e.Workload)
		ranks[e.group]++
	}
	if len(ranks) < 2 {
		return
	}
	for _, g := range slices.Sorted(maps.Keys(ranks)) {
		c.preference = append(c.preference, []share{{g, 1}})
	}
}

// rank is how far w is from self: by the labels that a rule lists, and then by locality where it says so or lists none.
func rank(l *snapshot.Locality, self, w *snapshot.Workload) int {
	unlike := 0
	if n := len(l.Priority); n > 0 {
		unlike = n
		for _, label := range l.Priority {
			key, want, given := strings.Cut(label, "=")
			if !given {
				want = topology(self, key)
			}
			if topology(w, key) != want {
				break
			}
			unlike--
		}
		if len(l.Failover) == 0 {
			return unlike
		}
	}
	const distances = 5
	return unlike*distances + distance(l.Failover, localityOf(self), localityOf(w))
}

// distance is 0 in the same subzone, 1 in the same zone, 2 in the same region, 3 in another; 4 where rules want one other region
// and this is none of it.
func distance(rules []snapshot.Failover, from, to []string) int {
	for same := range from {
		if from[same] == to[same] {
			continue
		}
		if same == 0 {
			for _, f := range rules {
				if f.From == from[0] && f.To != to[0] {
					return 4
				} else if f.From == from[0] {
					break
				}
			}
		}
		return 3 - same
	}
	return 0
}

// localityOf is a workload's region, zone and subzone, each empty where it is not said: its label istio-locality, with slashes or,
// as a label's value elsewhere may have none, dots between them.
func localityOf(w *snapshot.Workload) []string {
	parts := make([]string, 3)
	if w == nil {
		return parts
	}
	text := w.Labels[snapshot.LocalityLabel]
	if !strings.Contains(text, "/") {
		text = strings.ReplaceAll(text, ".", "/")
	}
	copy(parts, strings.SplitN(text, "/", 3))
	return parts
}

// topology is a workload's label, among them those by which Kubernetes and Istio name the parts of a locality.
func topology(w *snapshot.Workload, key string) string {
	if i := slices.Index([]string{"topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"}, key); i >= 0 {
		return localityOf(w)[i]
	}
	if w == nil {
		return ""
	}
	return w.Labels[key]
}

// within reports whether a locality is that of a pattern: region, region/zone or region/zone/subzone, of which the last may be *.
func within(at []string, pattern string) bool {
	for i, part := range strings.SplitN(pattern, "/", 3) {
		if part == "*" {
			return true
		}
		if at[i] != part {
			return false
		}
	}
	return true
}

// choose is the group that random, which is below 1, leads to; 0 where no group has an endpoint that is in.
func (s preference) choose(endpoints []*Endpoint, now int64, random float64) (group int) {
	total := 0.
	for _, load := range s.loads(endpoints, now) {
		total += load
	}
	random *= total
	for g, load := range s.loads(endpoints, now) {
		if load == 0 {
			continue
		}
		if group = g; random < load {
			break
		}
		random -= load
	}
	return group
}

// loads are the parts of all requests that groups get: a level as much as it has endpoints for, a further one what is left.
func (s preference) loads(endpoints []*Endpoint, now int64) iter.Seq2[int, float64] {
	return func(yield func(int, float64) bool) {
		left := 1.
		for _, level := range s {
			all, can := 0., 0.
			for _, sh := range level {
				all += sh.weight
				can += sh.weight * available(endpoints, sh.group, now)
			}
			if can == 0 {
				continue
			}
			load := min(left, can/all)
			left -= load
			for _, sh := range level {
				if !yield(sh.group, load*sh.weight*available(endpoints, sh.group, now)/can) {
					return
				}
			}
		}
	}
}

// available is how much of its load a group can take, by its endpoints that are in.
func available(endpoints []*Endpoint, group int, now int64) float64 {
	in, all := 0, 0
	for _, e := range endpoints {
		if e.group != group {
			continue
		}
		if all++; now == 0 || !e.out(now) {
			in++
		}
	}
	if all == 0 {
		return 0
	}
	return min(1, overprovisioning*float64(in)/float64(all))
}
