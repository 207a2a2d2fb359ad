package forward

import (
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// source is where a body comes from: an *http1.Reader, or a stream of HTTP/2. It is read to io.EOF, which may come along
// with the last bytes; then it is Done and has its Trailer. Ready says that Read would not wait.
type source interface {
	Read(p []byte) (int, error)
	Done() bool
	Ready() bool
	Trailer() http1.Header
}

// waiter is a source that can be waited for without a buffer to read into, as streams of HTTP/2 can: there may be
// thousands on which nothing happens for long.
type waiter interface {
	Await()
}

// await waits for src, if it can be waited for and something is to be waited for. It gives buf away meanwhile, and returns
// one of the same kind.
func await(src source, buf *[http1.CopySize]byte) *[http1.CopySize]byte {
	w, ok := src.(waiter)
	if !ok || src.Ready() {
		return buf
	}
	http1.PutBuffer(buf)
	w.Await()
	return http1.GetBuffer()
}

// link is the upstream's side of one try: a connection of HTTP/1 or a stream of HTTP/2. As a source it yields the
// response's body.
type link interface {
	source
	About() *upstream.Link
	// request sends what is at hand of the request. whole says that nothing is to follow.
	request(a *attempt, whole bool) error
	// more sends a piece of the request's body in its form on the wire, with ended also its end.
	more(p []byte, ended bool, trailer http1.Header) error
	// response waits for the next head of a response.
	response(p *http1.Response) error
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Close breaks the try off. It may be called at any time, from anywhere: whoever waits is told.
	Close() error
	// keep ends a try whose request and response were whole, discard every other one. idle is how long the peer keeps
	// a connection, 0 if it has not said.
	keep(idle time.Duration)
	discard()
	// lost judges an error before any response: what became of the request.
	lost(err error) fate
}

// fate is what became of a request that has got no response.
type fate uint8

const (
	unknown fate = iota // the peer may have worked on it
	raced               // the peer closed the connection as it was taken: hardly, but it may have
	unread              // it has not, and says so
)

// link1 is a connection of HTTP/1.
type link1 struct {
	*upstream.Conn
	toHead     bool
	untilClose bool // the response ends with the connection

	writing sync.Mutex // held while there is a write
	told    bool       // a write has been told that the peer has reset the connection
}

// Read reads from the response's body. Where that ends with the connection, an end is none that is only read because a write
// was told of the reset. A peer that has ended its side before it resets lets writes fail in another way, with EPIPE.
func (l *link1) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if l.untilClose && isEOF(err) && listen.WasReset(l.Conn.Conn) {
		l.writing.Lock() // a write that is under way fails at once
		defer l.writing.Unlock()
		if l.told {
			return n, syscall.ECONNRESET
		}
	}
	return n, err
}

func (l *link1) Done() bool            { return l.Reader.Done() }
func (l *link1) Ready() bool           { return l.Reader.Ready() }
func (l *link1) Trailer() http1.Header { return l.Reader.Trailer() }

func (l *link1) request(a *attempt, _ bool) error {
	err := l.write(a.out)
	if kept := a.s.pump.kept; err == nil && len(kept) > 0 {
		err = l.write(kept)
	}
	return err
}

func (l *link1) more(p []byte, _ bool, _ http1.Header) error {
	if len(p) == 0 {
		return nil
	}
	return l.write(p)
}

func (l *link1) write(p []byte) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := l.Write(p)
	if err != nil && errors.Is(err, syscall.ECONNRESET) {
		l.told = true
	}
	return err
}

func (l *link1) response(p *http1.Response) error {
	for {
		err := l.Reader.ParseResponse(p, l.toHead)
		if !errors.Is(err, http1.ErrIncomplete) {
			l.untilClose = p.Framing == http1.UntilClose
			return err
		}
		if err := l.Reader.Fill(); err != nil {
			return err
		}
	}
}

func (l *link1) keep(idle time.Duration) { l.Keep(idle) }
func (l *link1) discard()                { l.Discard() }

func (l *link1) lost(err error) fate {
	if l.Reused && l.Reader.Buffered() == 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err)) {
		return raced
	}
	return unknown
}

// link2 is a stream of HTTP/2.
type link2 struct {
	upstream.Stream
}

func (l *link2) request(a *attempt, whole bool) error {
	if whole && a.bare() {
		return nil // the head has ended the request
	}
	kept := a.s.pump.kept
	if len(a.out) > 0 || len(kept) == 0 && whole {
		if err := l.more(a.out, whole && len(kept) == 0, a.s.in.Trailer()); err != nil {
			return err
		}
	}
	if len(kept) > 0 {
		return l.more(kept, whole, a.s.in.Trailer())
	}
	return nil
}

func (l *link2) more(p []byte, ended bool, trailer http1.Header) error {
	last := ended && len(trailer) == 0
	if len(p) > 0 || last {
		if err := l.Write(p, last); err != nil || last {
			return err
		}
	}
	if ended {
		return l.WriteTrailer(trailer)
	}
	return nil
}

func (l *link2) response(p *http1.Response) (err error) {
	*p, err = l.Response()
	return err
}

// SetWriteDeadline does nothing: the connection sees to streams on which nothing moves.
func (l *link2) SetWriteDeadline(time.Time) error { return nil }

func (l *link2) Close() error {
	l.Stream.Close()
	return nil
}

func (l *link2) keep(time.Duration) { l.Release() }
func (l *link2) discard()           { l.Release() }

func (l *link2) lost(err error) fate {
	switch {
	case http2.Unprocessed(err):
		return unread
	case http2.Lost(err):
		return raced
	}
	return unknown
}
