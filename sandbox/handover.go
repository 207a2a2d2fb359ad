//go:build linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

// DefaultGrace is how long the listeners may be without a proxy before connections are reset: longer than a
// proxy takes to be replaced, shorter than clients take to give up.
const DefaultGrace = 10 * time.Second

// acceptPause keeps an accept that fails from being tried in a busy loop.
const acceptPause = 50 * time.Millisecond

// Config is what a Server needs.
type Config struct {
	// Grace is how long connections wait for a proxy before they are reset.
	Grace time.Duration
	Log   *slog.Logger
}

// Server holds the capture listeners and hands them, as file descriptors, to each process of mesh.UIDProxy
// that connects to mesh.HandoverSocket. The peer accepts from them while its connection is open, and several
// may at once. While nobody does, connections wait in the kernel's backlog for the next proxy, or after Grace
// are answered with RST until one comes: a proxy that crashes again and again fails fast.
type Server struct {
	cfg      Config
	uid      uint32
	outbound *net.TCPListener
	inbound  *net.TCPListener
	peers    *net.UnixListener
	stranger sync.Once // logs the first

	mu       sync.Mutex
	closed   bool
	holders  int
	spell    int            // counts the spells without a holder, so that a late timer knows that its spell is over
	refusing bool           // the refusers below run
	refusers sync.WaitGroup // accept and reset, one a listener; they never take mu
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
	s := &Server{cfg: cfg, uid: at.uid}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.outbound, err = listenTCP(at.outbound); err != nil {
		return nil, fmt.Errorf("listen for outbound connections: %w", err)
	}
	if s.inbound, err = listenTCP(at.inbound); err != nil {
		return nil, fmt.Errorf("listen for inbound connections: %w", err)
	}
	if s.peers, err = net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: at.socket}); err != nil {
		return nil, fmt.Errorf("listen for proxies: %w", err)
	}
	return s, nil
}

// listenTCP binds plain TCP: Go's default of Multipath TCP would hand the proxy sockets that know no original
// destination.
func listenTCP(address string) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// DualStack reports whether the listeners take IPv6 too.
func (s *Server) DualStack() bool {
	return s.outbound.Addr().(*net.TCPAddr).IP.To4() == nil
}

// Close closes the listeners; what waits in their backlog is reset unless a proxy still holds them.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if s.outbound != nil {
		_ = s.outbound.Close()
	}
	if s.inbound != nil {
		_ = s.inbound.Close()
	}
	if s.peers != nil {
		_ = s.peers.Close()
	}
	s.refusers.Wait()
}

// Run serves until ctx is done, and closes the listeners.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.Close)
	defer stop()

	s.wait()
	for {
		conn, err := s.peers.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			// Short of descriptors or memory. To give up would take the namespace down.
			s.cfg.Log.Warn("a proxy could not be accepted", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		conns.Go(func() {
			hangUp := func() { _ = conn.Close() }
			defer hangUp()
			defer context.AfterFunc(ctx, hangUp)()
			s.serve(conn)
		})
	}
}

// serve hands the listeners to one peer and counts it as a holder until it hangs up.
func (s *Server) serve(conn *net.UnixConn) {
	cred, err := peerCred(conn)
	if err != nil {
		s.cfg.Log.Warn("who asks for the listeners is unknown; refused", "error", err)
		return
	}
	if cred.Uid != s.uid {
		s.stranger.Do(func() { // once, lest an application fill the log
			s.cfg.Log.Warn("a process that is not the proxy asked for the listeners; it and its like are refused", "uid", cred.Uid, "want", s.uid)
		})
		return
	}
	holders := s.claim()
	defer s.release()
	if err := s.hand(conn); err != nil {
		s.cfg.Log.Warn("the listeners could not be handed to a proxy", "error", err)
		return
	}
	s.cfg.Log.Info("a proxy holds the listeners", "holders", holders)
	_, _ = io.Copy(io.Discard, conn) // until the peer hangs up, however it does
	s.cfg.Log.Info("a proxy let go of the listeners")
}

// claim counts a holder. When it returns, nothing here accepts, so whatever the listeners accept from now on
// is the holder's. The result is how many there are.
func (s *Server) claim() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders++
	s.spell++
	if !s.refusing {
		return s.holders
	}
	past, none := time.Unix(1, 0), time.Time{}
	for _, l := range []*net.TCPListener{s.outbound, s.inbound} {
		_ = l.SetDeadline(past) // fails on a closed listener alone, whose refuser has ended
	}
	s.refusers.Wait()
	for _, l := range []*net.TCPListener{s.outbound, s.inbound} {
		_ = l.SetDeadline(none)
	}
	s.refusing = false
	s.cfg.Log.Info("a proxy came; connections are no longer reset")
	return s.holders
}

func (s *Server) release() {
	s.mu.Lock()
	s.holders--
	last := s.holders == 0
	s.mu.Unlock()
	if last {
		s.wait()
	}
}

// wait begins a spell without a holder, at whose end connections are refused.
func (s *Server) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holders > 0 {
		return
	}
	s.spell++
	spell := s.spell
	time.AfterFunc(s.cfg.Grace, func() { s.refuse(spell) })
}

func (s *Server) refuse(spell int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.refusing || s.spell != spell {
		return
	}
	s.refusing = true
	s.cfg.Log.Warn("no proxy holds the listeners; connections are reset until one comes", "after", s.cfg.Grace)
	for _, l := range []*net.TCPListener{s.outbound, s.inbound} {
		s.refusers.Go(func() { reset(l) })
	}
}

// reset accepts and resets until l is closed or its deadline is in the past.
func reset(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			_ = c.SetLinger(0) // makes Close send RST
			_ = c.Close()
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return
		default:
			time.Sleep(acceptPause) // short of descriptors, or the connection died in the backlog
		}
	}
}

// hand sends both listeners in one message.
func (s *Server) hand(conn *net.UnixConn) error {
	// The descriptors are used where they are: File would duplicate them, and File.Fd would make the sockets,
	// which the copies share, blocking.
	return withFD(s.outbound, func(outbound int) error {
		return withFD(s.inbound, func(inbound int) error {
			_, _, err := conn.WriteMsgUnix([]byte{'1'}, unix.UnixRights(outbound, inbound), nil)
			return err
		})
	})
}

func withFD(l *net.TCPListener, f func(fd int) error) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}

func peerCred(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, cerr
}
