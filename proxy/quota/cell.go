package quota

import (
	"sync"
	"time"

	"github.com/composure-mesh/composure/internal/ratelimit"
	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

const (
	// ahead is for how long a lease is fetched. Below one request in that time none is: every request is told to mixer
	// as it passes, and the count is exact as long as two requests of a key, wherever in the mesh, are further apart
	// than it takes to tell mixer, and mixer to tell all.
	ahead = 50 * time.Millisecond
	// burst is how much of a key may pass on the way to mixer's answer: a client that is new begins with several requests
	// at once.
	burst = 16
)

// cell is the count of one key at this proxy.
type cell struct {
	limit    *limit
	key      []byte
	override int // one more than its index; 0 is none
	rate     *snapshot.Rate

	// alone counts for a limit that is not global, and while mixer is away.
	alone ratelimit.Cell

	mu sync.Mutex
	// What mixer has granted ahead.
	tokens, grantedAt, expires int64
	// used has passed without a token, and mixer was not told yet.
	used int64
	// What mixer said last: how many there are besides, by its clock and by this one when that was, and until when there are
	// not enough for a request.
	toldAt, known, until int64
	left                 int64
	// demand is what came since asked.
	demand, asked int64
	asking        bool
	// lost says that mixer does not know the limit: its configuration and the proxy's are not of one time.
	lost bool
}

// verdict is what a cell says of a request.
type verdict struct {
	refused bool
	// failed says that it was refused because mixer does not answer.
	failed bool
	// wait is how long it takes until there is room again, where it was refused.
	wait time.Duration
}

// take counts charge. The bool says that mixer is to be told.
func (c *cell) take(now, charge int64, healthy bool) (v verdict, tell bool) {
	if !c.limit.Global {
		return c.takeAlone(now, charge), false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.demand += charge
	if c.tokens > 0 && now >= c.expires {
		c.until = 0 // what is given back may be had again
	} else if c.tokens >= charge {
		c.tokens -= charge
		return v, c.tell(c.tokens <= c.want(now)/2)
	}
	if !healthy || c.lost {
		switch c.limit.OnFailure {
		case snapshot.FailClosed:
			return verdict{refused: true, failed: true, wait: time.Second}, c.tell(true)
		case snapshot.FailLocal:
			return c.takeAlone(now, charge), c.tell(true)
		default:
			return v, c.tell(true)
		}
	}
	if now < c.until {
		return verdict{refused: true, wait: time.Duration(c.until - now)}, false
	}
	if c.used+charge > c.credit(now) {
		return verdict{refused: true, wait: time.Millisecond}, c.tell(true)
	}
	c.used += charge
	return v, c.tell(true)
}

// give takes back what take has let pass, as another limit did not.
func (c *cell) give(now int64) {
	if !c.limit.Global {
		c.alone.Give(c.rate, now, now, c.limit.Charge)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used >= c.limit.Charge {
		c.used -= c.limit.Charge
	} else if now < c.expires {
		c.tokens += c.limit.Charge
	}
}

func (c *cell) takeAlone(now, charge int64) verdict {
	if c.alone.Take(c.rate, now, charge, false) == charge {
		return verdict{}
	}
	return verdict{refused: true, wait: c.alone.Wait(c.rate, now, charge)}
}

// credit is how much may pass untold: what mixer has said that there is, within bounds, or those bounds where it has said
// nothing for a window.
func (c *cell) credit(now int64) int64 {
	bound := min(c.rate.Limit, max(burst, c.rate.Limit/burst))
	switch {
	case c.known == 0 || now-c.known > c.rate.Window*int64(time.Millisecond):
		return bound
	case c.until != 0: // there was nothing until just now
		return min(bound, c.limit.Charge)
	}
	return min(bound, c.left)
}

// tell asks for a turn at mixer, unless there is one already.
func (c *cell) tell(yes bool) bool {
	if !yes || c.asking {
		return false
	}
	c.asking = true
	return true
}

// want is what will be needed in the time ahead, by what was since mixer was asked last.
func (c *cell) want(now int64) int64 {
	elapsed := max(now-c.asked, int64(ahead)/8)
	return min(c.rate.Limit, c.demand*int64(ahead)/elapsed)
}

// ask is what to tell and to ask. What it takes from the cell, restore puts back.
func (c *cell) ask(now int64) lease.Ask {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := lease.Ask{Limit: c.limit.Name, Key: c.key, Override: c.override, Used: c.used}
	if c.tokens > 0 && now >= c.expires {
		a.Back, a.At, c.tokens = c.tokens, c.grantedAt, 0
	}
	if c.asked != 0 {
		a.Want = max(0, c.want(now)-c.tokens)
	}
	c.used, c.asked, c.demand = 0, now, 0
	return a
}

// restore undoes ask, which mixer did not answer.
func (c *cell) restore(a *lease.Ask) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used += a.Used
	c.tokens += a.Back // of a time that is over: they are given back next time
	c.asking = false
}

// answer takes what mixer said.
func (c *cell) answer(g *lease.Grant, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asking, c.lost = false, g.Unknown
	if g.Unknown {
		return
	}
	c.learn(g.At, g.Left, g.Wait, now)
	if g.Tokens > 0 {
		c.tokens += g.Tokens
		c.grantedAt, c.expires = g.At, now+g.TTL*int64(time.Millisecond)
	}
}

// hear takes what mixer tells every proxy.
func (c *cell) hear(n *lease.Count, now int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.learn(n.At, n.Left, n.Wait, now)
}

// disorder is how far what mixer tells and what it answers may be out of order.
const disorder = int64(time.Second)

// learn takes how much there is, unless there is newer word. Much older word is of another counter.
func (c *cell) learn(at, left, wait, now int64) {
	if age := c.toldAt - at; age > 0 && age < disorder {
		return
	}
	c.toldAt, c.known, c.left, c.until = at, now, left, 0
	if left < c.limit.Charge {
		c.until = now + max(1, wait)*int64(time.Millisecond)
	}
}

// idle says that the cell may be forgotten.
func (c *cell) idle(now int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alone.Idle(c.rate, now) && !c.asking && c.used == 0 && (c.tokens == 0 || now >= c.expires) &&
		now-max(c.known, c.asked) > c.rate.Window*int64(time.Millisecond)
}
