package http2

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/composure-mesh/composure/proxy/http1"
)

const (
	// softOut is how much may wait to be written before streams wait, too; one turn of a stream is at most one frame.
	softOut = 64 << 10
	// hardOut is where a peer that makes us reply but does not read is cut off.
	hardOut = 1 << 20
	// maxFrame is what we send in one frame at most; every peer takes that much (RFC 9113 section 4.2).
	maxFrame = 16 << 10
)

// frame appends a frame's head. The caller holds mu.
func (c *conn) frame(n int, t http2.FrameType, flags http2.Flags, id uint32) {
	c.out = append(c.out, byte(n>>16), byte(n>>8), byte(n), byte(t), byte(flags))
	c.out = binary.BigEndian.AppendUint32(c.out, id)
}

func (c *conn) writeRST(id uint32, code Code) {
	c.frame(4, http2.FrameRSTStream, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
	c.wakeWriter()
}

func (c *conn) writeWindow(id uint32, n int32) {
	c.frame(4, http2.FrameWindowUpdate, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(n))
	c.wakeWriter()
}

func (c *conn) writePing(flags http2.Flags, data [8]byte) {
	c.frame(8, http2.FramePing, flags, 0)
	c.out = append(c.out, data[:]...)
	c.wakeWriter()
}

func (c *conn) writeGoAway(last uint32, code Code) {
	c.frame(8, http2.FrameGoAway, 0, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, last)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
	c.wakeWriter()
}

func (c *conn) writeSettings(settings ...http2.Setting) {
	c.frame(6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		c.out = binary.BigEndian.AppendUint16(c.out, uint16(s.ID))
		c.out = binary.BigEndian.AppendUint32(c.out, s.Val)
	}
}

func (c *conn) writeData(id uint32, p []byte, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	c.frame(len(p), http2.FrameData, flags, id)
	c.out = append(c.out, p...)
}

// writeBlock appends what the encoder holds as HEADERS and, where it is long, CONTINUATION.
func (c *conn) writeBlock(id uint32, end bool) {
	b := c.enc.buf.Bytes()
	t, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(b), maxFrame)
		if n == len(b) {
			flags |= http2.FlagHeadersEndHeaders
		}
		c.frame(n, t, flags, id)
		c.out = append(c.out, b[:n]...)
		if b = b[n:]; len(b) == 0 {
			break
		}
		t, flags = http2.FrameContinuation, 0
	}
	c.wakeWriter()
}

func (c *conn) wakeWriter() {
	if c.writerIdle {
		c.writerIdle = false
		c.wake <- struct{}{}
	}
}

// writeLoop is the connection's one writer. What has gathered while it wrote goes out together.
func (c *conn) writeLoop() {
	var spare []byte
	for {
		c.mu.Lock()
		c.schedule()
		for len(c.out) == 0 {
			if c.err != nil {
				c.mu.Unlock()
				return
			}
			c.writerIdle = true
			c.mu.Unlock()
			<-c.wake
			// Others that are about to write come first, so that one write carries it all.
			runtime.Gosched()
			c.mu.Lock()
			c.schedule()
		}
		out := c.out
		c.out = spare[:0]
		failed := c.err != nil
		if c.waiting > 0 {
			c.room.Broadcast()
		}
		c.mu.Unlock()
		if !failed {
			c.extendWrite()
		}
		_, err := c.nc.Write(out)
		if spare = out; cap(spare) > 2*softOut {
			spare = nil
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *conn) extendWrite() {
	d := c.cfg.Timeouts.StreamIdle
	if want := time.Now().Add(d); c.writeUntil.Before(want.Add(-d / 10)) {
		c.writeUntil = want
		_ = c.nc.SetWriteDeadline(want)
	}
}

// schedule lets the streams that wait send a frame each, in turn.
func (c *conn) schedule() {
	for len(c.out) < softOut && len(c.ready) > 0 && c.err == nil {
		s := c.ready[0]
		copy(c.ready, c.ready[1:])
		c.ready = c.ready[:len(c.ready)-1]
		s.queued = false
		if !s.parked {
			continue
		}
		if c.sendWindow <= 0 && len(s.pending) > 0 {
			// It keeps its turn until there is a window for all again.
			c.ready = append(c.ready, s)
			copy(c.ready[1:], c.ready)
			c.ready[0], s.queued = s, true
			return
		}
		s.sendSome()
		if len(s.pending) == 0 {
			s.parked = false
			s.writers.Signal()
		} else {
			s.enqueue()
		}
	}
}

// encoder compresses header blocks. It is guarded by the connection's mu, as blocks must leave in the order in which
// they were made.
type encoder struct {
	hp    *hpack.Encoder
	buf   bytes.Buffer
	known map[string]string
	lower []byte
}

func newEncoder() *encoder {
	e := &encoder{known: make(map[string]string)}
	e.hp = hpack.NewEncoder(&e.buf)
	e.hp.SetMaxDynamicTableSizeLimit(4 << 10)
	return e
}

// text makes a string of b without an allocation where it has been seen before.
func (e *encoder) text(b []byte) string {
	if s, ok := e.known[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(b) <= 128 {
		if len(e.known) >= 256 {
			clear(e.known)
		}
		e.known[s] = s
	}
	return s
}

// write compresses one field; never says that it is not to be remembered.
func (e *encoder) write(name string, value []byte, never bool) {
	f := hpack.HeaderField{Name: name, Sensitive: never}
	if never {
		f.Value = string(value)
	} else {
		f.Value = e.text(value)
	}
	_ = e.hp.WriteField(f) // into memory
}

func (e *encoder) status(n int) {
	e.lower = strconv.AppendInt(e.lower[:0], int64(n), 10)
	e.write(":status", e.lower, false)
}

// header writes the fields that go beyond this hop. What is secret, or new with each message, is never remembered.
func (e *encoder) header(h http1.Header) {
	for i := range h {
		f := &h[i]
		if f.Hop || f.Kind == http1.Host {
			continue
		}
		e.lower = append(e.lower[:0], f.Name...)
		for j, c := range e.lower {
			if 'A' <= c && c <= 'Z' {
				e.lower[j] = c | 0x20
			}
		}
		never := len(f.Value) > 128
		switch f.Kind {
		case http1.Authorization, http1.Cookie, http1.SetCookie, http1.RequestID, http1.ServiceTime, http1.ContentLength:
			never = true
		}
		e.write(e.text(e.lower), f.Value, never)
	}
}
