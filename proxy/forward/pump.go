package forward

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// pump is the second goroutine of an exchange, which reads from the client while the first waits for the upstream: it carries
// what is left of the request's body, and then notices a client that goes away. An exchange without a body that is
// answered fast has none.
type pump struct {
	running  bool
	ran      bool // at some time: the client's read deadline is not what it was
	uploaded atomic.Bool
	taken    atomic.Bool // the body has been read to its end, if not sent
	stopping atomic.Bool
	done     chan struct{} // one token at the end

	// Valid after stop.
	read  int64          // body bytes
	fault *filter.Answer // the client's; the upstream connection was closed for it

	// keep asks for a copy of what is carried, as it was sent, and kept is that; more than most is given up as spilled.
	keep    bool
	kept    []byte
	most    int
	spilled atomic.Bool
}

// maxKept bounds the body that is kept so that it can be sent again: Envoy's per_connection_buffer_limit_bytes.
const maxKept = 1 << 20

// maxRefused bounds it where only a stream that was refused would have it sent again.
const maxRefused = 64 << 10

func (p *pump) reset() {
	p.fault, p.keep, p.kept = nil, false, nil
	p.spilled.Store(false)
}

func (p *pump) remember(b []byte) {
	if !p.keep || p.spilled.Load() {
		return
	}
	if len(p.kept)+len(b) > p.most {
		p.spilled.Store(true)
		p.kept = nil
		return
	}
	p.kept = append(p.kept, b...)
}

// startPump begins to read from the client. With upload the body is carried to up first. up may be nil without.
func (s *server) startPump(up link, upload bool) {
	p := &s.pump
	p.running, p.read, p.fault = true, 0, nil
	p.ran = true
	p.stopping.Store(false)
	p.uploaded.Store(!upload)
	p.taken.Store(!upload)
	if upload {
		_ = s.client.SetReadDeadline(time.Now().Add(s.e.cfg.Timeouts.StreamIdle))
	} else {
		_ = s.client.SetReadDeadline(time.Time{})
	}
	go s.pumping(up, upload)
}

// taken reports whether the request has been read to its end.
func (s *server) taken() bool {
	if s.pump.running {
		return s.pump.taken.Load()
	}
	return s.in.Done()
}

// stopPump ends the pump and waits for it.
func (s *server) stopPump() {
	p := &s.pump
	if p.running {
		p.stopping.Store(true)
		_ = s.client.SetReadDeadline(past)
		<-p.done
		p.running = false
		s.x.BytesReceived += p.read
		p.read = 0
	}
	if f := s.client.gone(); f != nil {
		p.fault = f
	}
}

// endPump is stopPump after the end of the response: an upstream that takes no more of the request gets a moment, since
// what it answered may be the end of the request, which it has just read.
func (s *server) endPump(up link) {
	if s.pump.running && !s.pump.uploaded.Load() {
		closed := make(chan struct{})
		t := time.AfterFunc(endGrace, func() {
			_ = up.Close()
			close(closed)
		})
		defer func() {
			if !t.Stop() {
				<-closed // up must be nobody's after this
			}
		}()
	}
	s.stopPump()
}

// endGrace is how long the end of an upload may take once the response is over.
const endGrace = 100 * time.Millisecond

func (s *server) pumping(up link, upload bool) {
	p := &s.pump
	defer func() { p.done <- struct{}{} }()
	defer s.e.rescue(s)
	if upload {
		f, failed := s.upload(up)
		if f != nil {
			p.fault = f
			_ = up.Close()
			return
		}
		if failed {
			// The upstream takes no more. It may have answered; the other goroutine will see.
			return
		}
		p.uploaded.Store(true)
		_ = s.client.SetReadDeadline(time.Time{})
		if p.stopping.Load() {
			return
		}
		s.requestSent(up)
	}
	if s.client.watch() && !p.stopping.Load() {
		p.fault = &clientGone
		if up != nil {
			_ = up.Close()
		}
	}
}

// upload carries the rest of the body. A fault is the client's; failed says that the upstream did not take it.
func (s *server) upload(up link) (f *filter.Answer, failed bool) {
	buf := http1.GetBuffer()
	defer func() { http1.PutBuffer(buf) }()
	defer func() { _ = up.SetWriteDeadline(time.Time{}) }()
	limit := s.e.cfg.Timeouts.StreamIdle
	for {
		buf = await(s.in, buf)
		out, n, err := appendBody(buf[:0], s.in, s.a.framed())
		now, ended := time.Now(), isEOF(err)
		if ended {
			s.pump.taken.Store(true) // before the upstream can answer to it
		}
		if len(out) > 0 || ended {
			s.active.Store(now.UnixNano())
			s.pump.read += int64(n)
			s.pump.remember(out)
			_ = up.SetWriteDeadline(now.Add(limit))
			if err := up.more(out, ended, s.in.Trailer()); err != nil {
				return nil, true
			}
		}
		switch {
		case ended:
			return nil, false
		case err == nil:
			s.readWithin(now, limit)
		case errors.Is(err, os.ErrDeadlineExceeded):
			if s.pump.stopping.Load() {
				return nil, true
			}
			left := time.Unix(0, s.active.Load()).Add(limit).Sub(now)
			if left <= 0 {
				return &streamIdle, false
			}
			s.readWithin(now, left)
		default:
			return s.blame(err), false
		}
	}
}

// readWithin gives the pump's next read a deadline, without undoing stopPump's.
func (s *server) readWithin(now time.Time, d time.Duration) {
	_ = s.client.SetReadDeadline(now.Add(d))
	if s.pump.stopping.Load() {
		_ = s.client.SetReadDeadline(past)
	}
}

// appendBody appends what src yields of its body by one read, as a chunk if chunked, up to buf's capacity. At the
// body's end, io.EOF, the last chunk is appended too. n is the number of body bytes.
func appendBody(buf []byte, src source, chunked bool) (out []byte, n int, err error) {
	start := len(buf)
	if !chunked {
		n, err = src.Read(buf[start:cap(buf)])
		return buf[:start+n], n, err
	}
	// The size line is written before the data is there; a shorter one than this leaves a gap to close.
	const head, tail, most = len("7fff\r\n"), len("\r\n0\r\n\r\n"), 0x7fff
	n, err = src.Read(buf[start+head : min(cap(buf)-tail, start+head+most)])
	if n > 0 {
		data := buf[start+head : start+head+n]
		buf = http1.AppendChunkHead(buf, n)
		if len(buf) == start+head {
			buf = buf[:start+head+n]
		} else {
			buf = append(buf, data...)
		}
		buf = append(buf, '\r', '\n')
	}
	if isEOF(err) {
		buf = http1.AppendLastChunk(buf, src.Trailer())
	}
	return buf, n, err
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
