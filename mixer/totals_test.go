package mixer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/report"
)

func requests(sums *totals) (n uint64) {
	for _, s := range sums.collect().http {
		n += s.Requests
	}
	return n
}

func TestIngestReplacesAnInstancesLastWordAndSumsInstances(t *testing.T) {
	now := time.Now()
	web := workloadID(t, "web")
	sums := newTotals()
	steps := []struct {
		name     string
		workload string
		instance string
		sequence uint64
		requests uint64
		err      error
		want     uint64
	}{
		{"first", "web", "a", 1, 5, nil, 5},
		{"next replaces", "web", "a", 3, 8, nil, 8},
		{"repeated counts nothing", "web", "a", 3, 8, errStale, 8},
		{"overtaken counts nothing", "web", "a", 2, 6, errStale, 8},
		{"second instance adds", "web", "b", 1, 2, nil, 10},
		{"replica adds", "web-2", "a", 1, 100, nil, 110},
		{"fallen counter is refused", "web", "a", 4, 7, errFell, 110},
		{"the same again is fine", "web", "a", 5, 8, nil, 110},
	}
	for _, s := range steps {
		err := sums.ingest(web, &report.Report{Workload: s.workload, Instance: s.instance, Sequence: s.sequence,
			HTTP: []report.HTTPSeries{series("web", "200", s.requests)}}, now)
		if !errors.Is(err, s.err) {
			t.Errorf("%s: error %v, want %v", s.name, err, s.err)
		}
		if got := requests(sums); got != s.want {
			t.Errorf("%s: %d requests, want %d", s.name, got, s.want)
		}
	}
	if got, want := sums.collect().stats, (stats{accepted: 5, stale: 2, refused: 1}); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestIngestKeepsIdentitiesApart(t *testing.T) {
	sums := newTotals()
	for i, account := range []string{"web", "evil"} {
		// The second claims the first one's workload and instance.
		err := sums.ingest(workloadID(t, account), &report.Report{Workload: "web", Instance: "a", Sequence: uint64(i + 1),
			HTTP: []report.HTTPSeries{series(account, "200", 5)}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := requests(sums); got != 10 {
		t.Errorf("%d requests, want 10: one identity has replaced another's report", got)
	}
}

func TestIngestCountsTCPAndWhatALaterReportLacks(t *testing.T) {
	sums := newTotals()
	web := workloadID(t, "web")
	labels := report.Labels{Reporter: report.ReporterSource, Service: "db"}
	first := report.Report{Workload: "web", Instance: "a", Sequence: 1, Dropped: 3,
		HTTP: []report.HTTPSeries{series("web", "200", 5)},
		TCP:  []report.TCPSeries{{Labels: labels, Opened: 4, Closed: 3, Sent: 100, Received: 10}}}
	second := report.Report{Workload: "web", Instance: "a", Sequence: 2, Dropped: 4,
		TCP: []report.TCPSeries{{Labels: labels, Opened: 5, Closed: 5, Sent: 100, Received: 11}}}
	for _, r := range []*report.Report{&first, &second} {
		if err := sums.ingest(web, r, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if got := requests(sums); got != 5 {
		t.Errorf("%d requests, want 5: a partial report has removed a series", got)
	}
	if got := sums.collect(); len(got.tcp) != 1 || got.tcp[0] != second.TCP[0] || got.droppedExchanges != 4 {
		t.Errorf("tcp %+v, dropped %d, want %+v, 4", got.tcp, got.droppedExchanges, second.TCP)
	}
	second.Sequence = 3
	second.TCP[0].Sent--
	second.HTTP = []report.HTTPSeries{series("web", "200", 50)}
	if err := sums.ingest(web, &second, time.Now()); !errors.Is(err, errFell) {
		t.Errorf("fallen bytes: %v, want %v", err, errFell)
	}
	if got := requests(sums); got != 5 {
		t.Errorf("%d requests, want 5: a refused report was half counted", got)
	}
}

func TestRetire(t *testing.T) {
	web := workloadID(t, "web")
	start := time.Now()
	sums := newTotals()
	say := func(instance string, seq, n uint64, after time.Duration) error {
		return sums.ingest(web, &report.Report{Workload: "web", Instance: instance, Sequence: seq,
			HTTP: []report.HTTPSeries{series("web", "200", n)},
			TCP:  []report.TCPSeries{{Labels: report.Labels{Reporter: report.ReporterSource}, Opened: n}}}, start.Add(after))
	}
	check := func(when string, want uint64, held, instances int) {
		t.Helper()
		got := sums.collect()
		if n := requests(sums); n != want || sums.held != held || got.instances != instances {
			t.Errorf("%s: %d requests, %d held, %d instances; want %d, %d, %d", when, n, sums.held, got.instances, want, held, instances)
		}
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(say("a", 1, 7, 0))
	sums.retire(start.Add(time.Hour))
	check("the only instance stays, however long it is silent", 7, 3, 1)
	ok(say("a", 2, 9, time.Hour))
	check("and replaces its last word when it comes back", 9, 3, 1)

	ok(say("b", 1, 1, time.Hour+time.Second))
	sums.retire(start.Add(time.Hour + silence - time.Second))
	check("an instance that drains stays", 10, 6, 2)
	sums.retire(start.Add(time.Hour + silence))
	check("a gone one becomes the base", 10, 5, 1)
	if err := say("a", 3, 11, time.Hour+silence); !errors.Is(err, errRetired) {
		t.Errorf("a gone instance comes back: %v, want %v", err, errRetired)
	}
	ok(say("c", 1, 1, 2*time.Hour))
	sums.retire(start.Add(2 * time.Hour))
	check("bases sum", 11, 5, 1)
}

func TestRetireRemembersTheLatestGoneInstances(t *testing.T) {
	web := workloadID(t, "web")
	now := time.Now()
	sums := newTotals()
	for i := range retiredKept + 3 {
		now = now.Add(silence)
		if err := sums.ingest(web, &report.Report{Workload: "web", Instance: strconv.Itoa(i), Sequence: 1,
			HTTP: []report.HTTPSeries{series("web", "200", 1)}}, now); err != nil {
			t.Fatal(err)
		}
		sums.retire(now)
	}
	w := sums.peers[web].workloads["web"]
	if len(w.retired) != retiredKept || w.retired[0] != "2" || len(w.instances) != 1 {
		t.Errorf("%d gone instances from %s on, %d present; want %d from 2 on, 1", len(w.retired), w.retired[0], len(w.instances), retiredKept)
	}
	if got := requests(sums); got != retiredKept+3 {
		t.Errorf("%d requests, want %d", got, retiredKept+3)
	}
}

func TestCaps(t *testing.T) {
	sums := newTotals()
	flood := func(account string) {
		t.Helper()
		r := &report.Report{Workload: account, Instance: "a", Sequence: 1}
		for i := range maxSeriesOfPeer + 10 {
			r.HTTP = append(r.HTTP, series(account, strconv.Itoa(i), 1))
		}
		if err := sums.ingest(workloadID(t, account), r, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	flood("one")
	if got := sums.collect(); got.held != maxSeriesOfPeer-1 || got.stats.droppedSeries != 11 {
		t.Errorf("held %d, dropped %d, want %d, 11", got.held, got.stats.droppedSeries, maxSeriesOfPeer-1)
	}
	one := workloadID(t, "one")
	if err := sums.ingest(one, &report.Report{Workload: "one", Instance: "b", Sequence: 1}, time.Now()); !errors.Is(err, errFull) {
		t.Errorf("a further instance of a full peer: %v, want %v", err, errFull)
	}
	known := &report.Report{Workload: "one", Instance: "a", Sequence: 2, HTTP: []report.HTTPSeries{series("one", "0", 9)}}
	if err := sums.ingest(one, known, time.Now()); err != nil || requests(sums) != maxSeriesOfPeer-1+8 {
		t.Errorf("a known series of a full peer: %v, %d requests", err, requests(sums))
	}
	for _, account := range []string{"two", "three", "four"} {
		flood(account)
	}
	if sums.held != maxSeries {
		t.Errorf("held %d, want %d", sums.held, maxSeries)
	}
	if err := sums.ingest(workloadID(t, "five"), &report.Report{Workload: "five", Instance: "a", Sequence: 1}, time.Now()); !errors.Is(err, errFull) {
		t.Errorf("a peer too many: %v, want %v", err, errFull)
	}
	if len(sums.peers) != 4 {
		t.Errorf("%d peers, want 4: a refused one is kept", len(sums.peers))
	}
}

// TestMetricsNeverFall is the promise of the package: whatever is lost, repeated, late or restarted, no counter falls
// from one scrape to the next, and when all have had their say, nothing is missing and nothing counts twice.
func TestMetricsNeverFall(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { liveThrough(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

// fakeProxy counts as a proxy does.
type fakeProxy struct {
	account  string
	instance int
	sequence uint64
	counts   map[string]uint64
	sent     []*report.Report // of all its instances: what may arrive late
}

func (p *fakeProxy) report() *report.Report {
	p.sequence++
	r := &report.Report{Workload: p.account, Instance: fmt.Sprint(p.account, p.instance), Sequence: p.sequence}
	for code, n := range p.counts {
		r.HTTP = append(r.HTTP, series(p.account, code, n))
		r.TCP = append(r.TCP, report.TCPSeries{Labels: report.Labels{Reporter: report.ReporterSource, Service: code}, Opened: n, Sent: 7 * n})
	}
	p.sent = append(p.sent, r)
	return r
}

func liveThrough(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	sums := newTotals()
	now := time.Now()
	proxies := []*fakeProxy{{account: "web"}, {account: "api"}, {account: "db"}}
	for _, p := range proxies {
		p.counts = map[string]uint64{}
	}
	deliver := func(p *fakeProxy, r *report.Report) error { return sums.ingest(workloadID(t, p.account), r, now) }
	var counted uint64
	before := map[string]float64{}
	for range 400 {
		p := proxies[rnd.IntN(len(proxies))]
		switch rnd.IntN(8) {
		case 0, 1, 2: // requests
			n := rnd.Uint64N(20)
			p.counts[[]string{"200", "404", "503"}[rnd.IntN(3)]] += n
			counted += n
		case 3, 4: // a report arrives
			if err := deliver(p, p.report()); err != nil {
				t.Fatalf("a new report is refused: %v", err)
			}
		case 5: // a report is lost
			p.report()
		case 6: // any earlier one arrives late or again
			if len(p.sent) > 0 {
				_ = deliver(p, p.sent[rnd.IntN(len(p.sent))]) // refused or not: the counters decide
			}
		case 7: // time passes; at times the proxy has said its last word and restarts
			now = now.Add(time.Duration(rnd.IntN(200)) * time.Second)
			if rnd.IntN(3) == 0 {
				if err := deliver(p, p.report()); err != nil {
					t.Fatalf("a last report is refused: %v", err)
				}
				p.instance, p.sequence, p.counts = p.instance+1, 0, map[string]uint64{}
			}
			sums.retire(now)
		}
		if rnd.IntN(8) != 0 {
			continue
		}
		after := counters(t, exposition(t, sums))
		for sample, was := range before {
			if after[sample] < was {
				t.Fatalf("%s fell from %g to %g", sample, was, after[sample])
			}
		}
		before = after
	}
	for _, p := range proxies {
		if err := deliver(p, p.report()); err != nil {
			t.Fatal(err)
		}
	}
	if got := requests(sums); got != counted {
		t.Errorf("%d requests counted, %d made", got, counted)
	}
}

// counters reads the samples that must never fall.
func counters(t *testing.T, text string) map[string]float64 {
	t.Helper()
	samples := map[string]float64{}
	for line := range strings.Lines(text) {
		sample, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := samples[sample]; twice {
			t.Fatalf("sample %s} stands twice", sample)
		}
		samples[sample] = n
	}
	return samples
}
