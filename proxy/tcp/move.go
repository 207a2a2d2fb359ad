package tcp

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/proxy/listen"
)

// Sizes of the buffers for what isn't spliced. A quiet session over TLS holds a small one; a busy one takes the large.
const (
	smallBuffer = 2 << 10
	largeBuffer = 32 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// move copies src to dst until src ends, and returns the bytes that reached dst.
func move(dst, src *listen.Conn) (int64, error) {
	var n int64
	if prefix := src.Take(); len(prefix) > 0 {
		w, err := dst.Write(prefix)
		n += int64(w)
		if err != nil {
			return n, err
		}
	}
	to, from := dst.TCP(), src.TCP()
	if to == nil || from == nil {
		m, err := copyBuffered(dst, src)
		return n + m, err
	}
	m, bulk, err := copyMessages(to, src)
	n += m
	if bulk {
		m, err = to.ReadFrom(from) // the kernel splices
		n += m
	}
	return n, err
}

// copyMessages copies from TCP to TCP as long as a read finds little, and reports bulk once one fills the buffer. A splice
// takes twice the system calls for a message, and a session that waits would hold a pipe, two descriptors, for each
// direction, where this one holds nothing.
func copyMessages(dst io.Writer, src *listen.Conn) (total int64, bulk bool, err error) {
	var l loan
	for {
		n, err := src.ReadLate(&l)
		if n > 0 {
			w, err := dst.Write(l.buf[:n])
			l.Return()
			total += int64(w)
			if err != nil || n == largeBuffer {
				return total, err == nil, err
			}
			continue
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return total, false, err
	}
}

// loan is a buffer that is borrowed while there is something in it.
type loan struct{ buf *[largeBuffer]byte }

// Lend implements listen.Lender.
func (l *loan) Lend() []byte {
	l.buf = largeBuffers.Get().(*[largeBuffer]byte)
	return l.buf[:]
}

// Return implements listen.Lender.
func (l *loan) Return() {
	largeBuffers.Put(l.buf)
	l.buf = nil
}

// copyBuffered is io.Copy with a buffer that grows with the traffic and shrinks with it: io.Copy would hold 32 KiB
// a direction for a session that sends a byte an hour.
func copyBuffered(dst io.Writer, src io.Reader) (int64, error) {
	var total int64
	small := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	buf := small
	for {
		n, err := src.Read(buf)
		if n > 0 {
			w, werr := dst.Write(buf[:n])
			total += int64(w)
			if werr != nil {
				return total, werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
		switch {
		case n == smallBuffer && large == nil:
			large = largeBuffers.Get().(*[largeBuffer]byte)
			buf = large[:]
		case n < smallBuffer && large != nil:
			largeBuffers.Put(large)
			large, buf = nil, small
		}
	}
}

// lastReceived is how long ago the peer of c sent data: the kernel's tcpi_last_data_recv, in ms. A connection that
// is gone counts as quiet for good.
func lastReceived(c *listen.Conn) time.Duration {
	info := listen.TCPInfo(c)
	if info == nil {
		return 1<<63 - 1
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// probe has the kernel probe whether the peer of c is still there, at Go's defaults: after 15 s without data, every 15 s, and
// after nine without an answer the connection is broken.
func probe(c *listen.Conn) {
	if tc := listen.TCPOf(c); tc != nil {
		_ = tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true}) // fails only on a connection that is gone
	}
}

// arrived reports whether something from the peer of c waits to be read.
func arrived(c *listen.Conn) bool {
	tc := listen.TCPOf(c)
	if tc == nil {
		return false
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	var b [1]byte
	peek := func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT) }
	return raw.Control(peek) == nil && err == nil && n > 0
}
