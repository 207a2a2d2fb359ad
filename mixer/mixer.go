package mixer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh"
)

// Identity is who mixer is, with the reason why it can't prove it at the moment, or "".
type Identity interface {
	identity.Source
	Reason() string
}

// Config is what a Server needs; everything is required.
type Config struct {
	Socket      string   // where proxies report, mesh.Socket(mesh.RoleMixer)
	AdminSocket string   // for people, mesh.AdminSocket
	Identity    Identity // the certificate that Socket shows
	TrustDomain string   // whose members may report
	Version     string
	Log         *slog.Logger
}

// Server is mixer.
type Server struct {
	cfg      Config
	td       spiffeid.TrustDomain
	totals   *totals
	refusals refusals

	reports, admin net.Listener
}

// New binds both sockets; Run serves them.
func New(cfg Config) (*Server, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	s := &Server{cfg: cfg, td: td, totals: newTotals(), refusals: refusals{last: map[spiffeid.ID]string{}}}
	// Every proxy may connect, whatever its uid: the TLS handshake tells who it is.
	if s.reports, err = httpx.Listen(cfg.Socket, 0o666); err != nil {
		return nil, err
	}
	if s.admin, err = httpx.Listen(cfg.AdminSocket, 0o600); err != nil {
		return nil, errors.Join(err, s.reports.Close())
	}
	return s, nil
}

// Run serves until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	tlsConfig := identity.ServerTLS(s.cfg.Identity, identity.MemberOf(s.td), "http/1.1")
	return lifecycle.Run(ctx,
		func(ctx context.Context) error {
			return httpx.Serve(ctx, s.httpServer(s.reportsHandler()), tls.NewListener(s.reports, tlsConfig))
		},
		func(ctx context.Context) error { return httpx.Serve(ctx, s.httpServer(s.adminHandler()), s.admin) },
		s.retire,
	)
}

// httpServer bounds what one connection may cost. A scrape of many series takes a while to write.
func (s *Server) httpServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	}
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
	httpx.HandleHealth(mux, string(mesh.RoleMixer), s.cfg.Version, func() error {
		if reason := s.cfg.Identity.Reason(); reason != "" {
			return errors.New(reason)
		}
		return nil
	})
	mux.HandleFunc("GET /metrics", s.serveMetrics)
	return mux
}
