package keeper

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/composure-mesh/composure/internal/atomicfile"
	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/keeper/heal"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

const (
	maxRequest   = 4 << 10
	maxBundle    = 64 << 10
	heartbeat    = 15 * time.Second // an empty line, so that a dead peer is noticed
	writeTimeout = 10 * time.Second
	procRoot     = "/proc"
)

// Config is what the keeper needs; every field but Attestor and AdminSocket is set.
type Config struct {
	Scope
	Engine      Engine
	Socket      string   // mesh.Socket(mesh.RoleKeeper)
	AdminSocket string   // "" has none
	BundleFile  string   // mesh.TrustBundle
	AttestKey   string   // mesh.AttestKey
	Attestor    Attestor // nil: SO_PEERCRED, cgroup and the engine
	Version     string
	Log         *slog.Logger
}

// Keeper is the running node agent.
type Keeper struct {
	cfg      Config
	key      ed25519.PrivateKey
	attestor Attestor
	feed     *feed
	watcher  *watcher
	journal  *heal.Journal
	healer   *heal.Healer
	socket   net.Listener
	admin    net.Listener
}

// New makes the attestation key, publishes its public half and binds the sockets. The key lives as long as the
// process: statements live for a minute, so nothing needs an older one.
func New(cfg Config) (*Keeper, error) {
	if cfg.Mesh == "" {
		return nil, errors.New("the mesh's name is empty")
	}
	if _, err := mesh.PlaneID(cfg.TrustDomain, mesh.RoleKeeper); err != nil {
		return nil, err
	}
	k := &Keeper{cfg: cfg, attestor: cfg.Attestor, feed: newFeed()}
	if k.attestor == nil {
		k.attestor = newCgroupAttestor(cfg.Scope, cfg.Engine, procRoot)
	}
	k.watcher = newWatcher(cfg.Scope, cfg.Engine, k.feed, cfg.Log)
	k.journal = heal.NewJournal()
	k.healer = heal.New(heal.Config{Engine: healEngine{cfg.Engine, procRoot}, Journal: k.journal, Log: cfg.Log})
	k.watcher.report = k.healer.Update
	var err error
	if k.key, err = publishKey(cfg.AttestKey); err != nil {
		return nil, err
	}
	// Connecting needs write permission on the socket; what a caller gets depends on who it is.
	if k.socket, err = httpx.Listen(cfg.Socket, 0o666); err != nil {
		return nil, err
	}
	if cfg.AdminSocket != "" {
		if k.admin, err = httpx.Listen(cfg.AdminSocket, 0o600); err != nil {
			return nil, errors.Join(err, k.socket.Close())
		}
	}
	return k, nil
}

func publishKey(file string) (ed25519.PrivateKey, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the attestation key: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode the attestation key: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if err := atomicfile.Write(file, data, 0o644); err != nil {
		return nil, fmt.Errorf("publish the attestation key: %w", err)
	}
	return key, nil
}

// Run watches the engine, heals, and serves until ctx is done.
func (k *Keeper) Run(ctx context.Context) error {
	tasks := []lifecycle.Task{
		k.watcher.run,
		k.healer.Run,
		func(ctx context.Context) error { return httpx.Serve(ctx, k.server(ctx, k.Handler()), k.socket) },
	}
	if k.admin != nil {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /events", k.events)
		httpx.HandleHealth(mux, "keeper", k.cfg.Version, k.watcher.health)
		tasks = append(tasks, func(ctx context.Context) error { return httpx.Serve(ctx, k.server(ctx, mux), k.admin) })
	}
	k.cfg.Log.Info("keeper runs", "mesh", k.cfg.Mesh, "trust_domain", k.cfg.TrustDomain)
	return lifecycle.Run(ctx, tasks...)
}

type evidenceKey struct{}

func (k *Keeper) server(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler: h,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, evidenceKey{}, k.attestor.Accepted(conn))
		},
		BaseContext:       func(net.Listener) context.Context { return ctx }, // ends the streams with the keeper
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(k.cfg.Log.Handler(), slog.LevelDebug),
	}
}

// Handler serves the mesh's own processes; who they are decides what they get.
func (k *Keeper) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/attest", k.known(k.attest))
	mux.HandleFunc("GET /v1/facts", k.known(k.facts, mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer))
	mux.HandleFunc("PUT /v1/bundle", k.known(k.bundle, mesh.RoleCitadel))
	httpx.HandleHealth(mux, "keeper", k.cfg.Version, k.watcher.health)
	return mux
}

// known lets only processes of the mesh pass, and of them only the given roles, if any are given.
func (k *Keeper) known(h func(http.ResponseWriter, *http.Request, Caller), roles ...mesh.Role) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		evidence, _ := r.Context().Value(evidenceKey{}).(Evidence)
		who, err := k.attestor.Attest(r.Context(), evidence)
		if err == nil && len(roles) > 0 && !slices.Contains(roles, who.Role) {
			err = fmt.Errorf("%w: this is for %s, not for %s", ErrUnknown, anyOf(roles), who.Role)
		}
		if err != nil {
			status := http.StatusServiceUnavailable
			switch {
			case errors.Is(err, ErrUnknown):
				status = http.StatusForbidden
			case errors.Is(err, ErrTooMany):
				status = http.StatusTooManyRequests
			}
			k.cfg.Log.Warn("caller refused", "request", r.Method+" "+r.URL.Path, "status", status, "error", err)
			httpx.Error(w, status, err)
			return
		}
		h(w, r, who)
	}
}

// anyOf is "pilot, citadel or mixer".
func anyOf(roles []mesh.Role) string {
	names := make([]string, len(roles))
	for i, r := range roles {
		names[i] = string(r)
	}
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " or " + names[last]
}

func (k *Keeper) attest(w http.ResponseWriter, r *http.Request, who Caller) {
	var req attest.Request
	if err := json.NewDecoder(httpx.Body(w, r, maxRequest)).Decode(&req); err != nil {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("decode the request: %w", err))
		return
	}
	if len(req.KeyHash) != sha256.Size {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("keyHash has %d bytes, want %d of SHA-256", len(req.KeyHash), sha256.Size))
		return
	}
	signed, err := attest.Sign(k.key, attest.Statement{
		Container: who.Container, Role: who.Role, Workload: who.Workload, Identity: who.Identity,
		KeyHash: req.KeyHash, Expires: time.Now().Add(attest.Lifetime).UTC().Round(0),
	})
	if err != nil {
		k.cfg.Log.Error("attestation failed", "error", err)
		httpx.Error(w, http.StatusInternalServerError, err)
		return
	}
	k.cfg.Log.Info("attested", "identity", who.Identity, "role", who.Role, "workload", who.Workload,
		"container", who.Container[:min(12, len(who.Container))])
	httpx.JSON(w, attest.Response{Signed: signed, Identity: who.Identity, Workload: who.Workload})
}

// facts streams the newest facts, one JSON a line, until the client goes.
func (k *Keeper) facts(w http.ResponseWriter, r *http.Request, _ Caller) {
	out := newLines(w)
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	var sent []byte
	for {
		line, changed := k.feed.get()
		if !bytes.Equal(line, sent) {
			if out.send(line) != nil {
				return
			}
			sent = line
		}
		select {
		case <-changed:
		case <-tick.C:
			if out.send(nil) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// bundle replaces the bundle file by citadel's roots.
func (k *Keeper) bundle(w http.ResponseWriter, r *http.Request, _ Caller) {
	body, err := io.ReadAll(httpx.Body(w, r, maxBundle))
	if err != nil {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("read the bundle: %w", err))
		return
	}
	roots, err := cleanBundle(body)
	if err != nil {
		httpx.Error(w, http.StatusBadRequest, err)
		return
	}
	if old, err := os.ReadFile(k.cfg.BundleFile); err == nil && !bytes.Equal(old, roots) {
		k.cfg.Log.Warn("citadel has other roots than before: every workload gets a new certificate")
	}
	if err := atomicfile.Write(k.cfg.BundleFile, roots, 0o644); err != nil {
		k.cfg.Log.Error("bundle not written", "error", err)
		httpx.Error(w, http.StatusInternalServerError, err)
		return
	}
	k.cfg.Log.Info("trust bundle written", "file", k.cfg.BundleFile)
	httpx.JSON(w, map[string]string{"status": "ok"})
}

// cleanBundle is the PEM of the CA certificates in data, and of nothing else.
func cleanBundle(data []byte) ([]byte, error) {
	var out []byte
	for n := 0; ; n++ {
		block, rest := pem.Decode(data)
		if block == nil {
			if len(bytes.TrimSpace(rest)) != 0 || n == 0 {
				return nil, fmt.Errorf("bundle: want PEM of CA certificates, found something else after %d of them", n)
			}
			return out, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("bundle: block %d is %q, want CERTIFICATE", n, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("bundle: block %d: %w", n, err)
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("bundle: block %d is not a CA's certificate", n)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
		data = rest
	}
}
