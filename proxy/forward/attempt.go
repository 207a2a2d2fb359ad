package forward

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// attempt carries out one decision.
type attempt struct {
	s   *server
	d   *decision
	buf *[http1.CopySize]byte
	out []byte // the request's head, and its body as far as it had come along with it

	endpoint *upstream.Endpoint
	up       *upstream.Conn
	uploads  bool // there is more of the body than what is in out
	sentAt   time.Time
	chunked  bool // the response's body, to the client
	keep     bool
	answered bool // a response has begun, if only with a 1xx
}

const (
	// maxConnects is how many endpoints are tried before a connection stands.
	maxConnects = 3
	// maxInformational bounds the 1xx responses before the final one.
	maxInformational = 16
	// patience is how long an upstream may take to answer before the client is watched meanwhile. Most answer
	// sooner, and then the exchange needs no second goroutine.
	patience = 50 * time.Millisecond
)

// run sends the request and relays the response.
func (a *attempt) run(self string) outcome {
	s := a.s
	a.out = s.appendRequest(a.buf[:0], self)
	if f := a.bodyAtHand(); f != nil {
		return a.fail(f)
	}
	a.uploads = !s.in.Done()
	f := a.send(false)
	if f == nil {
		f = a.awaitResponse()
	}
	if f == errStale {
		// The peer closed the idle connection as we took it, so this request was not worked on: once more, anew.
		f = a.send(true)
		if f == nil {
			f = a.awaitResponse()
		}
	}
	if f != nil {
		return a.fail(f)
	}
	if s.resp.WebSocket {
		return a.upgraded()
	}
	return a.finish(a.relay())
}

// bodyAtHand appends what has already come of the body, so that a small request leaves in one write, and a broken one
// not at all.
func (a *attempt) bodyAtHand() *fault {
	s := a.s
	for !s.in.Done() && s.in.Ready() && cap(a.out)-len(a.out) >= 1<<10 {
		out, n, err := appendBody(a.out, s.in, s.req.Framing == http1.Chunked)
		a.out = out
		s.x.BytesReceived += int64(n)
		if err == nil || errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		var broken *http1.Error
		if errors.As(err, &broken) {
			return clientProtocol(broken)
		}
		return &clientGone
	}
	return nil
}

// errStale is not an answer: the request is to be sent again.
var errStale = &fault{}

// send connects, to another endpoint where one does not take the connection, and writes what is at hand.
func (a *attempt) send(anew bool) *fault {
	s := a.s
	if f := a.connect(anew || s.req.WebSocket); f != nil {
		return f
	}
	s.x.Upstream.Local, s.x.Upstream.Remote, s.x.Upstream.TLS = a.up.Local, a.up.Remote, a.up.TLS
	_, err := a.up.Write(a.out)
	a.sentAt = time.Now()
	if err != nil && a.stale(err) {
		a.drop()
		return errStale
	}
	// After another error there may still be an answer to read.
	_ = a.up.SetReadDeadline(a.sentAt.Add(patience))
	s.active.Store(a.sentAt.UnixNano())
	if a.uploads && err == nil {
		s.startPump(a.up, true)
	}
	return nil
}

// stale reports whether the connection was closed by the peer before it took the request, and the request may be sent
// again: only an idempotent one without a body (RFC 9110 section 9.2.2).
func (a *attempt) stale(err error) bool {
	if !a.up.Reused || a.answered || a.up.Reader.Buffered() > 0 || a.s.req.Framing != http1.NoBody || a.s.pump.running {
		return false
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !isReset(err) {
		return false
	}
	switch string(a.s.req.Method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// connect gets a connection to an endpoint of the decision.
func (a *attempt) connect(anew bool) *fault {
	s := a.s
	var tried [maxConnects]*upstream.Endpoint
	for n := 0; ; n++ {
		a.endpoint = a.choose(tried[:n])
		if w := a.endpoint.Workload; w != nil {
			s.x.Ends.Destination = w
		}
		s.x.Upstream.Remote = a.endpoint.Target(a.d.port).Addr
		a.endpoint.Begin()
		up, err := a.endpoint.Get(s.ctx, s.e.cfg.Transport, a.d.port, anew)
		if err == nil {
			a.up = up
			return nil
		}
		a.endpoint.Done()
		s.x.Upstream.Failure = err.Error()
		tried[n] = a.endpoint
		if a.d.cluster == nil || n+1 >= min(maxConnects, len(a.d.cluster.Endpoints)) || s.ctx.Err() != nil {
			return connectFailure(err)
		}
	}
}

func (a *attempt) choose(avoid []*upstream.Endpoint) *upstream.Endpoint {
	s := a.s
	switch {
	case a.d.cluster != nil:
		return a.d.cluster.Pick(avoid)
	case a.d.endpoint != nil:
		return a.d.endpoint
	}
	if s.plain == nil {
		s.plain = s.e.cfg.Transport.Plain(a.d.address)
	}
	return s.plain
}

// awaitResponse reads the head of the final response, and passes on those that come before it.
func (a *attempt) awaitResponse() *fault {
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
		// a.out is not needed any more once an upstream has begun to answer.
		if err := s.write(s.appendResponse(a.buf[:0], false, true)); err != nil {
			return &clientGone
		}
	}
}

// waited judges an error of reading from the upstream: nil means to go on.
func (a *attempt) waited(err error) *fault {
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
func (a *attempt) slow() *fault {
	s := a.s
	if !s.pump.running {
		s.startPump(a.up, false)
	}
	until := time.Unix(0, s.active.Load()).Add(s.e.cfg.Timeouts.StreamIdle)
	if !time.Now().Before(until) {
		return &streamIdle
	}
	// Where the pump has closed the connection already, the next read says so.
	_ = a.up.SetReadDeadline(until)
	return nil
}

// relay passes on the final response. The fault is what cut it short.
func (a *attempt) relay() *fault {
	s := a.s
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
func (a *attempt) cut(err error) *fault {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return a.slow()
	}
	f := a.waited(err)
	if f != nil && !f.client {
		f.details = "upstream_reset_after_response_started{connection_termination}"
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
func (a *attempt) finish(f *fault) outcome {
	s := a.s
	s.stopPump()
	unsent := !s.in.Done()
	if f == nil && unsent {
		// Nil if the upstream did not want the rest.
		f = s.pump.fault
	}
	if f != nil {
		s.x.Flag, s.x.Details = f.flag, f.details
		a.drop()
		if a.chunked || s.resp.Framing == http1.Length {
			return ended // the framing tells that something is missing
		}
		return aborted
	}
	// A connection on which an upgrade was refused is not trusted with other requests.
	if s.resp.KeepAlive && !unsent && s.pump.fault == nil && !s.req.WebSocket {
		a.endpoint.Done()
		a.up.Keep(s.resp.IdleTimeout)
		a.up = nil
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
func (a *attempt) fail(f *fault) outcome {
	s := a.s
	s.stopPump()
	a.drop()
	switch {
	case s.answer(f, a.buf[:0]):
		return goOn
	case f.status == 0:
		return ended
	}
	return lingering
}

// drop closes the upstream connection for good.
func (a *attempt) drop() {
	if a.up != nil {
		a.endpoint.Done()
		a.up.Discard()
		a.up = nil
	}
}
