package forward

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
)

// awaitResponse reads the head of the final response, and passes on those that come before it.
func (a *attempt) awaitResponse() *filter.Answer {
	s := a.s
	for informational := 0; ; {
		if err := a.up.response(&s.resp); err != nil {
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
			switch {
			case !s.req.WebSocket || !s.resp.WebSocket:
			case s.origin.http2 && !s.handshake.accepted(&s.resp):
				return upstreamProtocol("its Sec-WebSocket-Accept is not that of the key")
			default:
				return nil
			}
			return upstreamProtocol("it switched to a protocol that was not asked for")
		}
		if informational++; informational > maxInformational {
			return upstreamProtocol("too many informational responses")
		}
		// a.out may be lost: after this nothing is sent again.
		a.informed = true
		if err := s.client.inform(&s.resp, s.responseHead()); err != nil {
			return s.blame(err)
		}
	}
}

// waited judges an error of reading from the upstream: nil means to go on.
func (a *attempt) waited(err error) *filter.Answer {
	s := a.s
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return a.slow()
	}
	if a.up.lost(err) == unread && s.pump.running && !s.pump.spilled.Load() {
		// What the pump has sent is kept, and the rest comes after it.
		_ = a.up.Close()
		s.stopPump()
		if s.pump.fault != nil {
			return s.pump.fault
		}
	}
	if a.stale(err) && !s.pump.spilled.Load() {
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
	return a.reset(err)
}

// reset is the answer to an upstream that has ended an exchange before its time.
func (a *attempt) reset(err error) *filter.Answer {
	var r *http2.StreamError
	switch {
	case !errors.As(err, &r):
		return upstreamClosed()
	case errors.Is(err, http2.ErrStreamIdle):
		return &streamIdle
	case a.up.lost(err) == unread:
		return upstreamRefused()
	case r.Lost:
		return upstreamClosed()
	case !r.Remote:
		return upstreamProtocol(r.Reason)
	}
	return upstreamReset()
}

// slow goes on waiting for the upstream: from now on with an eye on the client, until nothing has moved for too long.
func (a *attempt) slow() *filter.Answer {
	s := a.s
	if !s.pump.running && !s.client.tells() {
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

// relay passes on the final response. The fault is what cut it short; begun says that the client has got some of it by
// then, so that no other answer can take its place.
func (a *attempt) relay() (f *filter.Answer, begun bool) {
	s := a.s
	a.relaying = true
	s.x.Status, s.x.Details = s.resp.Status, "via_upstream"
	a.grpcStatus(s.resp.Header)
	to, src := s.client, a.up
	if a.d.http2 && !s.origin.http2 && s.req.Minor == 1 && s.resp.Framing == http1.Length && announcesTrailer(s.resp.Header) {
		s.resp.Framing = http1.Chunked
	}
	if err := to.respond(&s.resp, s.responseHead()); err != nil {
		return s.blame(err), true
	}
	begun = !to.gathered()
	for more := s.resp.Framing != http1.NoBody; more; {
		if to.gathered() && (!src.Ready() || to.full()) {
			begun = true
			if err := to.flush(); err != nil {
				return s.blame(err), true
			}
		}
		if !to.gathered() {
			a.buf = await(src, a.buf)
		}
		n, err := to.take(src)
		if n > 0 {
			s.x.BytesSent += int64(n)
			s.active.Store(time.Now().UnixNano())
		}
		switch {
		case err == nil:
		case isEOF(err):
			more = false
		default:
			if f := a.cut(err, begun); f != nil {
				a.code(err)
				return f, begun
			}
		}
	}
	if to.gathered() {
		if err := to.flush(); err != nil {
			return s.blame(err), true
		}
	}
	a.grpcStatus(src.Trailer())
	return nil, true
}

// code keeps why the upstream's stream was reset, for a client that can be told.
func (a *attempt) code(err error) {
	var r *http2.StreamError
	if c, ok := a.s.client.(*client2); ok && errors.As(err, &r) && r.Remote && !r.Lost {
		c.code = r.Code
	}
}

func isEOF(err error) bool { return err == io.EOF || errors.Is(err, io.EOF) } //nolint:errorlint // the first is quick, and nearly always enough

// cut judges an error in the midst of a response: nil means to go on.
func (a *attempt) cut(err error, begun bool) *filter.Answer {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return a.slow()
	}
	f := a.waited(err)
	if f != nil && f.Cause == filter.Reset && begun {
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
	s.endPump(a.up)
	unsent := !s.in.Done()
	if a.pumped {
		a.mirror()
	}
	if left := s.pump.fault == &clientGone || s.pump.fault == &clientReset; f == nil && unsent && !left {
		// Nil if the upstream did not want the rest. A client that leaves has the whole response by now: that is no fault.
		f = s.pump.fault
	}
	if f != nil {
		s.x.Flag, s.x.Details = s.x.Flag.With(f.Flag), f.Details
		a.drop()
		return cut
	}
	// A connection on which an upgrade was refused is not trusted with other requests.
	if s.resp.KeepAlive && !unsent && s.pump.fault == nil && !s.req.WebSocket {
		a.release()
	} else {
		a.drop()
	}
	if unsent {
		return early
	}
	return whole
}

// replace ends an exchange whose response was cut short before the client had any of it: with an answer that says so, where
// closing the connection would leave the client to guess.
func (a *attempt) replace(f *filter.Answer) outcome {
	s := a.s
	s.f.Answer(f)
	s.x.BytesSent = 0
	return a.fail(f)
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
	case s.answer(f):
		return whole
	case f.Status == 0:
		return gone
	}
	return early
}

// release gives the upstream connection back for other exchanges.
func (a *attempt) release() {
	a.endpoint.Done()
	a.s.client.hold(nil)
	a.up.keep(a.s.resp.IdleTimeout)
	a.forget()
}

// drop closes the upstream connection for good.
func (a *attempt) drop() {
	if a.up != nil {
		a.endpoint.Done()
		a.s.client.hold(nil)
		a.up.discard()
		a.forget()
	}
}

// forget lets go of a link that was given back, and of the response's fields with it: those of a stream are in room of its
// own, which must not be where a later response of HTTP/1 is parsed into.
func (a *attempt) forget() {
	a.up = nil
	if a.d.http2 {
		a.s.resp.Header = nil
	}
}
