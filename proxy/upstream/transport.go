// Package upstream is where requests and bytes are sent: clusters of endpoints, the balancing between them, and
// the connections to them. Endpoints and clusters survive a change of the routing table, and so do their
// connections, counters and turns.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
)

// Target is a peer to connect to.
type Target struct {
	Addr netip.AddrPort
	// Identity is the SPIFFE ID that the peer must prove by mutual TLS; empty means plain text.
	Identity string
	// Settings are the cluster's for connections; nil is without.
	Settings *snapshot.Connections
	// Unreachable is why it may not be dialled; nil where it may.
	Unreachable error
}

// DialFunc opens a TCP connection.
type DialFunc func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

// Defaults of Config.
const (
	DefaultConnectTimeout = 5 * time.Second
	// DefaultIdleTimeout is shorter than the keep-alive of most application servers, so that we rather than
	// they close an idle connection: the other way round a request meets a closing connection.
	DefaultIdleTimeout = 30 * time.Second
	DefaultMaxIdle     = 256
)

// Config configures a Transport.
type Config struct {
	// Identity yields our own certificate for mutual TLS. Required where targets have identities.
	Identity identity.Source
	// Dial opens connections; the default is net.Dialer's.
	Dial DialFunc
	// ConnectTimeout covers TCP and TLS handshake together; default DefaultConnectTimeout.
	ConnectTimeout time.Duration
	// IdleTimeout is how long an idle connection is kept; default DefaultIdleTimeout.
	IdleTimeout time.Duration
	// MaxIdle is how many idle connections are kept for one endpoint and port; default DefaultMaxIdle.
	MaxIdle int
	// Limits bound the heads of responses.
	Limits http1.Limits
	// HTTP2 configures connections of HTTP/2, except for Limits; the idle time's default is IdleTimeout.
	HTTP2 http2.Config
}

// Transport opens connections and keeps the idle ones.
type Transport struct {
	cfg Config

	mu    sync.Mutex
	tls   map[tlsKey]*tls.Config
	plain map[netip.AddrPort]*Endpoint
}

type tlsKey struct{ identity, alpn string }

// New makes a Transport.
func New(cfg Config) *Transport {
	if cfg.Dial == nil {
		var d net.Dialer
		cfg.Dial = func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", addr.String())
		}
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = DefaultConnectTimeout
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = DefaultIdleTimeout
	}
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = DefaultMaxIdle
	}
	return &Transport{cfg: cfg, tls: map[tlsKey]*tls.Config{}, plain: map[netip.AddrPort]*Endpoint{}}
}

// Dial connects to t: plain TCP, or mutual TLS with the protocol alpn and exactly the identity that t names.
func (tr *Transport) Dial(ctx context.Context, t Target, alpn string) (net.Conn, error) {
	if t.Unreachable != nil {
		return nil, t.Unreachable
	}
	timeout := tr.cfg.ConnectTimeout
	if t.Settings != nil && t.Settings.ConnectTimeout > 0 {
		timeout = time.Duration(t.Settings.ConnectTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	raw, err := tr.cfg.Dial(ctx, t.Addr)
	if err == nil {
		err = t.keepAlive(raw)
	}
	if err != nil || t.Identity == "" {
		return raw, err
	}
	conf, err := tr.tlsConfig(t.Identity, alpn)
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("tls handshake with %s: %w", t.Addr, err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != alpn {
		_ = conn.Close()
		return nil, fmt.Errorf("tls handshake with %s: peer chose protocol %q, want %q", t.Addr, got, alpn)
	}
	return conn, nil
}

// keepAlive has the kernel probe a connection that is silent, as the settings want.
func (t *Target) keepAlive(conn net.Conn) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || t.Settings == nil || t.Settings.KeepAlive == nil {
		return nil
	}
	k := t.Settings.KeepAlive
	set := net.KeepAliveConfig{Enable: true, Idle: time.Duration(k.Idle), Interval: time.Duration(k.Interval), Count: int(k.Probes)}
	// 0 is the kernel's own, which is -1 in this package.
	if set.Idle == 0 {
		set.Idle = -1
	}
	if set.Interval == 0 {
		set.Interval = -1
	}
	if set.Count == 0 {
		set.Count = -1
	}
	return tcp.SetKeepAliveConfig(set)
}

func (tr *Transport) tlsConfig(id, alpn string) (*tls.Config, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	k := tlsKey{id, alpn}
	if c := tr.tls[k]; c != nil {
		return c, nil
	}
	if tr.cfg.Identity == nil {
		return nil, fmt.Errorf("peer %s wants mutual tls, and this proxy has no identity source", id)
	}
	want, err := spiffeid.FromString(id)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", id, err)
	}
	c := identity.ClientTLS(tr.cfg.Identity, identity.AnyOf(want), alpn)
	tr.tls[k] = c
	return c, nil
}

// Plain is the endpoint for a destination that is no endpoint of the mesh, or for our own application: plain text to
// that very address. The same address yields the same endpoint while idle connections to it are kept.
func (tr *Transport) Plain(addr netip.AddrPort) *Endpoint {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if e := tr.plain[addr]; e != nil {
		return e
	}
	e := NewEndpoint(nil, addr.Addr(), "", nil)
	e.state.pools.add(addr.Port(), &pool{transport: tr, target: Target{Addr: addr}, plain: e})
	return e
}

// remember makes Plain yield e, since connections are idle there; forget undoes it. What holds no connection is not
// remembered, so that a client that dials many addresses leaves nothing behind.
func (tr *Transport) remember(addr netip.AddrPort, e *Endpoint) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.plain[addr] == nil {
		tr.plain[addr] = e
	}
}

func (tr *Transport) forget(addr netip.AddrPort, e *Endpoint) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.plain[addr] == e {
		delete(tr.plain, addr)
	}
}
