package listen_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/composure-mesh/composure/proxy/listen"
)

// TestLimit fills the place of peers from elsewhere, which leaves loopback's free, and the other way round.
func TestLimit(t *testing.T) {
	own := ownAddress(t)
	for _, tc := range []struct{ name, full, free string }{
		{"elsewhere", own, "127.0.0.1"},
		{"loopback", "127.0.0.1", own},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tcp, err := listen.Bind(t.Context(), ":0")
			if err != nil {
				t.Fatal(err)
			}
			ln := listen.Limit(tcp, 2)
			defer ln.Close()
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			accepted := make(chan net.Conn)
			go func() {
				defer close(accepted)
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					accepted <- c
				}
			}()
			dial := func(host string) net.Conn {
				t.Helper()
				c, err := net.Dial("tcp", net.JoinHostPort(host, port))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			dial(tc.full)
			first := <-accepted
			dial(tc.full)
			<-accepted

			wantReset := func() {
				t.Helper()
				c, err := net.Dial("tcp", net.JoinHostPort(tc.full, port))
				if err == nil {
					defer c.Close()
					_, err = c.Read(make([]byte, 1))
				}
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the third from one side: %v, want it reset", err)
				}
			}
			wantReset()
			dial(tc.free)
			if c := <-accepted; c == nil {
				t.Fatal("one from the other side is not accepted")
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			_ = first.Close() // counts once
			dial(tc.full)
			<-accepted
			wantReset()
		})
	}
}

// ownAddress is one of this machine's that is not loopback's: a connection to it comes from it.
func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr().String()
		}
	}
	t.Skip("needs an address other than loopback's")
	return ""
}

// TestBindIsPlainTCP dials with Multipath TCP, which Go's listeners take by default where the kernel has it.
func TestBindIsPlainTCP(t *testing.T) {
	ln, err := listen.Bind(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var d net.Dialer
	d.SetMultipathTCP(true)
	c, err := d.DialContext(t.Context(), "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if multipath, err := accepted.MultipathTCP(); multipath || err != nil {
		t.Errorf("Multipath TCP is %v, %v", multipath, err)
	}
}
