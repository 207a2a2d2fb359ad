package upstream

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/composure-mesh/composure/proxy/proxyprotocol"
)

// client is whose connection is carried on, and where it was going.
type client struct{ source, destination netip.AddrPort }

type clientKey struct{}

// For tells Dial whose connection a new one is for, where its destination wants a PROXY header.
func For(ctx context.Context, source, destination netip.AddrPort) context.Context {
	return context.WithValue(ctx, clientKey{}, client{source, destination})
}

// NamesClients reports whether connections begin with a PROXY header, so that each is for one client.
func (t *Target) NamesClients() bool { return t.Settings != nil && t.Settings.ProxyProtocol != 0 }

// header begins a connection with the PROXY header, if there is to be one. It is the first there is, before any TLS
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt section 2).
func (t *Target) header(ctx context.Context, conn net.Conn) error {
	if !t.NamesClients() {
		return nil
	}
	c, _ := ctx.Value(clientKey{}).(client)
	until, _ := ctx.Deadline()
	if err := conn.SetWriteDeadline(until); err != nil {
		return err
	}
	h := proxyprotocol.Header{Source: c.source, Destination: c.destination}
	if _, err := conn.Write(proxyprotocol.Append(nil, int(t.Settings.ProxyProtocol), h)); err != nil {
		return err
	}
	return conn.SetWriteDeadline(time.Time{})
}
