package quota

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/mesh/lease"
)

var errShort = errors.New("mixer's answer has not a grant for each ask")

// Fetch sends a request to mixer.
type Fetch func(context.Context, *lease.Request) (*lease.Answer, error)

// Listen hears of counters until mixer ends that, or ctx ends.
type Listen func(ctx context.Context, hear func(*lease.Count)) error

// Leases is a proxy's way to mixer for all its global limits. Until Run, which a proxy that stands alone has not, the limits
// go by their onFailure.
type Leases struct {
	fetch   Fetch
	log     *slog.Logger
	queue   chan *cell
	running atomic.Bool
	failed  atomic.Bool
	// global is closed when there is a global limit for the first time: until then nobody needs to listen.
	global     chan struct{}
	globalOnce sync.Once

	mu      sync.Mutex
	tallies map[string]*tally
}

const (
	fetchTimeout = time.Second
	// retry is how long it takes until mixer, which did not answer, is asked again.
	retry = 250 * time.Millisecond
)

func newLeases() *Leases {
	return &Leases{queue: make(chan *cell, 16*lease.MaxAsks), global: make(chan struct{}), tallies: map[string]*tally{}}
}

// tally is that of the limits of a name.
func (l *Leases) tally(name string) *tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.tallies[name]
	if t == nil {
		t = new(tally)
		l.tallies[name] = t
	}
	return t
}

// healthy says that mixer answered when it was asked last.
func (l *Leases) healthy() bool { return l.running.Load() && !l.failed.Load() }

// tell gives the cell a turn. It never waits.
func (l *Leases) tell(c *cell) {
	if l.running.Load() {
		select {
		case l.queue <- c:
			return
		default: // so much is asked for that this cell's next request may try again
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking = false
}

// Run works until ctx ends: whatever has come up while mixer answered the last request is in the next one.
func (l *Leases) Run(ctx context.Context, fetch Fetch, log *slog.Logger) error {
	l.fetch, l.log = fetch, log
	l.running.Store(true)
	defer l.running.Store(false)
	var cells []*cell
	for {
		cells = cells[:0]
		select {
		case <-ctx.Done():
			return nil
		case c := <-l.queue:
			cells = append(cells, c)
		}
		for more := true; more && len(cells) < lease.MaxAsks; {
			select {
			case c := <-l.queue:
				cells = append(cells, c)
			default:
				more = false
			}
		}
		if l.exchange(ctx, cells) {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
	}
}

// Follow hears what mixer tells all proxies, for the limits of the Set that is in force, until ctx ends. While mixer does not
// tell, each proxy learns by its own asks.
func (l *Leases) Follow(ctx context.Context, inForce func() *Set, listen Listen) error {
	select {
	case <-ctx.Done():
		return nil
	case <-l.global:
	}
	for ctx.Err() == nil {
		_ = listen(ctx, func(c *lease.Count) { inForce().hear(c) }) // Run says when mixer is away
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
	}
	return nil
}

// exchange tells and asks for the cells, and reports whether mixer answered.
func (l *Leases) exchange(ctx context.Context, cells []*cell) bool {
	req := lease.Request{Asks: make([]lease.Ask, len(cells))}
	now := time.Now().UnixNano()
	for i, c := range cells {
		req.Asks[i] = c.ask(now)
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	answer, err := l.fetch(ctx, &req)
	if err == nil && len(answer.Grants) != len(cells) {
		err = errShort
	}
	if err != nil {
		if !l.failed.Swap(true) && ctx.Err() == nil {
			l.log.Warn("mixer does not answer about global rate limits; they go by their onFailure", "error", err)
		}
		for i, c := range cells {
			c.restore(&req.Asks[i])
		}
		return false
	}
	if l.failed.Swap(false) {
		l.log.Info("mixer answers about global rate limits again")
	}
	now = time.Now().UnixNano()
	for i, c := range cells {
		c.answer(&answer.Grants[i], now)
	}
	return true
}
