// Package control is a proxy's way to the planes: it streams snapshots from pilot and answers for them, keeps the
// last good one on disk, and pushes telemetry to mixer. Traffic never waits for any of it.
package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Identity is what the client needs of identity.Agent.
type Identity interface {
	identity.Source
	// Ready is closed when there is a first identity.
	Ready() <-chan struct{}
	// Workload is the attested name of this workload.
	Workload() string
}

// Config is what a Client needs.
type Config struct {
	PilotSocket, MixerSocket string
	TrustDomain              string
	Identity                 Identity
	// StateDir is where the last good snapshot is kept.
	StateDir string
	// Apply puts a snapshot in force, or says why not; then the one before stays in force.
	Apply func(*snapshot.Snapshot) error
	// Report is everything counted so far, and the number of events in it.
	Report func() (*report.Report, uint64)
	// Build is the proxy's own version.
	Build string
	Log   *slog.Logger
}

// Times of the client.
const (
	firstRetry = 100 * time.Millisecond // doubled up to lastRetry, with jitter
	lastRetry  = 2 * time.Second
	// silenceLimit is how long a stream may be silent: three of the planes' keep-alive lines.
	silenceLimit  = 45 * time.Second
	callTimeout   = 5 * time.Second
	reportEvery   = time.Second
	farewellGrace = time.Second // for the last report of a proxy that ends
)

// Client talks to pilot and mixer.
type Client struct {
	cfg          Config
	pilot, mixer *http.Client
	saved        string // version of the snapshot on disk; Run's own after Load
	counters
}

type counters struct {
	applied, refused, reports, failedReports atomic.Uint64
}

// New checks cfg; Load and Run do the work.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg}
	var err error
	if c.pilot, err = plane(cfg, mesh.RolePilot, cfg.PilotSocket); err != nil {
		return nil, err
	}
	if c.mixer, err = plane(cfg, mesh.RoleMixer, cfg.MixerSocket); err != nil {
		return nil, err
	}
	return c, nil
}

// plane is an HTTP client that reaches one plane at its socket, and checks that it is that plane.
func plane(cfg Config, r mesh.Role, socket string) (*http.Client, error) {
	id, err := mesh.PlaneID(cfg.TrustDomain, r)
	if err != nil {
		return nil, err
	}
	conf := identity.ClientTLS(cfg.Identity, identity.AnyOf(id), "http/1.1")
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		var d net.Dialer
		raw, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, err
		}
		conn := tls.Client(raw, conf)
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close() // the handshake's error says more
			return nil, fmt.Errorf("%s: %w", r, err)
		}
		return conn, nil
	}
	return &http.Client{Transport: &http.Transport{DialTLSContext: dial, MaxIdleConns: 2, IdleConnTimeout: time.Minute}}, nil
}

// Run works until ctx is done; it never gives up before.
func (c *Client) Run(ctx context.Context) error {
	defer c.pilot.CloseIdleConnections()
	defer c.mixer.CloseIdleConnections()
	select {
	case <-c.cfg.Identity.Ready():
	case <-ctx.Done():
		return nil
	}
	return lifecycle.Run(ctx, c.streamSnapshots, c.pushReports)
}

// Stats are the client's counters by name.
func (c *Client) Stats() map[string]uint64 {
	return map[string]uint64{
		"control.snapshots_applied": c.applied.Load(),
		"control.snapshots_refused": c.refused.Load(),
		"control.reports_sent":      c.reports.Load(),
		"control.reports_failed":    c.failedReports.Load(),
	}
}

// backoff is the wait after so many failures in a row.
func backoff(failures int) time.Duration {
	d := lastRetry
	if failures < 6 {
		d = min(firstRetry<<max(failures-1, 0), lastRetry)
	}
	return d/2 + rand.N(d/2)
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// peerState logs a failing peer once until it is well again.
type peerState struct {
	log    *slog.Logger
	name   string
	failed bool
}

func (p *peerState) failing(err error) {
	if !p.failed {
		p.log.Warn(p.name+" is away; retrying, and working on with what is known", "error", err)
	}
	p.failed = true
}

func (p *peerState) well() {
	if p.failed {
		p.log.Info(p.name + " is back")
	}
	p.failed = false
}
