package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"strings"
	"sync/atomic"
)

// counters are the proxy's own, for /stats.
type counters struct {
	accepted, acceptErrors, overLimit, notRedirected, foreign, slowClients, unproven, closedServer, connectFailed, plainRefused, badHeaders, panics atomic.Uint64

	handshakes [len(handshakeReasons)]atomic.Uint64
}

// handshakeReasons are why an inbound handshake fails.
var handshakeReasons = [...]string{"timeout", "closed_by_peer", "refused_by_peer", "no_own_certificate", "peer_not_trusted", "other"}

// handshakeFailed counts a failed handshake and names its reason.
func (c *counters) handshakeFailed(err error) string {
	i := handshakeReason(err)
	c.handshakes[i].Add(1)
	return handshakeReasons[i]
}

func handshakeReason(err error) int {
	var alert tls.AlertError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return 0
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return 1
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error"): // crypto/tls hides the type
		return 2
	case strings.Contains(err.Error(), "no certificate yet"):
		return 3
	case strings.Contains(err.Error(), "peer "), strings.Contains(err.Error(), "x509"), strings.Contains(err.Error(), "client didn't provide a certificate"):
		return 4
	}
	return 5
}

func (c *counters) values() map[string]uint64 {
	out := map[string]uint64{
		"listen.accepted":       c.accepted.Load(),
		"listen.accept_errors":  c.acceptErrors.Load(),
		"listen.not_redirected": c.notRedirected.Load(),
		"listen.foreign":        c.foreign.Load(),
		"listen.over_limit":     c.overLimit.Load(),
		"listen.slow_clients":   c.slowClients.Load(),
		"listen.bad_headers":    c.badHeaders.Load(),
		"tls.unproven_ended":    c.unproven.Load(),
		"tls.plain_refused":     c.plainRefused.Load(),
		"tls.server_closed":     c.closedServer.Load(),
		"tcp.connect_failed":    c.connectFailed.Load(),
		"connections.panics":    c.panics.Load(),
	}
	for i, name := range handshakeReasons {
		out["tls.handshake_failed."+name] = c.handshakes[i].Load()
	}
	return out
}
