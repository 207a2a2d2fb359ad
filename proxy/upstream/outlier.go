package upstream

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// detector takes endpoints of a cluster out that fail again and again
// (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier).
type detector struct {
	cfg snapshot.Outlier
	now func() time.Time

	some atomic.Bool // one may be out: false spares the rest a look at the clock

	mu      sync.Mutex
	members []*Endpoint
}

// maxEjection bounds how long an endpoint stays out, however often it has been: Envoy's max_ejection_time.
const maxEjection = 300 * time.Second

// health is what a detector knows of an endpoint.
type health struct {
	fives, gateway, local atomic.Uint32 // failures on end
	until                 atomic.Int64  // out until then, in unix nanoseconds
	times                 uint32        // ejections not forgiven yet; the detector's mu
}

func newDetector(o *snapshot.Outlier) *detector {
	if o == nil {
		return nil
	}
	return &detector{cfg: *o, now: time.Now}
}

func (d *detector) setMembers(list []*Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.members = list
}

// clock is the time in unix nanoseconds, 0 where none of list is out.
func (d *detector) clock(list []*Endpoint) int64 {
	if d == nil || !d.some.Load() {
		return 0
	}
	now := d.now().UnixNano()
	if anyOut(list, now) {
		return now
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !anyOut(d.members, now) {
		d.some.Store(false)
	}
	return 0
}

func anyOut(list []*Endpoint, now int64) bool {
	for _, e := range list {
		if e.out(now) {
			return true
		}
	}
	return false
}

// panics reports whether so few are in that all are used.
func (d *detector) panics(list []*Endpoint, now int64) bool {
	if d.cfg.MinHealthPercent == 0 {
		return false
	}
	in := 0
	for _, e := range list {
		if !e.out(now) {
			in++
		}
	}
	return in*100 < int(d.cfg.MinHealthPercent)*len(list)
}

// out reports whether e is out at a time in unix nanoseconds.
func (e *Endpoint) out(now int64) bool { return e.state.health.until.Load() > now }

// Report says how a try ended: with a response of this HTTP status, or with status 0 if there was none, since the endpoint
// could not be reached, broke off, or was too late.
func (e *Endpoint) Report(status int) {
	d := e.detector
	if d == nil {
		return
	}
	h := &e.state.health
	switch {
	case status == 0 && d.cfg.SplitLocal:
		d.count(e, &h.local, d.cfg.ConsecutiveLocalFailure)
		return
	case status == 0 || status >= 502 && status <= 504:
		d.count(e, &h.gateway, d.cfg.ConsecutiveGateway)
		d.count(e, &h.fives, d.cfg.Consecutive5xx)
	case status >= 500:
		clearCount(&h.gateway)
		d.count(e, &h.fives, d.cfg.Consecutive5xx)
	default:
		clearCount(&h.gateway)
		clearCount(&h.fives)
	}
	if status != 0 {
		clearCount(&h.local)
	}
}

// clearCount spares a write to memory that all share where nothing has failed.
func clearCount(n *atomic.Uint32) {
	if n.Load() != 0 {
		n.Store(0)
	}
}

func (d *detector) count(e *Endpoint, n *atomic.Uint32, limit uint32) {
	if n.Add(1) >= limit && limit > 0 {
		d.eject(e)
	}
}

// eject takes e out, if not too many are.
func (d *detector) eject(e *Endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	out := 0
	for _, m := range d.members {
		if m.out(now.UnixNano()) {
			out++
		}
	}
	h := &e.state.health
	if e.out(now.UnixNano()) || out >= d.most(len(d.members)) {
		return
	}
	// For each interval that it has been in since, one of its ejections is forgiven.
	if last := h.until.Load(); last != 0 && d.cfg.Interval > 0 {
		forgiven := uint32(min(now.Sub(time.Unix(0, last))/time.Duration(d.cfg.Interval), time.Duration(h.times))) //nolint:gosec // at most h.times
		h.times -= forgiven
	}
	h.times++
	base := time.Duration(d.cfg.BaseTime)
	h.until.Store(now.Add(min(base*time.Duration(h.times), max(base, maxEjection))).UnixNano())
	h.fives.Store(0)
	h.gateway.Store(0)
	h.local.Store(0)
	d.some.Store(true)
}

// most is how many of n endpoints may be out: a share, but one at least, and the last one only where all may be.
func (d *detector) most(n int) int {
	if d.cfg.MaxPercent >= 100 {
		return n
	}
	return min(max(n*int(d.cfg.MaxPercent)/100, 1), n-1)
}
