package plane

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// hub knows the proxies: what each should have, what it was sent, and what it has in force.
type hub struct {
	log *slog.Logger

	mu       sync.Mutex
	index    Index // nil before there are facts
	facts    *mesh.Facts
	revision uint64 // of the store, at index
	proxies  map[string]*proxy
	problems []string
	keeper   bool
}

// proxy is the proxy of one workload: of two processes at most, while one replaces the other.
type proxy struct {
	status  status.Proxy
	wanted  Document
	streams map[*stream]bool
	// revision is the latest of the store whose snapshot is in force.
	revision uint64
	// compiled is the store's revision of the wanted snapshot.
	compiled uint64
}

// stream is one connection of a proxy.
type stream struct {
	wake chan struct{} // holds one token while there is something to look at
	sent Document      // the last
	// changes says that the proxy takes changes of the document that it has; at the stream's start it is that of version has.
	changes bool
	has     string
}

func newHub(log *slog.Logger) *hub {
	return &hub{log: log, proxies: map[string]*proxy{}}
}

// result is what was compiled for one proxy.
type result struct {
	document Document
	problems []analysis.Problem
}

// update takes a new view into force and wakes the streams of those proxies whose document it changes, each as soon as its
// own is compiled.
func (h *hub) update(index Index, facts *mesh.Facts, revision uint64) {
	h.mu.Lock()
	h.index, h.facts, h.revision = index, facts, revision
	var workloads []string
	for name, p := range h.proxies {
		switch {
		case len(p.streams) > 0:
			workloads = append(workloads, name)
		case index.Workload(name) == nil:
			delete(h.proxies, name) // it neither runs nor calls
		}
	}
	h.mu.Unlock()
	slices.Sort(workloads)
	results := make([]result, len(workloads))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < len(workloads); i = next.Add(1) - 1 {
				results[i] = h.compile(index, workloads[i])
				h.mu.Lock()
				h.want(workloads[i], results[i], revision)
				h.mu.Unlock()
			}
		})
	}
	wg.Wait()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report(texts(results))
}

// compile makes the document that a proxy should have; it has none where the workload is gone from the facts, and its
// proxy keeps what it has until it goes too.
func (h *hub) compile(index Index, workload string) result {
	d, found, err := index.Compile(workload)
	if err != nil {
		h.log.Debug("no snapshot", "workload", workload, "error", err)
		return result{}
	}
	return result{d, found}
}

// texts are the problems of results, sorted. Proxies that share a document share the list of its problems.
func texts(results []result) []string {
	seen, lists := map[string]bool{}, map[*analysis.Problem]bool{}
	for _, r := range results {
		if len(r.problems) == 0 || lists[&r.problems[0]] {
			continue
		}
		lists[&r.problems[0]] = true
		for _, f := range r.problems {
			seen[f.Resource+" "+f.String()] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// want notes what was compiled for a proxy at a revision of the store.
func (h *hub) want(workload string, r result, revision uint64) {
	p := h.proxies[workload]
	if p == nil || r.document == nil {
		return
	}
	p.compiled = revision
	if version := r.document.Digest(); version != p.status.Wanted {
		p.status.Wanted, p.wanted = version, r.document
		for st := range p.streams {
			mark(st.wake)
		}
	}
	p.settle()
}

// settle notes how much of the configuration is in force.
func (p *proxy) settle() {
	if p.status.Acked != "" && p.status.Acked == p.status.Wanted {
		p.revision = p.compiled
	}
}

// report logs problems that are new.
func (h *hub) report(problems []string) {
	for _, p := range problems {
		if !slices.Contains(h.problems, p) {
			h.log.Warn("configuration", "problem", p)
		}
	}
	h.problems = problems
}

// authorize checks that the caller with the given identity is the proxy of workload.
func (h *hub) authorize(workload, identity string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.index == nil {
		return errNoFacts
	}
	w := h.index.Workload(workload)
	if w == nil || w.Identity == "" {
		return fmt.Errorf("%w: %q", errUnknownWorkload, workload)
	}
	if w.Identity != identity {
		return fmt.Errorf("%w: workload %q is %s, the caller is %s", errForeign, workload, w.Identity, identity)
	}
	return nil
}

// join adds a stream for workload, which has something to look at from the start. have is the version that the proxy
// says it has, nil where it knows no changes.
func (h *hub) join(workload string, have *string, now time.Time) *stream {
	st := &stream{wake: make(chan struct{}, 1)}
	if have != nil {
		st.changes, st.has = true, *have
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[workload]
	if p == nil {
		p = &proxy{status: status.Proxy{Workload: workload}, streams: map[*stream]bool{}}
		h.proxies[workload] = p
	}
	p.streams[st] = true // from here on, updates compile for it
	p.status.Connected = now
	for h.index != nil {
		index, revision := h.index, h.revision
		h.mu.Unlock()
		r := h.compile(index, workload)
		h.mu.Lock()
		if h.index != index {
			continue // there is a newer one by now
		}
		h.want(workload, r, revision)
		for _, text := range texts([]result{r}) {
			if !slices.Contains(h.problems, text) {
				h.report(append(slices.Clone(h.problems), text))
			}
		}
		break
	}
	mark(st.wake)
	return st
}

func (h *hub) leave(workload string, st *stream) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[workload]
	if delete(p.streams, st); len(p.streams) == 0 {
		p.status.Connected = time.Time{}
	}
}

// next is the document to send on st, with what its proxy has, if that is known and can be told from; nil if it has the
// newest.
func (h *hub) next(workload string, st *stream, now time.Time) (document, base Document) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[workload]
	document = p.wanted
	if document == nil || st.sent != nil && st.sent.Digest() == p.status.Wanted {
		return nil, nil
	}
	if st.changes {
		if base = st.sent; base == nil && st.has == p.status.Wanted {
			base = document
		}
	}
	st.sent = document
	p.status.Sent, p.status.SentAt = p.status.Wanted, now
	return document, base
}

// acknowledge notes what a proxy says of a snapshot.
func (h *hub) acknowledge(ack snapshot.Ack, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[ack.Workload]
	if p == nil { // its stream comes later
		p = &proxy{status: status.Proxy{Workload: ack.Workload}, streams: map[*stream]bool{}}
		h.proxies[ack.Workload] = p
	}
	p.status.Build = ack.Build
	if ack.Error != "" {
		if p.status.Refused != ack.Version {
			h.log.Error("a proxy refused its snapshot; the one before stays in force", "workload", ack.Workload, "version", ack.Version, "error", ack.Error)
		}
		p.status.Refused, p.status.Error = ack.Version, ack.Error
		return
	}
	p.status.Acked, p.status.AckedAt = ack.Version, now
	p.status.Refused, p.status.Error = "", ""
	p.settle()
}

// inForce is the index that the proxies' documents are compiled from, nil before there are facts.
func (h *hub) inForce() Index {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.index
}

func (h *hub) setKeeper(connected bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.keeper = connected
}

// status is what people are told, with the resources that are given.
func (h *hub) status(resources []status.Resource) status.Report {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := status.Report{Keeper: h.keeper, Problems: h.problems, Resources: resources, Proxies: []status.Proxy{}}
	if h.facts != nil {
		r.FactsRevision = h.facts.Revision
		for _, w := range h.facts.Workloads {
			if w.Identity != "" && h.proxies[w.Name] == nil {
				r.Proxies = append(r.Proxies, status.Proxy{Workload: w.Name, Namespace: w.Namespace, State: status.NotSent})
			}
		}
	}
	connected := 0
	for name, p := range h.proxies {
		out := p.status
		if h.index != nil {
			if w := h.index.Workload(name); w != nil {
				out.Namespace = w.Namespace
			}
		}
		out.State = p.state()
		r.Proxies = append(r.Proxies, out)
		if len(p.streams) == 0 {
			continue
		}
		connected++
		for i := range r.Resources {
			if v, err := strconv.ParseUint(r.Resources[i].ResourceVersion, 10, 64); err == nil && p.status.Acked != "" && v <= p.revision {
				r.Resources[i].Applied++
			}
		}
	}
	for i := range r.Resources {
		r.Resources[i].Proxies = connected
	}
	slices.SortFunc(r.Resources, func(a, b status.Resource) int { return cmp.Compare(a.Resource, b.Resource) })
	slices.SortFunc(r.Proxies, func(a, b status.Proxy) int { return cmp.Compare(a.Workload, b.Workload) })
	return r
}

func (p *proxy) state() status.State {
	s := &p.status
	switch {
	case s.Wanted == "" || len(p.streams) == 0:
		return status.NotSent
	case s.Acked == s.Wanted:
		return status.Synced
	case s.Refused == s.Wanted:
		return status.Nack
	}
	return status.Stale
}
