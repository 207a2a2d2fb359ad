//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// resolver is where the engine's DNS listens in the namespace; its rules lead port 53 of dockerDNSIP there.
const (
	dockerDNSIP  = "127.0.0.11"
	resolverPort = 41953
)

// dockerForms are the forms in which the engine puts the rules of its DNS into a namespace. On its default bridge it
// has none, and the namespace has the host's resolvers.
var dockerForms = []struct {
	name    string
	program func(*testing.T, *namespace)
}{
	{"iptables-nft", func(t *testing.T, ns *namespace) {
		t.Helper()
		ns.backend(t, BackendNFT) // or skip
		dockerDNS(t, ns, BackendNFT, resolverPort)
	}},
	{"iptables-legacy", func(t *testing.T, ns *namespace) {
		t.Helper()
		ns.backend(t, BackendLegacy)
		dockerDNS(t, ns, BackendLegacy, resolverPort)
	}},
	{"nftables", func(t *testing.T, ns *namespace) {
		t.Helper()
		dockerDNSNftables(t, ns, resolverPort)
	}},
	{"default bridge", nil},
}

// TestBesideDocker has Docker's rules in each form, before ours and after them, in either backend of ours. DNS works
// over UDP and TCP for the application, the proxy and the engine itself, whose upstream lookups leave from inside the
// namespace; and everything else is captured all the same.
func TestBesideDocker(t *testing.T) {
	for _, docker := range dockerForms {
		for _, b := range backends {
			for _, order := range []string{"before", "after", "twice"} {
				if docker.program == nil && order != "before" {
					continue
				}
				t.Run(fmt.Sprintf("%s %s %s", docker.name, order, b), func(t *testing.T) {
					ours, peer, nf := setUp(t, b)
					s := ours.server(t)
					if docker.program != nil && order != "after" {
						docker.program(t, ours)
					}
					ours.program(t, nf, Options{IPv6: IPv6Capture})
					if docker.program != nil && order == "after" {
						docker.program(t, ours)
					}
					if order == "twice" { // as meshctl doctor --fix does
						ours.program(t, nf, Options{IPv6: IPv6Capture})
					}

					upstream := []string{addr(peer4, 53), addr(peer6, 53)}
					users := []int{appUID, proxyUID, 0}
					if docker.program != nil {
						ours.answerDNS(t, addr(dockerDNSIP, resolverPort), "d")
						ours.answerDNS(t, addr("127.0.0.1", mesh.PortDNS), "o")
						for uid, want := range map[int]string{
							appUID: "o", 0: "o", // an application may be root
							proxyUID: "d", mesh.UIDSandbox: "d",
						} {
							if want == "o" && !precedes(docker.name, order, b) {
								want = "d" // names resolve as without a mesh
							}
							for _, network := range []string{"udp", "tcp"} {
								if got := ours.askDNS(t, uid, network, addr(dockerDNSIP, 53)); got != "hello"+want {
									t.Errorf("DNS over %s for %d: answer %q, want it of %q", network, uid, got, want)
								}
							}
						}
					}
					for _, at := range upstream {
						peer.echoUDP(t, at)
						l := peer.listen(t, at)
						for _, uid := range users {
							ours.wantEcho(t, uid, at)
							wantPair(t, ours.mustDial(t, uid, uid, at), accept(t, l))
						}
					}

					ours.do(t, func() error { return errors.Join(nf.VerifyPlan(Options{}, IPv6Capture), s.SelfTest(t.Context())) })
					for _, f := range bothFamilies {
						for _, way := range []struct {
							l    *net.TCPListener
							from *namespace
							to   string
						}{{s.outbound, ours, addr(f.peer, 80)}, {s.outbound, ours, addr(f.ours, 80)}, {s.inbound, peer, addr(f.ours, 80)}} {
							c := way.from.mustDial(t, appUID, appUID, way.to)
							got := accept(t, way.l)
							wantPair(t, c, got)
							if d := destination(t, got); d != way.to {
								t.Errorf("destination of a connection to %s is %s", way.to, d)
							}
						}
						refused(t, ours, proxyUID, addr(f.ours, 8081)) // nobody is there, and the proxy is told so
					}
				})
			}
		}
	}
}

// precedes reports whether our rule for DNS comes before Docker's. Of two in one table it is the one that was inserted last,
// which is ours unless an engine is restarted beside running containers; of two tables the one that was made last. The test
// makes the legacy tables by looking into them; Open does so only where Docker's rules are there.
func precedes(docker, order string, b Backend) bool {
	return order != "after" && (docker == "iptables-"+string(b) || b == BackendNFT)
}

// publishing is the host's side of a published port as the engine has it without its userland proxy: for a service of
// ours at port 80, and for one of another network at port 81.
const publishing = `
-N DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER
-A DOCKER -p tcp --dport 8080 -j DNAT --to-destination {ours}:80
-A DOCKER -p udp --dport 8080 -j DNAT --to-destination {ours}:80
-A DOCKER -p tcp --dport 8081 -j DNAT --to-destination {other}:81
-A POSTROUTING -s {ours} -d {ours} -p tcp --dport 80 -j MASQUERADE`

// TestPublishedPorts goes through the ways to a published port, of a service of the workload's own and of another's, and
// to the host gateway: what the application dials is captured as it was dialled, and what the proxy then dials arrives.
func TestPublishedPorts(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			ours, host, nf := setUp(t, b)
			other := newNamespace(t, "c")
			// Attached to the host as a container on another network of its is.
			for _, args := range []string{
				"-n " + other.name + " link add eth0 type veth peer name eth1 netns " + host.name,
				"-n " + other.name + " addr add 10.97.0.2/24 dev eth0", "-n " + other.name + " addr add fd97::2/64 dev eth0 nodad",
				"-n " + host.name + " addr add 10.97.0.1/24 dev eth1", "-n " + host.name + " addr add fd97::1/64 dev eth1 nodad",
				"-n " + other.name + " link set eth0 up", "-n " + host.name + " link set eth1 up",
				"-n " + other.name + " route add default via 10.97.0.1", "-n " + other.name + " -6 route add default via fd97::1",
			} {
				run(t, "ip", strings.Fields(args)...)
			}
			host.exec(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
			s := ours.server(t)
			ours.program(t, nf, Options{IPv6: IPv6Capture})

			for _, f := range []struct{ name, program, ours, host, outside, other string }{
				{"IPv4", "iptables-", ours4, peer4, elsewhere4, "10.97.0.2"},
				{"IPv6", "ip6tables-", ours6, peer6, elsewhere6, "fd97::2"},
			} {
				t.Run(f.name, func(t *testing.T) {
					bracketed := func(ip string) string { return strings.TrimSuffix(addr(ip, 0), ":0") }
					for rule := range strings.Lines(strings.TrimSpace(publishing)) {
						to := strings.NewReplacer("to-destination {ours}", "to-destination "+bracketed(f.ours), "{other}", bracketed(f.other), "{ours}", f.ours)
						host.exec(t, f.program+string(b)+" -t nat "+to.Replace(strings.TrimSpace(rule)))
					}
					plain := other.listen(t, addr(f.other, 81))
					gateway := host.listen(t, addr(f.host, 9000))

					// captured is a connection that arrives at a capture listener, with its destination and whose it seems.
					captured := func(l *net.TCPListener, from *namespace, uid int, dial, dst, source string) {
						t.Helper()
						c := from.mustDial(t, uid, uid, dial)
						got := accept(t, l)
						wantPair(t, c, got)
						if d := destination(t, got); d != dst {
							t.Errorf("destination of a connection to %s is %s, want %s", dial, d, dst)
						}
						if ip := got.RemoteAddr().(*net.TCPAddr).IP; !ip.Equal(net.ParseIP(source)) {
							t.Errorf("source of a connection to %s is %s, want %s", dial, ip, source)
						}
					}
					own, others := addr(f.outside, 8080), addr(f.outside, 8081)
					target := addr(f.ours, 80)
					for _, to := range []string{own, others, addr(f.host, 9000)} {
						captured(s.outbound, ours, appUID, to, to, f.ours)
					}
					captured(s.inbound, ours, proxyUID, own, target, f.host)    // out, and back in as the host's
					captured(s.inbound, other, appUID, own, target, f.other)    // a client elsewhere keeps its address
					captured(s.inbound, host, appUID, own, target, f.outside)   // the host itself
					captured(s.inbound, other, appUID, target, target, f.other) // without publishing
					wantPair(t, ours.mustDial(t, proxyUID, proxyUID, others), accept(t, plain))
					wantPair(t, ours.mustDial(t, proxyUID, proxyUID, addr(f.host, 9000)), accept(t, gateway))

					// UDP is as it was.
					ours.echoUDP(t, target)
					other.wantEcho(t, appUID, own)
					host.echoUDP(t, addr(f.host, 9000))
					ours.wantEcho(t, appUID, addr(f.host, 9000))
				})
			}
		})
	}
}

// echoUDP answers each datagram with itself until the test ends.
func (ns *namespace) echoUDP(t *testing.T, address string) {
	t.Helper()
	var conn net.PacketConn
	ns.do(t, func() (err error) {
		var lc net.ListenConfig
		conn, err = lc.ListenPacket(t.Context(), "udp", address)
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-done })
}

// wantEcho sends a datagram and wants it back from the very address that it went to, as a resolver does.
func (ns *namespace) wantEcho(t *testing.T, uid int, address string) {
	t.Helper()
	if err := ns.as(uid, uid, func() error {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "udp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if _, err := io.WriteString(conn, "who is web?"); err != nil {
			return err
		}
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		if err == nil && string(buf[:n]) != "who is web?" {
			err = fmt.Errorf("got %q", buf[:n])
		}
		return err
	}); err != nil {
		t.Errorf("UDP to %s as %d: %v", address, uid, err)
	}
}

// answerDNS answers over UDP and TCP with what it got, and mark.
func (ns *namespace) answerDNS(t *testing.T, address, mark string) {
	t.Helper()
	var udp net.PacketConn
	ns.do(t, func() (err error) {
		udp, err = (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", address)
		return err
	})
	t.Cleanup(func() { _ = udp.Close() })
	go answerUDP(udp, mark)
	go answerTCP(ns.listen(t, address), mark)
}

// askDNS is the answer that uid gets, from the very address that it asks.
func (ns *namespace) askDNS(t *testing.T, uid int, network, address string) string {
	t.Helper()
	var answer string
	if err := ns.as(uid, uid, func() (err error) {
		answer, err = askDNS(network, address)
		return err
	}); err != nil {
		t.Errorf("DNS over %s to %s as %d: %v", network, address, uid, err)
	}
	return answer
}

// dockerDNS puts in place what the engine does for its DNS through iptables.
func dockerDNS(t *testing.T, ns *namespace, b Backend, port int) {
	t.Helper()
	rules := []string{"-N DOCKER_OUTPUT", "-N DOCKER_POSTROUTING"}
	for _, proto := range []string{"tcp", "udp"} {
		rules = append(rules,
			fmt.Sprintf("-A DOCKER_OUTPUT -d %s/32 -p %s --dport 53 -j DNAT --to-destination %[1]s:%[3]d", dockerDNSIP, proto, port),
			fmt.Sprintf("-A DOCKER_POSTROUTING -s %s/32 -p %s --sport %d -j SNAT --to-source :53", dockerDNSIP, proto, port))
	}
	rules = append(rules, "-I OUTPUT -d "+dockerDNSIP+"/32 -j DOCKER_OUTPUT", "-I POSTROUTING -d "+dockerDNSIP+"/32 -j DOCKER_POSTROUTING")
	for _, rule := range rules {
		ns.iptables(t, b, "-t nat "+rule)
	}
}

// dockerDNSNftables is the same as an engine with the firewall backend nftables has it: a table of its own.
func dockerDNSNftables(t *testing.T, ns *namespace, port int) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs the program nft (Debian: nftables)")
	}
	ns.nft(t, fmt.Sprintf(`table ip docker-dns {
	chain dns-dnat {
		type nat hook output priority -100; policy accept;
		ip daddr %[1]s tcp dport 53 dnat to %[1]s:%[2]d
		ip daddr %[1]s udp dport 53 dnat to %[1]s:%[2]d
	}
	chain dns-snat {
		type nat hook postrouting priority 100; policy accept;
		ip saddr %[1]s tcp sport %[2]d snat to :53
		ip saddr %[1]s udp sport %[2]d snat to :53
	}
}
`, dockerDNSIP, port))
}

func (ns *namespace) nft(t *testing.T, rules string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	ns.exec(t, "nft -f "+file)
}
