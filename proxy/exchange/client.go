package exchange

import (
	"bytes"
	"net/netip"
	"unsafe"
)

// Trust is who is believed about X-Forwarded-For. Of anybody else, it counts for nothing.
type Trust struct {
	// Gateway says that the peer is a gateway of the mesh, whose word the last entry is: its own peer.
	Gateway bool
	// Proxies is how many trusted proxies stand in front of the mesh's gateway, each of which has appended its peer.
	Proxies int
}

// Client is the address of who has sent the request: the one that the first of the trusted proxies has appended to
// X-Forwarded-For, else the gateway's peer, without a gateway our own. A gateway and who stands behind it come to the same. As
// with Envoy's xff_num_trusted_hops, a list that is too short, or has no address there, leaves the gateway's peer
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers#x-forwarded-for).
func (x *Exchange) Client() netip.Addr {
	list, client := x.XForwardedFor, x.Conn.Downstream().Addr()
	if x.Trust.Gateway {
		var last []byte
		list, last = cutLast(list)
		peer, ok := forwarded(last)
		if !ok {
			return plain(client)
		}
		client = peer
	}
	var entry []byte
	for range x.Trust.Proxies {
		if list == nil {
			return plain(client)
		}
		list, entry = cutLast(list)
	}
	if a, ok := forwarded(entry); ok {
		client = a
	}
	return plain(client)
}

// cutLast takes the last entry off a list; rest is nil where it was the only one.
func cutLast(list []byte) (rest, last []byte) {
	if i := bytes.LastIndexByte(list, ','); i >= 0 {
		return list[:i:i], list[i+1:]
	}
	return nil, list
}

// forwarded is the address of an entry. It may have a port, which Envoy takes for no address, since some load balancers write it
// (https://learn.microsoft.com/azure/application-gateway/rewrite-http-headers-url#remove-port-information-from-the-x-forwarded-for-header).
func forwarded(entry []byte) (netip.Addr, bool) {
	entry = bytes.Trim(entry, " \t")
	if len(entry) == 0 {
		return netip.Addr{}, false
	}
	text := unsafe.String(unsafe.SliceData(entry), len(entry)) // is not kept
	if a, err := netip.ParseAddr(text); err == nil {
		return a, true
	}
	if end := len(text) - 1; text[0] == '[' && text[end] == ']' {
		a, err := netip.ParseAddr(text[1:end])
		return a, err == nil && a.Is6()
	}
	p, err := netip.ParseAddrPort(text)
	return p.Addr(), err == nil
}

// plain is a as policies compare it.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
