//go:build linux

package sandbox

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

// TestForeignDestination sends frames to the workload's MAC address that carry destinations which are not the
// workload's to answer for, as any neighbour on a shared network can. PREROUTING comes before routing, so that
// only the rules keep such a connection from the proxy, which would dial the "original destination" for it.
func TestForeignDestination(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			ours.server(t)
			ours.program(t, nf, Options{IPv6: IPv6Capture})
			// Worse than any default: the kernel itself lets loopback destinations in.
			ours.exec(t, "sysctl -qw net.ipv4.conf.all.route_localnet=1")
			for _, f := range []struct {
				name, ours, peer string
				foreign          []string
			}{
				{"IPv4", ours4, peer4, []string{addr("127.0.0.1", mesh.PortAdmin), addr("127.0.0.1", 8080), addr("10.77.0.5", 8080), addr(elsewhere4, 8080)}},
				{"IPv6", ours6, peer6, []string{addr("::1", mesh.PortAdmin), addr("fd77::5", 8080), addr(elsewhere6, 8080)}},
			} {
				t.Run(f.name, func(t *testing.T) {
					w := newWire(t, peer, ours)
					// As a neighbour would announce: the kernel asks in the name of 127.0.0.1 to whom nobody replies.
					ours.exec(t, "ip neigh replace "+f.peer+" lladdr "+w.src.String()+" dev eth0 nud permanent")
					port := uint16(40000)
					for _, to := range f.foreign {
						port += 2
						w.syn(netip.AddrPortFrom(netip.MustParseAddr(f.peer), port), netip.MustParseAddrPort(to))
						// A frame to the workload's own address, behind the other on the wire, is captured and answered.
						w.syn(netip.AddrPortFrom(netip.MustParseAddr(f.peer), port+1), netip.MustParseAddrPort(addr(f.ours, 8080)))
						if answered := w.answers(port + 1); answered[port] {
							t.Errorf("a connection to %s was captured", to)
						}
					}
				})
			}
		})
	}
}

// wire is a peer's end of the link, where it sends frames of its own making.
type wire struct {
	t        *testing.T
	fd       int
	src, dst net.HardwareAddr
}

func newWire(t *testing.T, peer, ours *namespace) *wire {
	t.Helper()
	w := &wire{t: t}
	mac := func(ns *namespace) (i *net.Interface) {
		ns.do(t, func() (err error) {
			i, err = net.InterfaceByName("eth0")
			return err
		})
		return i
	}
	from := mac(peer)
	w.src, w.dst = from.HardwareAddr, mac(ours).HardwareAddr
	peer.do(t, func() (err error) {
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ALL))); err != nil {
			return err
		}
		limit := unix.NsecToTimeval(patience.Nanoseconds())
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL), Ifindex: from.Index})
	})
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// syn sends the first segment of a connection.
func (w *wire) syn(from, to netip.AddrPort) {
	w.t.Helper()
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	tcp[12], tcp[13] = 5<<4, 2 // the header's length, SYN
	binary.BigEndian.PutUint16(tcp[14:], 1<<15)
	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	pseudo := append(append(append([]byte{}, src...), dst...), 0, unix.IPPROTO_TCP, 0, byte(len(tcp)))
	binary.BigEndian.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))

	frame := append(append([]byte{}, w.dst...), w.src...)
	if to.Addr().Is4() {
		ip := make([]byte, 12, 20)
		ip[0], ip[3], ip[8], ip[9] = 4<<4|5, 40, 64, unix.IPPROTO_TCP // version and length, total length, TTL
		ip = append(append(ip, src...), dst...)
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		frame = append(append(frame, 0x08, 0x00), ip...)
	} else {
		frame = append(frame, 0x86, 0xdd, 6<<4, 0, 0, 0, 0, 20, unix.IPPROTO_TCP, 64)
		frame = append(append(frame, src...), dst...)
	}
	if _, err := unix.Write(w.fd, append(frame, tcp...)); err != nil {
		w.t.Fatal(err)
	}
}

// answers reads SYN-ACKs until there is one to the given port, and returns the ports of all.
func (w *wire) answers(until uint16) map[uint16]bool {
	w.t.Helper()
	got := map[uint16]bool{}
	buf := make([]byte, 2048)
	for deadline := time.Now().Add(patience); !got[until]; {
		if time.Now().After(deadline) {
			w.t.Fatal("the workload's own address does not answer, so the test tests nothing")
		}
		n, err := unix.Read(w.fd, buf)
		if err != nil {
			w.t.Fatal(err)
		}
		b := buf[:n]
		at := 14 + 20
		if b[12] == 0x86 && b[13] == 0xdd {
			at = 14 + 40
		}
		if n > at+13 && b[at+13] == 0x12 { // SYN and ACK
			got[binary.BigEndian.Uint16(b[at+2:])] = true
		}
	}
	return got
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
