//go:build linux

package sandbox

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestGate holds that nothing leaves a closed namespace or comes about with it, and that it is as before afterwards.
func TestGate(t *testing.T) {
	ours, peer := network(t)
	for _, f := range bothFamilies {
		out, in := peer.listen(t, addr(f.peer, 8080)), ours.listen(t, addr(f.ours, 8080))
		local := ours.listen(t, addr(f.loopback, 8081))
		for range 2 { // closing twice is no error
			ours.do(t, CloseGate)
		}
		if rules := run(t, "ip", "-n", ours.name, "rule") + run(t, "ip", "-6", "-n", ours.name, "rule"); strings.Count(rules, "1:\tfrom all unreachable") != 2 {
			t.Errorf("%s: rules are\n%s", f.name, rules)
		}
		if c, err := ours.dial(appUID, appUID, addr(f.peer, 8080)); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: a connection out of a closed namespace: %v %v", f.name, c, err)
		}
		if err := peer.as(appUID, appUID, func() error {
			c, err := net.DialTimeout("tcp", addr(f.ours, 8080), 300*time.Millisecond)
			if err == nil {
				_ = c.Close()
			}
			return err
		}); err == nil {
			t.Errorf("%s: a connection into a closed namespace came about", f.name)
		}
		wantPair(t, ours.mustDial(t, appUID, appUID, addr(f.loopback, 8081)), accept(t, local))

		for range 2 {
			ours.do(t, OpenGate)
		}
		wantPair(t, ours.mustDial(t, appUID, appUID, addr(f.peer, 8080)), accept(t, out))
		wantPair(t, peer.mustDial(t, appUID, appUID, addr(f.ours, 8080)), accept(t, in))
	}
}

// TestGateNeedsPrivileges shows that a failure is told.
func TestGateNeedsPrivileges(t *testing.T) {
	ours, _ := network(t)
	if err := ours.as(appUID, appUID, CloseGate); !errors.Is(err, unix.EPERM) {
		t.Errorf("closing the gate without privileges: %v", err)
	}
}
