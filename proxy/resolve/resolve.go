// Package resolve finds the addresses of what is outside of the mesh and known by a DNS name alone: endpoints of
// ServiceEntries with resolution DNS. Names are looked up as they come, and then at an interval, never while a request
// waits; what was found stands while a name can't be looked up.
package resolve

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

const (
	// refresh is how often a name is looked up: Go's resolver does not tell how long an answer is good for.
	refresh = 30 * time.Second
	// retry is how soon a name is looked up again that could not be.
	retry = 5 * time.Second
	// patience is how long a new snapshot waits for its new names, so that what it routes to is there.
	patience = time.Second
	// lookupTimeout bounds one look-up.
	lookupTimeout = 5 * time.Second
)

// Lookup finds the addresses of a name, as net.Resolver.LookupNetIP.
type Lookup func(ctx context.Context, network, host string) ([]netip.Addr, error)

// Resolver keeps the addresses of the names that are wanted.
type Resolver struct {
	lookup Lookup
	log    *slog.Logger

	mu    sync.Mutex
	names map[string]*name
	wake  chan struct{} // holds one token where there are new names
}

type name struct {
	addresses []netip.Addr
	due       time.Time
	failed    bool
}

// New makes a Resolver; Run keeps it up to date.
func New(lookup Lookup, log *slog.Logger) *Resolver {
	return &Resolver{lookup: lookup, log: log, names: map[string]*name{}, wake: make(chan struct{}, 1)}
}

// Fill is s with the addresses of its workloads that have a name to resolve: each address is a workload of its own. New
// names are looked up now, others are known.
func (r *Resolver) Fill(s *snapshot.Snapshot) *snapshot.Snapshot {
	wanted := map[string]bool{}
	for i := range s.Workloads {
		if n := s.Workloads[i].Resolve; n != "" {
			wanted[n] = true
		}
	}
	r.want(wanted)
	if len(wanted) == 0 {
		return s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return fill(s, func(n string) []netip.Addr { return r.names[n].addresses })
}

// want forgets other names, and looks new ones up, for as long as patience lasts.
func (r *Resolver) want(wanted map[string]bool) {
	r.mu.Lock()
	for n := range r.names {
		if !wanted[n] {
			delete(r.names, n)
		}
	}
	var fresh []string
	for n := range wanted {
		if r.names[n] == nil {
			r.names[n] = &name{}
			fresh = append(fresh, n)
		}
	}
	r.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.look(ctx, fresh)
	select {
	case r.wake <- struct{}{}:
	default: // Run has not looked yet
	}
}

// look looks names up at the same time, and reports whether an address has changed.
func (r *Resolver) look(ctx context.Context, names []string) (changed bool) {
	var wg sync.WaitGroup
	for _, n := range names {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
			defer cancel()
			found, err := r.lookup(ctx, "ip", n)
			for i := range found {
				found[i] = found[i].Unmap()
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			known := r.names[n]
			if known == nil {
				return // not wanted any more
			}
			if err != nil || len(found) == 0 {
				known.due = time.Now().Add(retry)
				if !known.failed {
					known.failed = true
					r.log.Warn("a name could not be resolved; what was found before stands", "name", n, "error", err, "addresses", known.addresses)
				}
				return
			}
			known.failed, known.due = false, time.Now().Add(refresh)
			// Resolvers turn the order round with every answer.
			slices.SortFunc(found, netip.Addr.Compare)
			found = slices.Compact(found)
			if !slices.Equal(found, known.addresses) {
				known.addresses, changed = found, true
			}
		})
	}
	wg.Wait()
	return changed
}

// Run looks names up as they are due, until ctx ends, and calls changed when an address has changed.
func (r *Resolver) Run(ctx context.Context, changed func()) error {
	for {
		next, due := time.Now().Add(refresh), []string(nil)
		r.mu.Lock()
		for n, known := range r.names {
			if now := time.Now(); !known.due.After(now) {
				due = append(due, n)
			} else if known.due.Before(next) {
				next = known.due
			}
		}
		r.mu.Unlock()
		if len(due) > 0 {
			if r.look(ctx, due) && ctx.Err() == nil {
				changed()
			}
			if ctx.Err() == nil {
				continue
			}
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-r.wake:
			timer.Stop()
		}
	}
}

// fill makes of each workload that has a name one for each address. An address that some workload has is that workload.
func fill(s *snapshot.Snapshot, addresses func(string) []netip.Addr) *snapshot.Snapshot {
	out := *s
	out.Workloads = nil
	at := map[string]string{} // names by address
	for i := range s.Workloads {
		w := &s.Workloads[i]
		if w.Resolve != "" {
			continue
		}
		out.Workloads = append(out.Workloads, *w)
		for _, a := range w.Addresses {
			at[a] = w.Name
		}
	}
	found := map[string][]string{}
	for i := range s.Workloads {
		w := s.Workloads[i]
		if w.Resolve == "" {
			continue
		}
		name, list := w.Name, addresses(w.Resolve)
		if w.ResolveFirst && len(list) > 1 {
			list = list[:1]
		}
		found[name] = []string{}
		for _, a := range list {
			text := a.String()
			if at[text] == "" {
				one := w
				one.Name, one.Addresses, one.Resolve, one.ResolveFirst = name+" "+text, []string{text}, "", false
				at[text] = one.Name
				out.Workloads = append(out.Workloads, one)
			}
			found[name] = append(found[name], at[text])
		}
	}
	replace := func(endpoints []string) []string {
		var all []string
		for _, e := range endpoints {
			names, resolved := found[e]
			if !resolved {
				names = []string{e}
			}
			for _, n := range names {
				if !slices.Contains(all, n) {
					all = append(all, n)
				}
			}
		}
		return all
	}
	out.Services = slices.Clone(s.Services)
	for i := range out.Services {
		svc := &out.Services[i]
		svc.Endpoints = replace(svc.Endpoints)
		places := svc.Places
		svc.Places = nil
		for _, p := range places {
			for _, n := range replace([]string{p.Workload}) {
				p.Workload = n
				svc.Places = append(svc.Places, p)
			}
		}
		svc.Subsets = slices.Clone(svc.Subsets)
		for j := range svc.Subsets {
			svc.Subsets[j].Endpoints = replace(svc.Subsets[j].Endpoints)
		}
	}
	return &out
}
