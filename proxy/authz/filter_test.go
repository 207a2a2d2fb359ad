package authz_test

import (
	"net/netip"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
)

// The client behind a gateway is who the gateway says it is, with the last of the addresses; nobody else is believed.
func TestRemote(t *testing.T) {
	policies := compile(t, snapshot.AccessAllow, from(snapshot.AccessSource{RemoteIPBlocks: []string{"203.0.113.0/24", "10.0.0.7"}}))
	for _, c := range []struct {
		gateway           bool
		source, forwarded string
		want              bool
	}{
		{true, "10.0.0.1", "203.0.113.9", true},
		{true, "10.0.0.1", "198.51.100.1, 203.0.113.9", true},
		{true, "10.0.0.1", "203.0.113.9, 198.51.100.1", false},
		{true, "10.0.0.1", "203.0.113.9, nonsense", false},
		{true, "10.0.0.1", "", false},
		{true, "10.0.0.1", "::ffff:203.0.113.9", true},
		{false, "10.0.0.1", "203.0.113.9", false},
		{false, "10.0.0.7", "198.51.100.1", true},
		{false, "::ffff:10.0.0.7", "", true},
	} {
		f := &authz.Filter{Policies: policies}
		source := netip.AddrPortFrom(netip.MustParseAddr(c.source), 4000)
		conn := &exchange.Connection{Remote: source, OriginalDst: netip.MustParseAddrPort("10.9.9.9:80")}
		x := &filter.Exchange{Record: &exchange.Exchange{Conn: conn, XForwardedFor: []byte(c.forwarded), Trust: exchange.Trust{Gateway: c.gateway}}}
		x.Request.Path = plainPath
		if got := f.Check(x) == nil; got != c.want {
			t.Errorf("%+v: allowed is %v", c, got)
		}
	}
}
