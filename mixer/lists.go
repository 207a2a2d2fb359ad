package mixer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mixer/compile"
)

// Bounds on a list that a provider gives.
const (
	maxListBytes   = 1 << 20
	maxListEntries = 10000
	listTimeout    = 10 * time.Second
	listFirstRetry = time.Second // doubled up to the refresh interval
)

// lists are what the providers of listcheckers give, fetched here and sent to the proxies with their rules. An outage
// leaves a list in force until its ttl is over.
type lists struct {
	log     *slog.Logger
	changed func() // told of each change
	client  *http.Client

	mu        sync.Mutex
	ctx       context.Context //nolint:containedctx // that of run, in which providers that come later are asked
	providers map[string]*provider
}

// provider is one URL, with the shortest times that any handler has for it.
type provider struct {
	interval, ttl time.Duration
	stop          context.CancelFunc // nil before run
	list          compile.List
	known         bool // there was an answer, or a failure
	fetched       time.Time
}

func newLists(log *slog.Logger, changed func()) *lists {
	return &lists{log: log, changed: changed, providers: map[string]*provider{}, client: &http.Client{
		Timeout: listTimeout,
		// What the configuration says is where it comes from.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 1},
	}}
}

// run asks the providers until ctx ends.
func (l *lists) run(ctx context.Context) error {
	l.mu.Lock()
	l.ctx = ctx
	for url, p := range l.providers {
		l.start(url, p)
	}
	l.mu.Unlock()
	<-ctx.Done()
	return nil
}

// view is what there is at the moment.
func (l *lists) view() map[string]compile.List {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]compile.List{}
	for url, p := range l.providers {
		if p.known {
			out[url] = p.list
		}
	}
	return out
}

// apply makes the providers of the objects the only ones.
func (l *lists) apply(objects []*api.Object) {
	wanted := map[string]*provider{}
	for _, o := range objects {
		h, ok := o.Spec.(*api.Handler)
		if !ok {
			continue
		}
		c, ok := h.Params.(*api.ListChecker)
		if !ok || c.ProviderURL == "" {
			continue
		}
		p := wanted[c.ProviderURL]
		if p == nil {
			p = &provider{interval: c.RefreshInterval, ttl: c.TTL}
			wanted[c.ProviderURL] = p
		}
		p.interval, p.ttl = min(p.interval, c.RefreshInterval), min(p.ttl, c.TTL)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for url, p := range l.providers {
		if w := wanted[url]; w == nil || w.interval != p.interval || w.ttl != p.ttl {
			if p.stop != nil {
				p.stop()
			}
			delete(l.providers, url)
			if w != nil { // what is known of it is so still
				w.list, w.known, w.fetched = p.list, p.known, p.fetched
			}
		}
	}
	for url, p := range wanted {
		if l.providers[url] == nil {
			l.providers[url] = p
			if l.ctx != nil {
				l.start(url, p)
			}
		}
	}
}

func (l *lists) start(url string, p *provider) {
	ctx, stop := context.WithCancel(l.ctx)
	p.stop = stop
	go l.follow(ctx, url, p)
}

// follow asks a provider at its interval, and sooner where it has failed.
func (l *lists) follow(ctx context.Context, url string, p *provider) {
	retry := listFirstRetry
	for {
		entries, err := l.fetch(ctx, url)
		if ctx.Err() != nil {
			return
		}
		l.note(url, p, entries, err)
		wait := p.interval
		if err != nil {
			wait, retry = min(retry, p.interval), 2*retry
		} else {
			retry = listFirstRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// note takes in what came of asking.
func (l *lists) note(url string, p *provider, entries []string, err error) {
	now := time.Now()
	l.mu.Lock()
	before, known := p.list, p.known
	switch {
	case err == nil:
		p.list, p.fetched = compile.List{Entries: entries}, now
	case p.fetched.IsZero() || now.Sub(p.fetched) >= p.ttl:
		p.list = compile.List{Problem: "the list of " + url + " can't be had: " + err.Error()}
	}
	p.known = true
	after := p.list
	l.mu.Unlock()
	if known && after.Problem == before.Problem && slices.Equal(after.Entries, before.Entries) {
		return
	}
	if after.Problem != "" {
		l.log.Warn("a list can't be had: what asks for it is refused", "url", url, "error", err)
	} else {
		l.log.Info("a list is in force", "url", url, "entries", len(after.Entries))
	}
	l.changed()
}

// fetch gets a list: an entry a line.
func (l *lists) fetch(ctx context.Context, url string) ([]string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := l.client.Do(req)
	if err != nil {
		return nil, errors.Unwrap(err) // without the URL, which is told anyway
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxListBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(raw) > maxListBytes:
		return nil, fmt.Errorf("it has more than %d bytes", maxListBytes)
	}
	seen := map[string]bool{}
	for line := range bytes.Lines(raw) {
		if entry := strings.TrimSpace(string(line)); entry != "" {
			seen[entry] = true
		}
	}
	if len(seen) > maxListEntries {
		return nil, fmt.Errorf("it has more than %d entries", maxListEntries)
	}
	return slices.Sorted(maps.Keys(seen)), nil
}
