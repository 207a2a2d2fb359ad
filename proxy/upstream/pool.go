package upstream

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/http1"
)

// pool holds the connections to one endpoint's port: of HTTP/1 the idle ones, the last used on top, and of HTTP/2 all.
type pool struct {
	transport *Transport
	target    Target
	plain     *Endpoint // the endpoint of Transport.Plain that this pool belongs to; nil for a mesh endpoint
	bounds    *limits   // of the cluster; nil without

	mu    sync.Mutex
	idle  []*Conn
	timer *time.Timer
	armed bool

	shared  []*shared
	dialing *dialing // nil for none
}

// Conn is a connection to an endpoint, used by one exchange at a time.
type Conn struct {
	net.Conn
	Link
	// Reader parses what the endpoint sends.
	Reader *http1.Reader

	pool    *pool
	expires time.Time // as an idle connection
	until   time.Time // the peer's certificate is good, and the connection young enough; zero for ever
	served  uint32    // exchanges
	quiet   func() bool
}

// take yields the youngest idle connection that is still good, or nil.
func (p *pool) take() *Conn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if time.Now().Before(c.expires) && c.quiet() {
			c.Reused = true
			return c
		}
		c.Discard()
	}
}

// dial opens a connection, if need be when another is closed or becomes idle: then that may be the one.
func (p *pool) dial(ctx context.Context) (*Conn, error) {
	if p.bounds == nil {
		return p.connect(ctx)
	}
	if c, err := p.bounds.acquire(ctx, p); c != nil || err != nil {
		return c, err
	}
	c, err := p.connect(ctx)
	p.bounds.connected()
	if err != nil {
		p.bounds.release()
	}
	return c, err
}

func (p *pool) connect(ctx context.Context) (*Conn, error) {
	raw, err := p.transport.Dial(ctx, p.target, mesh.ALPNHTTP1)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: raw, Link: p.link(raw), Reader: http1.NewReader(raw, p.limits()), pool: p}
	if t, ok := raw.(*tls.Conn); ok {
		c.until = t.ConnectionState().PeerCertificates[0].NotAfter
	}
	c.until = p.youngUntil(c.until)
	c.quiet = quietCheck(raw)
	return c, nil
}

// youngUntil is the end of a connection that begins now: until, or an earlier one by the settings.
func (p *pool) youngUntil(until time.Time) time.Time {
	if s := p.target.Settings; s != nil && s.MaxAge > 0 {
		if end := time.Now().Add(time.Duration(s.MaxAge)); until.IsZero() || end.Before(until) {
			return end
		}
	}
	return until
}

func (p *pool) link(raw net.Conn) Link {
	return Link{Local: addrPort(raw.LocalAddr()), Remote: p.target.Addr, TLS: p.target.Identity != ""}
}

// limits bound what the endpoint may send.
func (p *pool) limits() http1.Limits {
	if p.target.Identity != "" {
		return p.transport.cfg.Limits.Relayed()
	}
	return p.transport.cfg.Limits
}

// Keep gives the connection back for another exchange. timeout is the peer's Keep-Alive timeout, 0 if it named
// none. A connection with bytes that nobody asked for is closed: they must never become a later request's answer. So is
// one whose peer's certificate has run out: a new handshake has to prove who is there.
func (c *Conn) Keep(timeout time.Duration) {
	p := c.pool
	limit := p.transport.cfg.IdleTimeout
	c.served++
	if s := p.target.Settings; s != nil {
		if s.IdleTimeout > 0 {
			limit = time.Duration(s.IdleTimeout)
		}
		if s.MaxPerConnection > 0 && c.served >= s.MaxPerConnection {
			limit = 0
		}
	}
	if p.target.NamesClients() {
		limit = 0 // the next exchange may be another client's
	}
	if timeout > 0 {
		// A second less than the peer's own limit: it must not close just as we send.
		limit = min(limit, timeout-time.Second)
	}
	now := time.Now()
	if limit <= 0 || c.Reader.Buffered() > 0 || !c.until.IsZero() && now.After(c.until) {
		c.Discard()
		return
	}
	c.Reader.Idle()
	c.expires = now.Add(limit)
	p.mu.Lock()
	full := len(p.idle) >= p.transport.cfg.MaxIdle
	if !full {
		if len(p.idle) == 0 && p.plain != nil && !p.armed {
			p.transport.remember(&p.target, p.plain)
		}
		p.idle = append(p.idle, c)
		p.arm(limit)
	}
	p.mu.Unlock()
	switch {
	case full:
		c.Discard()
	case p.bounds != nil:
		p.bounds.idle()
	}
}

// Discard closes the connection for good.
func (c *Conn) Discard() {
	_ = c.Close()
	c.Reader.Release()
	if l := c.pool.bounds; l != nil {
		l.release()
	}
}

// arm schedules a sweep; p.mu is held. One timer serves the whole pool.
func (p *pool) arm(d time.Duration) {
	if p.armed {
		return
	}
	p.armed = true
	if p.timer == nil {
		p.timer = time.AfterFunc(d, p.sweep)
	} else {
		p.timer.Reset(d)
	}
}

// sweep closes what has been idle too long or was closed by the peer.
func (p *pool) sweep() {
	now := time.Now()
	var dead []*Conn
	p.mu.Lock()
	p.armed = false
	kept := p.idle[:0]
	var next time.Time
	for _, c := range p.idle {
		if !now.Before(c.expires) || !c.quiet() {
			dead = append(dead, c)
			continue
		}
		kept = append(kept, c)
		if next.IsZero() || c.expires.Before(next) {
			next = c.expires
		}
	}
	clear(p.idle[len(kept):])
	p.idle = kept
	empty := len(kept) == 0
	if !empty {
		p.arm(next.Sub(now))
	}
	if empty && p.plain != nil && len(p.shared) == 0 {
		p.transport.forget(&p.target, p.plain)
	}
	p.mu.Unlock()
	for _, c := range dead {
		c.Discard()
	}
}

// quietCheck returns a check that nothing has arrived on an idle connection: no byte and no end. It looks at the socket
// without taking anything from it, and without touching deadlines.
func quietCheck(conn net.Conn) func() bool {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return func() bool { return true }
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return func() bool { return false }
	}
	var (
		quiet bool
		b     [1]byte
	)
	peek := func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN
	}
	return func() bool {
		quiet = false
		return rc.Control(peek) == nil && quiet
	}
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
