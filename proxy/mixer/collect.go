package mixer

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/composure-mesh/composure/mesh/report"
)

// Limits of what a proxy keeps.
const (
	// MaxSeries is the cap on the series of custom metrics of one proxy, all together: labels that have as many values as
	// there are requests cost no more. What comes after it is counted as dropped.
	MaxSeries = 2000
	// maxValue is how much of a label's value, or of a variable's, is kept: bytes.
	maxValue = 512
	// queueEntries are the log entries that may wait to be sent; then they are dropped and counted.
	queueEntries = 4096
	// batchBytes is about how much one request to mixer carries.
	batchBytes = 256 << 10
	keepEntry  = 4 << 10 // a longer entry's buffer is not kept
)

// Collector keeps what the rules have written down until mixer has it. It lives as long as the proxy.
type Collector struct {
	mu       sync.Mutex // of families, and of adding series
	families map[string]*family
	series   int

	observed, dropped, failed, lost atomic.Uint64

	queue   chan *[]byte
	buffers sync.Pool
}

// NewCollector returns one with nothing in it.
func NewCollector() *Collector {
	c := &Collector{families: map[string]*family{}, queue: make(chan *[]byte, queueEntries)}
	c.buffers.New = func() any { b := make([]byte, 0, 1024); return &b }
	return c
}

// family is the series of one metric.
type family struct {
	report.Metric
	series atomic.Pointer[map[string]*series] // replaced when one is added
}

type series struct {
	values  []string
	bits    atomic.Uint64 // of a float64: the sum of what was counted, or the last value of a gauge
	updated atomic.Int64  // of a gauge: unix nanoseconds
	counts  []atomic.Uint64
}

// Apply readies the rules of the next table: metrics that are as they were count on, and those of no rule are forgotten.
func (c *Collector) Apply(r *Rules) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := map[string]*family{}
	c.series = 0
	if r != nil {
		for _, x := range r.reports.rules {
			for _, m := range x.metrics {
				key := definition(m)
				f := kept[key]
				if f == nil {
					if f = c.families[key]; f == nil {
						f = &family{Metric: report.Metric{Name: m.Name, Description: m.Description, Kind: m.Kind, Labels: m.Labels, Bounds: m.Bounds}}
						f.series.Store(&map[string]*series{})
					}
					c.series += len(*f.series.Load())
				}
				m.family, kept[key] = f, f
			}
		}
	}
	c.families = kept
}

// definition is equal for metrics whose series can be one.
func definition(m *metric) string {
	b := []byte(m.Name + "\x00" + m.Kind + "\x00" + strings.Join(m.Labels, "\x00"))
	for _, bound := range m.Bounds {
		b = binary.BigEndian.AppendUint64(b, math.Float64bits(bound))
	}
	return string(b)
}

// observe counts one observation. What can't be evaluated is left out.
func (c *Collector) observe(m *metric, s *scratch) {
	v, err := m.value.Eval(&s.bag)
	if err != nil {
		c.failed.Add(1)
		return
	}
	n, err := number(&v)
	if err != nil || math.IsNaN(n) || math.IsInf(n, 0) || n < 0 && m.Kind == report.Counter {
		c.failed.Add(1)
		return
	}
	s.text = s.text[:0]
	for _, d := range m.dimensions {
		v, err := d.Eval(&s.bag)
		if err != nil {
			c.failed.Add(1)
			return
		}
		start := len(s.text)
		s.text = append(s.text, 0, 0) // the value's length
		s.text = cut(v.AppendText(s.text), start+2)
		binary.BigEndian.PutUint16(s.text[start:], uint16(len(s.text)-start-2))
	}
	x := (*m.family.series.Load())[string(s.text)]
	if x == nil {
		if x = c.add(m.family, string(s.text)); x == nil {
			c.dropped.Add(1)
			return
		}
	}
	c.observed.Add(1)
	x.observe(m.family, n)
}

// cut makes b at most maxValue bytes long behind start, at the end of a character.
func cut(b []byte, start int) []byte {
	if len(b)-start <= maxValue {
		return b
	}
	b = b[:start+maxValue]
	for len(b) > start && !utf8.RuneStart(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b[:max(start, len(b)-1)]
}

func (c *Collector) add(f *family, key string) *series {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *f.series.Load()
	if x := old[key]; x != nil {
		return x
	}
	if c.series >= MaxSeries {
		return nil
	}
	c.series++
	x := &series{}
	for rest := key; len(rest) > 0; {
		n := int(rest[0])<<8 | int(rest[1])
		x.values = append(x.values, strings.ToValidUTF8(rest[2:2+n], "\uFFFD"))
		rest = rest[2+n:]
	}
	if f.Kind == report.Distribution {
		x.counts = make([]atomic.Uint64, len(f.Bounds)+1)
	}
	next := make(map[string]*series, len(old)+1)
	for k, v := range old {
		next[k] = v
	}
	next[key] = x
	f.series.Store(&next)
	return x
}

func (x *series) observe(f *family, n float64) {
	if f.Kind == report.Gauge {
		x.bits.Store(math.Float64bits(n))
		x.updated.Store(time.Now().UnixNano())
		return
	}
	if x.counts != nil {
		i, _ := slices.BinarySearch(f.Bounds, n) // the first that is n or more
		x.counts[i].Add(1)
	}
	for {
		old := x.bits.Load()
		if x.bits.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+n)) {
			return
		}
	}
}

// Report is what was counted so far, and the number of observations in it.
func (c *Collector) Report() ([]report.Metric, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []report.Metric
	events := c.observed.Load() + c.dropped.Load()
	for _, f := range c.families {
		m := f.Metric
		for _, x := range *f.series.Load() {
			s := report.MetricSeries{Values: x.values, Value: math.Float64frombits(x.bits.Load()), Updated: x.updated.Load()}
			for i := range x.counts {
				s.Counts = append(s.Counts, x.counts[i].Load())
			}
			m.Series = append(m.Series, s)
		}
		if len(m.Series) > 0 {
			out = append(out, m)
		}
	}
	return out, events
}

// Stats are counters of the proxy's own: observations without room for their series, those and log entries that could not
// be evaluated, and log entries that were not sent.
func (c *Collector) Stats() (dropped, failed, lost uint64) {
	return c.dropped.Load(), c.failed.Load(), c.lost.Load()
}

// Dropped is how many observations were not counted for lack of room.
func (c *Collector) Dropped() uint64 { return c.dropped.Load() }

// enter queues one log entry: a line of JSON that report.Entry decodes.
func (c *Collector) enter(e *entries, s *scratch) {
	b := c.buffers.Get().(*[]byte)
	line, ok := e.appendTo((*b)[:0], s)
	*b = line
	if !ok {
		c.failed.Add(1)
		c.release(b)
		return
	}
	select {
	case c.queue <- b:
	default:
		c.lost.Add(1)
		c.release(b)
	}
}

func (c *Collector) release(b *[]byte) {
	if cap(*b) <= keepEntry {
		c.buffers.Put(b)
	}
}

// appendTo is false where something can't be evaluated: as in Istio there is no entry then.
func (e *entries) appendTo(b []byte, s *scratch) ([]byte, bool) {
	b = append(b, `{"handler":`...)
	b = quote(b, e.Handler)
	b = append(b, `,"instance":`...)
	b = quote(b, e.Instance)
	at := time.Now()
	if e.timestamp != nil {
		v, err := e.timestamp.Eval(&s.bag)
		if err != nil {
			return b, false
		}
		at = v.Time
	}
	b = append(b, `,"time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	if e.severity != nil {
		v, err := e.severity.Eval(&s.bag)
		if err != nil {
			return b, false
		}
		b = append(b, `,"severity":`...)
		b = quote(b, v.Str)
	}
	b = append(b, `,"variables":[`...)
	for i, p := range e.variables {
		v, err := p.Eval(&s.bag)
		if err != nil {
			return b, false
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"name":`...)
		b = quote(b, e.Variables[i].Name)
		b = append(b, `,"type":"`...)
		b = append(b, v.Type...)
		b = append(b, `","value":`...)
		s.text = cut(v.AppendText(s.text[:0]), 0)
		b = quote(b, s.text)
		b = append(b, '}')
	}
	return append(b, ']', '}', '\n'), true
}

// quote appends text as a string of JSON.
func quote[T ~string | ~[]byte](b []byte, text T) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, size := utf8.DecodeRuneInString(string(text[i:min(len(text), i+utf8.UTFMax)]))
			b = utf8.AppendRune(b, r)
			i += size
		}
	}
	return append(b, '"')
}

// Next waits for log entries and returns a batch of them, lines of JSON, and how many; nil when ctx ends first.
func (c *Collector) Next(ctx context.Context) (batch []byte, entries int) {
	var b *[]byte
	select {
	case b = <-c.queue: // also where ctx has ended: what is there is handed out
	default:
		select {
		case b = <-c.queue:
		case <-ctx.Done():
			return nil, 0
		}
	}
	batch, entries = append(batch, *b...), 1
	c.release(b)
	for len(batch) < batchBytes {
		select {
		case b := <-c.queue:
			batch = append(batch, *b...)
			entries++
			c.release(b)
		default:
			return batch, entries
		}
	}
	return batch, entries
}

// Lose counts entries that mixer would not take.
func (c *Collector) Lose(entries int) { c.lost.Add(uint64(entries)) }
