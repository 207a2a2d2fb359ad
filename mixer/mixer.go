package mixer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mixer/adapter"
	"github.com/composure-mesh/composure/mixer/compile"
)

// Identity is who mixer is, with the reason why it can't prove it at the moment, or "".
type Identity interface {
	identity.Source
	Reason() string
}

// Config is what a Server needs; everything is required.
type Config struct {
	Socket       string   // where proxies report, mesh.Socket(mesh.RoleMixer)
	AdminSocket  string   // for people, mesh.AdminSocket
	KeeperSocket string   // where the facts come from
	StoreFile    string   // holds the configuration
	Identity     Identity // the certificate that Socket shows
	TrustDomain  string   // whose members may report
	Version      string
	Log          *slog.Logger
}

// Server is mixer.
type Server struct {
	*plane.Plane
	cfg      Config
	td       spiffeid.TrustDomain
	totals   *totals
	refusals refusals
	handlers *adapter.Handlers
	// configured says that the handlers are those of the configuration.
	configured atomic.Bool
	lists      *lists
	metrics    atomic.Pointer[map[string]bool] // names of the metrics that prometheus handlers have
	counters   limitCounters
	followers  followers

	reports, admin net.Listener
}

// New binds both sockets; Run serves them.
func New(cfg Config) (*Server, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	s := &Server{cfg: cfg, td: td, totals: newTotals(), refusals: refusals{last: map[spiffeid.ID]string{}}}
	s.handlers = adapter.New(os.Stdout, os.Stderr, cfg.Log)
	s.metrics.Store(&map[string]bool{})
	s.lists = newLists(cfg.Log, func() { s.Touch() })
	s.followers.all = map[*follower]struct{}{}
	s.counters = newLimitCounters(s.tellFollowers)
	s.Plane, err = plane.New(plane.Config{
		Role: mesh.RoleMixer, Kinds: api.Config(), Validate: compile.Validate, Defaults: compile.Defaults(), StoreFile: cfg.StoreFile, KeeperSocket: cfg.KeeperSocket,
		Index: func(intent []*api.Object, facts mesh.Facts) plane.Index {
			return plane.IndexOf(compile.New(compile.View{Intent: intent, Facts: facts, TrustDomain: cfg.TrustDomain, Lists: s.lists.view()}))
		},
		Changed: s.changed, Version: cfg.Version, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	// Every proxy may connect, whatever its uid: the TLS handshake tells who it is.
	if s.reports, err = httpx.Listen(cfg.Socket, 0o666); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.admin, err = httpx.Listen(cfg.AdminSocket, 0o600); err != nil {
		return nil, errors.Join(err, s.reports.Close(), s.Close())
	}
	return s, nil
}

// Run serves until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	tlsConfig := identity.ServerTLS(s.cfg.Identity, identity.MemberOf(s.td), "http/1.1")
	err := lifecycle.Run(ctx,
		s.Plane.Run,
		s.handlers.Run,
		s.lists.run,
		func(ctx context.Context) error {
			return httpx.Serve(ctx, s.httpServer(ctx, s.reportsHandler()), tls.NewListener(s.reports, tlsConfig))
		},
		func(ctx context.Context) error { return httpx.Serve(ctx, s.httpServer(ctx, s.adminHandler()), s.admin) },
		s.retire,
	)
	return errors.Join(err, s.Close())
}

// httpServer bounds what one connection may cost. A scrape of many series takes a while to write. Its requests end with
// ctx, streams too.
func (s *Server) httpServer(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		BaseContext:       func(net.Listener) context.Context { return ctx },
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	}
}

// changed takes in the handlers of the configuration.
func (s *Server) changed(objects []*api.Object) {
	handlers, names := map[string]*api.Handler{}, map[string]bool{}
	for _, o := range objects {
		h, ok := o.Spec.(*api.Handler)
		if !ok {
			continue
		}
		handlers[compile.FullName(o)] = h
		switch p := h.Params.(type) {
		case *api.Prometheus:
			for i := range p.Metrics {
				names[p.Metrics[i].FullName()] = true
			}
		case *api.RedisQuota:
			// Other mixers' proxies may use a counter up before one of this mixer's has asked about it.
			if _, err := s.counters.at(p.RedisServerURL); err != nil {
				s.cfg.Log.Warn("a Redis is not used", "handler", compile.FullName(o), "error", err) // it was checked at apply
			}
		}
	}
	s.lists.apply(objects)
	s.handlers.Apply(handlers)
	s.configured.Store(true)
	s.metrics.Store(&names)
}

// wanted tells which metrics are shown: those that some handler has, and that of rate limits.
func (s *Server) wanted() func(name string) bool {
	names := *s.metrics.Load()
	return func(name string) bool { return names[name] || name == report.RateLimited }
}

// retire folds the counts of gone instances, now and then.
func (s *Server) retire(ctx context.Context) error {
	tick := time.NewTicker(silence / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			s.totals.retire(now)
		}
	}
}

func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	s.HandleAdmin(mux)
	httpx.HandleHealth(mux, string(mesh.RoleMixer), s.cfg.Version, func() error {
		if reason := s.cfg.Identity.Reason(); reason != "" {
			return errors.New(reason)
		}
		return nil
	})
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	return mux
}
