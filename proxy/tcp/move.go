package tcp

import (
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/proxy/listen"
)

// Sizes of the buffers for what can't be spliced. A quiet session holds a small one; a busy one takes the large.
const (
	smallBuffer = 2 << 10
	largeBuffer = 32 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// move copies src to dst until src ends, and returns the bytes that reached dst. Between two TCP connections the
// kernel splices them.
func move(dst, src *listen.Conn) (int64, error) {
	var n int64
	if prefix := src.Take(); len(prefix) > 0 {
		w, err := dst.Write(prefix)
		n += int64(w)
		if err != nil {
			return n, err
		}
	}
	if to, from := dst.TCP(), src.TCP(); to != nil && from != nil {
		m, err := to.ReadFrom(from)
		return n + m, err
	}
	m, err := copyBuffered(dst, src)
	return n + m, err
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
	info := tcpInfo(c)
	if info == nil {
		return 1<<63 - 1
	}
	return time.Duration(info.Last_data_recv) * time.Millisecond
}

// closedByPeer reports whether c was reset or timed out: its socket has no state left but is still ours.
func closedByPeer(c *listen.Conn) bool {
	const tcpClose = 7 // TCP_CLOSE of include/net/tcp_states.h
	info := tcpInfo(c)
	return info != nil && info.State == tcpClose
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

func tcpInfo(c *listen.Conn) *unix.TCPInfo {
	tc := listen.TCPOf(c)
	if tc == nil {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return nil
	}
	var info *unix.TCPInfo
	if raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) != nil || err != nil {
		return nil
	}
	return info
}
