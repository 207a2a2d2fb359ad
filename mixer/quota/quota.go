// Package quota counts rate limits for all proxies: in mixer's own memory, or in a Redis that several mixers share.
package quota

import (
	"context"
	"time"

	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Counter counts.
type Counter interface {
	// Count answers each of the asks, in order. An error is for all of them: nothing is known then.
	Count(ctx context.Context, asks []Ask) ([]lease.Grant, error)
	Close() error
}

// Ask is what a proxy asks of one counter.
type Ask struct {
	// ID names the counter.
	ID   string
	Rate *snapshot.Rate
	// Charge is what one request needs.
	Charge int64
	*lease.Ask
}

// Tell is told when an ask has left less than a request needs in its counter, and when tokens that came back have ended
// that. It must not wait.
type Tell func(*lease.Count)

// turned says that an ask has made the difference between enough and not enough for a request.
func turned(a *Ask, g *lease.Grant) bool {
	if g.Left < a.Charge {
		return a.Used > 0 || g.Tokens > 0
	}
	return a.Back > 0 && g.Left+g.Tokens+a.Used-a.Back < a.Charge
}

func countOf(a *Ask, g *lease.Grant) *lease.Count {
	return &lease.Count{Limit: a.Limit, Key: a.Key, Override: a.Override, At: g.At, Left: g.Left, Wait: g.Wait}
}

// How long a lease is good for: a quarter of the window, within bounds. What is leased and not used comes back late, what
// is used late was counted in the window before.
const (
	minTTL = 50 * time.Millisecond
	maxTTL = time.Second
)

// ttl is in milliseconds.
func ttl(r *snapshot.Rate) int64 {
	return min(max(r.Window/4, minTTL.Milliseconds()), maxTTL.Milliseconds())
}

// share is how much of what is left one lease may take: half, so that there is some for the next proxy, too.
func share(want, left int64) int64 { return min(want, (left+1)/2) }
