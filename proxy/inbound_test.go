package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestForeignInbound has clients choose the destination, as frames of a neighbour do.
func TestForeignInbound(t *testing.T) {
	m := newMesh(t)
	own := netip.MustParseAddr("10.99.0.2")
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	var to atomic.Pointer[netip.AddrPort]
	cfg.Capture.OriginalDst = func(*net.TCPConn, bool) (netip.AddrPort, error) { return *to.Load(), nil }
	cfg.Capture.Own = func(a netip.Addr) bool { return a == own }
	p := run(t, cfg)
	awaitReady(t, p)
	for i, dst := range []netip.AddrPort{
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 8080),
		netip.AddrPortFrom(netip.MustParseAddr("10.77.0.5"), 8080),
		netip.AddrPortFrom(own, mesh.PortAdmin), netip.AddrPortFrom(own, mesh.PortOutbound), netip.AddrPortFrom(own, mesh.PortInbound),
	} {
		to.Store(&dst)
		c, err := net.Dial("tcp", m.direct(webIP))
		if err == nil { // else the reset was faster
			_, err = c.Read(make([]byte, 1))
			_ = c.Close()
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v, want a reset", dst, err)
		}
		if got := p.allStats()["listen.foreign"]; got != uint64(i+1) { //nolint:gosec // an index
			t.Errorf("%s: %d refused, want %d", dst, got, i+1)
		}
	}
}
