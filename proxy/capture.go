package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/tcp"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// certificatePatience is how long captured connections wait for the proxy's first certificate, which a proxy that takes
// another's place is without for a moment. As long as the sandbox waits for a proxy: after that they fail fast, and what
// is not for a peer passes.
const certificatePatience = 10 * time.Second

// capture takes captured connections until ctx ends. It begins when there is a snapshot, without which a connection to a
// peer would leave in plain text, and a certificate, without which one from a peer would be refused. Until then
// connections wait in the backlog.
func (s *Server) capture(ctx context.Context) error {
	select {
	case <-s.applied:
	case <-ctx.Done():
		return nil
	}
	if s.cfg.Identity != nil {
		select {
		case <-s.cfg.Identity.Ready():
		case <-time.After(certificatePatience):
			s.log.Warn("no certificate yet; accepting captured connections all the same", "reason", s.cfg.Identity.Reason())
		case <-ctx.Done():
			return nil
		}
	}
	var current *acceptor
	defer func() {
		if current != nil {
			current.stop()
		}
	}()
	for {
		held, err := s.acquire(ctx, current != nil)
		if err != nil {
			return err // ctx's: acquire does not give up before
		}
		next := s.accept(held)
		if current != nil {
			current.stop()
		} else {
			close(s.listening)
		}
		current = next
		s.ready.Set(needListeners, "")
		s.log.Info("accepting captured connections", "outbound", addr(held.Outbound), "inbound", addr(held.Inbound))
		select {
		case <-ctx.Done():
			return nil
		case err := <-current.failed:
			return err
		case <-held.Gone():
			// The listeners live on with our copies; the next sandbox has others.
			s.log.Warn("the sandbox has closed its end; accepting on, and asking for the listeners again")
			if ctx.Err() == nil {
				s.ready.Set(needListeners, s.sandboxGone())
			}
		}
	}
}

// sandboxGone is the reason of not being ready while the sandbox is away: in a namespace without its sandbox nothing
// arrives any more, though the listeners live.
func (s *Server) sandboxGone() string {
	service := "<service>"
	if snap := s.snapshot.Load(); snap != nil && snap.Proxy.Service != "" {
		service = snap.Proxy.Service
	}
	return "the sandbox is gone: docker compose restart " + service + "-mesh-sandbox"
}

// acquire asks for the listeners until it has them or ctx ends.
func (s *Server) acquire(ctx context.Context, have bool) (*listen.Held, error) {
	told := ""
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		held, err := s.cfg.Capture.Acquire(ctx)
		if err == nil {
			return held, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !have {
			s.ready.Set(needListeners, err.Error())
		}
		if told != err.Error() {
			told = err.Error()
			s.log.Warn("no listeners yet; retrying", "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// acceptor is the accept loops of one pair of listeners.
type acceptor struct {
	held   *listen.Held
	failed chan error
	loops  sync.WaitGroup
}

func (s *Server) accept(held *listen.Held) *acceptor {
	a := &acceptor{held: held, failed: make(chan error, 2)}
	start := func(ln *net.TCPListener, serve func(context.Context, *net.TCPConn) rest) {
		if ln == nil {
			return
		}
		a.loops.Go(func() {
			// Closing the listener ends the loop: it must not end before held is closed in its order.
			err := listen.Accept(context.Background(), ln, func(c *net.TCPConn) { s.connections.start(s, c, serve) }, s.acceptFailing)
			if err != nil {
				a.failed <- err
			}
		})
	}
	start(held.Outbound, s.serveOutbound)
	start(held.Inbound, s.serveInbound)
	return a
}

// stop gives the listeners back. Connections that were accepted go on.
func (a *acceptor) stop() {
	_ = a.held.Close() // our copies are closed whatever it says, and nobody could mend it
	a.loops.Wait()
}

func (s *Server) acceptFailing(err error) {
	if s.stats.acceptErrors.Add(1) == 1 {
		s.log.Warn("connections can't be accepted; they wait in the backlog (counted on as listen.accept_errors)", "error", err)
	}
}

// redirected is where a captured connection was going, or false for one that no rule has redirected: it was made to
// the listener itself, and forwarding it would come back here for good.
func (s *Server) redirected(c *net.TCPConn, outbound bool) (netip.AddrPort, bool) {
	dst, err := s.cfg.Capture.OriginalDst(c, outbound)
	local := listen.AddrPort(c.LocalAddr())
	// netfilter's record has no zone, and a link-local address can't be dialled without one (RFC 4007 section 6).
	dst = inZone(dst, local, listen.AddrPort(c.RemoteAddr()))
	if err != nil || dst == local {
		s.stats.notRedirected.Add(1)
		s.log.Debug("refused a connection that was made to the capture listener itself", "remote", c.RemoteAddr(), "local", c.LocalAddr())
		return dst, false
	}
	return dst, true
}

// inZone is dst in the zone of the first of the given addresses that has one, where it needs a zone.
func inZone(dst netip.AddrPort, of ...netip.AddrPort) netip.AddrPort {
	if !dst.Addr().IsLinkLocalUnicast() || !dst.Addr().Is6() {
		return dst
	}
	for _, a := range of {
		if zone := a.Addr().Zone(); zone != "" {
			return netip.AddrPortFrom(dst.Addr().WithZone(zone), dst.Port())
		}
	}
	return dst
}

// dial opens every connection of the proxy to others. What leads back to ourselves is refused.
func (s *Server) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	ip := to.Addr().Unmap()
	if ip.IsUnspecified() || ip == selfTestIP || table.IsVirtual(ip) {
		return nil, fmt.Errorf("dial %s: it leads nowhere", to)
	}
	conn, err := upstream.DialTCP(ctx, to)
	if other := s.table.Load().OtherFamily(ip); other.IsValid() && errors.Is(err, syscall.ECONNREFUSED) {
		// Our own application may listen on one family alone. A client would find that out by a refused connection
		// and take the other address of the name; with capture its connection to either succeeds.
		return upstream.DialTCP(ctx, netip.AddrPortFrom(other, to.Port()))
	}
	return conn, err
}

// dialSession opens the upstream of a TCP session.
func (s *Server) dialSession(ctx context.Context, to tcp.Target) (net.Conn, error) {
	return s.transport.Dial(ctx, to.Target, mesh.ALPNTCP)
}

var selfTestIP = netip.MustParseAddr(mesh.SelfTestIP)

func addr(ln *net.TCPListener) string {
	if ln == nil {
		return ""
	}
	return ln.Addr().String()
}
