package http2

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
)

// stream is one exchange's side of a connection. All of it is guarded by the connection's mu.
type stream struct {
	c     *conn
	id    uint32
	err   error         // set once: how it ended before its time
	moved time.Duration // when a body byte or a head last moved

	tunnel bool // it may be silent

	body     buffer
	recvEnd  bool
	read     bool  // to io.EOF
	window   int32 // what the peer may still send
	unacked  int32 // what has been read, but not given back to window
	declared int64 // of the body still to come; -1 where it is not known
	head     *head // the request's, or the final response's
	trailer  *head
	readers  sync.Cond
	stopped  bool      // StopReading
	readBy   time.Time // zero: whenever
	alarm    *time.Timer

	credit  int64 // window updates less what was sent; with the peer's initial window that's the window
	sendEnd bool
	sendErr error // errStopped
	pending []byte
	last    bool // pending is the end
	parked  bool // a writer waits for pending to go
	queued  bool
	writers sync.Cond
	onReset func(error)

	server *ServerStream
	client *ClientStream
}

func (c *conn) initStream(s *stream, id uint32) {
	s.c, s.id, s.window, s.declared, s.moved = c, id, max(c.cfg.StreamWindow, specWindow), -1, time.Since(c.start)
	s.readers.L, s.writers.L = &c.mu, &c.mu
}

// releaseHeads gives back what has come of heads, once nobody uses it any more; mu is held.
func (s *stream) releaseHeads() {
	s.head.release()
	s.trailer.release()
	s.head, s.trailer = nil, nil
}

// Read reads from the body as it comes. At the end it returns io.EOF, possibly along with the last bytes.
func (s *stream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for s.body.len() == 0 {
		switch {
		case s.recvEnd:
			s.read = true
			return 0, io.EOF
		case s.err != nil:
			return 0, s.err
		case s.stopped:
			return 0, errClosed
		case s.late():
			return 0, os.ErrDeadlineExceeded
		}
		s.readers.Wait()
	}
	n := s.body.read(p)
	if !s.recvEnd && s.err == nil {
		s.unacked += int32(n)
		if s.unacked >= c.cfg.StreamWindow/2 {
			c.writeWindow(s.id, s.unacked)
			s.window += s.unacked
			s.unacked = 0
		}
	}
	if s.recvEnd && s.body.len() == 0 {
		s.read = true
		return n, io.EOF
	}
	return n, nil
}

// SetReadDeadline bounds the waits of Read and of Response, also one that is under way: they return
// os.ErrDeadlineExceeded, and the stream is as it was. The zero time takes the bound away.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readBy = t
	if s.alarm != nil {
		s.alarm.Stop()
	}
	if t.IsZero() {
		return nil
	}
	left := time.Until(t)
	switch {
	case left <= 0:
		s.readers.Broadcast()
	case s.alarm != nil:
		s.alarm.Reset(left)
	default:
		s.alarm = time.AfterFunc(left, func() {
			s.c.mu.Lock()
			defer s.c.mu.Unlock()
			s.readers.Broadcast()
		})
	}
	return nil
}

func (s *stream) late() bool { return !s.readBy.IsZero() && !time.Now().Before(s.readBy) }

// silence stops the alarm of a stream that nobody uses any more.
func (s *stream) silence() {
	if s.alarm != nil {
		s.alarm.Stop()
	}
}

// Await waits until Read would not, or its deadline is over: for who wants to hold no buffer meanwhile.
func (s *stream) Await() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	for s.body.len() == 0 && !s.recvEnd && s.err == nil && !s.stopped && !s.late() {
		s.readers.Wait()
	}
}

// Done reports whether the body has been read to io.EOF, or there is none.
func (s *stream) Done() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.read
}

// Ready reports whether Read would not wait.
func (s *stream) Ready() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.recvEnd || s.body.len() > 0 || s.err != nil
}

// Trailer is the trailer section of a body that is Done.
func (s *stream) Trailer() http1.Header {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.trailer == nil {
		return nil
	}
	return s.trailer.fields
}

// StopReading makes Read return: whoever waits in it is told that nobody wants the rest.
func (s *stream) StopReading() {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.stopped = true
	s.readers.Broadcast()
}

// OnReset has f called once, in a goroutine of its own, when the stream ends before its time. Where that has happened
// already, f is called at once. The connection waits for f before it ends. Forget takes it back.
func (s *stream) OnReset(f func(error)) {
	s.c.mu.Lock()
	err := s.err
	if err == nil {
		s.onReset = f
	}
	s.c.mu.Unlock()
	if err != nil {
		f(err)
	}
}

// Forget has nobody told of a reset any more. It reports false where OnReset's function has been called already, or is
// just being called.
func (s *stream) Forget() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.onReset == nil {
		return false
	}
	s.onReset = nil
	return true
}

func (s *stream) sendWindow() int64 { return s.c.initialWindow + s.credit }

// Write sends body bytes, and with last the end of the stream. It returns when they are the connection's to send;
// p may be used again then. It waits while the peer's windows are closed: so a slow receiver slows its sender.
func (s *stream) Write(p []byte, last bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := s.writable(); err != nil {
		return err
	}
	s.pending, s.last = p, last
	if len(c.ready) == 0 {
		for len(c.out) < softOut && s.sendSome() && len(s.pending) > 0 {
			continue
		}
	}
	if len(s.pending) == 0 && s.sent() {
		return nil
	}
	s.parked = true
	s.enqueue()
	for s.parked && s.err == nil && s.sendErr == nil {
		s.writers.Wait()
	}
	s.pending, s.parked = nil, false
	if s.err != nil {
		return s.err
	}
	return s.sendErr
}

// sent reports whether nothing of the last Write is left, its end included.
func (s *stream) sent() bool { return !s.last || s.sendEnd }

// sendSome moves a frame's worth of pending into out, as far as the windows allow, and reports whether it did.
func (s *stream) sendSome() bool {
	c := s.c
	n := int(min(int64(len(s.pending)), s.sendWindow(), c.sendWindow, maxFrame))
	switch {
	case len(s.pending) == 0 && !s.last, len(s.pending) > 0 && n <= 0:
		return false
	case len(s.pending) == 0:
		n = 0
	}
	end := s.last && n == len(s.pending)
	c.writeData(s.id, s.pending[:n], end)
	c.wakeWriter()
	s.pending = s.pending[n:]
	s.credit -= int64(n)
	c.sendWindow -= int64(n)
	if n > 0 {
		c.glitches.earn(gainData)
		s.moved = time.Since(c.start)
	}
	if end {
		s.endSend()
	}
	return true
}

// enqueue gives the stream a turn, if its own window lets it send.
func (s *stream) enqueue() {
	if s.parked && !s.queued && (len(s.pending) == 0 || s.sendWindow() > 0) {
		s.queued = true
		s.c.ready = append(s.c.ready, s)
		s.c.wakeWriter()
	}
}

func (s *stream) writable() error {
	switch {
	case s.err != nil:
		return s.err
	case s.sendErr != nil:
		return s.sendErr
	case s.sendEnd:
		return errEnded
	}
	return nil
}

// WriteTrailer ends the stream with a trailer section; without fields the end is an empty DATA frame.
func (s *stream) WriteTrailer(t http1.Header) error {
	if len(t) == 0 {
		return s.Write(nil, true)
	}
	return s.writeHead(func(e *encoder) { e.header(t) }, true)
}

// writeHead sends a header block.
func (s *stream) writeHead(encode func(*encoder), end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) >= softOut && s.err == nil {
		c.waiting++
		c.room.Wait()
		c.waiting--
	}
	if err := s.writable(); err != nil {
		return err
	}
	c.enc.buf.Reset()
	encode(c.enc)
	c.writeBlock(s.id, end)
	s.moved = time.Since(c.start)
	if end {
		s.endSend()
	}
	return nil
}

func (s *stream) endSend() {
	s.sendEnd = true
	if s.recvEnd {
		s.c.glitches.earn(gainExchange)
		s.c.drop(s)
	}
}

func (s *stream) endRecv() {
	s.recvEnd = true
	s.readers.Broadcast()
	if s.sendEnd {
		s.c.glitches.earn(gainExchange)
		s.c.drop(s)
	}
}

// Reset ends the stream at once, unless it has ended in both directions.
func (s *stream) Reset(code Code) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.err == nil && (!s.recvEnd || !s.sendEnd) {
		s.reset(&StreamError{Code: code, Reason: errClosed.Reason})
	}
}

// reset sends RST_STREAM and ends the stream with err; mu is held.
func (s *stream) reset(err *StreamError) {
	c := s.c
	if s.err != nil || c.err != nil {
		return
	}
	c.writeRST(s.id, err.Code)
	c.lastReset[c.resets%len(c.lastReset)] = s.id
	c.resets++
	s.end(err)
	c.drop(s)
}

// end tells everyone who waits; mu is held.
func (s *stream) end(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	s.readers.Broadcast()
	s.writers.Broadcast()
	s.c.room.Broadcast()
	if f := s.onReset; f != nil {
		s.onReset = nil
		// Not under mu: f may take another connection's.
		s.c.work.Go(func() { f(err) })
	}
}
