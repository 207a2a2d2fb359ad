package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// side is one of those that are compared: what a client dials, and the proxies behind.
type side struct {
	name  string // nginx, haproxy; of ours only in errors
	addr  string
	admin string // of our first proxy, for a profile
	procs []*process
}

func (s *side) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, p := range s.procs {
		d, err := p.cpu()
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

func (s *side) rss() (float64, error) {
	var sum float64
	for _, p := range s.procs {
		mb, err := p.rss()
		if err != nil {
			return 0, err
		}
		sum += mb
	}
	return sum, nil
}

// sample is what one turn has measured, by metric.
type sample map[string]float64

// metrics in the order of the table. A load yields some of them; cpu and rss are added.
var metrics = []string{
	"cpu_us_per_request", "cpu_us_per_connection", "cpu_us_per_message", "cpu_us_per_mb", "requests_per_second",
	"connections_per_second", "messages_per_second", "mb_per_second", "allocs_per_request", "p50_ms", "p90_ms", "p99_ms", "p99.9_ms",
	"added_p50_ms", "added_p90_ms", "added_p99_ms", "added_p99.9_ms", "rss_mb", "kb_per_idle_connection",
}

// load makes one turn's traffic. unit is what its count counts: requests, for one.
type load struct {
	unit string
	run  func(s *side, d time.Duration) (count float64, m sample, err error)
}

// compare lets each side take its turn, round after round, the order turning; the first side is ours. Of each metric
// the rows have the medians, and the ratio is the median of the rounds' ratios.
func (b *bench) compare(l load, sides ...*side) ([]row, error) {
	turns, err := b.turns(l, sides)
	if err != nil {
		return nil, err
	}
	return rows(sides, turns), nil
}

// turns are the samples by side and round.
func (b *bench) turns(l load, sides []*side) ([][]sample, error) {
	for _, s := range sides {
		if _, _, err := l.run(s, b.duration/4); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	turns := make([][]sample, len(sides))
	for round := range b.rounds {
		for i := range sides {
			i = (i + round) % len(sides)
			m, err := b.turn(l, sides[i], b.duration)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", sides[i].name, err)
			}
			turns[i] = append(turns[i], m)
		}
	}
	if b.profiles != "" && sides[0].admin != "" {
		if err := b.profile(l, sides[0]); err != nil {
			return nil, err
		}
	}
	return turns, nil
}

func (b *bench) turn(l load, s *side, d time.Duration) (sample, error) {
	before, err := s.cpu()
	if err != nil {
		return nil, err
	}
	first, err := b.mallocs(s)
	if err != nil {
		return nil, err
	}
	second, err := b.mallocs(s)
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	count, m, err := l.run(s, d)
	if err != nil {
		return nil, err
	}
	took := time.Since(begun)
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	if count == 0 {
		return nil, fmt.Errorf("no %s in %s", l.unit, took)
	}
	if l.unit == "request" && s.admin != "" && len(s.procs) == 1 {
		total, err := b.mallocs(s)
		if err != nil {
			return nil, err
		}
		m["allocs_per_request"] = max(0, total-second-(second-first)) / count // without what asking allocates itself
	}
	m["cpu_us_per_"+l.unit] = float64(after-before) / float64(time.Microsecond) / count
	if len(s.procs) == 0 {
		delete(m, "cpu_us_per_"+l.unit)
		return m, nil
	}
	m["rss_mb"], err = s.rss()
	return m, err
}

var mallocs = regexp.MustCompile(`(?m)^# Mallocs = (\d+)$`)

// mallocs is what our first proxy has allocated since it was started; 0 of others.
func (b *bench) mallocs(s *side) (float64, error) {
	if s.admin == "" {
		return 0, nil
	}
	data, err := get(b.ctx, "http://"+s.admin+"/debug/pprof/heap?debug=1")
	if err != nil {
		return 0, err
	}
	m := mallocs.FindSubmatch(data)
	if m == nil {
		return 0, fmt.Errorf("%s: no Mallocs in its heap profile", s.name)
	}
	return parse(m[1]), nil
}

// profile writes what our first proxy spends its time on under the load of the case.
func (b *bench) profile(l load, s *side) error {
	const length = 5 * time.Second
	failed := make(chan error, 1)
	go func() {
		data, err := get(b.ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.admin, int(length.Seconds())-1))
		if err == nil {
			err = os.WriteFile(filepath.Join(b.profiles, fmt.Sprintf("%s-%d.pprof", s.name, time.Now().UnixNano())), data, 0o600)
		}
		failed <- err
	}()
	if _, _, err := l.run(s, length); err != nil {
		return err
	}
	return <-failed
}

func rows(sides []*side, turns [][]sample) []row {
	var out []row
	for i := 1; i < len(sides); i++ {
		for _, metric := range metrics {
			var ours, theirs, ratios []float64
			for round := range turns[0] {
				o, ok := turns[0][round][metric]
				t, both := turns[i][round][metric]
				if ok && both {
					ours, theirs = append(ours, o), append(theirs, t)
					ratios = append(ratios, o/t)
				}
			}
			if len(ours) > 0 {
				out = append(out, row{Metric: metric, Ours: rounded(median(ours)), Theirs: rounded(median(theirs)), Ratio: rounded(median(ratios)), Opponent: sides[i].name})
			}
		}
	}
	return out
}

// limit is a row against a figure of the design rather than another program.
func limit(metric string, ours, most float64) row {
	return row{Metric: metric, Ours: rounded(ours), Theirs: most, Ratio: rounded(ours / most), Opponent: "limit"}
}

func median(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// rounded keeps four significant digits: the rest is noise.
func rounded(v float64) float64 {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return 0
	}
	p := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*p) / p
}
