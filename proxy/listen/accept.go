package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Accept hands each connection of ln to handle until ctx ends or ln is closed, which is no error. handle must
// not block: it starts what it needs. A lack of descriptors or memory is waited out, from 5 ms up to a second,
// since whoever is connected may finish meanwhile; onError is told of it.
func Accept(ctx context.Context, ln *net.TCPListener, handle func(*net.TCPConn), onError func(error)) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var pause time.Duration
	for {
		c, err := ln.AcceptTCP()
		switch {
		case err == nil:
			pause = 0
			handle(c)
		case errors.Is(err, net.ErrClosed):
			return nil
		case temporary(err):
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			onError(err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
	}
}

// temporary tells EMFILE, ENFILE, ENOBUFS, ENOMEM and ECONNABORTED from errors that do not pass.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// AddrPort is a's address and port, an IPv4-mapped address as IPv4. It is invalid for an address that has none.
func AddrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok || t == nil {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
