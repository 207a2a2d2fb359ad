// Package telemetry counts what passes a proxy and writes its access log. It implements exchange.Recorder: nothing
// in it blocks an exchange, takes a lock that exchanges share, or allocates once a series is known.
package telemetry

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
)

// MaxSeries is the cap on series of one proxy: 2000, HTTP and TCP together. It bounds memory (about 1 MB) and the
// size of a report when labels multiply; what comes after it is counted in Report.Dropped alone.
const MaxSeries = 2000

// Config is what a Recorder needs.
type Config struct {
	// Cluster is the value of the source_cluster and destination_cluster labels: the mesh's name.
	Cluster string
	// Instance tells this process's counters from those of another process of the same workload.
	Instance string
	// AccessLog receives a line for each exchange and session; nil for none.
	AccessLog *AccessLog
}

// Recorder keeps the cumulative series of one proxy process.
type Recorder struct {
	cfg  Config
	self atomic.Pointer[snapshot.Workload]

	// The maps are read without a lock and replaced when a series is added, which ends when all are known.
	http    atomic.Pointer[map[key]*httpSeries]
	tcp     atomic.Pointer[map[key]*tcpSeries]
	dropped atomic.Uint64

	mu       sync.Mutex // of what follows, and of replacing the maps
	allHTTP  map[report.Labels]*httpSeries
	allTCP   map[report.Labels]*tcpSeries
	sequence uint64
}

// New returns a recorder with no series.
func New(cfg Config) *Recorder {
	r := &Recorder{cfg: cfg, allHTTP: map[report.Labels]*httpSeries{}, allTCP: map[report.Labels]*tcpSeries{}}
	r.self.Store(&snapshot.Workload{})
	r.forget()
	return r
}

// Apply tells which workload this is, and lets go of what belongs to older snapshots. Counters go on.
func (r *Recorder) Apply(s *snapshot.Snapshot) {
	self := s.Proxy
	r.self.Store(&self)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget()
}

// forget empties the fast way to the series, not the series.
func (r *Recorder) forget() {
	r.http.Store(&map[key]*httpSeries{})
	r.tcp.Store(&map[key]*tcpSeries{})
}

// key is what the labels of a series follow from: small and quick to hash, where report.Labels is neither.
type key struct {
	direction            exchange.Direction
	tls, grpc            bool
	status, grpcStatus   int
	source, destination  *snapshot.Workload
	service              *snapshot.Service
	peer, cluster, flags string
}

func makeKey(c *exchange.Connection, u *exchange.Upstream, e *exchange.Ends, f exchange.Flag) key {
	k := key{
		direction: c.Direction, tls: u.TLS, source: e.Source, destination: e.Destination, service: e.Service,
		peer: c.Peer, flags: string(f),
	}
	if e.Service == nil {
		k.cluster = u.Cluster
	}
	return k
}

// Exchange counts one exchange and logs it.
func (r *Recorder) Exchange(x *exchange.Exchange) {
	k := makeKey(x.Conn, &x.Upstream, &x.Ends, x.Flag)
	k.status, k.grpc = x.Status, x.GRPC
	if x.GRPC {
		k.grpcStatus = x.GRPCStatus
	}
	if s := r.httpSeries(k); s != nil {
		s.requests.Add(1)
		s.duration.observe(float64(x.Duration)/float64(time.Millisecond), int64(x.Duration))
		s.requestBytes.observe(float64(x.BytesReceived), x.BytesReceived)
		s.responseBytes.observe(float64(x.BytesSent), x.BytesSent)
	} else {
		r.dropped.Add(1)
	}
	if r.cfg.AccessLog != nil {
		r.cfg.AccessLog.exchange(x)
	}
}

// SessionOpened counts a TCP session that begins.
func (r *Recorder) SessionOpened(x *exchange.Session) {
	// Its flags are not known before its end, and belong to it as a whole.
	if s := r.tcpSeries(makeKey(x.Conn, &x.Upstream, &x.Ends, exchange.FlagNone)); s != nil {
		s.opened.Add(1)
	} else {
		r.dropped.Add(1)
	}
}

// SessionClosed counts the end of a TCP session and logs it.
func (r *Recorder) SessionClosed(x *exchange.Session) {
	if s := r.tcpSeries(makeKey(x.Conn, &x.Upstream, &x.Ends, x.Flag)); s != nil {
		s.closed.Add(1)
		s.sent.Add(uint64(max(x.BytesSent, 0)))
		s.received.Add(uint64(max(x.BytesReceived, 0)))
	}
	if r.cfg.AccessLog != nil {
		r.cfg.AccessLog.session(x)
	}
}

func (r *Recorder) httpSeries(k key) *httpSeries {
	if s, ok := (*r.http.Load())[k]; ok {
		return s
	}
	return find(r, &r.http, r.allHTTP, k, r.httpLabels(&k), func(l report.Labels) *httpSeries { return &httpSeries{labels: l} })
}

func (r *Recorder) tcpSeries(k key) *tcpSeries {
	if s, ok := (*r.tcp.Load())[k]; ok {
		return s
	}
	return find(r, &r.tcp, r.allTCP, k, r.tcpLabels(&k), func(l report.Labels) *tcpSeries { return &tcpSeries{labels: l} })
}

// find is the slow way to a series: it adds the series if there is none, and the key to the quick way. It is nil
// when the cap is reached.
func find[S any](r *Recorder, quick *atomic.Pointer[map[key]*S], all map[report.Labels]*S, k key, l report.Labels, add func(report.Labels) *S) *S {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := all[l]
	if !ok {
		if len(r.allHTTP)+len(r.allTCP) >= MaxSeries {
			return nil
		}
		s = add(l)
		all[l] = s
	}
	old := *quick.Load()
	if len(old) >= 2*MaxSeries {
		return s // old snapshots' keys; the next Apply clears them away
	}
	next := make(map[key]*S, len(old)+1)
	for k, v := range old {
		next[k] = v
	}
	next[k] = s
	quick.Store(&next)
	return s
}

// Report is everything counted so far, and the number of events in it, by which two reports can be told to say
// the same.
func (r *Recorder) Report() (*report.Report, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sequence++
	out := &report.Report{Workload: r.self.Load().Name, Instance: r.cfg.Instance, Sequence: r.sequence, Dropped: r.dropped.Load()}
	events := out.Dropped
	for _, s := range r.allHTTP {
		h := s.read()
		events += h.Requests
		out.HTTP = append(out.HTTP, h)
	}
	for _, s := range r.allTCP {
		t := s.read()
		events += t.Opened + t.Closed
		out.TCP = append(out.TCP, t)
	}
	return out, events
}

// Dropped is how many exchanges were not counted in a series since there are too many.
func (r *Recorder) Dropped() uint64 { return r.dropped.Load() }

type httpSeries struct {
	labels                                report.Labels
	requests                              atomic.Uint64
	duration, requestBytes, responseBytes histogram
}

func (s *httpSeries) read() report.HTTPSeries {
	return report.HTTPSeries{
		Labels:        s.labels,
		Requests:      s.requests.Load(),
		Duration:      s.duration.read(float64(time.Millisecond)),
		RequestBytes:  s.requestBytes.read(1),
		ResponseBytes: s.responseBytes.read(1),
	}
}

type tcpSeries struct {
	labels                         report.Labels
	opened, closed, sent, received atomic.Uint64
}

func (s *tcpSeries) read() report.TCPSeries {
	return report.TCPSeries{
		Labels: s.labels, Opened: s.opened.Load(), Closed: s.closed.Load(), Sent: s.sent.Load(), Received: s.received.Load(),
	}
}

// histogram counts by report.Buckets. The sum is kept as an integer, which adds up in one instruction.
type histogram struct {
	counts [len(report.Buckets) + 1]atomic.Uint64
	sum    atomic.Int64
}

func (h *histogram) observe(value float64, sum int64) {
	i := 0
	for i < len(report.Buckets) && value > report.Buckets[i] {
		i++
	}
	h.counts[i].Add(1)
	h.sum.Add(sum)
}

func (h *histogram) read(unit float64) report.Histogram {
	out := report.Histogram{Sum: float64(h.sum.Load()) / unit}
	for i := range h.counts {
		out.Counts[i] = h.counts[i].Load()
	}
	return out
}
