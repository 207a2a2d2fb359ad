//go:build linux

package sandbox

import (
	"encoding/binary"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestGuardSparesTheUntrackable sends a segment far outside the window of one of the proxy's connections. To
// conntrack it is of no connection, so it carries no mark; the guard must not answer it with a reset.
func TestGuardSparesTheUntrackable(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			for _, tc := range []struct {
				name   string
				rules  Ruleset
				resets bool
			}{
				{"the plan", Plan(Options{}), false},
				{"without the drop, to show that the test can fail", withoutDrop(Plan(Options{})), true},
			} {
				t.Run(tc.name, func(t *testing.T) {
					ours.do(t, func() error { return nf.Apply(t.Context(), tc.rules) })
					l := peer.listen(t, addr(peer4, 0))
					client := ours.mustDial(t, proxyUID, proxyUID, l.Addr().String())
					server := accept(t, l)
					wantPair(t, client, server)

					stray(t, peer, server)

					if tc.resets {
						wantReset(t, server)
					} else {
						wantPair(t, client, server)
					}
				})
			}
		})
	}
}

func withoutDrop(rules Ruleset) Ruleset {
	for i, table := range rules {
		rules[i].Rules = slices.DeleteFunc(table.Rules, func(r Rule) bool { return strings.HasSuffix(r.Spec, "-j DROP") })
	}
	return rules
}

// stray sends one byte to conn's peer, in conn's name, from far ahead of the window.
func stray(t *testing.T, ns *namespace, conn *net.TCPConn) {
	t.Helper()
	const ahead = 1 << 30
	sent, received := sequence(t, conn, sendQueue), sequence(t, conn, recvQueue)
	src, dst := conn.LocalAddr().(*net.TCPAddr), conn.RemoteAddr().(*net.TCPAddr)

	segment := make([]byte, 21) // RFC 9293, 3.1: a header and one byte
	binary.BigEndian.PutUint16(segment[0:], uint16(src.Port))
	binary.BigEndian.PutUint16(segment[2:], uint16(dst.Port))
	binary.BigEndian.PutUint32(segment[4:], sent+ahead)
	binary.BigEndian.PutUint32(segment[8:], received)
	segment[12] = 5 << 4                           // words in the header
	segment[13] = 0x10                             // ACK
	binary.BigEndian.PutUint16(segment[14:], 1024) // window
	pseudo := slices.Concat(src.IP.To4(), dst.IP.To4(), []byte{0, unix.IPPROTO_TCP, 0, byte(len(segment))}, segment, []byte{0})
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(segment[16:], ^uint16(sum))

	ns.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, segment, 0, &unix.SockaddrInet4{Addr: [4]byte(dst.IP.To4())})
	})
}

// The queues of TCP_REPAIR_QUEUE (linux/tcp.h).
const (
	recvQueue = 1
	sendQueue = 2
)

// sequence is the number of the next byte of one of a connection's queues, as checkpointing reads it.
func sequence(t *testing.T, conn *net.TCPConn, queue int) uint32 {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var seq int
	if cerr := raw.Control(func(fd uintptr) {
		set := func(option, value int) {
			if err == nil {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value)
			}
		}
		set(unix.TCP_REPAIR, unix.TCP_REPAIR_ON)
		set(unix.TCP_REPAIR_QUEUE, queue)
		if err == nil {
			seq, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
		}
		set(unix.TCP_REPAIR, unix.TCP_REPAIR_OFF_NO_WP)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return uint32(seq)
}
