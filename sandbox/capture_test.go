//go:build linux

package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

var bothFamilies = []struct{ name, ours, peer, elsewhere, loopback string }{
	{"IPv4", ours4, peer4, elsewhere4, "127.0.0.1"},
	{"IPv6", ours6, peer6, elsewhere6, "::1"},
}

// TestCapture goes through everything that design D4 says about who is captured and who is not.
func TestCapture(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			s := ours.server(t)
			ours.program(t, nf, Options{
				IPv6:                 IPv6Capture,
				ExcludeInboundPorts:  []uint16{22},
				ExcludeOutboundPorts: []uint16{25},
				ExcludeOutboundCIDRs: []netip.Prefix{netip.MustParsePrefix(elsewhere4 + "/24"), netip.MustParsePrefix(elsewhere6 + "/64")},
			})
			for _, f := range bothFamilies {
				t.Run(f.name, func(t *testing.T) {
					captured := func(l *net.TCPListener, from *namespace, uid, gid int, to string) {
						t.Helper()
						c := from.mustDial(t, uid, gid, to)
						got := accept(t, l)
						wantPair(t, c, got)
						if d := destination(t, got); d != to {
							t.Errorf("destination of a connection to %s is %s", to, d)
						}
					}
					direct := func(from *namespace, uid, gid int, at *namespace, to string) {
						t.Helper()
						l := at.listen(t, to)
						wantPair(t, from.mustDial(t, uid, gid, to), accept(t, l))
					}
					captured(s.outbound, ours, appUID, appUID, addr(f.peer, 8080)) // nothing listens there
					captured(s.outbound, ours, 0, 0, addr(f.peer, 443))
					captured(s.outbound, ours, appUID, appUID, addr(f.ours, 8080)) // self-call
					captured(s.inbound, peer, appUID, appUID, addr(f.ours, 8080))
					captured(s.inbound, peer, proxyUID, proxyUID, addr(f.ours, 15001))
					captured(s.inbound, peer, appUID, appUID, addr(f.ours, mesh.PortMerged)) // served by nobody of ours

					direct(ours, proxyUID, proxyUID, peer, addr(f.peer, 8001))
					direct(ours, proxyUID, 0, peer, addr(f.peer, 8002))
					captured(s.outbound, ours, appUID, proxyUID, addr(f.peer, 8003)) // the group alone is nobody
					direct(ours, proxyUID, proxyUID, ours, addr(f.ours, 8004))       // the proxy's inbound side to the application
					direct(ours, appUID, appUID, ours, addr(f.loopback, 8005))
					direct(ours, appUID, appUID, peer, addr(f.peer, 53))
					direct(ours, appUID, appUID, peer, addr(f.peer, 25))
					direct(ours, appUID, appUID, peer, addr(f.elsewhere, 8006))
					for _, port := range []int{22, mesh.PortReady, mesh.PortMetrics} {
						direct(peer, appUID, appUID, ours, addr(f.ours, port))
					}
					// Not by way of capture, so the listener would know no destination but itself.
					refused(t, peer, appUID, addr(f.ours, mesh.PortInbound))
				})
			}
		})
	}
}

func TestSelfTest(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, _, nf := setUp(t, b)
			s := ours.server(t)
			selfTest := func() error { return ours.as(0, 0, func() error { return s.SelfTest(context.Background()) }) }
			if err := selfTest(); err == nil {
				t.Error("it passes without rules")
			}
			ours.program(t, nf, Options{})
			if err := selfTest(); err != nil {
				t.Error(err)
			}
			// Somebody who was faster is no hindrance.
			ours.mustDial(t, appUID, appUID, addr(peer4, 80))
			if err := selfTest(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestGuardResetsWhatIsOlder opens connections before the rules, with and without conntrack knowing of them.
func TestGuardResetsWhatIsOlder(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			for _, tracked := range []bool{false, true} {
				for _, f := range bothFamilies {
					t.Run(fmt.Sprintf("%s tracked=%v", f.name, tracked), func(t *testing.T) {
						flush(t, ours, nf.Backend)
						if tracked {
							track(t, ours, nf.Backend)
						}
						ours.server(t)
						out, in := peer.listen(t, addr(f.peer, 8080)), ours.listen(t, addr(f.ours, 8080))
						outClient := ours.mustDial(t, appUID, appUID, addr(f.peer, 8080))
						outServer := accept(t, out)
						inClient := peer.mustDial(t, appUID, appUID, addr(f.ours, 8080))
						inServer := accept(t, in)
						wantPair(t, outClient, outServer)
						wantPair(t, inClient, inServer)

						ours.program(t, nf, Options{IPv6: IPv6Capture})

						wantReset(t, outClient)
						wantReset(t, outServer)
						wantReset(t, inClient)
						wantReset(t, inServer)
					})
				}
			}
		})
	}
}

// TestGuardSparesExclusions opens connections before the rules that the rules exclude.
func TestGuardSparesExclusions(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			for _, f := range bothFamilies {
				t.Run(f.name, func(t *testing.T) {
					flush(t, ours, nf.Backend)
					track(t, ours, nf.Backend)
					out, in := peer.listen(t, addr(f.peer, 25)), ours.listen(t, addr(f.ours, 22))
					pairs := [][2]net.Conn{}
					c := ours.mustDial(t, appUID, appUID, addr(f.peer, 25))
					pairs = append(pairs, [2]net.Conn{c, accept(t, out)})
					c = peer.mustDial(t, appUID, appUID, addr(f.ours, 22))
					pairs = append(pairs, [2]net.Conn{c, accept(t, in)})

					ours.program(t, nf, Options{IPv6: IPv6Capture, ExcludeInboundPorts: []uint16{22}, ExcludeOutboundPorts: []uint16{25}})

					for _, p := range pairs {
						wantPair(t, p[1], p[0])
						wantPair(t, p[0], p[1])
					}
				})
			}
		})
	}
}

// TestGuardSparesOrphans closes the proxy's connections with most of the data still in the send queue. The
// socket then belongs to no process and the owner match fails for the rest of its packets.
func TestGuardSparesOrphans(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			s := ours.server(t)
			ours.program(t, nf, Options{IPv6: IPv6Capture})
			for _, f := range bothFamilies {
				t.Run(f.name+" request", func(t *testing.T) {
					got, err := orphan(t, ours, peer, f.peer, 8080)
					if got != orphanBytes || err != nil {
						t.Errorf("%d of %d bytes arrived, then %v", got, orphanBytes, err)
					}
				})
				t.Run(f.name+" response", func(t *testing.T) {
					client := peer.mustDial(t, appUID, appUID, addr(f.ours, 8080))
					var server *net.TCPConn
					if err := ours.as(proxyUID, proxyUID, func() (err error) {
						server, err = s.inbound.AcceptTCP()
						return err
					}); err != nil {
						t.Fatal(err)
					}
					abandon(t, server)
					n, err := io.Copy(io.Discard, client)
					if n != orphanBytes || err != nil {
						t.Errorf("%d of %d bytes arrived, then %v", n, orphanBytes, err)
					}
				})
			}
		})
	}
}

// TestOwnerAloneLosesOrphans shows that the test above can fail: without the mark the data is lost.
func TestOwnerAloneLosesOrphans(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, peer, nf := setUp(t, b)
			rules := Plan(Options{})
			for i, table := range rules {
				rules[i].Rules = slices.DeleteFunc(table.Rules, func(r Rule) bool {
					return r.Chain == chainGuardOut && strings.Contains(r.Spec, "-m connmark")
				})
			}
			ours.do(t, func() error { return nf.Apply(t.Context(), rules) })
			if got, err := orphan(t, ours, peer, peer4, 8080); got == orphanBytes && err == nil {
				t.Error("everything arrived")
			}
		})
	}
}

const orphanBytes = 1 << 20

// orphan sends orphanBytes as the proxy and closes at once; the peer reads only then.
func orphan(t *testing.T, ours, peer *namespace, ip string, port int) (int64, error) {
	t.Helper()
	l := peer.listen(t, addr(ip, port))
	client := ours.mustDial(t, proxyUID, proxyUID, addr(ip, port))
	server := accept(t, l)
	abandon(t, client)
	return io.Copy(io.Discard, server)
}

// abandon writes orphanBytes into c's send queue and closes it.
func abandon(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8*orphanBytes)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if _, err := c.Write(make([]byte, orphanBytes)); err != nil {
		t.Fatal(err)
	}
	var unsent int
	if cerr := raw.Control(func(fd uintptr) { unsent, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if unsent == 0 {
		t.Fatal("nothing is left in the send queue, so the test tests nothing")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// flush empties the tables of one backend, both families.
func flush(t *testing.T, ns *namespace, b Backend) {
	t.Helper()
	for _, args := range []string{"-t nat -F", "-t nat -X", "-F", "-X"} {
		ns.iptables(t, b, args)
		ns.ip6tables(t, b, args)
	}
}

// track has conntrack follow all connections, as the rules of Docker's DNS do: it does where a rule needs it.
func track(t *testing.T, ns *namespace, b Backend) {
	t.Helper()
	const rule = "-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"
	ns.iptables(t, b, rule)
	ns.ip6tables(t, b, rule)
}

func (ns *namespace) iptables(t *testing.T, b Backend, args string) string {
	t.Helper()
	return ns.exec(t, "iptables-"+string(b)+" "+args)
}

func (ns *namespace) ip6tables(t *testing.T, b Backend, args string) string {
	t.Helper()
	return ns.exec(t, "ip6tables-"+string(b)+" "+args)
}

func (ns *namespace) exec(t *testing.T, command string) string {
	t.Helper()
	return run(t, "ip", append([]string{"netns", "exec", ns.name}, strings.Fields(command)...)...)
}
