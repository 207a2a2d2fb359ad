package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/settings"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/telemetry"
)

// Identity is the live identity of the proxy, an *identity.Agent.
type Identity interface {
	identity.Source
	Run(ctx context.Context) error
	Ready() <-chan struct{}
	Workload() string
	// Reason says why the process can't prove who it is, or "".
	Reason() string
	Status() identity.Status
}

// Config is what a Server needs.
type Config struct {
	// Mesh is the mesh's name; TrustDomain is that of its identities.
	Mesh, TrustDomain string
	Build             string // the program's version
	Log               *slog.Logger
	Level             *slog.LevelVar // changed at the admin port

	// Identity is nil for a proxy that stands alone: then everything is plain text.
	Identity Identity
	// Control names the planes; nil for a proxy that stands alone. It needs an Identity.
	Control *Planes
	// Snapshot is what a proxy without Control works by.
	Snapshot *snapshot.Snapshot

	// Capture says how a sidecar comes to its listeners; nil for a gateway.
	Capture *Capture
	// GatewayPorts are the ports that a gateway listens on; it opens those of its snapshot, too.
	GatewayPorts []uint16
	// GatewayHost is the address of the gateway's listeners; empty for all.
	GatewayHost string

	// Addresses of the proxy's own servers.
	AdminAddr, ReadyAddr, MetricsAddr string

	AccessLog       io.Writer
	AccessLogFormat telemetry.Format
	// Settings are what the user sets of the proxy; nil is settings.Default.
	Settings *settings.Proxy
}

// Planes is where the control planes are.
type Planes struct {
	PilotSocket, CitadelSocket, MixerSocket string
	StateDir                                string
}

// Capture is how captured connections come in.
type Capture struct {
	// Acquire yields the listeners; it is retried while it fails, and called again when the sandbox is gone.
	Acquire func(context.Context) (*listen.Held, error)
	// OriginalDst is where the client of a captured connection was going, by the side that it came in on.
	OriginalDst func(c *net.TCPConn, outbound bool) (netip.AddrPort, error)
	// Own tells whether an address is one of this namespace's, so that an inbound connection to any other is refused:
	// a neighbour chooses what destination its frames carry. Nil where the destination is not the client's to choose.
	Own func(netip.Addr) bool
	// DNS yields the sockets that the application's DNS is led to; nil for none. It is retried while it fails, and called again
	// when the sandbox is gone. Resolver is the address of the resolver that knows all other names.
	DNS      func(context.Context) (*listen.HeldDNS, error)
	Resolver string
	// SelfTest is the address to dial to see that capture works, mesh.SelfTestIP and any port; invalid for none.
	SelfTest netip.AddrPort
}

func (c *Config) check() error {
	switch {
	case c.Log == nil || c.Level == nil:
		return errors.New("proxy: Log and Level are required")
	case c.Control != nil && c.Identity == nil:
		return errors.New("proxy: Control needs an Identity")
	case c.Control == nil && c.Snapshot == nil:
		return errors.New("proxy: it needs Control or a Snapshot")
	case c.Capture == nil && len(c.GatewayPorts) == 0:
		return errors.New("proxy: it needs Capture, or GatewayPorts for a gateway")
	}
	if c.Settings == nil {
		c.Settings = settings.Default()
	}
	if c.Settings.MaxConnections == 0 {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return fmt.Errorf("proxy: RLIMIT_NOFILE: %w", err)
		}
		c.Settings.MaxConnections = int(min(limit.Cur/2, math.MaxInt32)) //nolint:gosec // bounded
	}
	return nil
}
