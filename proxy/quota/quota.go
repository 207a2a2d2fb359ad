// Package quota counts requests by rate limits, and refuses those that are too many. A limit of this proxy's own is
// counted here alone. A global one is counted by mixer: what passes is told there at once, and what will pass soon is
// leased ahead, so that no request ever waits for mixer.
//
// How far a global count may be off is bounded: in a window, no more passes than the limit, and for each proxy what it
// holds as a lease (the demand of 50 ms) and what it lets pass before mixer's first answer about a key (16, or a sixteenth
// of the limit). Below 20 requests a second for a key at a proxy nothing is leased, and mixer tells all proxies when there
// is nothing left: the count is exact, at however many proxies, where two requests of a key are further apart than it takes
// to tell. A proxy that mixer can't tell learns by its own request, and so lets one more pass.
package quota

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/expression"
)

// Set is the limits of one snapshot, in order. It never changes; its counters do.
type Set struct {
	limits []*limit
	leases *Leases
}

// limit is one rate limit with its counters.
type limit struct {
	*snapshot.RateLimit
	match  *expression.Program // nil for all
	key    []*expression.Program
	digest string // of all of it
	shards [shards]shard
	*tally
	// rest counts all keys for which there is no more room.
	rest cell
}

// tally is what the limits of a name have done. It goes on when the limit is changed: a count never falls.
type tally struct{ refused, shadowed atomic.Uint64 }

const (
	// restKey is no key: it is shorter than the length that it would begin with.
	restKey = "rest"
	shards  = 64
	// perShard bounds the memory that clients with ever new keys can take: 65 536 counters a limit.
	perShard = 1024
)

type shard struct {
	mu    sync.RWMutex
	cells map[string]*cell
	swept int64
}

// sweepEvery bounds what ever new keys cost.
const sweepEvery = int64(time.Second)

var seed = maphash.MakeSeed()

// Build makes a Set. Of old, which may be nil, it keeps the leases, and the counters of limits that are the same.
func Build(limits []snapshot.RateLimit, old *Set) (*Set, error) {
	s := &Set{}
	if old != nil {
		s.leases = old.leases
	} else {
		s.leases = newLeases()
	}
	for i := range limits {
		l, err := compile(&limits[i])
		if err != nil {
			return nil, fmt.Errorf("rate limit %s: %w", limits[i].Name, err)
		}
		if old != nil {
			for _, before := range old.limits {
				if before.digest == l.digest {
					l = before
				}
			}
		}
		l.tally = s.leases.tally(l.Name)
		s.limits = append(s.limits, l)
		if l.Global {
			s.leases.globalOnce.Do(func() { close(s.leases.global) })
		}
	}
	return s, nil
}

func compile(r *snapshot.RateLimit) (*limit, error) {
	all, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	l := &limit{RateLimit: r, digest: string(all)}
	if r.Match != nil {
		if l.match, err = expression.Compile(r.Match); err != nil {
			return nil, fmt.Errorf("match: %w", err)
		}
		if l.match.Type != snapshot.Bool {
			return nil, fmt.Errorf("match is %s, want BOOL", l.match.Type)
		}
	}
	for i := range r.Key {
		k := &r.Key[i]
		p, err := expression.Compile(&k.Value)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", k.Name, err)
		}
		l.key = append(l.key, p)
	}
	for i := range r.Overrides {
		if w := r.Overrides[i].Window; w <= 0 {
			return nil, fmt.Errorf("override %d: window of %d ms", i, w)
		}
	}
	if r.Window <= 0 || r.Charge <= 0 {
		return nil, fmt.Errorf("window of %d ms, charge of %d: want both positive", r.Window, r.Charge)
	}
	l.rest = cell{limit: l, rate: &r.Rate, key: []byte(restKey)}
	return l, nil
}

// Len is how many limits there are.
func (s *Set) Len() int { return len(s.limits) }

// Leases are those of this Set and of all that are built from it.
func (s *Set) Leases() *Leases { return s.leases }

// Stats are how many requests were refused, and how many limits that only watch would have refused, by the limit's name.
func (s *Set) Stats() (refused, shadowed map[string]uint64) {
	refused, shadowed = map[string]uint64{}, map[string]uint64{}
	for _, l := range s.limits {
		refused[l.Name], shadowed[l.Name] = l.refused.Load(), l.shadowed.Load()
	}
	return refused, shadowed
}

// maxReported bounds a report.
const maxReported = 1000

// Report is Stats as a metric; nil where there is no limit.
func (s *Set) Report() []report.Metric {
	if len(s.limits) == 0 {
		return nil
	}
	m := report.Metric{
		Name: report.RateLimited, Kind: report.Counter, Labels: []string{"limit", "verdict"},
		Description: "Requests that a rate limit has refused, and that one that only watches would have.",
	}
	for _, l := range s.limits[:min(len(s.limits), maxReported)] {
		m.Series = append(m.Series,
			report.MetricSeries{Values: []string{l.Name, "refused"}, Value: float64(l.refused.Load())},
			report.MetricSeries{Values: []string{l.Name, "shadowed"}, Value: float64(l.shadowed.Load())})
	}
	return []report.Metric{m}
}

// Refusal is why a request may not pass.
type Refusal struct {
	Limit *snapshot.RateLimit
	Rate  *snapshot.Rate
	// Failed says that nobody knows, as mixer does not answer.
	Failed bool
	// Wait is how long it takes until there is room again.
	Wait time.Duration
}

// Scratch is memory that a caller keeps for Take.
type Scratch struct {
	key   []byte
	taken []*cell
}

// Take counts a request in every limit that it concerns, and refuses it if one of them is used up; then it counts in none.
func (s *Set) Take(a expression.Attributes, now time.Time, m *Scratch) (refusal Refusal, refused bool) {
	m.taken = m.taken[:0]
	at := now.UnixNano()
	for _, l := range s.limits {
		c := l.cell(a, at, m)
		if c == nil {
			continue
		}
		v, tell := c.take(at, l.Charge, s.leases.healthy())
		if tell {
			s.leases.tell(c)
		}
		switch {
		case !v.refused:
			m.taken = append(m.taken, c)
		case l.Shadow:
			l.shadowed.Add(1)
		default:
			for _, t := range m.taken {
				t.give(at)
			}
			l.refused.Add(1)
			return Refusal{Limit: l.RateLimit, Rate: c.rate, Failed: v.failed, Wait: v.wait}, true
		}
	}
	return Refusal{}, false
}

// cell is the counter of the request's key; nil where the limit does not concern it.
func (l *limit) cell(a expression.Attributes, now int64, m *Scratch) *cell {
	if l.match != nil {
		if v, err := l.match.Eval(a); err != nil || !v.True() {
			return nil
		}
	}
	m.key = m.key[:0]
	for _, p := range l.key {
		v, err := p.Eval(a)
		if err != nil {
			return nil // Mixer did not count what it could not name
		}
		// The length before each part keeps ("a","bc") and ("ab","c") apart.
		at := len(m.key)
		m.key = append(m.key, 0, 0, 0, 0)
		switch v.Type {
		case snapshot.String, snapshot.DNSName, snapshot.EmailAddress, snapshot.URI:
			m.key = append(m.key, v.Str...)
		case snapshot.IPAddress:
			m.key = v.IP.AppendTo(m.key)
		default:
			m.key = append(m.key, v.Text()...)
		}
		binary.BigEndian.PutUint32(m.key[at:], uint32(len(m.key)-at-4)) //nolint:gosec // a head has 60 KiB
	}
	return l.at(m.key, now)
}

// at is the counter of a key.
func (l *limit) at(key []byte, now int64) *cell {
	sh := &l.shards[maphash.Bytes(seed, key)%shards]
	sh.mu.RLock()
	c := sh.cells[string(key)]
	sh.mu.RUnlock()
	if c == nil {
		c = l.add(sh, key, now)
	}
	return c
}

// hear takes what mixer tells of a counter, also of one that this proxy has not had a request for.
func (s *Set) hear(n *lease.Count) {
	for _, l := range s.limits {
		if l.Name != n.Limit || !l.Global {
			continue
		}
		now := time.Now().UnixNano()
		switch {
		case string(n.Key) == restKey:
			l.rest.hear(n, now)
		case l.isKey(n.Key):
			if c := l.at(n.Key, now); c != &l.rest && c.override == n.Override {
				c.hear(n, now)
			}
		}
	}
}

// isKey reports whether a key has a value for each part.
func (l *limit) isKey(key []byte) bool {
	for range l.key {
		if len(key) < 4 || uint64(len(key)-4) < uint64(binary.BigEndian.Uint32(key)) {
			return false
		}
		key = key[4+binary.BigEndian.Uint32(key):]
	}
	return len(key) == 0
}

// add makes a counter. Where there is no room, and none of the others can be forgotten, the key shares one.
func (l *limit) add(sh *shard, key []byte, now int64) *cell {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if c := sh.cells[string(key)]; c != nil {
		return c
	}
	if len(sh.cells) >= perShard && now-sh.swept > sweepEvery {
		sh.swept = now
		for k, c := range sh.cells {
			if c.idle(now) {
				delete(sh.cells, k)
			}
		}
	}
	if len(sh.cells) >= perShard {
		return &l.rest
	}
	c := &cell{limit: l, key: bytes.Clone(key), rate: &l.Rate}
	for i := range l.Overrides {
		if l.fits(&l.Overrides[i], key) {
			c.override, c.rate = i+1, &l.Overrides[i].Rate
			break
		}
	}
	if sh.cells == nil {
		sh.cells = map[string]*cell{}
	}
	sh.cells[string(key)] = c
	return c
}

// fits reports whether the key has the values that the override asks for.
func (l *limit) fits(o *snapshot.RateOverride, key []byte) bool {
	for i := range l.Key {
		n := binary.BigEndian.Uint32(key)
		part := key[4 : 4+n]
		key = key[4+n:]
		if want, asked := o.Key[l.Key[i].Name]; asked && want != string(part) {
			return false
		}
	}
	return true
}
