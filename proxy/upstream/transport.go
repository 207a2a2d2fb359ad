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
	"github.com/composure-mesh/composure/mesh"
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
	// TLS is how the peer is spoken to where it is none of the mesh's; nil for plain text. Identity is empty then.
	TLS *snapshot.ClientTLS
	// ServerName is what the peer is asked for where TLS does not say, or in the mesh; empty for nothing.
	ServerName string
	// Unreachable is why it may not be dialled; nil where it may.
	Unreachable error
}

// DialFunc opens a TCP connection. Keep-alive probes are the Transport's to ask for.
type DialFunc func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

// DialTCP is a DialFunc.
func DialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, addr)
	if err != nil {
		return nil, err // a nil *net.TCPConn is no nil net.Conn
	}
	return c, nil
}

// Defaults of Config.
const (
	DefaultConnectTimeout = 5 * time.Second
	// DefaultIdleTimeout is shorter than the keep-alive of most application servers, so that we rather than
	// they close an idle connection: the other way round a request meets a closing connection.
	DefaultIdleTimeout = 30 * time.Second
	// DefaultMaxIdle is Envoy's max_connections
	// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/cluster/v3/circuit_breaker.proto), up to which that keeps all
	// that it has opened. With fewer, the requests of a thousand clients at once would open most of their connections
	// anew; a connection that nobody takes again lives no longer than DefaultIdleTimeout.
	DefaultMaxIdle = 1024
)

// Config configures a Transport.
type Config struct {
	// Identity yields our own certificate for mutual TLS. Required where targets have identities.
	Identity identity.Source
	// ClientTLS makes the configurations for targets with TLS. Required where there are such.
	ClientTLS func(t *snapshot.ClientTLS, name string, protocols ...string) (*tls.Config, error)
	// Dial opens connections; the default is DialTCP.
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
	plain map[outside]*Endpoint
}

type tlsKey struct{ identity, alpn, serverName string }

// outside is a destination that is no endpoint of the mesh.
type outside struct {
	addr       netip.AddrPort
	tls        *snapshot.ClientTLS
	serverName string
}

// New makes a Transport.
func New(cfg Config) *Transport {
	if cfg.Dial == nil {
		cfg.Dial = DialTCP
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
	return &Transport{cfg: cfg, tls: map[tlsKey]*tls.Config{}, plain: map[outside]*Endpoint{}}
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
		err = t.keepAlive(raw, alpn)
		if err == nil {
			err = t.header(ctx, raw)
		}
		if err != nil {
			_ = raw.Close()
		}
	}
	if err != nil || t.Identity == "" && t.TLS == nil {
		return raw, err
	}
	var conf *tls.Config
	if t.TLS != nil {
		alpn = publicALPN(alpn)
		conf, err = tr.clientTLS(&t, alpn)
	} else {
		conf, err = tr.tlsConfig(tlsKey{t.Identity, alpn, t.ServerName})
	}
	if err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	conn := tls.Client(raw, conf)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("tls handshake with %s: %w", t.Addr, err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != alpn && (t.TLS == nil || alpn == "h2") {
		_ = conn.Close()
		return nil, fmt.Errorf("tls handshake with %s: peer chose protocol %q, want %q", t.Addr, got, alpn)
	}
	return conn, nil
}

// keepAlive has the kernel probe a connection that is silent: as the settings want, else at Go's defaults, after 15 s and
// every 15 s. A session of bytes, which most often is over by then, sees to that itself.
func (t *Target) keepAlive(conn net.Conn, alpn string) error {
	tcp, ok := conn.(*net.TCPConn)
	switch {
	case !ok:
		return nil
	case t.Settings != nil && t.Settings.KeepAlive != nil:
		return tcp.SetKeepAliveConfig(keepAliveConfig(t.Settings.KeepAlive))
	case alpn == mesh.ALPNTCP:
		return nil
	}
	return tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true})
}

func keepAliveConfig(k *snapshot.KeepAlive) net.KeepAliveConfig {
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
	return set
}

// publicALPN is what servers outside of the mesh call a protocol of it; empty for bytes (RFC 7301 section 6).
func publicALPN(alpn string) string {
	switch alpn {
	case mesh.ALPNHTTP1:
		return "http/1.1"
	case mesh.ALPNHTTP2:
		return "h2"
	}
	return ""
}

func (tr *Transport) clientTLS(t *Target, alpn string) (*tls.Config, error) {
	if tr.cfg.ClientTLS == nil {
		return nil, errors.New("the destination's policy wants tls, and this proxy has none")
	}
	if alpn == "" {
		return tr.cfg.ClientTLS(t.TLS, t.ServerName)
	}
	return tr.cfg.ClientTLS(t.TLS, t.ServerName, alpn)
}

func (tr *Transport) tlsConfig(k tlsKey) (*tls.Config, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if c := tr.tls[k]; c != nil {
		return c, nil
	}
	if tr.cfg.Identity == nil {
		return nil, fmt.Errorf("peer %s wants mutual tls, and this proxy has no identity source", k.identity)
	}
	want, err := spiffeid.FromString(k.identity)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", k.identity, err)
	}
	c := identity.ClientTLS(tr.cfg.Identity, identity.AnyOf(want), k.alpn)
	c.ServerName = k.serverName
	tr.tls[k] = c
	return c, nil
}

// Plain is the endpoint for a destination that is no endpoint of the mesh, or for our own application: plain text to
// that very address. The same address yields the same endpoint while idle connections to it are kept.
func (tr *Transport) Plain(addr netip.AddrPort) *Endpoint { return tr.outside(outside{addr: addr}) }

// Originate is Plain, but for TLS as the policy says; serverName is what is asked for where that does not say.
func (tr *Transport) Originate(addr netip.AddrPort, policy *snapshot.ClientTLS, serverName string) *Endpoint {
	return tr.outside(outside{addr, policy, serverName})
}

func (tr *Transport) outside(to outside) *Endpoint {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if e := tr.plain[to]; e != nil {
		return e
	}
	e := NewEndpoint(nil, to.addr.Addr(), "", nil)
	e.tls, e.serverName = to.tls, to.serverName
	e.state.pools.add(to.addr.Port(), &pool{transport: tr, target: e.Target(to.addr.Port()), plain: e})
	return e
}

// remember makes Plain yield e, since connections are idle there; forget undoes it. What holds no connection is not
// remembered, so that a client that dials many addresses leaves nothing behind.
func (tr *Transport) remember(t *Target, e *Endpoint) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if to := (outside{t.Addr, t.TLS, t.ServerName}); tr.plain[to] == nil {
		tr.plain[to] = e
	}
}

func (tr *Transport) forget(t *Target, e *Endpoint) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if to := (outside{t.Addr, t.TLS, t.ServerName}); tr.plain[to] == e {
		delete(tr.plain, to)
	}
}
