package upstream

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// ErrOverflow says that a bound of the cluster is reached: the request was not sent anywhere.
var ErrOverflow = errors.New("overflow: a limit of the connection pool is reached")

// limits bound what is asked of a cluster at a time
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/circuit_breaking).
type limits struct {
	max    snapshot.Connections
	budget *snapshot.RetryBudget

	requests, retries atomic.Int64
	members           atomic.Pointer[[]*Endpoint]

	mu          sync.Mutex
	connections uint32
	pending     uint32          // requests that have no connection yet
	waiting     []chan struct{} // those of them that wait for another's connection, the first to come first
}

func newLimits(p *snapshot.Policy) *limits {
	l := &limits{budget: p.RetryBudget}
	if p.Connections != nil {
		l.max = *p.Connections
	}
	if l.budget == nil && l.max.MaxConnections == 0 && l.max.MaxPending == 0 && l.max.MaxRequests == 0 && l.max.MaxRetries == 0 {
		return nil
	}
	return l
}

// begin counts a request until end, if there are not too many.
func (l *limits) begin() bool {
	if n := l.requests.Add(1); l.max.MaxRequests > 0 && n > int64(l.max.MaxRequests) {
		l.requests.Add(-1)
		return false
	}
	return true
}

func (l *limits) end() { l.requests.Add(-1) }

// beginRetry counts a retry. A budget stands in the place of the fixed bound.
func (l *limits) beginRetry() bool {
	most := int64(l.max.MaxRetries)
	if b := l.budget; b != nil {
		most = max(int64(b.MinConcurrency), int64(b.Percent/100*float64(l.requests.Load())))
	}
	if n := l.retries.Add(1); (most > 0 || l.budget != nil) && n > most {
		l.retries.Add(-1)
		return false
	}
	return true
}

// acquire waits for the right to open a connection for p, or for one that has become idle there meanwhile. A right has to be
// given back with release; connected says that the request waits no longer.
func (l *limits) acquire(ctx context.Context, p *pool) (*Conn, error) {
	l.mu.Lock()
	if l.max.MaxPending > 0 && l.pending >= l.max.MaxPending {
		l.mu.Unlock()
		return nil, ErrOverflow
	}
	l.pending++
	for {
		if l.max.MaxConnections == 0 || l.connections < l.max.MaxConnections {
			l.connections++
			l.mu.Unlock()
			return nil, nil
		}
		turn := make(chan struct{}, 1)
		l.waiting = append(l.waiting, turn)
		l.mu.Unlock()
		// Only now: what becomes idle later wakes us.
		if c := p.take(); c != nil {
			l.leave(turn)
			l.connected()
			return c, nil
		}
		if !l.evict() {
			select {
			case <-turn:
			case <-ctx.Done():
				l.leave(turn)
				l.connected()
				return nil, ctx.Err()
			}
		}
		l.leave(turn)
		l.mu.Lock()
	}
}

// tryConnection counts a connection until release, if there are not too many.
func (l *limits) tryConnection() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.max.MaxConnections > 0 && l.connections >= l.max.MaxConnections {
		return false
	}
	l.connections++
	return true
}

// room reports whether there may be another connection.
func (l *limits) room() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.max.MaxConnections == 0 || l.connections < l.max.MaxConnections
}

// leave gives up a place among the waiting. A turn that has come already is the next one's.
func (l *limits) leave(turn chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range l.waiting {
		if w == turn {
			l.waiting = append(l.waiting[:i], l.waiting[i+1:]...)
			return
		}
	}
}

func (l *limits) connected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending--
}

func (l *limits) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connections--
	l.wake()
}

// idle says that a connection has become idle.
func (l *limits) idle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wake()
}

// wake has the first of the waiting look again; l.mu is held.
func (l *limits) wake() {
	if len(l.waiting) > 0 {
		l.waiting[0] <- struct{}{}
		l.waiting = l.waiting[1:]
	}
}

// evict closes an idle connection of any endpoint, so that another may have one.
func (l *limits) evict() bool {
	members := l.members.Load()
	if members == nil {
		return false
	}
	for _, e := range *members {
		pools := e.state.pools.list.Load()
		if pools == nil {
			continue
		}
		for _, p := range *pools {
			if c := p.value.take(); c != nil {
				c.Discard()
				return true
			}
		}
	}
	return false
}
