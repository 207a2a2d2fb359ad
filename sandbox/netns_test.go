//go:build linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/mesh"
)

// The two ends of a test's network: the workload's namespace and a peer's.
const (
	ours4, peer4 = "10.99.0.2", "10.99.0.1"
	ours6, peer6 = "fd99::2", "fd99::1"
	// elsewhere4 and elsewhere6 are second addresses of the peer, for exclusions by network.
	elsewhere4, elsewhere6 = "10.98.0.1", "fd98::1"
)

const appUID = 1000

// patience ends a test that hangs; nothing is measured against it.
const patience = 20 * time.Second

// namespace is a network namespace of the test's own.
type namespace struct{ name string }

// network makes a workload's namespace and a peer's, joined by a veth pair, each with IPv4 and IPv6.
func network(t *testing.T) (ours, peer *namespace) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs the program ip (Debian: iproute2), to make network namespaces")
	}
	ours, peer = newNamespace(t, "a"), newNamespace(t, "b")
	ip := func(ns *namespace, args string) {
		t.Helper()
		run(t, "ip", append([]string{"-n", ns.name}, strings.Fields(args)...)...)
	}
	ip(ours, "link add eth0 type veth peer name eth0 netns "+peer.name)
	for ns, addrs := range map[*namespace][]string{
		ours: {ours4 + "/24", ours6 + "/64"},
		peer: {peer4 + "/24", peer6 + "/64", elsewhere4 + "/32", elsewhere6 + "/128"},
	} {
		for _, a := range addrs {
			nodad := ""
			if strings.Contains(a, ":") {
				nodad = " nodad"
			}
			ip(ns, "addr add "+a+" dev eth0"+nodad)
		}
		ip(ns, "link set lo up")
		ip(ns, "link set eth0 up")
	}
	ip(ours, "route add default via "+peer4)
	ip(ours, "-6 route add default via "+peer6)
	return ours, peer
}

func newNamespace(t *testing.T, suffix string) *namespace {
	t.Helper()
	ns := &namespace{fmt.Sprintf("composure-sandbox-%d-%s", os.Getpid(), suffix)}
	if out, err := exec.Command("ip", "netns", "add", ns.name).CombinedOutput(); err != nil {
		t.Skipf("can't make a network namespace: %s", out)
	}
	t.Cleanup(func() { run(t, "ip", "netns", "del", ns.name) })
	return ns
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// as runs f inside the namespace on a thread of the given user and group. Sockets that f makes stay theirs.
func (ns *namespace) as(uid, gid int, f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		result <- func() error {
			fd, err := unix.Open("/run/netns/"+ns.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return err
			}
			// The raw calls change this thread alone.
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); e != 0 {
				return e
			}
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
			return f()
		}()
	}()
	return <-result
}

// do runs f inside the namespace as root.
func (ns *namespace) do(t *testing.T, f func() error) {
	t.Helper()
	if err := ns.as(0, 0, f); err != nil {
		t.Fatal(err)
	}
}

func (ns *namespace) dial(uid, gid int, address string) (conn *net.TCPConn, err error) {
	err = ns.as(uid, gid, func() error {
		c, err := net.DialTimeout("tcp", address, patience)
		if err == nil {
			conn = c.(*net.TCPConn)
			err = conn.SetDeadline(time.Now().Add(patience))
		}
		return err
	})
	return conn, err
}

// mustDial is a connection from the namespace that is closed with the test.
func (ns *namespace) mustDial(t *testing.T, uid, gid int, address string) *net.TCPConn {
	t.Helper()
	c, err := ns.dial(uid, gid, address)
	if err != nil {
		t.Fatalf("dial %s as %d:%d: %v", address, uid, gid, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func (ns *namespace) listen(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	var l *net.TCPListener
	ns.do(t, func() (err error) {
		l, err = listenTCP(address)
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// accept wants a connection to arrive at l.
func accept(t *testing.T, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	deadline := time.Now().Add(patience)
	if err := l.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatalf("accept at %s: %v", l.Addr(), err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantPair wants two ends to be of one connection and to carry bytes both ways.
func wantPair(t *testing.T, a, b net.Conn) {
	t.Helper()
	for _, dir := range [][2]net.Conn{{a, b}, {b, a}} {
		if _, err := dir[0].Write([]byte("hello")); err != nil {
			t.Fatalf("write: %v", err)
		}
		buf := make([]byte, 5)
		if _, err := io.ReadFull(dir[1], buf); err != nil || string(buf) != "hello" {
			t.Fatalf("read %q, %v", buf, err)
		}
	}
}

// wantReset wants a write on c, or the read after it, to fail because the connection was reset.
func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Write([]byte("hello"))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("got %v, want a reset", err)
	}
}

// refused wants a dial to be answered with RST.
func refused(t *testing.T, ns *namespace, uid int, address string) {
	t.Helper()
	c, err := ns.dial(uid, uid, address)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("dial %s: got %v, want refused", address, err)
	}
}

// destination is where a captured connection was going.
func destination(t *testing.T, c *net.TCPConn) string {
	t.Helper()
	if c.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
		dst, err := originalDst(c)
		if err != nil {
			t.Fatal(err)
		}
		return dst.String()
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var dst netip.AddrPort
	if cerr := raw.Control(func(fd uintptr) {
		const ip6tSoOriginalDst = 80
		var info *unix.IPv6MTUInfo
		if info, err = unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, ip6tSoOriginalDst); err == nil {
			port := info.Addr.Port<<8 | info.Addr.Port>>8
			dst = netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), port)
		}
	}); cerr != nil {
		t.Fatal(cerr)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dst.String()
}

// backend opens one of the two, in the namespace, or skips.
func (ns *namespace) backend(t *testing.T, b Backend) *Netfilter {
	t.Helper()
	if _, err := exec.LookPath("iptables-" + string(b)); err != nil {
		t.Skipf("needs the program iptables-%s (Debian: iptables)", b)
	}
	var nf *Netfilter
	ns.do(t, func() (err error) {
		nf, err = openBackend(context.Background(), b)
		return err
	})
	return nf
}

// program puts o in force, and nothing less.
func (ns *namespace) program(t *testing.T, nf *Netfilter, o Options) {
	t.Helper()
	ns.do(t, func() error {
		mode, err := nf.Program(context.Background(), o, slog.New(slog.DiscardHandler))
		if err == nil && mode != o.IPv6 {
			err = fmt.Errorf("IPv6 is %s, want %s", mode, o.IPv6)
		}
		return err
	})
}

// server is a sandbox's server in the namespace, at its real ports, that nobody runs.
func (ns *namespace) server(t *testing.T) *Server {
	t.Helper()
	var s *Server
	ns.do(t, func() (err error) {
		s, err = Listen(Config{Grace: DefaultGrace, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	t.Cleanup(s.Close)
	return s
}

var backends = []Backend{BackendNFT, BackendLegacy}

// setUp is a network and the given backend in the workload's namespace.
func setUp(t *testing.T, b Backend) (ours, peer *namespace, nf *Netfilter) {
	t.Helper()
	ours, peer = network(t)
	return ours, peer, ours.backend(t, b)
}

func addr(ip string, port int) string { return net.JoinHostPort(ip, strconv.Itoa(port)) }

const proxyUID = mesh.UIDProxy
