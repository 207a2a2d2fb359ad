package listen

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Options of netfilter, which x/sys/unix does not name: linux/netfilter_ipv4.h and netfilter_ipv6/ip6_tables.h.
const (
	soOriginalDst     = 80
	ip6tSoOriginalDst = 80
)

// OriginalDst is where the client of c was going before REDIRECT brought it here: netfilter's own record of the
// connection, which needs no capability to read. A connection that was not redirected yields its local address
// or an error.
func OriginalDst(c *net.TCPConn) (netip.AddrPort, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	// The socket of a dual-stack listener is IPv6 for an IPv4 client, too: the address says which record to ask for.
	v4 := AddrPort(c.LocalAddr()).Addr().Is4()
	var dst netip.AddrPort
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			// The option's sockaddr_in has 16 bytes; IPv6Mreq is a 20-byte result that x/sys/unix can fetch.
			var r *unix.IPv6Mreq
			if r, sockErr = unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); sockErr == nil {
				m := r.Multiaddr
				dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[4:8])), binary.BigEndian.Uint16(m[2:4]))
			}
			return
		}
		// Likewise: a sockaddr_in6 is the first part of IPv6MTUInfo.
		var r *unix.IPv6MTUInfo
		if r, sockErr = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, ip6tSoOriginalDst); sockErr == nil {
			// The port lies in network order; the field was read in the host's.
			var port [2]byte
			binary.NativeEndian.PutUint16(port[:], r.Addr.Port)
			dst = netip.AddrPortFrom(netip.AddrFrom16(r.Addr.Addr), binary.BigEndian.Uint16(port[:]))
		}
	})
	if err == nil {
		err = sockErr
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	return dst, nil
}
