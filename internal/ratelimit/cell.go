// Package ratelimit counts what passes in a window of time. Proxies count with it for themselves, mixer for all of them.
package ratelimit

import (
	"math"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// slots is how many parts a sliding window has.
const slots = 32

// Cell is the count of one key. The zero Cell has counted nothing. It may be used by several goroutines, with one Rate.
type Cell struct {
	mu   sync.Mutex
	last int64 // when it was used last
	// fixed window: the window's number, and what has passed in it
	window, used int64
	// sliding window: what has passed in each part, and the number of the newest part
	parts  []int64
	newest int64
	// token bucket: the theoretical arrival time of the generic cell rate algorithm, when the bucket is full again
	full int64
}

// Take takes n, or as many as there are left, and says how many it took. Force takes n in any case: they have passed
// already. Now is in nanoseconds of the wall clock, and so are all times here.
func (c *Cell) Take(r *snapshot.Rate, now, n int64, force bool) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = now
	c.forward(r, now)
	if !force {
		n = min(n, c.left(r, now))
	}
	if n <= 0 {
		return 0
	}
	c.add(r, now, n)
	return n
}

// Give gives n back that were taken at a time, and not used.
func (c *Cell) Give(r *snapshot.Rate, now, at, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forward(r, now)
	switch r.Algorithm {
	case snapshot.TokenBucket:
		c.full -= c.cost(r, n)
	case snapshot.SlidingWindow:
		if part := at / partOf(r); c.newest-part < slots && part <= c.newest {
			c.parts[part%(slots+1)] = max(0, c.parts[part%(slots+1)]-n)
		}
	default:
		if at/window(r) == c.window {
			c.used = max(0, c.used-n)
		}
	}
}

// Left is how many may be taken now.
func (c *Cell) Left(r *snapshot.Rate, now int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forward(r, now)
	return c.left(r, now)
}

// Wait is how long it takes until n may be taken, if nobody takes any meanwhile. More than the limit is never to be had:
// then it is the time until the limit is.
func (c *Cell) Wait(r *snapshot.Rate, now, n int64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forward(r, now)
	n = min(n, r.Limit)
	switch {
	case r.Limit <= 0:
		return time.Duration(window(r))
	case n <= c.left(r, now):
		return 0
	}
	switch r.Algorithm {
	case snapshot.TokenBucket:
		return time.Duration(c.full + c.cost(r, n) - window(r) - now)
	case snapshot.SlidingWindow:
		missing := n - c.left(r, now)
		for part := c.newest - slots; part <= c.newest; part++ {
			if part < 0 {
				continue
			}
			if missing -= c.parts[part%(slots+1)]; missing <= 0 {
				return time.Duration((part+slots+1)*partOf(r) - now)
			}
		}
		return time.Duration(window(r))
	default:
		return time.Duration((c.window+1)*window(r) - now)
	}
}

// Idle says that the cell holds nothing that a new one would not.
func (c *Cell) Idle(r *snapshot.Rate, now int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forward(r, now)
	return c.left(r, now) >= r.Limit
}

// forward lets go of what is older than the window.
func (c *Cell) forward(r *snapshot.Rate, now int64) {
	switch r.Algorithm {
	case snapshot.TokenBucket:
		c.full = max(c.full, now)
	case snapshot.SlidingWindow:
		if c.parts == nil {
			c.parts = make([]int64, slots+1)
		}
		part := now / partOf(r)
		for i := max(c.newest+1, part-slots); i <= part; i++ {
			c.parts[i%(slots+1)] = 0
		}
		c.newest = max(c.newest, part)
	default:
		if w := now / window(r); w > c.window {
			c.window, c.used = w, 0
		}
	}
}

func (c *Cell) left(r *snapshot.Rate, now int64) int64 {
	switch r.Algorithm {
	case snapshot.TokenBucket:
		free := now + window(r) - c.full
		if free <= 0 || r.Limit <= 0 {
			return 0
		}
		return min(r.Limit, int64(math.Floor(float64(free)/float64(window(r))*float64(r.Limit)+1e-9)))
	case snapshot.SlidingWindow:
		var used int64
		for _, n := range c.parts {
			used += n
		}
		return max(0, r.Limit-used)
	default:
		return max(0, r.Limit-c.used)
	}
}

func (c *Cell) add(r *snapshot.Rate, now, n int64) {
	switch r.Algorithm {
	case snapshot.TokenBucket:
		c.full = max(c.full, now) + c.cost(r, n)
	case snapshot.SlidingWindow:
		c.parts[c.newest%(slots+1)] += n
	default:
		c.used += n
	}
}

// cost is how long the bucket takes to be filled with n.
func (c *Cell) cost(r *snapshot.Rate, n int64) int64 {
	if r.Limit <= 0 {
		return 0
	}
	return int64(math.Ceil(float64(n) * float64(window(r)) / float64(r.Limit)))
}

func window(r *snapshot.Rate) int64 { return max(1, r.Window) * int64(time.Millisecond) }

// partOf is the length of a part of the sliding window.
func partOf(r *snapshot.Rate) int64 { return max(1, window(r)/slots) }
