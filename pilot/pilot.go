// Package pilot is the plane of discovery and routing: it follows the keeper's facts, holds the networking
// configuration that people apply, compiles both into a snapshot for each proxy, and pushes it.
package pilot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
)

// Config is what a Pilot is made of.
type Config struct {
	TrustDomain  string
	KeeperSocket string // where the facts come from
	MeshSocket   string // for proxies
	AdminSocket  string // for people
	StoreFile    string
	// Identity is the pilot's own, which it shows to proxies.
	Identity identity.Source
	Version  string
	Log      *slog.Logger
}

// debounce is how long changes are gathered before snapshots are compiled: a file of objects, or the containers of
// a project that starts, become a few pushes instead of one each.
const debounce = 25 * time.Millisecond

// Pilot is the plane.
type Pilot struct {
	cfg    Config
	log    *slog.Logger
	store  *apiserver.Store
	core   *apiserver.Store
	intent *intent
	hub    *hub
	td     spiffeid.TrustDomain

	meshListener, adminListener net.Listener

	dirty chan struct{} // holds one token while the view is out of date

	mu    sync.Mutex
	facts *mesh.Facts // nil before the first
}

// New opens the store and binds the sockets.
func New(cfg Config) (_ *Pilot, err error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	store, err := apiserver.Open(cfg.StoreFile)
	if err != nil {
		return nil, err
	}
	p := &Pilot{
		cfg: cfg, log: cfg.Log, store: store, td: td, hub: newHub(cfg.Log), dirty: make(chan struct{}, 1),
		// What is made of facts counts on from the clock, so that a watcher of the pilot before this one notices.
		core:   apiserver.NewMemory(uint64(time.Now().UnixMicro())), //nolint:gosec // after 1970
		intent: &intent{store: store, log: cfg.Log},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.meshListener, err = listenUnix(cfg.MeshSocket, 0o666); err != nil { // mutual TLS decides who may speak
		return nil, err
	}
	if p.adminListener, err = listenUnix(cfg.AdminSocket, 0o600); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Pilot) close() error {
	errs := []error{p.store.Close(), p.core.Close()}
	for _, l := range []net.Listener{p.meshListener, p.adminListener} {
		if l != nil {
			if err := l.Close(); !errors.Is(err, net.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends.
func (p *Pilot) Run(ctx context.Context) error {
	facts := newFactsClient(p.cfg.KeeperSocket, p.log, p.receive, p.hub.setKeeper)
	resources := apiserver.New(apiserver.Config{
		Kinds: api.Kinds(), Store: p.store, Views: coreViews(), ViewStore: p.core, Warn: p.warnings, Version: p.cfg.Version, Log: p.log,
	})
	tlsConfig := identity.ServerTLS(p.cfg.Identity, identity.MemberOf(p.td), "http/1.1")
	err := lifecycle.Run(ctx,
		facts.run,
		p.watchStore,
		p.push,
		func(ctx context.Context) error {
			return serve(ctx, tls.NewListener(p.meshListener, tlsConfig), p.meshHandler())
		},
		func(ctx context.Context) error { return serve(ctx, p.adminListener, p.adminHandler(resources)) },
	)
	return errors.Join(err, p.close())
}

// receive takes new facts.
func (p *Pilot) receive(facts mesh.Facts) {
	p.mu.Lock()
	p.facts = &facts
	p.mu.Unlock()
	if err := updateCore(p.core, facts); err != nil {
		p.log.Error("update services, endpoints and pods", "error", err)
	}
	p.touch()
}

func (p *Pilot) touch() {
	select {
	case p.dirty <- struct{}{}:
	default: // it is out of date already
	}
}

// watchStore notices what people apply.
func (p *Pilot) watchStore(ctx context.Context) error {
	everything := func(apiserver.Key) bool { return true }
	for {
		watch, _, _, err := p.store.Watch(0, everything)
		if err != nil {
			return fmt.Errorf("watch the store: %w", err)
		}
		p.touch()
		for open := true; open; {
			select {
			case <-ctx.Done():
				watch.Stop()
				return nil
			case _, open = <-watch.Events():
				p.touch()
			}
		}
		if !errors.Is(watch.Err(), apiserver.ErrSlow) {
			return fmt.Errorf("watch the store: %w", watch.Err())
		}
	}
}

// push takes a new view into force whenever something has changed.
func (p *Pilot) push(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.dirty:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(debounce):
		}
		// What comes from here on makes it dirty again.
		select {
		case <-p.dirty:
		default:
		}
		if index, facts, revision := p.view(nil); index != nil {
			p.hub.update(index, facts, revision)
		}
	}
}

// view is the present one, nil before there are facts; with extra in the place of the stored object of its name.
func (p *Pilot) view(extra *api.Object) (*compile.Index, *mesh.Facts, uint64) {
	p.mu.Lock()
	facts := p.facts
	p.mu.Unlock()
	if facts == nil {
		return nil, nil, 0
	}
	objects, revision := p.intent.load()
	if extra != nil {
		kept := []*api.Object{extra}
		for _, o := range objects {
			if o.String() != extra.String() {
				kept = append(kept, o)
			} else {
				extra.Meta.CreationTimestamp, extra.Meta.UID = o.Meta.CreationTimestamp, o.Meta.UID
			}
		}
		objects = kept
	}
	return compile.New(compile.View{Intent: objects, Facts: *facts, TrustDomain: p.cfg.TrustDomain}), facts, revision
}

// warnings are what is questionable about o, which is stored or about to be.
func (p *Pilot) warnings(o *api.Object) []string {
	copied := *o
	if copied.Meta.CreationTimestamp.IsZero() {
		copied.Meta.CreationTimestamp.Time = time.Now()
	}
	index, _, _ := p.view(&copied)
	if index == nil {
		return []string{"there are no facts of the keeper's yet: the object was not checked against what runs"}
	}
	var texts []string
	for _, problem := range index.Check(&copied) {
		texts = append(texts, problem.String())
	}
	return texts
}
