package admin

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
)

func TestListening(t *testing.T) {
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	const rest = " 00000000:0000 %s 00000000:00000000 00:00000000 00000000  %d        0 12345 1 0000000000000000 100 0 0 10 0\n"
	line := func(local, state string, uid int) string { return "   0: " + local + fmt.Sprintf(rest, state, uid) }
	for _, tc := range []struct{ name, in, want string }{
		{"nothing", head, "[]"},
		{"loopback", head + line("0100007F:1F90", "0A", 0), "[127.0.0.1:8080]"},
		{"all addresses", head + line("00000000:0050", "0A", 33), "[0.0.0.0:80]"},
		{"a connection", head + line("0100007F:1F90", "01", 0), "[]"},
		{"the proxy's own", head + line("0100007F:1F91", "0A", 1337), "[]"},
		{"the sandbox's", head + line("00000000:3A99", "0A", 0), "[]"},
		{"the engine's DNS", head + line("0B00007F:8A3D", "0A", 0), "[]"},
		{"IPv6", head + line("00000000000000000000000000000000:0050", "0A", 0) + line("00000000000000000000000001000000:0051", "0A", 0), "[[::]:80 [::1]:81]"},
		{"IPv4 in IPv6", head + line("0000000000000000FFFF00000100007F:0052", "0A", 0), "[127.0.0.1:82]"},
	} {
		got, err := listening(tc.in)
		if s := fmt.Sprint(got); err != nil || s != tc.want {
			t.Errorf("%s: %s, error %v, want %s", tc.name, s, err, tc.want)
		}
	}
	for _, bad := range []string{line("0100007F:1F90", "0A", 0)[:40], line("01007F:1F90", "0A", 0), line("0100007F", "0A", 0), line("x:1", "0A", 0)} {
		if got, err := listening(head + bad); err == nil {
			t.Errorf("%q gives %v and no error", bad, got)
		}
	}
}

// TestNamespace reads the test's own namespace.
func TestNamespace(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(network, "localhost:0")
		if err != nil {
			t.Logf("%s: %v", network, err)
			continue
		}
		defer l.Close()
		want := netip.MustParseAddrPort(l.Addr().String())
		if n, err := readNamespace("/proc"); err != nil || !slices.Contains(n.Listeners, want) || slices.Contains(n.Interfaces, "lo") {
			t.Errorf("%+v, error %v, want a listener at %s", n, err, want)
		}
	}
}
