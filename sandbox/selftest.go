//go:build linux

package sandbox

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

// selfTestPort is any port: nothing listens on it.
const selfTestPort = 1

// selfTestTimeout is far above the fraction of a millisecond that a connection inside the namespace takes.
const selfTestTimeout = 5 * time.Second

// SelfTest connects to mesh.SelfTestIP, where nothing listens, and wants the connection to arrive at the
// outbound listener with its destination remembered: the rules are in force and the kernel does what they say.
// It must come before Run, since it accepts.
func (s *Server) SelfTest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	client, err := DialSelfTest(ctx)
	if err != nil {
		return err
	}
	defer client.Close()

	deadline, _ := ctx.Deadline()
	if err := s.outbound.SetDeadline(deadline); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	defer func() { _ = s.outbound.SetDeadline(time.Time{}) }()
	for {
		conn, err := s.outbound.AcceptTCP()
		if err != nil {
			return fmt.Errorf("self-test: the connection to %s did not arrive at port %d: %w", mesh.SelfTestIP, mesh.PortOutbound, err)
		}
		ours := sameAddr(conn.RemoteAddr(), client.LocalAddr())
		dst, err := originalDst(conn)
		_ = conn.SetLinger(0) // a connection of somebody else's, early as it is, is told to try again
		_ = conn.Close()
		if !ours {
			continue
		}
		if err != nil {
			return fmt.Errorf("self-test: original destination: %w", err)
		}
		if want := selfTestAddr(); dst != want {
			return fmt.Errorf("self-test: original destination is %s, want %s", dst, want)
		}
		return nil
	}
}

// DialSelfTest opens the self-test's connection. It succeeds only where capture is in force and someone listens
// on mesh.PortOutbound.
func DialSelfTest(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", selfTestAddr().String())
	if err != nil {
		return nil, fmt.Errorf("self-test: capture is not in force: %w", err)
	}
	return conn, nil
}

func selfTestAddr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(mesh.SelfTestIP), selfTestPort)
}

func sameAddr(a, b net.Addr) bool {
	x, y := a.(*net.TCPAddr).AddrPort(), b.(*net.TCPAddr).AddrPort()
	return x.Addr().Unmap() == y.Addr().Unmap() && x.Port() == y.Port()
}

// originalDst is where an IPv4 connection was going before REDIRECT.
func originalDst(conn *net.TCPConn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, err
	}
	var dst netip.AddrPort
	var gerr error
	err = raw.Control(func(fd uintptr) {
		// x/sys has no getter for a sockaddr_in; this one's structure is large enough to hold it.
		var m *unix.IPv6Mreq
		if m, gerr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, unix.SO_ORIGINAL_DST); gerr == nil {
			a := m.Multiaddr
			dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a[4:8])), binary.BigEndian.Uint16(a[2:4]))
		}
	})
	if err != nil {
		return netip.AddrPort{}, err
	}
	return dst, gerr
}
