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

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/citadel/jwks"
	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
	"github.com/composure-mesh/composure/mesh/snapshot"
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
	Lifetime     time.Duration      // of a workload's certificate
	StateDir     string             // holds the root, and the list of issued certificates
	StoreFile    string             // holds the configuration
	MutualTLS    snapshot.MutualTLS // holds where no object says another; empty is PERMISSIVE
	Socket       string             // mesh.Socket(mesh.RoleCitadel)
	AdminSocket  string
	KeeperSocket string
	BundleFile   string // mesh.TrustBundle, which the keeper writes
	AttestKey    string // mesh.AttestKey, which the keeper writes
	Version      string
	Log          *slog.Logger
}

// Citadel is the running plane.
type Citadel struct {
	*plane.Plane
	td        spiffeid.TrustDomain
	cfg       Config
	authority *authority
	self      *self
	publisher *publisher
	keys      *jwks.Fetcher
	socket    net.Listener
	admin     net.Listener
}

// New opens or makes the root and binds the sockets.
func New(cfg Config) (*Citadel, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	switch cfg.MutualTLS {
	case "", snapshot.Permissive, snapshot.Strict:
	default:
		return nil, fmt.Errorf("mutual TLS of the mesh is %q, want STRICT or PERMISSIVE", cfg.MutualTLS)
	}
	if cfg.Lifetime < MinLifetime || cfg.Lifetime > MaxLifetime {
		return nil, fmt.Errorf("certificate lifetime is %s, want %s to %s", cfg.Lifetime, MinLifetime, MaxLifetime)
	}
	ca, err := OpenCA(cfg.StateDir, td, time.Now())
	if err != nil {
		return nil, err
	}
	c := &Citadel{cfg: cfg, td: td}
	c.authority = &authority{ca: ca, lifetime: cfg.Lifetime, keyFile: cfg.AttestKey,
		ledger: newLedger(filepath.Join(cfg.StateDir, "issued.json"), cfg.Log), limits: newLimits()}
	c.self = &self{authority: c.authority, log: cfg.Log}
	c.publisher = &publisher{socket: cfg.KeeperSocket, file: cfg.BundleFile, bundle: ca.Bundle(), log: cfg.Log}
	c.keys, err = jwks.New(jwks.Config{Dir: filepath.Join(cfg.StateDir, "jwks"), Changed: func() { c.Touch() }, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	c.Plane, err = plane.New(plane.Config{
		Role: mesh.RoleCitadel, Kinds: api.Security(), StoreFile: cfg.StoreFile, KeeperSocket: cfg.KeeperSocket,
		Index:   c.index,
		Version: cfg.Version, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	// Connecting needs write permission on the socket; who may connect is decided by who mounts the volume.
	if c.socket, err = httpx.Listen(cfg.Socket, 0o666); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if c.admin, err = httpx.Listen(cfg.AdminSocket, 0o600); err != nil {
		return nil, errors.Join(err, c.socket.Close(), c.Close())
	}
	return c, nil
}

// Run serves until ctx is done.
func (c *Citadel) Run(ctx context.Context) error {
	c.cfg.Log.Info("citadel runs", "trust_domain", c.cfg.TrustDomain, "lifetime", c.cfg.Lifetime,
		"root_expires", c.authority.ca.cert.NotAfter)
	err := lifecycle.Run(ctx,
		c.Plane.Run,
		c.keys.Run,
		c.publisher.run,
		c.authority.ledger.run,
		func(ctx context.Context) error {
			conf := identity.OpenServerTLS(c.self, identity.MemberOf(c.td), "http/1.1")
			return httpx.Serve(ctx, c.server(ctx, c.Handler()), tls.NewListener(c.socket, conf))
		},
		func(ctx context.Context) error { return httpx.Serve(ctx, c.server(ctx, c.AdminHandler()), c.admin) },
	)
	return errors.Join(err, c.Close())
}

// server's requests end with ctx, streams too.
func (c *Citadel) server(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(c.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// Handler serves the mesh's own processes: POST /v1/sign, POST /v1/missed-keys, and what every plane serves proxies.
func (c *Citadel) Handler() http.Handler {
	mux := http.NewServeMux()
	c.HandleMesh(mux)
	mux.HandleFunc("POST /v1/sign", c.sign)
	mux.HandleFunc("POST /v1/missed-keys", c.missedKeys)
	httpx.HandleHealth(mux, "citadel", c.cfg.Version, c.publisher.health)
	return mux
}

// AdminHandler serves people: GET /debug/certs, /debug/jwks, and what every plane serves people.
func (c *Citadel) AdminHandler() http.Handler {
	mux := http.NewServeMux()
	c.HandleAdmin(mux)
	mux.HandleFunc("GET /debug/certs", func(w http.ResponseWriter, _ *http.Request) {
		httpx.JSON(w, c.authority.ledger.list(time.Now()))
	})
	mux.HandleFunc("GET /debug/jwks", func(w http.ResponseWriter, _ *http.Request) { httpx.JSON(w, c.keys.States()) })
	httpx.HandleHealth(mux, "citadel", c.cfg.Version, c.publisher.health)
	return mux
}

// index prepares a view, and has the keys fetched that it needs. While an object is checked before it is stored, its keys are
// fetched already.
func (c *Citadel) index(intent []*api.Object, facts mesh.Facts) plane.Index {
	view := compile.View{Intent: intent, Facts: facts, TrustDomain: c.cfg.TrustDomain, MutualTLS: c.cfg.MutualTLS}
	c.keys.Want(compile.New(view).KeySources())
	view.Keys = c.keys.Keys()
	return plane.IndexOf(compile.New(view))
}

// missedKeys hears of a proxy that tokens name keys which it does not have.
func (c *Citadel) missedKeys(w http.ResponseWriter, r *http.Request) {
	if _, err := identity.PeerID(r.TLS); err != nil {
		httpx.Error(w, http.StatusForbidden, err)
		return
	}
	var missed snapshot.MissedKeys
	if err := json.NewDecoder(httpx.Body(w, r, maxRequest)).Decode(&missed); err != nil {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("decode what is missed: %w", err))
		return
	}
	for _, uri := range missed.URIs {
		c.keys.Missed(uri)
	}
	w.WriteHeader(http.StatusNoContent)
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
