package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/mesh"
)

// Times of the agent's loop.
const (
	defaultTick = time.Second            // how often the wall clock and the bundle file are looked at
	firstRetry  = 100 * time.Millisecond // doubled up to lastRetry
	lastRetry   = 2 * time.Second
	callTimeout = 10 * time.Second
	lateLife    = 0.75 // a certificate this far through its life that can't be renewed is an error, not a warning
)

// AgentConfig is what an Agent needs. Zero durations and Dial have defaults.
type AgentConfig struct {
	KeeperSocket  string // the keeper's unix socket, mesh.Socket(mesh.RoleKeeper)
	CitadelSocket string // citadel's unix socket, mesh.Socket(mesh.RoleCitadel)
	BundleFile    string // PEM roots, mesh.TrustBundle; it may appear later, and is read again when it changes
	StateDir      string // where key and chain are kept over a restart; "" keeps nothing
	TrustDomain   string // mesh.DefaultTrustDomain unless set otherwise
	// Role is what the process is. A plane insists on the identity mesh.PlaneID; a proxy takes what the keeper says.
	Role mesh.Role
	Log  *slog.Logger
	// Dial connects to one of the two sockets; nil dials it as a unix socket.
	Dial func(ctx context.Context, socket string) (net.Conn, error)
}

// Agent keeps the identity of this process: it makes a key, has it attested by the keeper and signed by citadel,
// and does so again at half of the certificate's life. It implements Source.
type Agent struct {
	cfg     AgentConfig
	td      spiffeid.TrustDomain
	citadel spiffeid.ID

	current atomic.Pointer[held]
	status  atomic.Pointer[progress]
	ready   chan struct{} // closed when there is a first identity

	// The rest is Run's own.
	roots    *x509.CertPool
	rootsPEM []byte
	bundle   fs.FileInfo
	loaded   bool
	renewAt  time.Time
	failures int
	condition
}

// held is an identity with what belongs to it.
type held struct {
	material *Material
	workload string
	key      crypto.Signer
	chain    []byte // PEM
}

// progress is what Status tells beyond the identity.
type progress struct {
	renewAt time.Time
	err     error
	errAt   time.Time
}

// Status is an agent's state for people.
type Status struct {
	Role        mesh.Role `json:"role"`
	Identity    string    `json:"identity,omitempty"`
	Workload    string    `json:"workload,omitempty"`
	Serial      string    `json:"serial,omitempty"` // hexadecimal
	NotBefore   time.Time `json:"notBefore,omitzero"`
	NotAfter    time.Time `json:"notAfter,omitzero"`
	NextRenewal time.Time `json:"nextRenewal,omitzero"`
	// Reason says why the process can't prove who it is; empty when it can.
	Reason string `json:"reason,omitempty"`
	// LastError is the newest failed attempt; it goes away with the next success.
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
}

// NewAgent checks cfg; Run does the work.
func NewAgent(cfg AgentConfig) (*Agent, error) {
	td, err := spiffeid.TrustDomainFromString(cfg.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain %q: %w", cfg.TrustDomain, err)
	}
	citadel, err := mesh.PlaneID(cfg.TrustDomain, mesh.RoleCitadel)
	if err != nil {
		return nil, err
	}
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, socket string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}
	}
	a := &Agent{cfg: cfg, td: td, citadel: citadel, ready: make(chan struct{})}
	a.status.Store(&progress{})
	return a, nil
}

// Run keeps the identity until ctx is done; it never gives up before.
func (a *Agent) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := a.step(ctx)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// Current is the newest identity, nil before there is one. An expired one stays, and says so: Material.Valid.
func (a *Agent) Current() *Material {
	if h := a.current.Load(); h != nil {
		return h.material
	}
	return nil
}

// Identity is who this process is, the zero ID before there is an identity.
func (a *Agent) Identity() spiffeid.ID {
	if m := a.Current(); m != nil {
		return m.ID
	}
	return spiffeid.ID{}
}

// Workload is the name of the workload that the keeper attested, "" before there is an identity and for a plane.
func (a *Agent) Workload() string {
	if h := a.current.Load(); h != nil {
		return h.workload
	}
	return ""
}

// Ready is closed when there is a first identity.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Reason says why this process can't prove who it is, or "".
func (a *Agent) Reason() string {
	if m := a.Current(); m != nil {
		if err := m.Valid(time.Now()); err != nil {
			return err.Error()
		}
		return ""
	}
	if p := a.status.Load(); p.err != nil {
		return "no certificate yet: " + p.err.Error()
	}
	return errNoIdentity.Error()
}

// Status is the agent's state at this moment.
func (a *Agent) Status() Status {
	p := a.status.Load()
	s := Status{Role: a.cfg.Role, NextRenewal: p.renewAt, Reason: a.Reason(), LastErrorAt: p.errAt}
	if p.err != nil {
		s.LastError = p.err.Error()
	}
	if h := a.current.Load(); h != nil {
		leaf := h.material.Certificate.Leaf
		s.Identity, s.Workload = h.material.ID.String(), h.workload
		s.Serial, s.NotBefore, s.NotAfter = leaf.SerialNumber.Text(16), leaf.NotBefore, leaf.NotAfter
	}
	return s
}

// step brings the identity up to date once and tells how long to wait.
func (a *Agent) step(ctx context.Context) time.Duration {
	err := a.refresh(ctx)
	if ctx.Err() != nil {
		return 0
	}
	now := wallClock()
	p := &progress{renewAt: a.renewAt, err: err}
	if err != nil {
		p.errAt = now
	}
	a.status.Store(p)
	a.report(a.cfg.Log, a.Current(), err, now)
	if err == nil {
		a.failures = 0
		return defaultTick
	}
	a.failures++
	return backoff(a.failures)
}

// refresh reads the bundle if it has changed, and renews the certificate if it is time.
func (a *Agent) refresh(ctx context.Context) error {
	changed, err := a.readBundle()
	if err != nil {
		return stageError{"bundle", err}
	}
	h := a.current.Load()
	if h == nil && !a.loaded {
		a.loaded = true
		if h = a.load(); h != nil {
			a.publish(h)
		}
	}
	if h != nil && changed {
		h = a.withRoots(h)
		a.publish(h)
	}
	if h != nil && !a.due(h) {
		return nil
	}
	fresh, err := a.obtain(ctx)
	if err != nil {
		return err
	}
	a.publish(fresh)
	if err := a.save(fresh); err != nil {
		// The identity is good; only the next start has to do without it.
		a.cfg.Log.Warn("the certificate could not be kept for the next start", "error", err)
	}
	return nil
}

// due reports whether h must be replaced: half of its life is over, or it does not verify now, because the roots
// are others or the clock has left its life. Times are compared by the wall clock: Go's timers stand still while a
// laptop sleeps.
func (a *Agent) due(h *held) bool {
	return !wallClock().Before(a.renewAt) || a.verifies(h) != nil
}

func (a *Agent) publish(h *held) {
	old := a.current.Swap(h)
	if old == nil || !old.material.Certificate.Leaf.Equal(h.material.Certificate.Leaf) {
		a.renewAt = renewal(h.material.Certificate.Leaf)
	}
	if old == nil {
		close(a.ready)
	}
}

func (a *Agent) withRoots(h *held) *held {
	m := *h.material
	m.Roots, m.RootsPEM = a.roots, a.rootsPEM
	next := *h
	next.material = &m
	return &next
}

func (a *Agent) verifies(h *held) error {
	_, err := Verify(h.material.Certificate.Certificate, a.roots, x509.ExtKeyUsageClientAuth)
	return err
}

// readBundle reads the bundle file if it is another than last time.
func (a *Agent) readBundle() (changed bool, err error) {
	fi, err := os.Stat(a.cfg.BundleFile)
	switch {
	case err != nil && a.roots != nil:
		return false, nil // what was read stays good while the file is away
	case err != nil:
		return false, fmt.Errorf("trust bundle: %w (citadel publishes it through the keeper)", err)
	case a.bundle != nil && os.SameFile(fi, a.bundle) && fi.ModTime().Equal(a.bundle.ModTime()) && fi.Size() == a.bundle.Size():
		return false, nil
	}
	data, err := os.ReadFile(a.cfg.BundleFile)
	if err != nil {
		return false, fmt.Errorf("trust bundle: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return false, fmt.Errorf("trust bundle %s: no certificate in it", a.cfg.BundleFile)
	}
	a.bundle = fi
	if bytes.Equal(data, a.rootsPEM) {
		return false, nil
	}
	a.roots, a.rootsPEM = pool, data
	return true, nil
}

// Valid tells whether m proves anything at the given moment; the error names the certificate and says why not.
func (m *Material) Valid(now time.Time) error {
	leaf := m.Certificate.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate of %s expired at %s and citadel has not renewed it",
			m.ID, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate of %s is not valid before %s: the clock went back",
			m.ID, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// renewal is half of the certificate's life, give or take 5 %, so that workloads that started together do not
// renew together.
func renewal(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(time.Duration(float64(life) * (0.475 + 0.05*rand.Float64())))
}

func backoff(failures int) time.Duration {
	d := lastRetry
	if n := failures - 1; n < 5 {
		d = min(firstRetry<<n, lastRetry)
	}
	return d/2 + rand.N(d/2)
}

func wallClock() time.Time { return time.Now().Round(0) }

// stageError is a failure with the part of the mesh that it is about, so that one state is logged once.
type stageError struct {
	stage string
	err   error
}

func (e stageError) Error() string { return e.err.Error() }
func (e stageError) Unwrap() error { return e.err }

// condition is the state that was logged last.
type condition struct{ logged string }

// report logs a change of state, once.
func (c *condition) report(log *slog.Logger, m *Material, err error, now time.Time) {
	state, level, message := "ok", slog.LevelInfo, "identity established"
	if err != nil {
		var at stageError
		_ = errors.As(err, &at) // every error of refresh is one
		state, level, message = at.stage, slog.LevelWarn, "no certificate yet; retrying"
	}
	switch {
	case m == nil || err == nil:
	case m.Valid(now) != nil:
		state, level, message = state+" expired", slog.LevelError, m.Valid(now).Error()
	case late(m.Certificate.Leaf, now):
		state, level, message = state+" late", slog.LevelError, "the certificate can't be renewed and expires soon; retrying"
	default:
		message = "the certificate can't be renewed; retrying"
	}
	if state == c.logged {
		return
	}
	c.logged = state
	attrs := []any{}
	if m != nil {
		attrs = append(attrs, "identity", m.ID.String(), "expires", m.Certificate.Leaf.NotAfter)
	}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	log.Log(context.Background(), level, message, attrs...)
}

func late(leaf *x509.Certificate, now time.Time) bool {
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return now.After(leaf.NotBefore.Add(time.Duration(float64(life) * lateLife)))
}
