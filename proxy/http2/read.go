package http2

import (
	"errors"
	"io"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// readLoop reads frames until the connection is over, and says why.
func (c *conn) readLoop() error {
	if c.server {
		c.mu.Lock()
		if c.err == nil {
			_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.Timeouts.Header))
		}
		c.mu.Unlock()
		var preface [len(http2.ClientPreface)]byte
		if _, err := io.ReadFull(c.br, preface[:]); err != nil {
			return err
		}
		if string(preface[:]) != http2.ClientPreface {
			return protocol("the client's preface is wrong")
		}
	}
	for {
		if err := c.readFrame(); err != nil && !ofStream(err) {
			return err
		}
	}
}

// ofStream reports whether an error has ended a stream, and not the connection.
func ofStream(err error) bool {
	var broken *StreamError
	return errors.As(err, &broken)
}

func (c *conn) readFrame() error {
	fh, err := c.fr.ReadFrameHeader()
	var f http2.Frame
	if err == nil {
		f, err = c.fr.ReadFrameForHeader(fh)
	}
	if err != nil {
		return c.broken(fh, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	c.lastRead, c.pinged = time.Since(c.start), false
	if !c.settings && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)) {
		return protocol("the first frame is not SETTINGS")
	}
	return c.frameCame(f, fh)
}

// broken judges an error of reading a frame.
func (c *conn) broken(fh http2.FrameHeader, err error) error {
	var connErr http2.ConnectionError
	var streamErr http2.StreamError
	switch {
	case errors.Is(err, http2.ErrFrameTooLarge):
		return &ConnError{http2.ErrCodeFrameSize, "a frame is too large"}
	case errors.As(err, &connErr):
		return &ConnError{Code(connErr), "a frame is not valid"}
	case errors.As(err, &streamErr) && fh.Type == http2.FrameWindowUpdate:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.refuse(streamErr.StreamID, &StreamError{Code: streamErr.Code, Reason: "a frame is not valid"})
	case errors.As(err, &streamErr):
		return &ConnError{streamErr.Code, "a frame is not valid"}
	}
	return err
}

func (c *conn) frameCame(f http2.Frame, fh http2.FrameHeader) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f, int32(fh.Length))
	case *http2.HeadersFrame:
		if f.HasPriority() && f.Priority.StreamDep == fh.StreamID {
			return protocol("a stream depends on itself")
		}
		return c.headers(f)
	case *http2.ContinuationFrame:
		if err := c.charge(costEmpty); err != nil {
			return err
		}
		return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.SettingsFrame:
		return c.settingsCame(f)
	case *http2.WindowUpdateFrame:
		return c.windowCame(f)
	case *http2.RSTStreamFrame:
		return c.resetCame(f)
	case *http2.PingFrame:
		return c.pingCame(f)
	case *http2.GoAwayFrame:
		return c.goAwayCame(f)
	case *http2.PriorityFrame:
		if f.StreamDep == fh.StreamID {
			return c.refuse(fh.StreamID, malformed("a stream depends on itself"))
		}
	case *http2.PushPromiseFrame:
		return protocol("PUSH_PROMISE, which nobody has allowed")
	}
	return c.charge(costControl)
}

// refuse resets a stream for its peer's fault.
func (c *conn) refuse(id uint32, err *StreamError) error {
	if e := c.charge(costReset); e != nil {
		return e
	}
	if s := c.streams[id]; s != nil {
		s.reset(err)
		return err
	}
	c.writeRST(id, err.Code)
	c.lastReset[c.resets%len(c.lastReset)] = id
	c.resets++
	return err
}

// gaveUp reports whether a stream that is gone is one that we have reset, of which frames may be under way still (RFC 9113
// section 5.1). A client has opened all that are not idle, and those that have not ended as they should are such, however long ago.
func (c *conn) gaveUp(id uint32) bool {
	return contains(&c.lastReset, id) || !c.server && !contains(&c.closed, id)
}

// late takes a frame of a stream that is gone. A server pays nothing for what it was asked for: who has many requests given up
// must not take along the connection, which others use too.
func (c *conn) late() error {
	if !c.server {
		return nil
	}
	return c.charge(costControl)
}

func (c *conn) idle(id uint32) bool {
	return id%2 == 0 || id > c.lastID
}

func (c *conn) data(f *http2.DataFrame, n int32) error {
	p := f.Data()
	if c.recvWindow -= n; c.recvWindow < 0 {
		return &ConnError{http2.ErrCodeFlowControl, "more DATA than the connection's window"}
	}
	if c.unacked += n; c.unacked >= c.cfg.ConnWindow/2 {
		c.writeWindow(0, c.unacked)
		c.recvWindow += c.unacked
		c.unacked = 0
	}
	s := c.streams[f.StreamID]
	switch {
	case s == nil && c.idle(f.StreamID):
		return protocol("DATA on an idle stream")
	case s == nil && c.gaveUp(f.StreamID):
		return c.late()
	case s == nil || s.recvEnd:
		return c.refuse(f.StreamID, &StreamError{Code: http2.ErrCodeStreamClosed, Reason: "DATA after the end"})
	case s.client != nil && !s.client.final:
		return c.refuse(f.StreamID, malformed("DATA before the response"))
	}
	if s.window -= n; s.window < 0 {
		return c.refuse(s.id, &StreamError{Code: http2.ErrCodeFlowControl, Reason: "more DATA than the stream's window"})
	}
	s.unacked += n - int32(len(p)) // padding
	if s.declared >= 0 {
		if s.declared -= int64(len(p)); s.declared < 0 || f.StreamEnded() && s.declared > 0 {
			return c.refuse(s.id, malformed("body differs from its content-length"))
		}
	}
	if len(p) > 0 {
		c.glitches.earn(gainData)
		s.moved = c.lastRead
		if !s.stopped {
			s.body.write(p)
			s.readers.Signal()
		}
	} else if !f.StreamEnded() {
		if err := c.charge(costEmpty); err != nil {
			return err
		}
	}
	if f.StreamEnded() {
		s.endRecv()
	}
	return nil
}

func (c *conn) headers(f *http2.HeadersFrame) error {
	id := f.StreamID
	if c.server && id%2 == 0 || !c.server && c.streams[id] == nil && c.idle(id) {
		return protocol("HEADERS on a stream that the peer must not open")
	}
	c.head, c.headStream, c.headEnd, c.headBytes = newHead(c.cfg.Limits), id, f.StreamEnded(), 0
	if !f.HeadersEnded() {
		_ = c.nc.SetReadDeadline(time.Now().Add(c.cfg.Timeouts.Header))
	}
	return c.fragment(f.HeaderBlockFragment(), f.HeadersEnded())
}

func (c *conn) fragment(p []byte, ended bool) error {
	if c.headBytes += len(p); c.headBytes > c.cfg.Limits.HeadBytes+maxFrame {
		return &ConnError{EnhanceCalm, "a header block is too large"}
	}
	if _, err := c.dec.Write(p); err != nil {
		if errors.Is(err, hpack.ErrStringLength) {
			return &ConnError{EnhanceCalm, "a header field is too large"}
		}
		return &ConnError{http2.ErrCodeCompression, err.Error()}
	}
	if !ended {
		return nil
	}
	if err := c.dec.Close(); err != nil {
		return &ConnError{http2.ErrCodeCompression, err.Error()}
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	h := c.head
	c.head = nil
	return c.block(h)
}

// block takes a header block that is whole.
func (c *conn) block(h *head) error {
	id, end := c.headStream, c.headEnd
	if h.tooMuch {
		if err := c.charge(costTooMuch); err != nil {
			return err
		}
	}
	s := c.streams[id]
	switch {
	case s != nil && s.recvEnd:
		return c.refuse(id, &StreamError{Code: http2.ErrCodeStreamClosed, Reason: "HEADERS after the end"})
	case s != nil && s.client != nil && !s.client.final:
		return c.responseCame(s, h, end)
	case s != nil:
		return c.trailerCame(s, h, end)
	case c.gaveUp(id):
		return c.late()
	case id <= c.lastID && contains(&c.closed, id):
		return &ConnError{http2.ErrCodeStreamClosed, "HEADERS on a closed stream"}
	case id <= c.lastID:
		return protocol("HEADERS on an old stream")
	}
	c.lastID = id
	return c.requestCame(h, id, end)
}

func (c *conn) trailerCame(s *stream, h *head, end bool) error {
	if !end {
		return c.refuse(s.id, malformed("trailers do not end the stream"))
	}
	if err := h.trailer(); err != nil {
		return c.refuse(s.id, asStream(err))
	}
	if s.declared > 0 {
		return c.refuse(s.id, malformed("body is shorter than its content-length"))
	}
	s.trailer = h
	s.moved = c.lastRead
	s.endRecv()
	return nil
}

func asStream(err error) *StreamError {
	var s *StreamError
	if errors.As(err, &s) {
		return s
	}
	return malformed(err.Error())
}

func (c *conn) settingsCame(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return c.charge(costControl)
	}
	if c.settings {
		if err := c.charge(costSettings); err != nil {
			return err
		}
	} else {
		c.settings = true
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if s.Valid() != nil {
			code := http2.ErrCodeProtocol
			if s.ID == http2.SettingInitialWindowSize {
				code = http2.ErrCodeFlowControl
			}
			return &ConnError{code, "a setting is not valid"}
		}
		switch s.ID {
		case http2.SettingInitialWindowSize:
			return c.initialWindowCame(int64(s.Val))
		case http2.SettingHeaderTableSize:
			c.enc.hp.SetMaxDynamicTableSize(min(s.Val, 4<<10))
		case http2.SettingMaxConcurrentStreams:
			c.maxStreams = s.Val
		case http2.SettingEnablePush:
			if !c.server && s.Val != 0 {
				return protocol("a server can't enable push")
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.frame(0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	c.wakeWriter()
	return nil
}

func (c *conn) initialWindowCame(n int64) error {
	grows := n > c.initialWindow
	c.initialWindow = n
	for _, s := range c.streams {
		if s.sendWindow() > maxWindow {
			return &ConnError{http2.ErrCodeFlowControl, "a window is too large"}
		}
		if grows {
			s.enqueue()
		}
	}
	return nil
}

func (c *conn) windowCame(f *http2.WindowUpdateFrame) error {
	if err := c.charge(costControl); err != nil {
		return err
	}
	if f.StreamID == 0 {
		if c.sendWindow += int64(f.Increment); c.sendWindow > maxWindow {
			return &ConnError{http2.ErrCodeFlowControl, "the connection's window is too large"}
		}
		if len(c.ready) > 0 {
			c.wakeWriter()
		}
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return protocol("WINDOW_UPDATE on an idle stream")
		}
		return nil
	}
	if s.credit += int64(f.Increment); s.sendWindow() > maxWindow {
		return c.refuse(s.id, &StreamError{Code: http2.ErrCodeFlowControl, Reason: "the stream's window is too large"})
	}
	s.enqueue()
	return nil
}

func (c *conn) resetCame(f *http2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return protocol("RST_STREAM on an idle stream")
		}
		return c.late()
	}
	if s.recvEnd && f.ErrCode == NoError {
		// It has answered in full, and wants no more of the request (RFC 9113 section 8.1).
		s.sendErr = errStopped
		s.writers.Broadcast()
		c.drop(s)
		return nil
	}
	s.end(&StreamError{Code: f.ErrCode, Reason: "reset by the peer", Remote: true, Unprocessed: f.ErrCode == RefusedStream})
	c.drop(s)
	return c.charge(costReset)
}

func (c *conn) pingCame(f *http2.PingFrame) error {
	if f.IsAck() {
		if f.Data == drainPing && !c.draining {
			c.drained()
		}
		return c.charge(costControl)
	}
	c.writePing(http2.FlagPingAck, f.Data)
	return c.charge(costControl)
}

func (c *conn) goAwayCame(f *http2.GoAwayFrame) error {
	c.draining = true
	if !c.server {
		for id, s := range c.streams {
			if id > f.LastStreamID {
				s.end(&StreamError{Code: RefusedStream, Reason: "the server goes away", Remote: true, Unprocessed: true})
				c.drop(s)
			}
		}
	}
	if c.active == 0 {
		return errDrained
	}
	return c.charge(costControl)
}
