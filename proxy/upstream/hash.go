package upstream

import (
	"cmp"
	"hash/fnv"
	"slices"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// points are where endpoints stand for consistent hashing: on a ring, or in a Maglev table
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/load_balancers#ring-hash).
// Endpoints are told by their workload's name, so that all proxies agree, and still do when addresses have changed.
type points struct {
	names   []string
	weights []uint64
	ring    []point  // by hash
	table   []uint16 // of Maglev: indexes into the endpoints
}

type point struct {
	hash  uint64
	index int
}

const (
	defaultRingSize = 1024
	// maxWeighted bounds the points of a ring of weighted endpoints, of which a light one may be worth a millionth of another: it
	// gets one point then.
	maxWeighted = 1 << 16
)

// newPoints takes old where the endpoints are the same.
func newPoints(h *snapshot.Hash, endpoints []*Endpoint, old *points) *points {
	p := &points{}
	for _, e := range endpoints {
		name := e.Addr.String()
		if e.Workload != nil {
			name = e.Workload.Name
		}
		p.names, p.weights = append(p.names, name), append(p.weights, e.weight())
	}
	switch {
	case len(endpoints) == 0:
	case old != nil && slices.Equal(old.names, p.names) && slices.Equal(old.weights, p.weights):
		return old
	case h.MaglevSize > 0 && len(endpoints) < 1<<16:
		p.table = maglev(p.names, p.weights, int(h.MaglevSize))
	default:
		p.ring = ring(p.names, p.weights, uint64(cmp.Or(h.RingSize, defaultRingSize)))
	}
	return p
}

// ring gives each name points in proportion to its weight, at least size in all and the lightest a whole number of them, as
// Envoy does.
func ring(names []string, weights []uint64, size uint64) []point {
	var sum, all uint64
	for _, w := range weights {
		sum += w
	}
	lightest := slices.Min(weights)
	each := (lightest*size + sum - 1) / sum // of the lightest
	counts := make([]uint64, len(names))
	for i, w := range weights {
		counts[i] = w * each / lightest
		if bound := max(size, maxWeighted); sum*each/lightest > bound {
			counts[i] = max(1, w*bound/sum)
		}
		all += counts[i]
	}
	points := make([]point, 0, all)
	for i, name := range names {
		h := HashKey([]byte(name))
		for range counts[i] {
			h = mix(h + 0x9e3779b97f4a7c15)
			points = append(points, point{h, i})
		}
	}
	slices.SortFunc(points, func(a, b point) int { return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.index, b.index)) })
	return points
}

// maglev fills a table of a prime size: in turn each name takes the next place of its own permutation that is free
// (Eisenbud et al., Maglev, NSDI 2016, section 3.4). A lighter name waits for its turn until its weights add up to the heaviest
// one's, as with Envoy.
func maglev(names []string, weights []uint64, size int) []uint16 {
	type permutation struct{ next, skip, saved uint64 }
	heaviest := slices.Max(weights)
	perms := make([]permutation, len(names))
	m := uint64(size) //nolint:gosec // it is positive
	for i, name := range names {
		h := HashKey([]byte(name))
		perms[i] = permutation{h % m, 1, heaviest - weights[i]} // each has its first turn
		if m > 1 {
			perms[i].skip = mix(h)%(m-1) + 1
		}
	}
	table := make([]uint16, size)
	taken := make([]bool, size)
	for filled := 0; ; {
		for i := range perms {
			p := &perms[i]
			if p.saved += weights[i]; p.saved < heaviest {
				continue
			}
			p.saved -= heaviest
			for taken[p.next] {
				p.next = (p.next + p.skip) % m
			}
			table[p.next], taken[p.next] = uint16(i), true //nolint:gosec // newPoints sees to it
			if filled++; filled == size {
				return table
			}
		}
	}
}

// pick is the endpoint of a key, the next one that is in if that is not. One must be.
func (p *points) pick(key uint64, in func(int) bool, endpoints []*Endpoint) *Endpoint {
	if p.table != nil {
		at := int(key % uint64(len(p.table)))
		for n := range p.table {
			if i := int(p.table[(at+n)%len(p.table)]); in(i) {
				return endpoints[i]
			}
		}
		return nil
	}
	at, _ := slices.BinarySearchFunc(p.ring, key, func(pt point, key uint64) int { return cmp.Compare(pt.hash, key) })
	for n := range p.ring {
		if i := p.ring[(at+n)%len(p.ring)].index; in(i) {
			return endpoints[i]
		}
	}
	return nil
}

// HashKey is the hash of a key of consistent hashing: the same in every proxy.
func HashKey(b []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(b)
	return mix(h.Sum64())
}

// mix spreads what FNV leaves close together: the finalizer of SplitMix64.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
