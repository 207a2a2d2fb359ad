package exchange_test

import (
	"net/netip"
	"testing"

	"github.com/composure-mesh/composure/proxy/exchange"
)

// The gateway, and who stands behind it, come to the same address with each number of trusted proxies.
func TestClient(t *testing.T) {
	const peer = "192.0.2.5"
	for _, c := range []struct {
		forwarded string // as it comes to the gateway
		want      [4]string
	}{
		{"", [4]string{peer, peer, peer, peer}},
		{"203.0.113.1", [4]string{peer, "203.0.113.1", peer, peer}},
		{"203.0.113.10, 203.0.113.1", [4]string{peer, "203.0.113.1", "203.0.113.10", peer}},
		{"203.0.113.128, 203.0.113.10, 203.0.113.1", [4]string{peer, "203.0.113.1", "203.0.113.10", "203.0.113.128"}}, // of Envoy's documentation
		{"203.0.113.10 ,\t203.0.113.1 ", [4]string{peer, "203.0.113.1", "203.0.113.10", peer}},
		{"203.0.113.10,203.0.113.1", [4]string{peer, "203.0.113.1", "203.0.113.10", peer}},
		{"203.0.113.10, nonsense", [4]string{peer, peer, "203.0.113.10", peer}},
		{"unknown, 203.0.113.1", [4]string{peer, "203.0.113.1", peer, peer}},
		{"203.0.113.10,, 203.0.113.1", [4]string{peer, "203.0.113.1", peer, "203.0.113.10"}},
		{"203.0.113.10, ", [4]string{peer, peer, "203.0.113.10", peer}},
		{",203.0.113.1", [4]string{peer, "203.0.113.1", peer, peer}},
		{",,,", [4]string{peer, peer, peer, peer}},
		{"203.0.113.256", [4]string{peer, peer, peer, peer}},
		{"203.0.113.0/24", [4]string{peer, peer, peer, peer}},
		{"203.0.113.1 203.0.113.2", [4]string{peer, peer, peer, peer}},
		{"client.example", [4]string{peer, peer, peer, peer}},
		{"2001:db8::1, 2001:DB8:0:0::2", [4]string{peer, "2001:db8::2", "2001:db8::1", peer}},
		{"::ffff:203.0.113.1", [4]string{peer, "203.0.113.1", peer, peer}},
		{"fe80::1%eth0", [4]string{peer, "fe80::1", peer, peer}},
		{"203.0.113.1:4711", [4]string{peer, "203.0.113.1", peer, peer}},
		{"[2001:db8::1]:4711, [2001:db8::2]", [4]string{peer, "2001:db8::2", "2001:db8::1", peer}},
		{"[203.0.113.1]", [4]string{peer, peer, peer, peer}},
		{"203.0.113.1:", [4]string{peer, peer, peer, peer}},
		{"203.0.113.1:65536", [4]string{peer, peer, peer, peer}},
		{"[2001:db8::1", [4]string{peer, peer, peer, peer}},
		{"[", [4]string{peer, peer, peer, peer}},
	} {
		for n, want := range c.want {
			at := exchange.Exchange{
				Conn: &exchange.Connection{Direction: exchange.Gateway, Remote: netip.MustParseAddrPort("[::ffff:" + peer + "]:4000")}, XForwardedFor: []byte(c.forwarded),
				Trust: exchange.Trust{Proxies: n},
			}
			if got := at.Client(); got != netip.MustParseAddr(want) {
				t.Errorf("%q at the gateway, %d proxies: %s, want %s", c.forwarded, n, got, want)
			}
			appended := peer
			if c.forwarded != "" {
				appended = c.forwarded + ", " + peer
			}
			behind := exchange.Exchange{
				Conn: &exchange.Connection{Remote: netip.MustParseAddrPort("10.0.0.1:4000"), Peer: "spiffe://gateway"}, XForwardedFor: []byte(appended),
				Trust: exchange.Trust{Gateway: true, Proxies: n},
			}
			if got := behind.Client(); got != netip.MustParseAddr(want) {
				t.Errorf("%q behind the gateway, %d proxies: %s, want %s", c.forwarded, n, got, want)
			}
		}
	}
}

// Who has no trust is asked nothing, nor is a list that has not the gateway's word at its end.
func TestClientWithoutTrust(t *testing.T) {
	conn := &exchange.Connection{Remote: netip.MustParseAddrPort("10.0.0.1:4000")}
	for _, x := range []exchange.Exchange{
		{XForwardedFor: []byte("203.0.113.1")},
		{XForwardedFor: []byte("203.0.113.1, nonsense"), Trust: exchange.Trust{Gateway: true}},
		{XForwardedFor: []byte("203.0.113.1, nonsense"), Trust: exchange.Trust{Gateway: true, Proxies: 1}},
		{Trust: exchange.Trust{Gateway: true, Proxies: 1}},
	} {
		x.Conn = conn
		if got := x.Client(); got != conn.Remote.Addr() {
			t.Errorf("%q with %+v: %s, want the peer", x.XForwardedFor, x.Trust, got)
		}
	}
	named := exchange.Exchange{Conn: &exchange.Connection{Remote: conn.Remote, Client: netip.MustParseAddrPort("203.0.113.7:1")}, XForwardedFor: []byte("203.0.113.1")}
	if got := named.Client(); got != named.Conn.Client.Addr() {
		t.Errorf("with a PROXY header: %s, want who it names", got)
	}
}
