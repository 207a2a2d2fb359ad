package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net/netip"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/http2"
)

// Stream is one exchange on a connection of HTTP/2, which it shares with others.
type Stream struct {
	*http2.ClientStream
	Link
}

// shared is a connection of HTTP/2 of a pool.
type shared struct {
	*http2.ClientConn
	link  Link
	until time.Time // the peer's certificate is good, and the connection young enough; zero for ever
	// counted says that it takes a connection of the cluster's bound. The first to an endpoint is opened also where none is
	// left: HTTP/2 can wait for no other's.
	counted bool
	served  uint32 // streams; the pool's mu
}

// dialing is a connection on its way, which many may wait for.
type dialing struct {
	done chan struct{}
	err  error // valid after done
}

const (
	// crowded is how many streams a connection carries before another one is opened beside it, while there are fewer
	// than spread: one connection is read, and written, by one goroutine.
	crowded = 50
	spread  = 4
	// placings bounds how often an exchange looks for a connection with room: each look may end with one that was taken
	// meanwhile.
	placings = 8
)

// open begins a stream on the least busy connection, or on a new one where none has room. The error is the one of
// connecting, and http2.ErrUnavailable where others always were faster.
func (p *pool) open(ctx context.Context, r *http2.Request, last bool) (Stream, error) {
	if p.target.NamesClients() {
		return p.openAlone(ctx, r, last)
	}
	for range placings {
		c := p.roomiest()
		if c == nil {
			if err := p.dialShared(ctx); err != nil {
				return Stream{}, err
			}
			continue
		}
		link := c.link
		s, err := c.Open(r, last)
		if err == nil {
			return Stream{ClientStream: s, Link: link}, nil
		}
		if !errors.Is(err, http2.ErrUnavailable) {
			return Stream{}, err
		}
	}
	return Stream{}, http2.ErrUnavailable
}

// openAlone begins a stream on a connection of its own, which ends with it.
func (p *pool) openAlone(ctx context.Context, r *http2.Request, last bool) (Stream, error) {
	c, err := p.newShared(ctx)
	if err != nil {
		return Stream{}, err
	}
	go func() {
		_ = c.Run() // its stream is told, and it tells
		if c.counted {
			p.bounds.release()
		}
	}()
	s, err := c.Open(r, last)
	if err != nil {
		c.Close()
		return Stream{}, err
	}
	c.Drain()
	link := c.link
	link.Reused = false
	return Stream{ClientStream: s, Link: link}, nil
}

// roomiest is the connection with the fewest streams, nil where a new one is better.
func (p *pool) roomiest() *shared {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *shared
	least, usable := 0, 0
	for _, c := range p.shared {
		if !c.until.IsZero() && time.Now().After(c.until) {
			c.Drain() // who is there has to be proven anew
			continue
		}
		if n := p.maxPerConnection(); n > 0 && c.served >= n {
			c.Drain()
			continue
		}
		open, room := c.Load()
		if room == 0 {
			continue
		}
		usable++
		if best == nil || open < least {
			best, least = c, open
		}
	}
	if best != nil && least >= crowded && usable < spread && p.dialing == nil && (p.bounds == nil || p.bounds.room()) {
		return nil
	}
	if best != nil {
		best.served++
	}
	return best
}

// maxPerConnection is how many requests one connection carries, 0 for any number.
func (p *pool) maxPerConnection() uint32 {
	if s := p.target.Settings; s != nil {
		return s.MaxPerConnection
	}
	return 0
}

// dialShared opens a connection, or waits for the one that is on its way.
func (p *pool) dialShared(ctx context.Context) error {
	p.mu.Lock()
	d := p.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		p.dialing = d
		// Others wait for it, too: it must not end with this exchange.
		go p.connectShared(context.WithoutCancel(ctx), d)
	}
	p.mu.Unlock()
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pool) connectShared(ctx context.Context, d *dialing) {
	c, err := p.newShared(ctx)
	p.mu.Lock()
	d.err = err
	p.dialing = nil
	if err == nil {
		p.shared = append(p.shared, c)
		if p.plain != nil {
			p.transport.remember(&p.target, p.plain)
		}
	}
	p.mu.Unlock()
	close(d.done)
	if err != nil {
		return
	}
	_ = c.Run() // its streams are told, and they tell
	if c.counted {
		p.bounds.release()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, other := range p.shared {
		if other == c {
			p.shared = append(p.shared[:i:i], p.shared[i+1:]...)
			break
		}
	}
	if p.plain != nil && len(p.shared) == 0 && len(p.idle) == 0 {
		p.transport.forget(&p.target, p.plain)
	}
}

func (p *pool) newShared(ctx context.Context) (*shared, error) {
	raw, err := p.transport.Dial(ctx, p.target, mesh.ALPNHTTP2)
	if err != nil {
		return nil, err
	}
	cfg := p.transport.cfg.HTTP2
	cfg.Limits = p.limits()
	if cfg.Timeouts.Idle == 0 {
		cfg.Timeouts.Idle = p.transport.cfg.IdleTimeout
	}
	if s := p.target.Settings; s != nil && s.IdleTimeout > 0 {
		cfg.Timeouts.Idle = time.Duration(s.IdleTimeout)
	}
	c := &shared{ClientConn: http2.NewClientConn(raw, cfg), link: p.link(raw)}
	c.link.Reused = true // all but the first stream; that one loses nothing by it
	if t, ok := raw.(*tls.Conn); ok {
		c.until = t.ConnectionState().PeerCertificates[0].NotAfter
	}
	c.until = p.youngUntil(c.until)
	c.counted = p.bounds != nil && p.bounds.tryConnection()
	return c, nil
}

// Link is what is known of a connection to an endpoint.
type Link struct {
	Local, Remote netip.AddrPort
	TLS           bool
	// Reused says that an exchange has passed before this one.
	Reused bool
}

// About is the link itself.
func (l *Link) About() *Link { return l }
