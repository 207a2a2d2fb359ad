package listen

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bind listens on address with plain TCP. Go's default on Linux is Multipath TCP, which the proxy has no use for: what it
// accepts it splices, and peers would get an option that lets them open more connections beside the one that was decided on.
func Bind(ctx context.Context, address string) (*net.TCPListener, error) {
	lc := net.ListenConfig{KeepAlive: -1, Control: probing}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// probing has the kernel probe silent connections at Go's defaults, after 15 s and every 15 s, nine times. What is accepted
// inherits it from the listener, which saves four system calls a connection.
func probing(_, _ string, c syscall.RawConn) error {
	var err error
	control := func(fd uintptr) {
		for _, o := range []struct{ level, name, value int }{
			{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
			{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		} {
			if err = unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil {
				return
			}
		}
	}
	if e := c.Control(control); e != nil {
		return e
	}
	return err
}

// Limit accepts n connections at a time from loopback and n from elsewhere; those above are reset. So a peer on the
// network can't keep a health check or a local tool out, nor the other way round.
func Limit(ln *net.TCPListener, n int) net.Listener {
	return &limited{TCPListener: ln, limit: int64(n)}
}

type limited struct {
	*net.TCPListener

	limit         int64
	local, remote atomic.Int64
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return nil, fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
		open := &l.remote
		if AddrPort(c.RemoteAddr()).Addr().IsLoopback() {
			open = &l.local
		}
		if open.Add(1) > l.limit {
			open.Add(-1)
			Reset(c)
			continue
		}
		return &countedConn{TCPConn: c, ended: sync.OnceFunc(func() { open.Add(-1) })}, nil
	}
}

// countedConn is of those that are open until it is closed.
type countedConn struct {
	*net.TCPConn

	ended func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.ended()
	return c.TCPConn.Close()
}
