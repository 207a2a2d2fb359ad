package pilot

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
	"github.com/composure-mesh/composure/pilot/status"
)

// hub knows the proxies: what each should have, what it was sent, and what it has in force.
type hub struct {
	log *slog.Logger

	mu       sync.Mutex
	index    *compile.Index // nil before there are facts
	facts    *mesh.Facts
	revision uint64 // of the store, at index
	proxies  map[string]*proxy
	problems []string
	keeper   bool
}

// proxy is the proxy of one workload: of two processes at most, while one replaces the other.
type proxy struct {
	status  status.Proxy
	line    []byte // the wanted snapshot, one line of JSON
	streams map[*stream]bool
	// revision is the latest of the store whose snapshot is in force.
	revision uint64
	// compiled is the store's revision of the wanted snapshot.
	compiled uint64
}

// stream is one connection of a proxy.
type stream struct {
	wake chan struct{} // holds one token while there is something to look at
	sent string
}

func newHub(log *slog.Logger) *hub {
	return &hub{log: log, proxies: map[string]*proxy{}}
}

// update takes a new view into force and wakes the streams of those proxies whose snapshot it changes. Between two
// proxies it lets go of the hub, so that the first get theirs while the last are compiled for.
func (h *hub) update(index *compile.Index, facts *mesh.Facts, revision uint64) {
	h.mu.Lock()
	h.index, h.facts, h.revision = index, facts, revision
	workloads := slices.Sorted(maps.Keys(h.proxies))
	h.mu.Unlock()
	problems := map[string]bool{}
	for _, workload := range workloads {
		h.refresh(workload, problems)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.report(slices.Sorted(maps.Keys(problems)))
}

func (h *hub) refresh(workload string, problems map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[workload]
	switch {
	case len(p.streams) > 0:
		h.compile(workload, p, problems)
	case h.index.Workload(workload) == nil:
		delete(h.proxies, workload) // it neither runs nor calls
	}
}

// compile makes the snapshot that p should have.
func (h *hub) compile(workload string, p *proxy, problems map[string]bool) {
	if h.index == nil {
		return
	}
	s, found, err := h.index.Compile(workload)
	if err != nil {
		// The workload is gone from the facts; its proxy keeps what it has until it goes too.
		h.log.Debug("no snapshot", "workload", workload, "error", err)
		return
	}
	for _, f := range found {
		problems[f.Resource+" "+f.String()] = true
	}
	p.compiled = h.revision
	if s.Version != p.status.Wanted {
		line, err := json.Marshal(s)
		if err != nil {
			h.log.Error("encode snapshot", "workload", workload, "error", err)
			return
		}
		line = append(line, '\n')
		p.status.Wanted, p.line = s.Version, line
		for st := range p.streams {
			st.notify()
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

func (st *stream) notify() {
	select {
	case st.wake <- struct{}{}:
	default: // it has not looked yet
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

// join adds a stream for workload, which has something to look at from the start.
func (h *hub) join(workload string, now time.Time) *stream {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[workload]
	if p == nil {
		p = &proxy{status: status.Proxy{Workload: workload}, streams: map[*stream]bool{}}
		h.proxies[workload] = p
	}
	st := &stream{wake: make(chan struct{}, 1)}
	p.streams[st] = true
	p.status.Connected = now
	problems := map[string]bool{}
	h.compile(workload, p, problems)
	for text := range problems {
		if !slices.Contains(h.problems, text) {
			h.report(append(slices.Clone(h.problems), text))
		}
	}
	st.notify()
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

// next is the line to send on st, nil if it has the newest.
func (h *hub) next(workload string, st *stream, now time.Time) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.proxies[workload]
	if p.line == nil || st.sent == p.status.Wanted {
		return nil
	}
	st.sent = p.status.Wanted
	p.status.Sent, p.status.SentAt = p.status.Wanted, now
	return p.line
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
