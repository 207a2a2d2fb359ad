package proxy

import (
	"context"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/composure-mesh/composure/proxy/listen"
)

// connections are the clients' connections under way. Its lock is taken when one begins, is decided on, or ends,
// never by what passes on it.
type connections struct {
	ctx    context.Context //nolint:containedctx // of every connection; ends with closeAll
	cancel context.CancelFunc

	limit int // of open

	mu     sync.Mutex
	open   map[*net.TCPConn]bool   // true: decided what it speaks
	until  map[*net.TCPConn]int64  // unix seconds at which the certificate of a client's proxy runs out
	plain  map[*net.TCPConn]uint16 // ports of ours to which clients send plain text
	closed bool
	done   sync.WaitGroup
}

func newConnections(limit int) *connections {
	cs := &connections{limit: limit, open: map[*net.TCPConn]bool{}, until: map[*net.TCPConn]int64{}, plain: map[*net.TCPConn]uint16{}}
	cs.ctx, cs.cancel = context.WithCancel(context.Background())
	return cs
}

// start serves c on a goroutine of its own. serve, or the rest that it returns, closes c.
func (cs *connections) start(s *Server, c *net.TCPConn, serve func(context.Context, *net.TCPConn) rest) {
	cs.mu.Lock()
	if cs.closed {
		cs.mu.Unlock()
		listen.Reset(c)
		return
	}
	if len(cs.open) >= cs.limit {
		cs.mu.Unlock()
		s.stats.overLimit.Add(1)
		listen.Reset(c)
		return
	}
	cs.open[c] = false
	cs.done.Add(1)
	cs.mu.Unlock()
	s.stats.accepted.Add(1)
	go func() {
		defer cs.end(c)
		defer func() {
			if r := recover(); r != nil {
				s.stats.panics.Add(1)
				s.log.Error("panic while serving a connection, which was closed", "remote", c.RemoteAddr(), "panic", r, "stack", string(debug.Stack()))
				listen.Reset(c)
			}
		}()
		if rest := serve(cs.ctx, c); rest != nil {
			rest()
		}
	}()
}

func (cs *connections) end(c *net.TCPConn) {
	cs.mu.Lock()
	delete(cs.open, c)
	delete(cs.until, c)
	delete(cs.plain, c)
	cs.mu.Unlock()
	cs.done.Done()
}

// decided says that it is clear what the client speaks.
func (cs *connections) decided(c *listen.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open[listen.TCPOf(c)] = true
}

// provenUntil says how long the certificate is good by which a client has proved who it is.
func (cs *connections) provenUntil(c *listen.Conn, notAfter time.Time) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.until[listen.TCPOf(c)] = notAfter.Unix()
}

// endUnproven resets the connections of clients whose certificates have run out: who is there now has to prove it anew.
// It returns how many they are.
func (cs *connections) endUnproven(now time.Time) (n uint64) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c, until := range cs.until {
		if now.Unix() > until {
			delete(cs.until, c)
			listen.Reset(c)
			n++
		}
	}
	return n
}

// plainTo says that a client sends plain text to a port of ours.
func (cs *connections) plainTo(c *listen.Conn, port uint16) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.plain[listen.TCPOf(c)] = port
}

// endPlain resets the connections of clients that may send plain text no more. It returns how many they are.
func (cs *connections) endPlain(may func(remote netip.Addr, port uint16) bool) (n uint64) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c, port := range cs.plain {
		if !may(listen.AddrPort(c.RemoteAddr()).Addr(), port) {
			delete(cs.plain, c)
			listen.Reset(c)
			n++
		}
	}
	return n
}

func (cs *connections) count() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.open)
}

// closeUndecided closes the connections whose clients have not said what they speak.
func (cs *connections) closeUndecided() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for c, decided := range cs.open {
		if !decided {
			_ = c.Close() // wakes who serves it
		}
	}
}

// closeAll resets what is left, and admits no more.
func (cs *connections) closeAll() {
	cs.cancel()
	cs.mu.Lock()
	cs.closed = true
	for c := range cs.open {
		listen.Reset(c)
	}
	cs.mu.Unlock()
	cs.done.Wait()
}

// wait waits until none is left, for the given time at most; it returns how many are.
func (cs *connections) wait(ctx context.Context, limit time.Duration) int {
	done := make(chan struct{})
	go func() {
		cs.done.Wait()
		close(done)
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-ctx.Done():
	}
	return cs.count()
}
