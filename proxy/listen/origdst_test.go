package listen

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread of its own in a fresh network namespace, with loopback up. The thread is not used
// again, so f may drop its privileges.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = command("ip link set lo up")
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func command(line string) error {
	fields := strings.Fields(line)
	if out, err := exec.Command(fields[0], fields[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

// TestOriginalDstOfARedirectedConnection asks the kernel, for both families at one dual-stack listener, as uid 1337
// without a capability.
func TestOriginalDstOfARedirectedConnection(t *testing.T) {
	for _, program := range []string{"ip", "iptables", "ip6tables"} {
		if _, err := exec.LookPath(program); err != nil || os.Getuid() != 0 {
			t.Skipf("needs root and %s", program)
		}
	}
	for _, want := range []string{"127.0.0.77:1", "10.99.0.1:9080", "[fd00:99::1]:9080"} {
		t.Run(want, func(t *testing.T) {
			inNamespace(t, func() error { return redirected(netip.MustParseAddrPort(want)) })
		})
	}
}

func redirected(want netip.AddrPort) error {
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		return err
	}
	defer ln.Close()
	iptables := "iptables"
	if want.Addr().Is6() {
		iptables = "ip6tables"
	}
	for _, line := range []string{
		"ip route add 10.99.0.0/24 dev lo", "ip -6 addr add fd00::1/128 dev lo", "ip -6 route add fd00:99::/64 dev lo",
		fmt.Sprintf("%s -t nat -A OUTPUT -p tcp -d %s -j REDIRECT --to-ports %d", iptables, want.Addr(), AddrPort(ln.Addr()).Port()),
	} {
		if err := command(line); err != nil {
			return err
		}
	}
	client, err := net.Dial("tcp", want.String())
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := ln.Accept()
	if err != nil {
		return err
	}
	defer server.Close()
	// Of this thread alone, unlike syscall.Setresuid. It takes the capabilities along.
	for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := unix.RawSyscall(call, 1337, 1337, 1337); errno != 0 {
			return errno
		}
	}
	got, err := OriginalDst(server.(*net.TCPConn))
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("OriginalDst = %v, want %v", got, want)
	}
	return nil
}
