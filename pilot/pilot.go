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
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/pilot/compile"
	"github.com/composure-mesh/composure/pilot/rollout"
)

// Config is what a Pilot is made of.
type Config struct {
	TrustDomain  string
	KeeperSocket string // where the facts come from
	MixerSocket  string // who knows how requests went, for rollouts
	MeshSocket   string // for proxies
	AdminSocket  string // for people
	StoreFile    string
	// Identity is the pilot's own, which it shows to proxies.
	Identity identity.Source
	Version  string
	Log      *slog.Logger
}

// Pilot is the plane.
type Pilot struct {
	*plane.Plane
	cfg  Config
	core core

	rollouts *rollout.Controller
	mixer    *http.Client
	td       spiffeid.TrustDomain

	meshListener, adminListener net.Listener
}

// New opens the store and binds the sockets.
func New(cfg Config) (_ *Pilot, err error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	// What is made of facts counts on from the clock, so that a watcher of the pilot before this one notices.
	p := &Pilot{cfg: cfg, td: td, core: core{store: apiserver.NewMemory(uint64(time.Now().UnixMicro())), log: cfg.Log}} //nolint:gosec // after 1970
	var newest atomic.Pointer[compile.Index]
	p.Plane, err = plane.New(plane.Config{
		Role: mesh.RolePilot, Kinds: slices.Concat(api.Networking(), api.Core()), StoreFile: cfg.StoreFile, KeeperSocket: cfg.KeeperSocket,
		Index: func(intent []*api.Object, facts mesh.Facts) plane.Index {
			x := compile.New(compile.View{Intent: intent, Facts: facts, TrustDomain: cfg.TrustDomain, Like: newest.Load()})
			newest.Store(x)
			return index{x}
		},
		Views: coreViews(), ViewStore: p.core.store, Received: func() { p.core.received(p.Facts) }, Version: cfg.Version, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.mixer, err = p.mixerClient(); err != nil {
		return nil, err
	}
	p.rollouts = rollout.New(rollout.Config{Store: p.Store(), Workloads: p.subset, Traffic: p.traffic, Now: time.Now, Log: cfg.Log})
	if p.meshListener, err = httpx.Listen(cfg.MeshSocket, 0o666); err != nil { // mutual TLS decides who may speak
		return nil, err
	}
	if p.adminListener, err = httpx.Listen(cfg.AdminSocket, 0o600); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Pilot) close() error {
	errs := []error{p.Close(), p.core.store.Close()}
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
	tlsConfig := identity.ServerTLS(p.cfg.Identity, identity.MemberOf(p.td), "http/1.1")
	proxies, people, resources := http.NewServeMux(), http.NewServeMux(), http.NewServeMux()
	p.HandleMesh(proxies)
	p.HandleAdmin(resources)
	people.Handle("/", resources)
	people.Handle("/api", resources) // the mux would send it on to /api/
	people.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		p.core.asked(p.Facts)
		resources.ServeHTTP(w, r)
	})
	people.HandleFunc("GET /debug/describe", p.describe)
	people.HandleFunc("GET /rollouts", func(w http.ResponseWriter, _ *http.Request) { httpx.JSON(w, p.rollouts.List()) })
	people.HandleFunc("POST /rollouts/{namespace}/{name}/{command}", p.commandRollout)
	people.HandleFunc("GET /debug/version", func(w http.ResponseWriter, _ *http.Request) {
		httpx.JSON(w, map[string]string{"component": "pilot", "version": p.cfg.Version})
	})
	err := lifecycle.Run(ctx,
		p.Plane.Run,
		p.rollouts.Run,
		func(ctx context.Context) error {
			return httpx.Serve(ctx, server(ctx, proxies), tls.NewListener(p.meshListener, tlsConfig))
		},
		func(ctx context.Context) error { return httpx.Serve(ctx, server(ctx, people), p.adminListener) },
	)
	return errors.Join(err, p.close())
}

// server's requests end with ctx, streams too.
func server(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
}
