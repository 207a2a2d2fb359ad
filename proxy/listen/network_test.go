package listen

import (
	"net/netip"
	"os"
	"os/exec"
	"testing"
)

// TestNetwork asks in a namespace of its own.
func TestNetwork(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and ip")
	}
	inNamespace(t, func() error {
		for _, line := range []string{"ip addr add 10.99.0.2/24 dev lo", "ip -6 addr add fd99::2/64 dev lo"} {
			if err := command(line); err != nil {
				return err
			}
		}
		var n Network
		for addr, want := range map[string]bool{
			"10.99.0.2": true, "::ffff:10.99.0.2": true, "fd99::2": true,
			"10.99.0.3": false, "127.0.0.1": false, "::1": false, "0.0.0.0": false, "::": false, "224.0.0.1": false, "fe80::1": false,
		} {
			if got := n.Has(netip.MustParseAddr(addr)); got != want {
				t.Errorf("Has(%s) = %v", addr, got)
			}
		}
		return nil
	})
}
