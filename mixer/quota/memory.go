package quota

import (
	"context"
	"sync"
	"time"

	"github.com/composure-mesh/composure/internal/ratelimit"
	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// sweepEvery is how often counters without a count are forgotten.
const sweepEvery = 10 * time.Second

// Memory counts in mixer's own memory: for a mesh with one mixer. What it has counted goes with it.
type Memory struct {
	tell  Tell
	mu    sync.Mutex
	cells map[string]*counted
	swept time.Time
}

type counted struct {
	ratelimit.Cell
	rate *snapshot.Rate
}

// NewMemory has counted nothing.
func NewMemory(tell Tell) *Memory { return &Memory{tell: tell, cells: map[string]*counted{}} }

// Close has nothing to do.
func (*Memory) Close() error { return nil }

// Count implements Counter; it never fails.
func (m *Memory) Count(_ context.Context, asks []Ask) ([]lease.Grant, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	if now.Sub(m.swept) > sweepEvery {
		m.swept = now
		for id, c := range m.cells {
			if c.Idle(c.rate, now.UnixNano()) {
				delete(m.cells, id)
			}
		}
	}
	grants := make([]lease.Grant, len(asks))
	for i := range asks {
		a := &asks[i]
		c := m.cells[a.ID]
		if c == nil {
			c = &counted{rate: a.Rate}
			m.cells[a.ID] = c
		}
		grants[i] = c.grant(a, now.UnixNano())
		if turned(a, &grants[i]) {
			m.tell(countOf(a, &grants[i]))
		}
	}
	return grants, nil
}

func (c *counted) grant(a *Ask, now int64) lease.Grant {
	if a.Back > 0 {
		c.Give(a.Rate, now, a.At, a.Back)
	}
	c.Take(a.Rate, now, a.Used, true)
	g := lease.Grant{At: now}
	if g.Tokens = c.Take(a.Rate, now, share(a.Want, c.Left(a.Rate, now)), false); g.Tokens > 0 {
		g.TTL = ttl(a.Rate)
	}
	if g.Left = c.Left(a.Rate, now); g.Left < a.Charge {
		g.Wait = c.Wait(a.Rate, now, a.Charge).Milliseconds() + 1
	}
	return g
}
