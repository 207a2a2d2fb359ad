// Package adapter gives the log entries of proxies to the handlers that people have configured. An adapter is a folder here
// and a line in the list below. Each handler has a bounded queue of its own: one that is slow or gone costs entries, which
// are counted, and never the others or the proxies.
package adapter

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mixer/adapter/fluentd"
	"github.com/composure-mesh/composure/mixer/adapter/stdio"
	"github.com/composure-mesh/composure/mixer/adapter/webhook"
)

// Adapter writes entries down.
type Adapter interface {
	// Write writes the batch. An error says that some of it may be lost: the batch is tried once more.
	Write(ctx context.Context, batch []report.Entry) error
	Close() error
}

// open is the adapter of a handler; nil for one that takes no entries.
func open(h *api.Handler, out, errOut io.Writer) Adapter {
	switch p := h.Params.(type) {
	case *api.Stdio:
		return stdio.New(p, out, errOut)
	case *api.Fluentd:
		return fluentd.New(p)
	case nil:
		return webhook.New(h.Address)
	}
	return nil
}

const (
	queueBatches = 1024 // batches of proxies that may wait for a handler
	retryAfter   = time.Second
)

// Handlers are the handlers there are.
type Handlers struct {
	out, errOut io.Writer
	log         *slog.Logger

	mu      sync.Mutex
	ctx     context.Context //nolint:containedctx // that of Run, in which handlers that come later work
	running map[string]*handler
	unknown atomic.Uint64 // entries for handlers that are not there
}

type handler struct {
	spec    *api.Handler
	adapter Adapter
	queue   chan []report.Entry
	stop    context.CancelFunc

	written, dropped, failed atomic.Uint64
}

// New makes none; out and errOut are what stdio handlers write to.
func New(out, errOut io.Writer, log *slog.Logger) *Handlers {
	return &Handlers{out: out, errOut: errOut, log: log, running: map[string]*handler{}}
}

// Run lets handlers work until ctx ends.
func (s *Handlers) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	for name, h := range s.running {
		s.start(name, h)
	}
	s.mu.Unlock()
	<-ctx.Done()
	return nil
}

// Apply makes the handlers by their full names the only ones; those that are as they were go on.
func (s *Handlers) Apply(specs map[string]*api.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, h := range s.running {
		if spec := specs[name]; spec == nil || !reflect.DeepEqual(spec, h.spec) {
			if h.stop != nil {
				h.stop()
			}
			delete(s.running, name)
		}
	}
	for name, spec := range specs {
		if s.running[name] != nil {
			continue
		}
		if a := open(spec, s.out, s.errOut); a != nil {
			h := &handler{spec: spec, adapter: a, queue: make(chan []report.Entry, queueBatches)}
			s.running[name] = h
			if s.ctx != nil {
				s.start(name, h)
			}
		}
	}
}

func (s *Handlers) start(name string, h *handler) {
	ctx, stop := context.WithCancel(s.ctx)
	h.stop = stop
	go h.run(ctx, s.log.With("handler", name))
}

// Give hands a batch out. It does not wait.
func (s *Handlers) Give(batch []report.Entry) {
	by := map[string][]report.Entry{}
	for i := range batch {
		by[batch[i].Handler] = append(by[batch[i].Handler], batch[i])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, entries := range by {
		h := s.running[name]
		if h == nil {
			s.unknown.Add(uint64(len(entries)))
			continue
		}
		select {
		case h.queue <- entries:
		default:
			h.dropped.Add(uint64(len(entries)))
		}
	}
}

// run writes what is given until ctx ends.
func (h *handler) run(ctx context.Context, log *slog.Logger) {
	defer func() { _ = h.adapter.Close() }() // nobody waits for what is lost now
	failing := false
	for {
		var batch []report.Entry
		select {
		case <-ctx.Done():
			return
		case batch = <-h.queue:
		}
		err := h.adapter.Write(ctx, batch)
		if err != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(retryAfter):
				err = h.adapter.Write(ctx, batch)
			}
		}
		if err == nil {
			h.written.Add(uint64(len(batch)))
			if failing {
				log.Info("entries are taken again")
			}
			failing = false
			continue
		}
		h.failed.Add(uint64(len(batch)))
		if !failing && ctx.Err() == nil {
			log.Warn("entries can't be written; they are counted in composure_mixer_entries_total", "error", err)
		}
		failing = true
	}
}

// WriteMetrics writes what became of the entries, for Prometheus.
func (s *Handlers) WriteMetrics(w io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := fmt.Fprintf(w, `# HELP composure_mixer_entries_total Log entries by handler and by what became of them: written; dropped, as too many waited; failed, as the handler could not write them.
# TYPE composure_mixer_entries_total counter
`); err != nil {
		return err
	}
	for name, h := range s.running {
		for _, r := range []struct {
			result string
			n      uint64
		}{{"written", h.written.Load()}, {"dropped", h.dropped.Load()}, {"failed", h.failed.Load()}} {
			if _, err := fmt.Fprintf(w, "composure_mixer_entries_total{handler=%q,result=%q} %d\n", name, r.result, r.n); err != nil {
				return err
			}
		}
	}
	_, err := fmt.Fprintf(w, "composure_mixer_entries_total{handler=\"unknown\",result=\"dropped\"} %d\n", s.unknown.Load())
	return err
}
