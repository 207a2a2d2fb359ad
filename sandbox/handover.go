//go:build linux

package sandbox

import (
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// DefaultGrace is how long the listeners may be without a proxy before connections are reset: longer than a
// proxy takes to be replaced, shorter than clients take to give up.
const DefaultGrace = 10 * time.Second

// Config is what a Server needs.
type Config struct {
	// Grace is how long connections wait for a proxy before they are reset.
	Grace time.Duration
	Log   *slog.Logger
}

// Server holds the capture listeners and lends them to each process of mesh.UIDProxy that connects to
// mesh.HandoverSocket. While nobody holds them, connections wait in the kernel's backlog for the next proxy, or after
// Grace are answered with RST until one comes: a proxy that crashes again and again fails fast.
type Server struct {
	lender
	outbound *net.TCPListener
	inbound  *net.TCPListener
}

// place is where a server listens and to whom it hands over.
type place struct {
	outbound, inbound, socket string
	uid                       uint32
}

// Listen binds mesh.PortOutbound and mesh.PortInbound, on both families where the kernel has IPv6, and the
// hand-over socket.
func Listen(cfg Config) (*Server, error) {
	return listen(cfg, place{
		outbound: fmt.Sprintf(":%d", mesh.PortOutbound),
		inbound:  fmt.Sprintf(":%d", mesh.PortInbound),
		socket:   mesh.HandoverSocket,
		uid:      mesh.UIDProxy,
	})
}

func listen(cfg Config, at place) (_ *Server, err error) {
	s := &Server{lender: lender{what: "the listeners", uid: at.uid, grace: cfg.Grace, log: cfg.Log}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	for _, l := range []struct {
		what, address string
		to            **net.TCPListener
	}{{"outbound", at.outbound, &s.outbound}, {"inbound", at.inbound, &s.inbound}} {
		listener, err := listenTCP(l.address)
		if err != nil {
			return nil, fmt.Errorf("listen for %s connections: %w", l.what, err)
		}
		*l.to = listener
		s.sockets = append(s.sockets, listener)
		s.standIn = append(s.standIn, func() { reset(listener) })
	}
	s.changed = func(refuses bool) {
		if refuses {
			s.log.Warn("no proxy holds the listeners; connections are reset until one comes", "after", s.grace)
		} else {
			s.log.Info("a proxy came; connections are no longer reset")
		}
	}
	if err = s.listen(at.socket); err != nil {
		return nil, fmt.Errorf("listen for proxies: %w", err)
	}
	return s, nil
}

// DualStack reports whether the listeners take IPv6 too.
func (s *Server) DualStack() bool {
	return s.outbound.Addr().(*net.TCPAddr).IP.To4() == nil
}

// reset accepts and resets.
func reset(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err == nil {
			_ = c.SetLinger(0) // makes Close send RST
			_ = c.Close()
		} else if over(err) {
			return
		}
	}
}
