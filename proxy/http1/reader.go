package http1

import (
	"bytes"
	"errors"
	"io"
)

// ErrIncomplete says that a head is not all here yet: Fill, then parse again.
var ErrIncomplete = errors.New("http1: head is incomplete")

// Reader reads the messages that come in on a connection, one after the other: a head by ParseRequest or ParseResponse,
// then its body by Read to io.EOF. It is not safe for concurrent use.
//
// The buffer holds the head of the current message at its beginning, where the head's slices point to until the next
// message is parsed, and behind it what was read ahead.
type Reader struct {
	src    io.Reader
	late   lateSource // src, where it can read so
	limits Limits

	buf     []byte
	r, w    int  // buf[r:w] is read ahead
	head    int  // buf[:head] is the current head
	scanned int  // of the next head, without finding its end
	lines   int  // complete lines among scanned
	skipped bool // an empty line, before the next head
	pinned  bool // slices of buf are in use

	body body
}

// lateSource reads into a buffer that it borrows only when there is something to read: listen.Conn does, so that a
// connection which waits for its client holds no buffer.
type lateSource interface {
	ReadLate(lender interface {
		Lend() []byte
		Return()
	}) (int, error)
}

// NewReader makes a Reader of what src yields.
func NewReader(src io.Reader, limits Limits) *Reader {
	late, _ := src.(lateSource)
	return &Reader{src: src, late: late, limits: limits.withDefaults()}
}

// Lend is for the source: the buffer to read into.
func (r *Reader) Lend() []byte {
	r.buf = getBuffer(smallBuffer)
	return r.buf
}

// Return takes the buffer back.
func (r *Reader) Return() {
	putBuffer(r.buf)
	r.buf = nil
}

// Buffered is how many bytes are read ahead, of whatever they are part.
func (r *Reader) Buffered() int { return r.w - r.r }

// Take removes and returns what is read ahead. It is valid until the next call.
func (r *Reader) Take() []byte {
	b := r.buf[r.r:r.w]
	r.r = r.w
	return b
}

// Idle ends the current message. If nothing is read ahead, the buffer is given back until it is needed again.
func (r *Reader) Idle() {
	r.next()
	if r.w == 0 && r.buf != nil {
		putBuffer(r.buf)
		r.buf = nil
	}
}

// Release gives the buffer back. The reader must not be used afterwards.
func (r *Reader) Release() {
	if r.buf != nil {
		putBuffer(r.buf)
		r.buf, r.r, r.w, r.head = nil, 0, 0, 0
	}
	r.body.trailer = nil
}

// next forgets the current head and moves what is read ahead to the front.
func (r *Reader) next() {
	r.pinned = false
	if r.r == 0 {
		return
	}
	n := r.w - r.r
	if cap(r.buf) > smallBuffer && n < smallBuffer/2 {
		// One large message must not keep a large buffer for the rest of the connection.
		small := getBuffer(smallBuffer)
		copy(small, r.buf[r.r:r.w])
		putBuffer(r.buf)
		r.buf = small
	} else {
		copy(r.buf, r.buf[r.r:r.w])
	}
	r.r, r.w, r.head = 0, n, 0
}

// Fill reads once from the source, at least one byte unless there is an error. It never blocks when bytes could be
// delivered without.
func (r *Reader) Fill() error {
	if r.r == r.w && r.r > r.head {
		r.r, r.w = r.head, r.head
	}
	var n int
	var err error
	if r.buf == nil && r.late != nil {
		n, err = r.late.ReadLate(r)
	} else {
		if r.w == len(r.buf) {
			r.grow()
		}
		n, err = r.src.Read(r.buf[r.w:])
	}
	r.w += n
	switch {
	case n > 0:
		return nil
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

func (r *Reader) grow() {
	if r.buf == nil {
		r.buf = getBuffer(smallBuffer)
		return
	}
	size := largeBuffer
	if len(r.buf) >= largeBuffer {
		size = 2 * len(r.buf)
	}
	bigger := getBuffer(size)
	copy(bigger, r.buf[:r.w])
	if !r.pinned {
		putBuffer(r.buf)
	}
	r.buf = bigger
}

// ParseRequest parses the next request's head if it is all here, or returns ErrIncomplete. Any other error is an
// *Error, and the connection is of no use any more.
func (r *Reader) ParseRequest(q *Request) error {
	head, err := r.findHead(true)
	if err != nil {
		return err
	}
	if e := q.parse(head, &r.limits); e != nil {
		return e
	}
	r.body.start(q.Framing, q.Length, r.limits, len(head), len(q.Header))
	return nil
}

// ParseResponse is ParseRequest for the answer to a request, which toHead says was HEAD.
func (r *Reader) ParseResponse(p *Response, toHead bool) error {
	head, err := r.findHead(false)
	if err != nil {
		return err
	}
	if e := p.parse(head, toHead, &r.limits); e != nil {
		return e
	}
	r.body.start(p.Framing, p.Length, r.limits, len(head), len(p.Header))
	return nil
}

// findHead finds the head at the beginning of what is read ahead and takes it, without its last line.
func (r *Reader) findHead(request bool) ([]byte, error) {
	if r.head > 0 || r.r > 0 {
		r.next()
	}
	if request && r.scanned == 0 && r.w >= 2 && r.buf[0] == '\r' && r.buf[1] == '\n' {
		// One empty line before a request is left out (RFC 9112 section 2.2).
		if r.skipped {
			return nil, bad("request line is empty")
		}
		r.r, r.skipped = 2, true
		return r.findHead(request)
	}
	for {
		i := bytes.IndexByte(r.buf[r.scanned:r.w], '\n')
		if i < 0 {
			return nil, r.incomplete(request)
		}
		end := r.scanned + i
		if end == 0 || r.buf[end-1] != '\r' {
			return nil, bad("line ends without CR")
		}
		empty := i == 1
		r.scanned = end + 1
		if !empty {
			r.lines++
			continue
		}
		if r.lines == 0 {
			return nil, bad("start line is empty")
		}
		return r.takeHead(end)
	}
}

func (r *Reader) takeHead(end int) ([]byte, error) {
	size := end + 1
	r.scanned, r.lines, r.skipped = 0, 0, false
	if size > r.limits.HeadBytes {
		return nil, &Error{Status: 431, Reason: "head is too large"}
	}
	if len(r.buf)-size < smallBuffer/4 {
		// The body's framing is read behind the head: there must be some room.
		r.grow()
	}
	r.r, r.head, r.pinned = size, size, true
	return r.buf[:end-1], nil
}

func (r *Reader) incomplete(request bool) error {
	// What is scanned ends before the last byte at a line's beginning: a CR may still get its LF.
	switch {
	case r.w > r.limits.HeadBytes:
		return &Error{Status: 431, Reason: "head is too large"}
	case request && r.lines == 0 && r.w > r.limits.TargetBytes+64:
		return &Error{Status: 414, Reason: "request line is too long"}
	}
	return ErrIncomplete
}
