package mixer

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/mesh/report"
)

const (
	// silence is how long an instance may say nothing until it counts as gone.
	silence = 5 * time.Minute
	// retiredKept is how many gone instances of a workload are remembered, to refuse them if they come back.
	retiredKept = 64
	// maxSeries bounds the series and instances that are held: each HTTP series is 67 lines of /metrics.
	maxSeries = 10000
	// maxSeriesOfPeer bounds them for one identity, so that no proxy can crowd out the others.
	maxSeriesOfPeer = maxSeries / 4
)

var (
	// errStale says that a report was overtaken by a later one, which holds all that it said.
	errStale = errors.New("a later report of the instance is already counted")
	// errRetired says that an instance's counts are in the base already, so that they can't be replaced.
	errRetired = fmt.Errorf("the instance was silent for %s and another took its place: count anew under a new instance", silence)
	// errFell says that an instance's counters are lower than they were.
	errFell = errors.New("fell since the instance's last report: a process that counts anew needs a new instance")
	// errFull says that there is no room for one more instance.
	errFull = fmt.Errorf("mixer holds as many series as it may: %d in all, %d of one identity", maxSeries, maxSeriesOfPeer)
)

// totals is what all proxies have counted. A proxy's word is kept under its identity, so none can replace
// another's. Each workload has a base, the sum of the instances that are gone, and the last word of each instance that is
// not. Only an instance that another has followed becomes part of the base: the last one of a workload may be
// silent since it can't reach mixer, and then its next report must replace its last.
type totals struct {
	mu    sync.Mutex
	held  int // series and instances
	peers map[spiffeid.ID]*peer
	stats stats
}

// stats is what mixer counts about itself.
type stats struct {
	accepted, stale, refused uint64
	// droppedSeries counts the series of accepted reports that were left out for lack of room.
	droppedSeries uint64
}

type peer struct {
	held      int
	workloads map[string]*workload
}

type workload struct {
	base      counts
	instances map[string]*instance
	retired   []string // oldest first
}

type instance struct {
	counts
	sequence uint64
	heard    time.Time
}

type counts struct {
	http    map[report.Labels]report.HTTPSeries
	tcp     map[report.Labels]report.TCPSeries
	custom  custom
	dropped uint64 // exchanges, by the proxy
}

func newCounts() counts {
	return counts{http: map[report.Labels]report.HTTPSeries{}, tcp: map[report.Labels]report.TCPSeries{}, custom: custom{}}
}

func newTotals() *totals { return &totals{peers: map[spiffeid.ID]*peer{}} }

// ingest takes the report r of the proxy that has proven to be id. It counts all of r or, with an error, nothing;
// only series for which there is no room are left out. A series that r lacks keeps what the last report said.
func (t *totals) ingest(id spiffeid.ID, r *report.Report, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	in, err := t.instance(id, r)
	switch {
	case errors.Is(err, errStale):
		t.stats.stale++
		return err
	case err != nil:
		t.stats.refused++
		return err
	}
	p := t.peers[id]
	for i := range r.HTTP {
		put(t, p, in.http, r.HTTP[i].Labels, r.HTTP[i])
	}
	for i := range r.TCP {
		put(t, p, in.tcp, r.TCP[i].Labels, r.TCP[i])
	}
	t.replace(p, in, newCustom(r.Metrics))
	in.sequence, in.heard, in.dropped = r.Sequence, now, max(in.dropped, r.Dropped)
	t.stats.accepted++
	return nil
}

// refuse counts a report that was refused before it came here.
func (t *totals) refuse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stats.refused++
}

// instance finds or adds the instance that r is from, if r may be counted.
func (t *totals) instance(id spiffeid.ID, r *report.Report) (*instance, error) {
	p := t.peers[id]
	if p != nil {
		if w := p.workloads[r.Workload]; w != nil {
			if slices.Contains(w.retired, r.Instance) {
				return nil, errRetired
			}
			if in := w.instances[r.Instance]; in != nil {
				return in, in.check(r)
			}
		}
	}
	if !t.room(p) {
		return nil, errFull
	}
	if p == nil {
		p = &peer{workloads: map[string]*workload{}}
		t.peers[id] = p
	}
	w := p.workloads[r.Workload]
	if w == nil {
		w = &workload{base: newCounts(), instances: map[string]*instance{}}
		p.workloads[r.Workload] = w
	}
	in := &instance{counts: newCounts()}
	w.instances[r.Instance] = in
	t.hold(p, 1)
	return in, nil
}

func (t *totals) room(p *peer) bool {
	return t.held < maxSeries && (p == nil || p.held < maxSeriesOfPeer)
}

func (t *totals) hold(p *peer, n int) {
	t.held += n
	p.held += n
}

// put replaces one series, unless it is new and there is no room.
func put[S any](t *totals, p *peer, series map[report.Labels]S, labels report.Labels, s S) {
	if _, known := series[labels]; !known {
		if !t.room(p) {
			t.stats.droppedSeries++
			return
		}
		t.hold(p, 1)
	}
	series[labels] = s
}

// replace makes metrics those of in. They are left out where there is no room for more series.
func (t *totals) replace(p *peer, in *instance, metrics custom) {
	more := metrics.size() - in.custom.size()
	if more > 0 && (t.held+more > maxSeries || p.held+more > maxSeriesOfPeer) {
		t.stats.droppedSeries += uint64(more)
		return
	}
	t.hold(p, more)
	in.custom = metrics
}

// check says whether r can replace the last word of in.
func (in *instance) check(r *report.Report) error {
	if r.Sequence <= in.sequence {
		return errStale
	}
	for i := range r.HTTP {
		s := &r.HTTP[i]
		if last, ok := in.http[s.Labels]; ok && (s.Requests < last.Requests || fell(&s.Duration, &last.Duration) ||
			fell(&s.RequestBytes, &last.RequestBytes) || fell(&s.ResponseBytes, &last.ResponseBytes)) {
			return fmt.Errorf("http[%d] %w", i, errFell)
		}
	}
	for i := range r.TCP {
		s := &r.TCP[i]
		if last, ok := in.tcp[s.Labels]; ok &&
			(s.Opened < last.Opened || s.Closed < last.Closed || s.Sent < last.Sent || s.Received < last.Received) {
			return fmt.Errorf("tcp[%d] %w", i, errFell)
		}
	}
	if in.custom.fell(newCustom(r.Metrics)) {
		return fmt.Errorf("metrics %w", errFell)
	}
	return nil
}

func fell(now, before *report.Histogram) bool {
	for i := range now.Counts {
		if now.Counts[i] < before.Counts[i] {
			return true
		}
	}
	return now.Sum < before.Sum
}

// retire moves the instances that are gone into the base of their workload.
func (t *totals) retire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.peers {
		for _, w := range p.workloads {
			var latest time.Time
			for _, in := range w.instances {
				if in.heard.After(latest) {
					latest = in.heard
				}
			}
			for name, in := range w.instances {
				if in.heard.Before(latest) && now.Sub(in.heard) >= silence {
					t.hold(p, -w.retire(name, in))
				}
			}
		}
	}
}

// retire returns how many series and instances fewer w holds.
func (w *workload) retire(name string, in *instance) int {
	freed := 1
	for labels, s := range in.http {
		if sum, ok := w.base.http[labels]; ok {
			s.Add(&sum)
			freed++
		}
		w.base.http[labels] = s
	}
	for labels, s := range in.tcp {
		if sum, ok := w.base.tcp[labels]; ok {
			s.Add(&sum)
			freed++
		}
		w.base.tcp[labels] = s
	}
	before := w.base.custom.size() + in.custom.size()
	for _, m := range in.custom.metrics() {
		w.base.custom.add(&m)
	}
	freed += before - w.base.custom.size()
	w.base.dropped += in.dropped
	delete(w.instances, name)
	w.retired = append(w.retired, name)
	if extra := len(w.retired) - retiredKept; extra > 0 {
		w.retired = slices.Delete(w.retired, 0, extra)
	}
	return freed
}

// snapshot is all that is counted at one moment.
type snapshot struct {
	http             []report.HTTPSeries
	tcp              []report.TCPSeries
	custom           custom
	stats            stats
	held, instances  int
	droppedExchanges uint64
}

// collect copies the counts out; series with equal labels stand side by side, to be summed by report.WriteText.
func (t *totals) collect() snapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := snapshot{stats: t.stats, custom: custom{}}
	add := func(c *counts) {
		s.held += len(c.http) + len(c.tcp) + c.custom.size()
		for _, m := range c.custom.metrics() {
			s.custom.add(&m)
		}
		s.droppedExchanges += c.dropped
		s.http = slices.AppendSeq(s.http, maps.Values(c.http))
		s.tcp = slices.AppendSeq(s.tcp, maps.Values(c.tcp))
	}
	for _, p := range t.peers {
		for _, w := range p.workloads {
			add(&w.base)
			for _, in := range w.instances {
				s.instances++
				add(&in.counts)
			}
		}
	}
	return s
}

// traffic is what the given workloads have served, by the word of their clients' proxies.
func (t *totals) traffic(workloads []string) report.Traffic {
	t.mu.Lock()
	defer t.mu.Unlock()
	var sum report.Traffic
	add := func(c *counts) {
		for l, s := range c.http {
			if l.Reporter == report.ReporterSource && slices.Contains(workloads, l.Destination.Workload) {
				sum.Add(&s)
			}
		}
	}
	for _, p := range t.peers {
		for _, w := range p.workloads {
			add(&w.base)
			for _, in := range w.instances {
				add(&in.counts)
			}
		}
	}
	return sum
}
