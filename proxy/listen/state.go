package listen

import (
	"net"

	"golang.org/x/sys/unix"
)

// TCPInfo is what the kernel knows of the TCP connection below c (tcp(7), TCP_INFO), nil where there is none.
func TCPInfo(c net.Conn) *unix.TCPInfo {
	tc := TCPOf(c)
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

// WasReset reports whether c was reset or timed out: its socket has no state left but is still ours. Linux tells of that
// once: where a write has heard of it, a read after it finds an end like any other.
func WasReset(c net.Conn) bool {
	const tcpClose = 7 // TCP_CLOSE of include/net/tcp_states.h
	info := TCPInfo(c)
	return info != nil && info.State == tcpClose
}
