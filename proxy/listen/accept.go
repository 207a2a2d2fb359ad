package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Listener is a *net.TCPListener.
type Listener interface {
	AcceptTCP() (*net.TCPConn, error)
	Addr() net.Addr
	Close() error
}

// Accept hands each connection of ln to handle until ctx ends or ln is closed, which is no error. handle must
// not block: it starts what it needs. A lack of descriptors or memory is waited out, from 5 ms up to a second,
// since whoever is connected may finish meanwhile; onError is told of it.
func Accept(ctx context.Context, ln Listener, handle func(*net.TCPConn), onError func(error)) error {
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

// temporary tells errors that pass from those that do not. Aborted connections and interruptions are net's to retry.
func temporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
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
