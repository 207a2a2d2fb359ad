package forward

import (
	"io"
	"net"
	"sync"
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
)

// upgraded passes on the 101 and then bytes in both directions, each until its own end. Both sides are connections of
// HTTP/1, since only such a one asks for an upgrade, and to get it is sent to such a one.
func (a *attempt) upgraded() outcome {
	s := a.s
	c, up := s.client.(*client1), a.one.Conn
	s.x.Status, s.x.Details = 101, "via_upstream"
	s.stopPump()
	defer a.drop()
	_ = c.conn.SetReadDeadline(time.Time{})
	_ = c.conn.SetWriteDeadline(time.Time{})
	_ = up.SetReadDeadline(time.Time{})
	first := up.Reader.Take()
	s.x.BytesSent = int64(len(first))
	out := appendFields(http1.AppendStatusLine(a.buf[:0], s.resp.Status, s.resp.Reason), s.responseHead())
	out = append(append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...), first...)
	if _, err := c.conn.Write(out); err != nil {
		s.x.Flag, s.x.Details = clientGone.Flag, clientGone.Details
		return gone
	}
	early := c.Take()
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := up.Write(early)
		s.x.BytesReceived += int64(n)
		if err == nil {
			s.x.BytesReceived += oneWay(up.Conn, c.conn)
		}
	})
	s.x.BytesSent += oneWay(c.conn, up.Conn)
	wg.Wait()
	return gone
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
