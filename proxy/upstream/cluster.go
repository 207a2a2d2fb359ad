package upstream

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Cluster is the endpoints behind a service or one of its subsets, with the policy for sending to them.
type Cluster struct {
	// Service is nil only in tests.
	Service *snapshot.Service
	Subset  string
	// Endpoints are all, also those that are out for failing.
	Endpoints []*Endpoint

	host       string
	policy     snapshot.Policy
	points     *points    // of consistent hashing; nil without
	preference preference // nil where all endpoints are alike

	placed   bool // some endpoint is more than a workload
	weighted bool // some endpoint has a weight
	state    *clusterState
	names    portMap[string]
}

// clusterState survives a change of the routing table.
type clusterState struct {
	turn     atomic.Uint32
	limits   *limits   // nil where nothing is bounded
	detector *detector // nil where nobody is taken out
	reached  atomic.Bool
	gone     atomic.Int64 // since when no request reaches an endpoint, in unix nanoseconds; 0 where the last one did
}

// NewCluster makes a cluster. From old, the cluster of the same name before, it takes over the turn, and if its policy is
// the same then also connections, counters, and who is out. Where the policy is about connections or health, the cluster has
// endpoints of its own, at the places of those that it is given: others have nothing to do with its bounds. self is the workload
// that sends, nil where that does not matter.
func NewCluster(s *snapshot.Service, subset string, policy snapshot.Policy, endpoints []*Endpoint, old *Cluster, self *snapshot.Workload) *Cluster {
	c := &Cluster{Service: s, Subset: subset, Endpoints: endpoints, policy: policy}
	if s != nil {
		c.host = s.Host
	}
	same := old != nil && reflect.DeepEqual(old.policy, policy)
	switch {
	case same:
		c.state = old.state
		if len(endpoints) == 0 && len(old.Endpoints) > 0 {
			c.state.gone.CompareAndSwap(0, time.Now().UnixNano())
		}
	default:
		c.state = &clusterState{limits: newLimits(&policy), detector: newDetector(policy.Outlier)}
		// Begin anywhere: many proxies that start together must not all turn to the first endpoint.
		c.state.turn.Store(rand.Uint32())
		if old != nil {
			c.state.turn.Store(old.state.turn.Load())
		}
	}
	for _, e := range endpoints {
		c.placed = c.placed || e.place != nil
		c.weighted = c.weighted || e.weight() > 1
	}
	if c.placed || ownEndpoints(&policy) {
		var before []*Endpoint
		if same {
			before = old.Endpoints
		}
		c.adopt(endpoints, before, self)
	}
	if policy.Hash != nil {
		var before *points
		if same {
			before = old.points
		}
		c.points = newPoints(policy.Hash, c.Endpoints, before)
	}
	return c
}

func ownEndpoints(p *snapshot.Policy) bool {
	return p.Connections != nil || p.Outlier != nil || p.Warmup != nil || p.RetryBudget != nil || p.TLS != "" || p.ClientTLS != nil || p.Locality != nil
}

// adopt gives the cluster endpoints of its own, with the state of those it had before.
func (c *Cluster) adopt(places, before []*Endpoint, self *snapshot.Workload) {
	c.Endpoints = make([]*Endpoint, 0, len(places))
	for _, p := range places {
		e := &Endpoint{Workload: p.Workload, Addr: p.Addr, Identity: p.Identity, place: p.place, settings: c.policy.Connections, limits: c.state.limits, detector: c.state.detector}
		e.mutual = c.policy.TLS == snapshot.TLSMutual
		switch {
		case c.policy.ClientTLS != nil:
			e.Identity, e.tls, e.serverName = "", c.policy.ClientTLS, c.host
		case c.policy.TLS == snapshot.TLSDisable:
			e.Identity = ""
		case e.mutual && p.Identity == "" && p.Workload != nil && p.Workload.Identity == "":
			e.unreachable = errNoIdentity
		case c.policy.TLS == snapshot.TLSMutual:
			e.serverName = c.policy.ServerName
			if p.Workload != nil {
				e.Identity = cmp.Or(p.Workload.Identity, p.Identity) // also of a gateway, which takes it at a port that says so
			}
		}
		for _, b := range before {
			if b.samePlace(e) {
				e.state = b.state
			}
		}
		if e.state == nil {
			e.state = &endpointState{}
			if before != nil {
				e.state.born = time.Now()
			}
		}
		c.Endpoints = append(c.Endpoints, e)
	}
	c.locate(self)
	if l := c.state.limits; l != nil {
		l.members.Store(&c.Endpoints)
	}
	if d := c.state.detector; d != nil {
		d.setMembers(c.Endpoints)
	}
}

// Name is Istio's name of the cluster at a port: outbound|9080|v1|reviews.default.svc.cluster.local.
func (c *Cluster) Name(port uint16) string {
	if n, ok := c.names.get(port); ok {
		return n
	}
	return c.names.add(port, ClusterName("outbound", port, c.Subset, c.host))
}

// ClusterName is direction|port|subset|host.
func ClusterName(direction string, port uint16, subset, host string) string {
	return direction + "|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// ClientTLS is how servers outside of the mesh are spoken to; nil for plain text.
func (c *Cluster) ClientTLS() *snapshot.ClientTLS { return c.policy.ClientTLS }

// ServerName is what such a server is asked for: the host, or for one with a wildcard what was asked for by the client.
func (c *Cluster) ServerName(asked string) string {
	if strings.HasPrefix(c.host, "*") {
		return asked
	}
	return c.host
}

// Passthrough reports whether requests go to the very address that their client dialled.
func (c *Cluster) Passthrough() bool { return c.policy.LoadBalancer == snapshot.Passthrough }

// Hash says what of a request chooses the endpoint by PickKey; nil where Pick does.
func (c *Cluster) Hash() *snapshot.Hash { return c.policy.Hash }

// Pick chooses an endpoint, one that is not in avoid if there is such a one; nil if there is none at all, or all are out.
func (c *Cluster) Pick(avoid []*Endpoint) *Endpoint {
	s := sieve{avoid: avoid, now: c.state.detector.clock(c.Endpoints)}
	n := c.passing(&s)
	if n == 0 && len(avoid) > 0 {
		s.avoid = nil
		n = c.passing(&s)
	}
	if n == 0 {
		return nil
	}
	n = c.near(&s, n, rand.Float64)
	e := c.choose(&s, n)
	// An endpoint that warms up is often passed over; the bound is for when all do.
	for range 8 {
		if c.policy.Warmup == nil || e.warm(c.policy.Warmup, time.Now()) >= rand.Float64() {
			break
		}
		e = c.choose(&s, n)
	}
	return e
}

// near bounds s to the group of a preference that random leads to, of which not all are to be avoided. n is how many s lets through.
func (c *Cluster) near(s *sieve, n int, random func() float64) int {
	if c.preference == nil {
		return n
	}
	s.group = c.preference.choose(c.Endpoints, s.now, random())
	if m := c.passing(s); m > 0 {
		return m
	}
	s.group = 0
	return n
}

// sieve lets some of the endpoints through.
type sieve struct {
	avoid []*Endpoint
	now   int64 // unix nanoseconds where some may be out; 0 where all are in
	group int   // of a preference; 0 is any
}

func (s *sieve) all() bool { return len(s.avoid) == 0 && s.now == 0 && s.group == 0 }

func (s *sieve) passes(e *Endpoint) bool {
	return (s.group == 0 || s.group == e.group) && (s.now == 0 || !e.out(s.now)) && !among(e, s.avoid)
}

// passing counts the endpoints that s lets through. Where too few are in, those that are out count too.
func (c *Cluster) passing(s *sieve) int {
	if s.now != 0 && c.state.detector.panics(c.Endpoints, s.now) {
		s.now = 0
	}
	if s.all() {
		return len(c.Endpoints)
	}
	n := 0
	for _, e := range c.Endpoints {
		if s.passes(e) {
			n++
		}
	}
	return n
}

// at is the endpoint i of those that s lets through.
func (c *Cluster) at(s *sieve, i uint32) *Endpoint {
	if s.all() {
		return c.Endpoints[i]
	}
	var last *Endpoint
	for _, e := range c.Endpoints {
		if !s.passes(e) {
			continue
		}
		last = e
		if i == 0 {
			break
		}
		i--
	}
	return last
}

func (c *Cluster) choose(s *sieve, count int) *Endpoint {
	n := uint32(count) //nolint:gosec // a mesh has fewer endpoints than 2^32
	switch {
	case n == 1:
		return c.at(s, 0)
	case c.weighted:
		return c.chooseWeighted(s)
	case c.policy.LoadBalancer == snapshot.RoundRobin:
		return c.at(s, c.state.turn.Add(1)%n)
	case c.policy.LoadBalancer == snapshot.Random || c.policy.Hash != nil:
		return c.at(s, rand.Uint32N(n))
	}
	// The less busy of two different endpoints chosen at random
	// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancers#weighted-least-request).
	i := rand.Uint32N(n)
	j := rand.Uint32N(n - 1)
	if j >= i {
		j++
	}
	one, other := c.at(s, i), c.at(s, j)
	if other.Active() < one.Active() {
		return other
	}
	return one
}

// chooseWeighted chooses as choose does, each endpoint in proportion to its weight
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancers).
func (c *Cluster) chooseWeighted(s *sieve) *Endpoint {
	var total uint64
	for _, e := range c.Endpoints {
		if s.passes(e) {
			total += e.weight()
		}
	}
	at := func(point uint64) (last *Endpoint) {
		for _, e := range c.Endpoints {
			if !s.passes(e) {
				continue
			}
			if last = e; point < e.weight() {
				break
			}
			point -= e.weight()
		}
		return last
	}
	switch {
	case c.policy.LoadBalancer == snapshot.RoundRobin:
		// Multiples of the golden ratio spread evenly over the weights, so that no endpoint gets its share at one go.
		const golden = 2654435769
		return at(uint64(c.state.turn.Add(1)*golden) * total >> 32)
	case c.policy.LoadBalancer == snapshot.Random || c.policy.Hash != nil:
		return at(rand.Uint64N(total))
	}
	one, other := at(rand.Uint64N(total)), at(rand.Uint64N(total))
	if load(other)*one.weight() < load(one)*other.weight() {
		return other
	}
	return one
}

func load(e *Endpoint) uint64 { return uint64(max(e.Active(), 0)) } //nolint:gosec // it is not negative

// PickKey chooses the endpoint of a key. It stays the same while it is there and in; when one comes or goes, only a fair
// share of the keys changes place.
func (c *Cluster) PickKey(key uint64) *Endpoint {
	s := sieve{now: c.state.detector.clock(c.Endpoints)}
	n := c.passing(&s)
	if n == 0 {
		return nil
	}
	c.near(&s, n, func() float64 { return float64(mix(key)>>11) / (1 << 53) }) // the same for the key, while the endpoints are the same
	return c.points.pick(key, func(i int) bool { return s.passes(c.Endpoints[i]) }, c.Endpoints)
}

// BeginRetry counts a request that is sent again, until EndRetry. It reports false where there are too many.
func (c *Cluster) BeginRetry() bool { return c.state.limits == nil || c.state.limits.beginRetry() }

// EndRetry ends what BeginRetry began.
func (c *Cluster) EndRetry() {
	if c.state.limits != nil {
		c.state.limits.retries.Add(-1)
	}
}

// Reached says that a request has reached an endpoint.
func (c *Cluster) Reached() {
	// Seldom anything changes, and loads are cheaper than stores.
	if !c.state.reached.Load() {
		c.state.reached.Store(true)
	}
	if c.state.gone.Load() != 0 {
		c.state.gone.Store(0)
	}
}

// Awaits reports whether a request that has reached no endpoint is worth another try: one was reached before, and has been gone
// for less than d. Where failing endpoints are taken out, it is the policy that says what becomes of requests.
func (c *Cluster) Awaits(d time.Duration) bool {
	if !c.state.reached.Load() || c.state.detector != nil {
		return false
	}
	now := time.Now().UnixNano()
	c.state.gone.CompareAndSwap(0, now)
	return now-c.state.gone.Load() < int64(d)
}

// Continues reports whether c is a cluster of before with its policy and its counters.
func (c *Cluster) Continues(before *Cluster) bool { return c.state == before.state }

// Member is the cluster's endpoint at an address, or nil.
func (c *Cluster) Member(ip netip.Addr) *Endpoint {
	for _, e := range c.Endpoints {
		if e.Addr == ip {
			return e
		}
	}
	return nil
}

func among(e *Endpoint, list []*Endpoint) bool {
	for _, a := range list {
		if a == e {
			return true
		}
	}
	return false
}
