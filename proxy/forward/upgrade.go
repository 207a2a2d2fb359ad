package forward

import (
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 6455 wants it, and no secret depends on it
	"encoding/base64"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/listen"
)

// upgraded passes on the switch of protocols and then bytes in both directions, each until its own end. The upstream's side
// is a connection of HTTP/1 of its own.
func (a *attempt) upgraded() outcome {
	s, up := a.s, a.one.Conn
	s.x.Status, s.x.Details = s.resp.Status, "via_upstream"
	s.stopPump()
	defer a.drop()
	_ = up.SetReadDeadline(time.Time{})
	first := up.Reader.Take()
	s.x.BytesSent = int64(len(first))
	client, early, err := s.client.upgrade(first)
	if err != nil {
		s.x.Flag, s.x.Details = clientGone.Flag, clientGone.Details
		return gone
	}
	server := connEnd{up.Conn}
	var ended atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		n, err := up.Write(early)
		s.x.BytesReceived += int64(n)
		if err == nil {
			s.x.BytesReceived += oneWay(server, client, &ended)
		}
	})
	s.x.BytesSent += oneWay(client, server, &ended)
	wg.Wait()
	return gone
}

// oneWay copies until src ends, and then tells dst. If src or dst breaks, both are reset, which ends the other way too. ended
// says that the other way has come to its end: after both, a socket looks as after a reset.
func oneWay(dst, src end, ended *atomic.Bool) int64 {
	n, err := io.Copy(dst, src)
	if err != nil || !ended.Swap(true) && src.wasReset() || dst.closeWrite() != nil {
		src.reset() // the first: where dst broke, the other way must not tell src of an end
		dst.reset()
	}
	return n
}

// end is one end of an upgraded exchange.
type end interface {
	io.ReadWriter
	closeWrite() error
	// wasReset reports whether an end that was read is none.
	wasReset() bool
	reset()
}

type connEnd struct{ net.Conn }

func (e connEnd) closeWrite() error { return closeWrite(e.Conn) }
func (e connEnd) wasReset() bool    { return listen.WasReset(e.Conn) }
func (e connEnd) reset()            { listen.Reset(e.Conn) }

// streamEnd is a stream of HTTP/2. What FIN and RST are to a connection, END_STREAM and RST_STREAM with CANCEL are to it
// (RFC 8441 section 5).
type streamEnd struct{ *http2.ServerStream }

func (e streamEnd) Write(p []byte) (int, error) {
	if err := e.ServerStream.Write(p, false); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (e streamEnd) closeWrite() error { return e.ServerStream.Write(nil, true) }
func (e streamEnd) wasReset() bool    { return false } // Read says so
func (e streamEnd) reset()            { e.Reset(http2.Cancel) }

// In HTTP/2 the two fields of the handshake are not used (RFC 8441 section 5.1): for an upstream of HTTP/1 we are the one
// who asks.
const (
	webSocketKey    = "sec-websocket-key"
	webSocketAccept = "sec-websocket-accept"
)

// handshake is the key that we ask with.
type handshake [24]byte

func (h *handshake) make() {
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails
	base64.StdEncoding.Encode(h[:], random[:])
}

// accepted reports whether the response has the proof that its server speaks WebSocket (RFC 6455 section 4.1).
func (h *handshake) accepted(p *http1.Response) bool {
	sum := sha1.Sum(append(h[:], "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...)) //nolint:gosec // RFC 6455
	want := base64.StdEncoding.EncodeToString(sum[:])
	for i := range p.Header {
		if f := &p.Header[i]; http1.EqualFold(f.Name, webSocketAccept) {
			return string(f.Value) == want
		}
	}
	return false
}
