package citadel

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh/attest"
)

// Bounds of what citadel is asked for.
const (
	// MinLifetime leaves room for renewal at half life beside the back-dating; MaxLifetime is Istio's.
	MinLifetime = time.Minute
	MaxLifetime = 90 * 24 * time.Hour

	maxRequest = 64 << 10
)

// Config is what citadel needs; every field is set.
type Config struct {
	TrustDomain  string
	Lifetime     time.Duration // of a workload's certificate
	StateDir     string        // holds the root, and the list of issued certificates
	Socket       string        // mesh.Socket(mesh.RoleCitadel)
	AdminSocket  string
	KeeperSocket string
	BundleFile   string // mesh.TrustBundle, which the keeper writes
	AttestKey    string // mesh.AttestKey, which the keeper writes
	Version      string
	Log          *slog.Logger
}

// Citadel is the running authority.
type Citadel struct {
	cfg       Config
	authority *authority
	self      *self
	publisher *publisher
	socket    net.Listener
	admin     net.Listener
}

// New opens or makes the root and binds the sockets.
func New(cfg Config) (*Citadel, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	if cfg.Lifetime < MinLifetime || cfg.Lifetime > MaxLifetime {
		return nil, fmt.Errorf("certificate lifetime is %s, want %s to %s", cfg.Lifetime, MinLifetime, MaxLifetime)
	}
	ca, err := OpenCA(cfg.StateDir, td, time.Now())
	if err != nil {
		return nil, err
	}
	c := &Citadel{cfg: cfg}
	c.authority = &authority{ca: ca, lifetime: cfg.Lifetime, keyFile: cfg.AttestKey,
		ledger: newLedger(filepath.Join(cfg.StateDir, "issued.json"), cfg.Log), limits: newLimits()}
	c.self = &self{authority: c.authority, log: cfg.Log}
	c.publisher = &publisher{socket: cfg.KeeperSocket, file: cfg.BundleFile, bundle: ca.Bundle(), log: cfg.Log}
	// Connecting needs write permission on the socket; who may connect is decided by who mounts the volume.
	if c.socket, err = httpx.Listen(cfg.Socket, 0o666); err != nil {
		return nil, err
	}
	if c.admin, err = httpx.Listen(cfg.AdminSocket, 0o600); err != nil {
		return nil, errors.Join(err, c.socket.Close())
	}
	return c, nil
}

// Run serves until ctx is done.
func (c *Citadel) Run(ctx context.Context) error {
	c.cfg.Log.Info("citadel runs", "trust_domain", c.cfg.TrustDomain, "lifetime", c.cfg.Lifetime,
		"root_expires", c.authority.ca.cert.NotAfter)
	return lifecycle.Run(ctx,
		c.publisher.run,
		c.authority.ledger.run,
		func(ctx context.Context) error {
			conf := identity.ServerOnlyTLS(c.self, "http/1.1")
			return httpx.Serve(ctx, c.server(c.Handler()), tls.NewListener(c.socket, conf))
		},
		func(ctx context.Context) error { return httpx.Serve(ctx, c.server(c.AdminHandler()), c.admin) },
	)
}

func (c *Citadel) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(c.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// Handler serves the mesh's own processes: POST /v1/sign.
func (c *Citadel) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/sign", c.sign)
	httpx.HandleHealth(mux, "citadel", c.cfg.Version, c.publisher.health)
	return mux
}

// AdminHandler serves people: GET /debug/certs.
func (c *Citadel) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/certs", func(w http.ResponseWriter, _ *http.Request) {
		httpx.JSON(w, c.authority.ledger.list(time.Now()))
	})
	httpx.HandleHealth(mux, "citadel", c.cfg.Version, c.publisher.health)
	return mux
}

func (c *Citadel) sign(w http.ResponseWriter, r *http.Request) {
	var req attest.SignRequest
	if err := json.NewDecoder(httpx.Body(w, r, maxRequest)).Decode(&req); err != nil {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("decode the request: %w", err))
		return
	}
	leaf, st, err := c.authority.sign(req, time.Now().Round(0))
	switch {
	case errors.Is(err, errRefused):
		c.cfg.Log.Warn("certificate refused", "statement", req.Statement, "error", err)
		httpx.Error(w, http.StatusForbidden, err)
	case errors.Is(err, errTooMany):
		c.cfg.Log.Warn("certificate refused", "statement", req.Statement, "error", err)
		httpx.Error(w, http.StatusTooManyRequests, err)
	case err != nil:
		c.cfg.Log.Error("certificate not issued", "statement", req.Statement, "error", err)
		httpx.Error(w, http.StatusServiceUnavailable, err)
	default:
		c.cfg.Log.Info("certificate issued", "identity", st.Identity, "role", st.Role, "workload", st.Workload,
			"container", shortID(st.Container), "serial", leaf.SerialNumber.Text(16), "expires", leaf.NotAfter)
		chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
		httpx.JSON(w, attest.SignResponse{Chain: string(chain)})
	}
}

func shortID(container string) string { return container[:min(12, len(container))] }
