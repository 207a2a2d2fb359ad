// Package jwks fetches the key sets of issuers (RFC 7517), keeps them through outages and restarts, and finds new keys soon
// after they are used. Whatever stands at a URI, it costs nobody else anything: every answer is bounded in time and size, and
// one that is no key set changes nothing.
package jwks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/internal/atomicfile"
)

// Times of fetching.
const (
	// refresh is how often keys are fetched that are there: Istio's, give or take a tenth.
	refresh = 20 * time.Minute
	// floor is how soon keys are fetched again since somebody has met one that is not there: a client that makes keys up
	// must not make us ask more often.
	floor = 10 * time.Second
	// retryFirst and retryMax bound the wait after a failure, which doubles.
	retryFirst = time.Second
	retryMax   = time.Minute
	// maxFetches are under way at a time, so that an issuer that never answers does not hold up the others.
	maxFetches = 16
)

// State is what is known of one URI.
type State struct {
	URI string `json:"uri"`
	// Fetched is when the keys in force came; zero where there are none.
	Fetched time.Time `json:"fetched,omitzero"`
	Keys    int       `json:"keys"`
	// Error says why the last try failed, at Tried.
	Error string    `json:"error,omitempty"`
	Tried time.Time `json:"tried,omitzero"`
	Next  time.Time `json:"next,omitzero"`
}

// Config is what a Fetcher needs.
type Config struct {
	// Dir keeps what was fetched.
	Dir string
	// Changed is told that keys, or what is wrong with them, have changed.
	Changed func()
	Log     *slog.Logger

	get func(ctx context.Context, uri string) (string, error) // tests have their own
}

// Fetcher is the cache of key sets.
type Fetcher struct {
	cfg Config

	mu      sync.Mutex
	sources map[string]*source
	wake    chan struct{} // holds one token while there is something to look at
	slots   chan struct{}
}

type source struct {
	State
	timeout  time.Duration
	set      string
	failures int
	busy     bool
}

// New makes a Fetcher, which fetches nothing before Run.
func New(cfg Config) (*Fetcher, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keys of issuers: %w", err)
	}
	if cfg.get == nil {
		cfg.get = newClient(refuseInside).get
	}
	return &Fetcher{cfg: cfg, sources: map[string]*source{}, wake: make(chan struct{}, 1), slots: make(chan struct{}, maxFetches)}, nil
}

// Want says where keys are to be fetched from, and from nowhere else. What was fetched before is there at once.
func (f *Fetcher) Want(wanted []compile.KeySource) {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := map[string]bool{}
	for _, w := range wanted {
		keep[w.URI] = true
		s := f.sources[w.URI]
		if s == nil {
			s = &source{State: State{URI: w.URI}}
			f.load(s)
			f.sources[w.URI] = s
		}
		s.timeout = w.Timeout
	}
	maps.DeleteFunc(f.sources, func(uri string, _ *source) bool { return !keep[uri] })
	f.notify()
}

// Keys are those in force, by URI.
func (f *Fetcher) Keys() map[string]compile.Keys {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[string]compile.Keys, len(f.sources))
	for uri, s := range f.sources {
		out[uri] = compile.Keys{Set: s.set, Err: s.Error}
	}
	return out
}

// Missed says that a token names a key which is none of those of a URI: it may be a new one.
func (f *Fetcher) Missed(uri string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.sources[uri]
	if s == nil {
		return
	}
	if soon := s.Tried.Add(floor); soon.Before(s.Next) {
		s.Next = soon
		f.notify()
	}
}

// States are those of all URIs, by URI.
func (f *Fetcher) States() []State {
	f.mu.Lock()
	defer f.mu.Unlock()
	states := []State{}
	for _, s := range f.sources {
		states = append(states, s.State)
	}
	slices.SortFunc(states, func(a, b State) int { return strings.Compare(a.URI, b.URI) })
	return states
}

func (f *Fetcher) notify() {
	select {
	case f.wake <- struct{}{}:
	default: // it has not looked yet
	}
}

// Run fetches until ctx ends.
func (f *Fetcher) Run(ctx context.Context) error {
	var under sync.WaitGroup
	defer under.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-timer.C:
		}
		due, next := f.due(time.Now())
		for _, s := range due {
			under.Go(func() {
				f.slots <- struct{}{}
				defer func() { <-f.slots }()
				f.fetch(ctx, s)
			})
		}
		timer.Reset(next)
	}
}

// due are the sources to be fetched now, which count as busy then, and how long there is nothing more to do.
func (f *Fetcher) due(now time.Time) (due []*source, next time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	next = time.Hour
	for _, s := range f.sources {
		switch wait := s.Next.Sub(now); {
		case s.busy:
		case wait <= 0:
			s.busy = true
			due = append(due, s)
		default:
			next = min(next, wait)
		}
	}
	return due, next
}

func (f *Fetcher) fetch(ctx context.Context, s *source) {
	limit, cancel := context.WithTimeout(ctx, s.timeout)
	set, err := f.cfg.get(limit, s.URI)
	cancel()
	if ctx.Err() != nil {
		return
	}
	n := 0
	if err == nil {
		n, err = compile.CountKeys(set)
	}
	f.mu.Lock()
	now := time.Now()
	was := compile.Keys{Set: s.set, Err: s.Error}
	s.busy, s.Tried = false, now
	if err != nil {
		wait := min(retryFirst<<min(s.failures, 10), retryMax)
		s.failures++
		s.Error, s.Next = err.Error(), now.Add(jittered(wait))
	} else {
		s.failures, s.set, s.Keys, s.Fetched, s.Error, s.Next = 0, set, n, now, "", now.Add(jittered(refresh))
	}
	is := compile.Keys{Set: s.set, Err: s.Error}
	wanted := f.sources[s.URI] == s
	if wanted && is.Set != was.Set {
		f.save(s)
	}
	f.mu.Unlock()
	f.notify()
	switch {
	case !wanted || is == was:
		return
	case err != nil:
		f.cfg.Log.Warn("keys of an issuer could not be fetched", "uri", s.URI, "error", err)
	default:
		f.cfg.Log.Info("fetched the keys of an issuer", "uri", s.URI, "keys", n)
	}
	f.cfg.Changed()
}

// jittered is d, give or take a tenth.
func jittered(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5) //nolint:gosec // jitter
}

// kept is the form on disk.
type kept struct {
	URI     string    `json:"uri"`
	Fetched time.Time `json:"fetched"`
	Set     string    `json:"set"`
}

func (f *Fetcher) file(uri string) string {
	sum := sha256.Sum256([]byte(uri))
	return filepath.Join(f.cfg.Dir, hex.EncodeToString(sum[:])+".json")
}

// load takes what is on disk; it is fetched anew all the same, and stands until that has come.
func (f *Fetcher) load(s *source) {
	raw, err := os.ReadFile(f.file(s.URI))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var k kept
	if err == nil {
		err = json.Unmarshal(raw, &k)
	}
	n := 0
	if err == nil {
		n, err = compile.CountKeys(k.Set)
	}
	if err != nil || k.URI != s.URI {
		f.cfg.Log.Warn("kept keys of an issuer are of no use", "uri", s.URI, "error", err)
		return
	}
	s.set, s.Keys, s.Fetched = k.Set, n, k.Fetched
}

func (f *Fetcher) save(s *source) {
	raw, err := json.Marshal(kept{s.URI, s.Fetched, s.set})
	if err == nil {
		err = atomicfile.Write(f.file(s.URI), raw, 0o600)
	}
	if err != nil {
		f.cfg.Log.Warn("the keys of an issuer could not be kept for the next start", "uri", s.URI, "error", err)
	}
}
