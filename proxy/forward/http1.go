package forward

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/listen"
)

// client1 is a client's connection of HTTP/1.
type client1 struct {
	*http1.Reader
	server
	conn  net.Conn
	state atomic.Int32
	wait  time.Duration // for the next request
	// Deadlines that are set, so as to set them seldom.
	readUntil, writeUntil time.Time

	// Of the response.
	out     []byte // gathered, in the attempt's buffer
	chunked bool
	keep    bool
}

// States of a connection, for Drain.
const (
	idle int32 = iota // waits for a request
	busy
)

func newClient1(ctx context.Context, e *Engine, conn net.Conn, c *exchange.Connection) *client1 {
	limits := e.cfg.Limits
	if c.Peer != "" {
		limits = limits.Relayed()
	}
	k := &client1{Reader: http1.NewReader(conn, limits), conn: conn, wait: e.cfg.Timeouts.First}
	k.init(ctx, e, c, originOf(c), k)
	return k
}

// wake cuts a wait for a request short, since the engine drains.
func (c *client1) wake() {
	if c.state.Load() == idle {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.e.cfg.Timeouts.Drain))
	}
}

var past = time.Unix(1, 0)

// serve runs the exchanges of the connection, and closes it.
func (c *client1) serve() error {
	defer c.Release()
	for {
		f, err := c.await()
		if err != nil {
			_ = c.conn.Close()
			return quiet(err)
		}
		c.begin(c.version())
		if f != nil {
			c.out = nil
			c.refuse(f)
			c.linger()
			return nil
		}
		if !c.goesOn(c.exchange()) {
			return nil
		}
		c.wait = c.e.cfg.Timeouts.Idle
		if c.Buffered() == 0 {
			c.Idle()
		}
	}
}

// goesOn ends the connection, unless there can be another exchange.
func (c *client1) goesOn(end outcome) bool {
	switch end {
	case whole:
		switch {
		case c.keep:
			return true
		case c.Buffered() > 0:
			c.linger()
		default:
			_ = c.conn.Close()
		}
	case early:
		c.linger()
	case cut:
		if c.chunked || c.resp.Framing == http1.Length {
			_ = c.conn.Close() // the framing tells that something is missing
		} else {
			listen.Reset(c.conn)
		}
	case gone:
		_ = c.conn.Close()
	}
	return false
}

func (c *client1) version() string {
	if c.req.Minor == 0 {
		return "HTTP/1.0"
	}
	return "HTTP/1.1"
}

// await waits for a request's head and parses it. A fault is the client's, to be answered; an error ends the
// connection without a word.
func (c *client1) await() (*filter.Answer, error) {
	c.state.Store(idle)
	if c.pump.ran {
		c.pump.ran, c.readUntil = false, time.Time{}
	}
	c.extendRead(time.Now(), c.wait)
	// After the state and the deadline: Drain either finds us idle, or is seen here.
	if c.e.draining.Load() {
		c.extendRead(time.Now(), c.e.cfg.Timeouts.Drain)
	}
	head := false // its first byte has come, and its own deadline is set
	for {
		if c.Buffered() > 0 {
			err := c.ParseRequest(&c.req)
			if err == nil {
				c.state.Store(busy)
				return nil, nil
			}
			var broken *http1.Error
			if errors.As(err, &broken) {
				c.state.Store(busy)
				return clientProtocol(broken), nil
			}
			if !head && c.Buffered() > 0 {
				head = true
				c.state.Store(busy)
				c.readUntil = time.Time{}
				c.extendRead(time.Now(), c.e.cfg.Timeouts.Header)
			}
		}
		if err := c.Fill(); err != nil {
			if head && errors.Is(err, os.ErrDeadlineExceeded) {
				return &headTimeout, nil
			}
			return nil, err
		}
	}
}

func (c *client1) mayKeep() bool { return c.req.KeepAlive && !c.e.draining.Load() }

// write sends to the client.
func (c *client1) write(b []byte) error {
	c.extendWrite(time.Now())
	_, err := c.conn.Write(b)
	return err
}

// SetReadDeadline is for the pump.
func (c *client1) SetReadDeadline(t time.Time) error { return c.conn.SetReadDeadline(t) }

func (c *client1) prompt(on bool) bool { return listen.Prompt(c.conn, on) }

// extendRead moves the deadline of reading from the client, unless the one that is set will do: within a tenth of what
// is wanted.
func (c *client1) extendRead(now time.Time, d time.Duration) {
	if want := now.Add(d); c.readUntil.Before(want.Add(-d/10)) || c.readUntil.After(want) {
		c.readUntil = want
		_ = c.conn.SetReadDeadline(want)
	}
}

func (c *client1) extendWrite(now time.Time) {
	d := c.e.cfg.Timeouts.StreamIdle
	if want := now.Add(d); c.writeUntil.Before(want.Add(-d / 10)) {
		c.writeUntil = want
		_ = c.conn.SetWriteDeadline(want)
	}
}

// lingerTime and lingerBytes bound how long what a refused client still sends is thrown away. Closing at once would
// make the kernel reset the connection, and the client could lose the answer it has not read yet.
const (
	lingerTime  = time.Second
	lingerBytes = 1 << 20
)

func (c *client1) linger() {
	defer func() { _ = c.conn.Close() }()
	if closeWrite(c.conn) != nil || c.conn.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	buf := http1.GetBuffer()
	defer http1.PutBuffer(buf)
	for total := 0; total < lingerBytes; {
		n, err := c.conn.Read(buf[:])
		if total += n; err != nil {
			return
		}
	}
}

func (c *client1) inform(p *http1.Response, h http1.Header) error {
	if c.req.Minor == 0 {
		return nil // it knows of none
	}
	out := appendFields(http1.AppendStatusLine(c.a.buf[:0], p.Status, p.Reason), h)
	return c.write(append(out, "\r\n"...))
}

// respond gathers the head: small responses leave in one write.
func (c *client1) respond(p *http1.Response, h http1.Header) error {
	streamed := p.Framing == http1.Chunked || p.Framing == http1.UntilClose
	c.chunked = streamed && c.req.Minor == 1
	// Of a request that is answered early the rest may never be read: the client must not send another behind it.
	c.keep = c.mayKeep() && (!streamed || c.chunked) && c.taken()
	out := appendFields(http1.AppendStatusLine(c.a.buf[:0], p.Status, p.Reason), h)
	if c.chunked {
		out = append(out, "Transfer-Encoding: chunked\r\n"...)
	}
	c.out = append(c.appendConnection(out, c.keep), "\r\n"...)
	return nil
}

func (c *client1) take(src source) (n int, err error) {
	if len(c.out) == 0 {
		c.out = c.a.buf[:0]
	}
	c.out, n, err = appendBody(c.out, src, c.chunked)
	return n, err
}

func (c *client1) gathered() bool { return len(c.out) > 0 }
func (c *client1) full() bool     { return cap(c.out)-len(c.out) < 1<<10 }

func (c *client1) flush() error {
	err := c.write(c.out)
	c.out = c.out[:0]
	return err
}

func (c *client1) upgrade(first []byte) (to end, early []byte, err error) {
	out := appendFields(http1.AppendStatusLine(c.a.buf[:0], c.resp.Status, c.resp.Reason), c.responseHead())
	out = append(append(out, "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"...), first...)
	_ = c.conn.SetReadDeadline(time.Time{})
	_ = c.conn.SetWriteDeadline(time.Time{})
	_, err = c.conn.Write(out)
	return connEnd{c.conn}, c.Take(), err
}

func (c *client1) local(status int, h http1.Header, body string, goesOn bool) (keep bool) {
	c.keep = goesOn && c.mayKeep() && c.Done()
	var out []byte
	if c.a.buf != nil {
		out = c.a.buf[:0]
	}
	out = http1.AppendStatusLine(out, status, []byte(http.StatusText(status)))
	if status >= 200 && status != http.StatusNoContent {
		out = http1.AppendField(out, "Content-Length", strconv.Itoa(len(body)))
	}
	out = append(c.appendConnection(appendFields(out, h), c.keep), "\r\n"...)
	if string(c.req.Method) != http.MethodHead && status != http.StatusNoContent && status != http.StatusNotModified {
		out = append(out, body...)
	}
	return c.write(out) == nil && c.keep
}

func (c *client1) appendConnection(out []byte, keep bool) []byte {
	switch {
	case !keep:
		return append(out, "Connection: close\r\n"...)
	case c.req.Minor == 0:
		return append(out, "Connection: keep-alive\r\n"...)
	}
	return out
}

func (c *client1) abort()                { _ = c.conn.Close() }
func (c *client1) tells() bool           { return false }
func (c *client1) left() <-chan struct{} { return nil }
func (c *client1) gone() *filter.Answer  { return nil }
func (c *client1) hold(link)             {}

func (c *client1) watch() bool {
	if c.Buffered() > 0 {
		return false // the next request: the client is there, and nothing more can be told
	}
	return c.Fill() != nil
}
