package listen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

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
	h := &Held{gone: make(chan struct{})}
	var err error
	h.lease, err = borrow(ctx, socket, "listeners", func(files [2]*os.File) (err error) {
		if h.Outbound, err = tcpListener(files[0]); err != nil {
			return err
		}
		if h.Inbound, err = tcpListener(files[1]); err != nil {
			_ = h.Outbound.Close() // given up with the whole message
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	go h.watch()
	return h, nil
}

// HeldDNS are the sockets that the application's DNS is led to, lent by the sandbox, which passes queries on by itself
// while nobody holds them.
type HeldDNS struct {
	UDP *net.UDPConn
	TCP *net.TCPListener

	lease *net.UnixConn
}

// AcquireDNS asks the sandbox at the unix socket for the sockets of DNS.
func AcquireDNS(ctx context.Context, socket string) (*HeldDNS, error) {
	h := &HeldDNS{}
	var err error
	h.lease, err = borrow(ctx, socket, "dns", func(files [2]*os.File) error {
		c, err := net.FilePacketConn(files[0])
		if err != nil {
			return fmt.Errorf("receive from the sandbox: %w", err)
		}
		udp, ok := c.(*net.UDPConn)
		if !ok {
			_ = c.Close() // not what was asked for
			return fmt.Errorf("receive from the sandbox: got a socket at %s, want UDP", c.LocalAddr())
		}
		h.UDP = udp
		if h.TCP, err = tcpListener(files[1]); err != nil {
			_ = udp.Close() // given up with the whole message
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Wait returns when the sandbox has closed its end, or after Close.
func (h *HeldDNS) Wait() {
	var b [1]byte
	for {
		if _, err := h.lease.Read(b[:]); err != nil {
			return
		}
	}
}

// Release gives the sockets back: nothing is read from them here any more. What was read may still be answered, until Close.
func (h *HeldDNS) Release() {
	_ = h.UDP.SetReadDeadline(time.Unix(1, 0)) // these fail on what is closed alone
	_ = h.TCP.Close()
	_ = h.lease.Close()
}

// Close ends what Release began.
func (h *HeldDNS) Close() error {
	h.Release()
	return h.UDP.Close()
}

// borrow connects to the sandbox and takes the two descriptors of its message. The connection is the lease.
func borrow(ctx context.Context, socket, what string, take func([2]*os.File) error) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%s: dial the sandbox: %w", what, err)
	}
	lease := c.(*net.UnixConn)
	stop := context.AfterFunc(ctx, func() { Interrupt(lease) })
	files, err := receive(lease)
	if !stop() && err == nil {
		err = ctx.Err() // too late: the lease is interrupted
	}
	if err == nil {
		err = take(files)
	}
	for _, f := range files {
		if f != nil {
			_ = f.Close() // a copy: what was taken has its own
		}
	}
	if err != nil {
		_ = lease.Close() // the error says what happened
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return lease, nil
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

// receive reads the one message: the byte '1' with two descriptors.
func receive(c *net.UnixConn) (files [2]*os.File, err error) {
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(2*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(data[:], oob)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return files, fmt.Errorf("receive from the sandbox: %w", err)
	case n == 0:
		return files, fmt.Errorf("receive from the sandbox: %w; it hands sockets to uid 1337 alone, and this process is uid %d", io.EOF, os.Getuid())
	}
	fds, err := descriptors(oob[:oobn])
	if err == nil && (len(fds) != 2 || data[0] != '1' || flags&unix.MSG_CTRUNC != 0) {
		err = fmt.Errorf("receive from the sandbox: got message %q with %d descriptors, want '1' with two", data[:], len(fds))
	}
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if err != nil {
			_ = f.Close() // given up with the whole message
			continue
		}
		files[i] = f
	}
	return files, err
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
