package forward

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// awaitResponse reads the head of the final response, and passes on those that come before it.
func (a *attempt) awaitResponse() *filter.Answer {
	s := a.s
	for informational := 0; ; {
		err := a.up.Reader.ParseResponse(&s.resp, string(s.req.Method) == "HEAD")
		if errors.Is(err, http1.ErrIncomplete) {
			if err = a.up.Reader.Fill(); err == nil {
				continue
			}
		}
		if err != nil {
			if f := a.waited(err); f != nil {
				return f
			}
			continue
		}
		a.answered = true
		s.x.UpstreamTime = time.Since(a.sentAt)
		if s.resp.Status >= 200 {
			return nil
		}
		if s.resp.Status == 101 {
			if s.req.WebSocket && s.resp.WebSocket {
				return nil
			}
			return upstreamProtocol("it switched to a protocol that was not asked for")
		}
		if informational++; informational > maxInformational {
			return upstreamProtocol("too many informational responses")
		}
		if s.req.Minor == 0 {
			continue
		}
		// a.out is lost: after this nothing is sent again.
		a.informed = true
		if err := s.write(s.appendResponse(a.buf[:0], false, true)); err != nil {
			return &clientGone
		}
	}
}

// waited judges an error of reading from the upstream: nil means to go on.
func (a *attempt) waited(err error) *filter.Answer {
	s := a.s
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return a.slow()
	}
	if a.stale(err) {
		a.drop()
		return errStale
	}
	var broken *http1.Error
	if errors.As(err, &broken) {
		return upstreamProtocol(broken.Reason)
	}
	s.stopPump()
	if s.pump.fault != nil {
		return s.pump.fault
	}
	s.x.Upstream.Failure = err.Error()
	return upstreamClosed()
}

// slow goes on waiting for the upstream: from now on with an eye on the client, until nothing has moved for too long.
func (a *attempt) slow() *filter.Answer {
	s := a.s
	if !s.pump.running {
		s.startPump(a.up, false)
	}
	now := time.Now()
	if a.relaying {
		s.limits.try.Store(0)
	}
	if f := s.limits.passed(now); f != nil {
		return f
	}
	until := time.Unix(0, s.active.Load()).Add(s.e.cfg.Timeouts.StreamIdle)
	if !now.Before(until) {
		return &streamIdle
	}
	// Where the pump has closed the connection already, the next read says so.
	s.readUpstream(a.up, until)
	return nil
}

// relay passes on the final response. The fault is what cut it short.
func (a *attempt) relay() *filter.Answer {
	s := a.s
	a.relaying = true
	s.x.Status, s.x.Details = s.resp.Status, "via_upstream"
	a.grpcStatus(s.resp.Header)
	streamed := s.resp.Framing == http1.Chunked || s.resp.Framing == http1.UntilClose
	a.chunked = streamed && s.req.Minor == 1
	a.keep = s.mayKeep() && (!streamed || a.chunked)
	out := s.appendResponse(a.buf[:0], a.chunked, a.keep)
	src := a.up.Reader
	for !src.Done() {
		if len(out) > 0 && (!src.Ready() || cap(out)-len(out) < 1<<10) {
			if err := s.write(out); err != nil {
				return &clientGone
			}
			out = a.buf[:0]
		}
		var (
			n   int
			err error
		)
		out, n, err = appendBody(out, src, a.chunked)
		if n > 0 {
			s.x.BytesSent += int64(n)
			s.active.Store(time.Now().UnixNano())
		}
		if err != nil && !errors.Is(err, io.EOF) {
			if f := a.cut(err); f != nil {
				return f
			}
		}
	}
	if len(out) > 0 {
		if err := s.write(out); err != nil {
			return &clientGone
		}
	}
	a.grpcStatus(src.Trailer())
	return nil
}

// cut judges an error in the midst of a response: nil means to go on.
func (a *attempt) cut(err error) *filter.Answer {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return a.slow()
	}
	f := a.waited(err)
	if f != nil && f.Cause == filter.Reset {
		f.Details = "upstream_reset_after_response_started{connection_termination}"
	}
	return f
}

func (a *attempt) grpcStatus(h http1.Header) {
	if v, ok := h.First(http1.GRPCStatus); ok {
		a.s.x.GRPCStatus = 0
		for _, c := range v {
			if c < '0' || c > '9' || a.s.x.GRPCStatus > 1000 {
				a.s.x.GRPCStatus = -1
				return
			}
			a.s.x.GRPCStatus = a.s.x.GRPCStatus*10 + int(c-'0')
		}
	}
}

// finish ends an exchange whose response has begun.
func (a *attempt) finish(f *filter.Answer) outcome {
	s := a.s
	if f != nil {
		_ = a.up.Close() // before: the pump may wait for it to take more
	}
	s.stopPump()
	unsent := !s.in.Done()
	if a.pumped {
		a.mirror()
	}
	if f == nil && unsent {
		// Nil if the upstream did not want the rest.
		f = s.pump.fault
	}
	if f != nil {
		s.x.Flag, s.x.Details = s.x.Flag.With(f.Flag), f.Details
		a.drop()
		if a.chunked || s.resp.Framing == http1.Length {
			return ended // the framing tells that something is missing
		}
		return aborted
	}
	// A connection on which an upgrade was refused is not trusted with other requests.
	if s.resp.KeepAlive && !unsent && s.pump.fault == nil && !s.req.WebSocket {
		a.release()
	} else {
		a.drop()
	}
	switch {
	case unsent || !a.keep && s.in.Buffered() > 0:
		return lingering
	case a.keep:
		return goOn
	}
	return ended
}

// fail ends an exchange with a local answer, or without any where the client is gone.
func (a *attempt) fail(f *filter.Answer) outcome {
	s := a.s
	if a.up != nil {
		_ = a.up.Close() // before: the pump may wait for it to take more
	}
	s.stopPump()
	if a.pumped {
		a.mirror()
	}
	a.drop()
	switch {
	case s.answer(f, a.buf[:0]):
		return goOn
	case f.Status == 0:
		return ended
	}
	return lingering
}

// release gives the upstream connection back for other exchanges.
func (a *attempt) release() {
	a.endpoint.Done()
	a.up.Keep(a.s.resp.IdleTimeout)
	a.up = nil
}

// drop closes the upstream connection for good.
func (a *attempt) drop() {
	if a.up != nil {
		a.endpoint.Done()
		a.up.Discard()
		a.up = nil
	}
}
