// Package control is a proxy's way to the planes: it streams each plane's part of the snapshot and answers for it, keeps
// the last good ones on disk, and pushes telemetry to mixer. Traffic never waits for any of it.
package control

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
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
	PilotSocket, CitadelSocket, MixerSocket string
	TrustDomain                             string
	Identity                                Identity
	// StateDir is where the last good parts are kept.
	StateDir string
	// Apply, ApplySecurity and ApplyUsage put the part of pilot, citadel or mixer in force, or say why not; then the one
	// before stays in force.
	Apply         func(*snapshot.Snapshot) error
	ApplySecurity func(*snapshot.Security) error
	ApplyUsage    func(*snapshot.Usage) error
	// MissedKeys are the URIs of keys where tokens have named some that are not there, since the last call; nil for none ever.
	MissedKeys func() []string
	// Report is everything counted so far, and the number of events in it.
	Report func() (*report.Report, uint64)
	// Entries are log entries for mixer.
	Entries Entries
	// Build is the proxy's own version.
	Build string
	Log   *slog.Logger
}

// Entries are log entries that wait to be sent.
type Entries interface {
	// Next waits for some: lines of JSON, and how many. None come when ctx has ended.
	Next(ctx context.Context) (lines []byte, entries int)
	// Lose is told of entries that mixer refuses.
	Lose(entries int)
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

// Client talks to the planes.
type Client struct {
	cfg   Config
	parts []*part
	mixer *http.Client // for reports
	// citadel is for what it is to look for.
	citadel *http.Client
	counters
}

type counters struct {
	applied, refused, reports, failedReports atomic.Uint64
}

// New checks cfg; Load and Run do the work.
func New(cfg Config) (*Client, error) {
	c := &Client{cfg: cfg}
	for _, p := range []struct {
		role         mesh.Role
		socket, file string
		taker        taker
	}{
		{mesh.RolePilot, cfg.PilotSocket, "snapshot.json", &takingChanges{apply: cfg.Apply}},
		{mesh.RoleCitadel, cfg.CitadelSocket, "security.json", taking[snapshot.Security, *snapshot.Security]{cfg.ApplySecurity}},
		{mesh.RoleMixer, cfg.MixerSocket, "usage.json", taking[snapshot.Usage, *snapshot.Usage]{cfg.ApplyUsage}},
	} {
		client, err := plane(cfg, p.role, p.socket)
		if err != nil {
			return nil, err
		}
		c.parts = append(c.parts, &part{Client: c, plane: p.role, http: client, file: filepath.Join(cfg.StateDir, p.file), taker: p.taker})
		switch p.role {
		case mesh.RoleMixer:
			c.mixer = client
		case mesh.RoleCitadel:
			c.citadel = client
		}
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
	select {
	case <-c.cfg.Identity.Ready():
	case <-ctx.Done():
		return nil
	}
	tasks := []lifecycle.Task{c.pushReports, c.pushEntries, c.tellMissedKeys}
	for _, p := range c.parts {
		defer p.http.CloseIdleConnections()
		tasks = append(tasks, p.follow)
	}
	return lifecycle.Run(ctx, tasks...)
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
