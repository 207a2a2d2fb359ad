package forward

import (
	"io"
	"net"
	"sync"
	"time"
)

// upgraded passes on the 101 and then bytes in both directions, each until its own end.
func (a *attempt) upgraded() outcome {
	s := a.s
	s.x.Status, s.x.Details = 101, "via_upstream"
	s.stopPump()
	defer a.drop()
	_ = s.conn.SetReadDeadline(time.Time{})
	_ = s.conn.SetWriteDeadline(time.Time{})
	_ = a.up.SetReadDeadline(time.Time{})
	first := a.up.Reader.Take()
	s.x.BytesSent = int64(len(first))
	out := append(s.appendResponse(a.buf[:0], false, true), first...)
	if _, err := s.conn.Write(out); err != nil {
		s.x.Flag, s.x.Details = clientGone.Flag, clientGone.Details
		return ended
	}
	early := s.in.Take()
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := a.up.Write(early)
		s.x.BytesReceived += int64(n)
		if err == nil {
			s.x.BytesReceived += oneWay(a.up.Conn, s.conn)
		}
	})
	s.x.BytesSent += oneWay(s.conn, a.up.Conn)
	wg.Wait()
	return ended
}

// oneWay copies until src ends, and then tells dst. If src or dst breaks, both are closed, which ends the other way too.
func oneWay(dst, src net.Conn) int64 {
	n, err := io.Copy(dst, src)
	if err != nil || closeWrite(dst) != nil {
		_ = dst.Close()
		_ = src.Close()
	}
	return n
}
