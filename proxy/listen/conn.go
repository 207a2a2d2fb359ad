package listen

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxPeek bounds what is buffered to tell a protocol: one whole TLS record with its header (RFC 8446 section 5.1).
const maxPeek = 5 + 1<<14

// firstPeek is the size of the pooled buffer: room for a ClientHello with a post-quantum key share.
const firstPeek = 4 << 10

var peekBuffers = sync.Pool{New: func() any { return new([firstPeek]byte) }}

var errPeekFull = errors.New("the peek buffer is full")

// Conn is a connection whose first bytes can be looked at before they are read. It is not safe for concurrent
// reads; one reader and one writer may work at the same time, as with any net.Conn.
type Conn struct {
	net.Conn
	pooled *[firstPeek]byte
	prefix []byte // read from Conn, not yet by our reader
	late   *lateReader
	prompt bool
}

// NewConn makes c peekable.
func NewConn(c net.Conn) *Conn { return &Conn{Conn: c} }

// Read returns the peeked bytes first.
func (c *Conn) Read(p []byte) (int, error) {
	switch {
	case len(c.prefix) > 0:
	case c.prompt:
		return c.readNow(p)
	default:
		return c.Conn.Read(p)
	}
	n := copy(p, c.prefix)
	c.prefix = c.prefix[n:]
	if len(c.prefix) == 0 {
		c.release()
	}
	return n, nil
}

// Lender has a buffer to read into.
type Lender = interface {
	Lend() []byte
	// Return takes the buffer back: nothing was read into it.
	Return()
}

// ReadLate is Read into a buffer that is borrowed only when there is something to read, so that a connection which waits
// for its client holds none.
func (c *Conn) ReadLate(l Lender) (int, error) {
	if tc := c.TCP(); tc != nil && len(c.prefix) == 0 {
		if err := c.needLate(tc); err != nil {
			return 0, err
		}
		return c.late.read(l)
	}
	n, err := c.Read(l.Lend())
	if n == 0 {
		l.Return()
	}
	return n, err
}

func (c *Conn) needLate(tc *net.TCPConn) error {
	if c.late != nil {
		return nil
	}
	raw, err := tc.SyscallConn()
	if err == nil {
		c.late = newLateReader(raw)
	}
	return err
}

// Prompt has c's reads return os.ErrDeadlineExceeded where they would have to wait, until it is called with false: for its
// reader, who wants only what has arrived. c is a Conn of TCP, or a connection of TLS on one; Prompt reports whether it is.
func Prompt(c net.Conn, on bool) bool {
	for {
		switch t := c.(type) {
		case *Conn:
			if t.TCP() != nil {
				t.prompt = on
				return true
			}
			c = t.Conn
		case interface{ NetConn() net.Conn }: // *tls.Conn
			c = t.NetConn()
		default:
			return false
		}
	}
}

// readNow is Read without waiting.
func (c *Conn) readNow(p []byte) (int, error) {
	if err := c.needLate(c.TCP()); err != nil {
		return 0, err
	}
	return c.late.readNow(p)
}

// lateReader reads in the very moment in which the runtime says that there is something.
type lateReader struct {
	raw     syscall.RawConn
	ready   func(fd uintptr) bool
	once    func(fd uintptr) bool
	lender  Lender
	into    []byte
	n       int
	failure error
}

func newLateReader(raw syscall.RawConn) *lateReader {
	r := &lateReader{raw: raw}
	r.ready = func(fd uintptr) bool {
		if r.try(fd, r.lender.Lend()) {
			return true
		}
		r.lender.Return()
		return false
	}
	r.once = func(fd uintptr) bool {
		if !r.try(fd, r.into) {
			r.n, r.failure = 0, os.ErrDeadlineExceeded
		}
		return true
	}
	return r
}

// try reads once, and reports false where there is nothing.
func (r *lateReader) try(fd uintptr, p []byte) bool {
	for {
		n, err := syscall.Read(int(fd), p)
		switch err {
		case nil:
			r.n, r.failure = n, nil
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		default:
			r.n, r.failure = 0, os.NewSyscallError("read", err)
		}
		return true
	}
}

func (r *lateReader) read(l Lender) (int, error) {
	r.lender = l
	err := r.raw.Read(r.ready)
	r.lender = nil
	if err != nil {
		return 0, err // a deadline, or closed: no buffer is out
	}
	if r.n == 0 {
		l.Return()
	}
	return r.result()
}

func (r *lateReader) readNow(p []byte) (int, error) {
	r.into = p
	err := r.raw.Read(r.once)
	r.into = nil
	if err != nil {
		return 0, err
	}
	return r.result()
}

func (r *lateReader) result() (int, error) {
	if r.n == 0 && r.failure == nil {
		return 0, io.EOF
	}
	return r.n, r.failure
}

// Buffered is what has been peeked and not yet read; it is valid until the next call.
func (c *Conn) Buffered() []byte { return c.prefix }

// Skip counts the first n peeked bytes as read.
func (c *Conn) Skip(n int) {
	if c.prefix = c.prefix[n:]; len(c.prefix) == 0 {
		c.release()
	}
}

// Take returns a copy of the peeked bytes and counts them as read, for who goes on with the connection below.
func (c *Conn) Take() []byte {
	if len(c.prefix) == 0 {
		return nil
	}
	b := append([]byte(nil), c.prefix...)
	c.release()
	return b
}

// Fill reads once more from the connection and appends to Buffered; without an error there is more than before.
func (c *Conn) Fill() error {
	if c.prefix == nil {
		c.pooled = peekBuffers.Get().(*[firstPeek]byte)
		c.prefix = c.pooled[:0]
	}
	if len(c.prefix) == cap(c.prefix) {
		if len(c.prefix) >= maxPeek {
			return errPeekFull
		}
		grown := make([]byte, len(c.prefix), maxPeek)
		copy(grown, c.prefix)
		c.returnBuffer()
		c.prefix = grown
	}
	var n int
	var err error
	for n == 0 && err == nil { // a reader may return nothing, and no error
		n, err = c.Conn.Read(c.prefix[len(c.prefix):cap(c.prefix)])
	}
	c.prefix = c.prefix[:len(c.prefix)+n]
	if n > 0 {
		return nil // an error that came along comes again
	}
	if len(c.prefix) == 0 {
		c.release() // nothing to keep: a silent client costs no buffer
	}
	return err
}

func (c *Conn) release() {
	c.prefix = nil
	c.returnBuffer()
}

func (c *Conn) returnBuffer() {
	if c.pooled != nil {
		peekBuffers.Put(c.pooled)
		c.pooled = nil
	}
}

// TCP is the TCP connection below, or nil where there is another layer, such as TLS.
func (c *Conn) TCP() *net.TCPConn {
	tc, _ := c.Conn.(*net.TCPConn)
	return tc
}

// CloseWrite ends the direction of writing, where the connection below can.
func (c *Conn) CloseWrite() error {
	if hc, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return c.Close()
}

// Reset closes c with RST where it is TCP: the client sees a refused connection instead of a polite end. So the end
// of TLS is not sent either.
func Reset(c net.Conn) {
	if tc := TCPOf(c); tc != nil {
		_ = tc.SetLinger(0) // fails only on a connection that is gone already
		_ = tc.Close()
	}
	_ = c.Close()
}

// TCPOf finds the TCP connection below peeking and TLS, or nil.
func TCPOf(c net.Conn) *net.TCPConn {
	for {
		switch t := c.(type) {
		case *net.TCPConn:
			return t
		case *Conn:
			c = t.Conn
		case interface{ NetConn() net.Conn }: // *tls.Conn
			c = t.NetConn()
		default:
			return nil
		}
	}
}

// interrupted is a moment in the past: a read deadline that wakes a blocked reader.
var interrupted = time.Unix(1, 0)

// Interrupt wakes a blocked reader of c with a timeout.
func Interrupt(c net.Conn) { _ = c.SetReadDeadline(interrupted) }
