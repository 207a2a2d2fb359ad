package upstream

import (
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Cluster is the endpoints behind a service or one of its subsets.
type Cluster struct {
	// Service is nil only in tests.
	Service   *snapshot.Service
	Subset    string
	Endpoints []*Endpoint

	host   string
	policy snapshot.LoadBalancer
	turn   *atomic.Uint32
	names  portMap[string]
}

// NewCluster makes a cluster. With old, the cluster of the same name before, round robin goes on where it was.
func NewCluster(s *snapshot.Service, subset string, lb snapshot.LoadBalancer, endpoints []*Endpoint, old *Cluster) *Cluster {
	c := &Cluster{Service: s, Subset: subset, Endpoints: endpoints, policy: lb}
	if s != nil {
		c.host = s.Host
	}
	if old != nil {
		c.turn = old.turn
	} else {
		c.turn = new(atomic.Uint32)
		// Begin anywhere: many proxies that start together must not all turn to the first endpoint.
		c.turn.Store(rand.Uint32())
	}
	return c
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

// Pick chooses an endpoint, one that is not in avoid if there is such a one; nil if there is none at all.
func (c *Cluster) Pick(avoid []*Endpoint) *Endpoint {
	eps := c.Endpoints
	switch len(eps) {
	case 0:
		return nil
	case 1:
		return eps[0]
	}
	// With few endpoints chance would often yield one to avoid, so then all are looked at.
	if len(avoid) > 0 {
		left := make([]*Endpoint, 0, len(eps))
		for _, e := range eps {
			if !among(e, avoid) {
				left = append(left, e)
			}
		}
		if len(left) > 0 {
			eps = left
		}
	}
	return c.choose(eps)
}

func (c *Cluster) choose(eps []*Endpoint) *Endpoint {
	n := uint32(len(eps)) //nolint:gosec // a mesh has fewer endpoints than 2^32
	switch c.policy {
	case snapshot.RoundRobin:
		return eps[c.turn.Add(1)%n]
	case snapshot.Random:
		return eps[rand.Uint32N(n)]
	default:
		return leastRequest(eps, n)
	}
}

// leastRequest takes the less busy of two different endpoints chosen at random
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancers#weighted-least-request).
func leastRequest(eps []*Endpoint, n uint32) *Endpoint {
	if n == 1 {
		return eps[0]
	}
	i := rand.Uint32N(n)
	j := rand.Uint32N(n - 1)
	if j >= i {
		j++
	}
	if eps[j].Active() < eps[i].Active() {
		return eps[j]
	}
	return eps[i]
}

func among(e *Endpoint, list []*Endpoint) bool {
	for _, a := range list {
		if a == e {
			return true
		}
	}
	return false
}
