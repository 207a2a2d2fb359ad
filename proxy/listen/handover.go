package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Held are the capture listeners: lent by the sandbox, or our own. What the sandbox lends are copies: closing
// them refuses nobody, and connections wait in the backlog for the next proxy.
type Held struct {
	// Outbound or Inbound is nil where only the other is wanted, which the sandbox never does.
	Outbound, Inbound *net.TCPListener

	lease *net.UnixConn // nil for our own
	gone  chan struct{}
	close sync.Once
}

// Own makes our own listeners held ones.
func Own(outbound, inbound *net.TCPListener) *Held {
	return &Held{Outbound: outbound, Inbound: inbound, gone: make(chan struct{})}
}

// Acquire asks the sandbox at the unix socket for the listeners.
func Acquire(ctx context.Context, socket string) (*Held, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listeners: dial the sandbox: %w", err)
	}
	lease := c.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { Interrupt(lease) })
	lns, err := receive(lease)
	if !stop() && err == nil {
		err = errors.Join(ctx.Err(), lns[0].Close(), lns[1].Close()) // too late: the lease is interrupted
	}
	if err != nil {
		_ = lease.Close() // the error of receive says what happened
		return nil, fmt.Errorf("listeners: %w", err)
	}
	h := &Held{Outbound: lns[0], Inbound: lns[1], lease: lease, gone: make(chan struct{})}
	go h.watch()
	return h, nil
}

// Gone is closed when the sandbox has closed its end, or after Close. The listeners work on: their sockets live as
// long as a copy of them.
func (h *Held) Gone() <-chan struct{} { return h.gone }

// watch ends with the lease, which Close closes at the latest.
func (h *Held) watch() {
	var b [1]byte
	for {
		if _, err := h.lease.Read(b[:]); err != nil {
			close(h.gone)
			return
		}
	}
}

// Close gives the listeners back: it closes our copies first, so that the sandbox never believes itself without
// a proxy while one accepts, or with one while none does.
func (h *Held) Close() error {
	var errs []error
	for _, ln := range []*net.TCPListener{h.Outbound, h.Inbound} {
		if ln == nil {
			continue
		}
		if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	h.close.Do(func() {
		if h.lease == nil {
			close(h.gone)
			return
		}
		errs = append(errs, h.lease.Close())
		<-h.gone
	})
	return errors.Join(errs...)
}

// receive reads the one message: the byte '1' with two descriptors, the outbound listener and the inbound one.
func receive(c *net.UnixConn) ([2]*net.TCPListener, error) {
	var lns [2]*net.TCPListener
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(2*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(data[:], oob)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return lns, fmt.Errorf("receive from the sandbox: %w", err)
	case n == 0:
		return lns, fmt.Errorf("receive from the sandbox: %w; it hands listeners to uid 1337 alone, and this process is uid %d", io.EOF, os.Getuid())
	}
	fds, err := descriptors(oob[:oobn])
	if err == nil && (len(fds) != 2 || data[0] != '1' || flags&unix.MSG_CTRUNC != 0) {
		err = fmt.Errorf("receive from the sandbox: got message %q with %d descriptors, want '1' with the outbound and the inbound listener", data[:], len(fds))
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "listener")
		if err == nil {
			lns[i], err = tcpListener(f)
		}
		_ = f.Close() // a copy: the listener has its own
	}
	if err != nil {
		for _, ln := range lns {
			if ln != nil {
				_ = ln.Close() // given up with the whole message
			}
		}
		return lns, err
	}
	return lns, nil
}

func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("receive from the sandbox: %w", err)
	}
	var fds []int
	for i := range messages {
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("receive from the sandbox: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func tcpListener(f *os.File) (*net.TCPListener, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("receive from the sandbox: %w", err)
	}
	tl, ok := ln.(*net.TCPListener)
	if !ok {
		_ = ln.Close() // not what was asked for
		return nil, fmt.Errorf("receive from the sandbox: got a listener on %s, want TCP", ln.Addr())
	}
	return tl, nil
}
