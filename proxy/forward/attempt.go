package forward

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// attempt carries out one decision: the Router at the end of a route's chain.
type attempt struct {
	s   *server
	t   *table.Table
	d   *decision
	buf *[http1.CopySize]byte
	// out is the request as far as it was at hand, in its form on the wire: the head, unless that goes to a stream of
	// HTTP/2 and is opening, and the beginning of the body.
	out     []byte
	head    int // how much of out is the head
	opening http2.Request
	first   []byte // a copy of the body in out, for mirrors that are sent after out is lost

	endpoint *upstream.Endpoint
	up       link
	one      link1                        // what up is, for HTTP/1
	two      link2                        // and for HTTP/2
	tried    [maxAvoid]*upstream.Endpoint // endpoints that have failed
	fails    int                          // how many
	pumped   bool                         // there was more of the body than what is in out
	sentAt   time.Time
	again    int  // how often this try has been begun: anew after each of which the upstream knows nothing
	answered bool // a response has begun, if only with a 1xx
	informed bool // a 1xx was passed on: the client has begun to get a response, and out is lost
	relaying bool // the final response is passed on
	retrying bool // it counts among the cluster's retries
	keyed    bool // key is what chooses the endpoint
	key      uint64
	cookie   []byte // to be set at the client, so that it brings the same key again
}

const (
	// maxAvoid is how many endpoints that have failed are avoided by further tries.
	maxAvoid = 5
	// maxAgain is how often a try is begun anew that the upstream knows nothing of: connections that others share may
	// end one after the other.
	maxAgain = 3
	// maxInformational bounds the 1xx responses before the final one.
	maxInformational = 16
	// patience is how long an upstream may take to answer before the client is watched meanwhile. Most answer
	// sooner, and then the exchange needs no second goroutine.
	patience = 50 * time.Millisecond
)

// run has the request served by the route's chain, and relays the response.
func (a *attempt) run() outcome {
	s := a.s
	x := &s.f
	if a.d.handler != nil {
		a.d.handler.Serve(x)
	} else {
		a.Try(x)
	}
	if a.retrying {
		a.d.cluster.EndRetry()
	}
	x.Amend()
	if s.rules.KeepsResponse() {
		x.Response.Header = x.Response.Header.Clone()
	}
	s.req.Header = x.Request.Header // it may have grown; the next request uses the room
	if x.Response.Local != nil {
		return a.fail(x.Response.Local)
	}
	s.resp.Header = x.Response.Header
	if s.resp.WebSocket {
		return a.upgraded()
	}
	f, begun := a.relay()
	if f != nil && !begun {
		return a.replace(f)
	}
	return a.finish(f)
}

// Try sends the request and waits for the response's head.
func (a *attempt) Try(x *filter.Exchange) {
	f := a.try()
	a.report(f)
	if f != nil {
		x.Answer(f)
		return
	}
	if a.d.cluster != nil {
		a.d.cluster.Reached()
	}
	a.s.limits.try.Store(0)
	x.Response = filter.Response{Status: a.s.resp.Status, Header: a.withCookie(a.s.resp.Header)}
}

func (a *attempt) try() *filter.Answer {
	s := a.s
	if a.d.fault != nil {
		return a.d.fault
	}
	if a.out == nil {
		if f := a.prepare(); f != nil {
			return f
		}
	}
	a.again = 0
	f := a.once(false)
	for f == errStale {
		// The peer closed the connection as we took it, or refused the stream, so this request was not worked on: once
		// more, anew.
		a.again++
		f = a.once(true)
	}
	if f == nil && a.undelivered() {
		f = connectFailure(errUndelivered)
	}
	if f != nil {
		s.resp.WebSocket = false
	}
	return f
}

// once sends the request and waits for the response's head.
func (a *attempt) once(anew bool) *filter.Answer {
	if f := a.send(anew); f != nil {
		return f
	}
	return a.awaitResponse()
}

// errUndelivered is a failure to connect that another proxy has had.
var errUndelivered = errors.New("the peer's proxy could not connect to its application")

// undelivered reports whether the peer's proxy says that the application knows nothing of the request, so that it is as safe
// to send it elsewhere as if we had not reached the peer. Only a proxy of the mesh is believed.
func (a *attempt) undelivered() bool {
	if a.s.resp.Status != http.StatusServiceUnavailable || a.endpoint.Identity == "" {
		return false
	}
	_, told := a.s.resp.Header.First(http1.Undelivered)
	return told
}

// prepare makes what is sent at each try.
func (a *attempt) prepare() *filter.Answer {
	s := a.s
	self := ""
	if w := a.t.Self(); w != nil {
		self = w.Identity
	}
	if s.origin.http2 && !a.d.http2 && s.req.Framing == http1.Length && announcesTrailer(s.f.Request.Header) {
		s.req.Framing = http1.Chunked // HTTP/1 has no other place for them
	}
	s.requestHead(self)
	if a.d.http2 {
		a.out = a.buf[:0]
		a.opening = http2.Request{Request: http1.Request{
			Method: s.f.Request.Method, Path: s.f.Request.Path, Authority: s.authority(), Header: s.head,
		}, Scheme: s.schemeOf()}
	} else {
		a.out = s.appendRequest(a.buf[:0])
	}
	a.head = len(a.out)
	if f := a.bodyAtHand(); f != nil {
		return f
	}
	a.pumped = !s.in.Done()
	s.pump.keep = a.pumped && (a.d.http2 || s.f.Replay || len(s.f.Mirrors) > 0)
	s.pump.most = maxKept
	if !s.f.Replay && len(s.f.Mirrors) == 0 {
		s.pump.most = maxRefused
	}
	if a.pumped && len(s.f.Mirrors) > 0 {
		a.first = slices.Clone(a.out[a.head:])
	}
	if !a.pumped {
		if s.f.Timeout > 0 {
			s.requestComplete(time.Now())
		}
		a.mirror()
	}
	return nil
}

// framed reports whether the request's body is sent in chunks of HTTP/1.
func (a *attempt) framed() bool { return !a.d.http2 && a.s.req.Framing == http1.Chunked }

// bare reports whether the request ends with its head.
func (a *attempt) bare() bool { return a.s.req.Framing == http1.NoBody }

// Again gives up a try, so that there can be another.
func (a *attempt) Again(x *filter.Exchange) bool {
	s := a.s
	if a.informed || a.pumped && a.sent() && (!s.pump.keep || s.pump.spilled.Load()) {
		return false
	}
	if !a.mayRetry() {
		s.x.Flag = s.x.Flag.With(exchange.FlagUpstreamOverflow)
		return false
	}
	if a.up != nil {
		s.resp.KeepAlive = s.resp.KeepAlive && a.answered && a.up.Done() && !s.pump.running
		if s.resp.KeepAlive {
			a.release()
		} else {
			// Closed first, so that a pump which waits for it to take more comes to its end.
			_ = a.up.Close()
		}
	}
	s.stopPump()
	a.drop()
	if s.pump.fault != nil {
		x.Answer(s.pump.fault)
		return false
	}
	if s.pump.spilled.Load() {
		x.Answer(upstreamClosed()) // there was too much to send again, and there is no way back
		return false
	}
	if a.endpoint != nil && a.fails < maxAvoid {
		a.tried[a.fails] = a.endpoint
		a.fails++
	}
	a.answered = false
	s.limits.try.Store(0)
	x.Response = filter.Response{}
	return true
}

// Awaits turns to the endpoints that the destination has by now, where it is expected to come back in time.
func (a *attempt) Awaits(x *filter.Exchange) bool {
	s, c := a.s, a.d.cluster
	if c == nil || c.Service == nil || !c.Awaits(s.e.cfg.Timeouts.Comeback) {
		return false
	}
	if s.in.Done() {
		s.requestComplete(time.Now())
	}
	if t := s.limits.total.Load(); t != 0 && time.Until(time.Unix(0, t)) < time.Second {
		return false // there is a better answer than that the time is over
	}
	now := s.e.cfg.Table().ClusterAt(c.Service.Host, c.Subset, a.d.asked)
	if now == nil || !now.Continues(c) {
		return false
	}
	if now != c {
		a.d.cluster, a.fails = now, 0
	}
	a.d.fault = nil
	return true
}

// sent reports whether something of the body has left through the pump, at this try or before.
func (a *attempt) sent() bool { return a.s.pump.running || !a.sentAt.IsZero() }

// Wait passes the time d with an eye on the client.
func (a *attempt) Wait(x *filter.Exchange, d time.Duration) bool {
	s := a.s
	late := false
	if t := s.limits.total.Load(); t != 0 {
		if left := time.Until(time.Unix(0, t)); left <= d {
			d, late = left, true
		}
	}
	if !s.client.tells() {
		s.startPump(nil, false)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	done := s.ctx.Done()
	for waiting := true; waiting; {
		select {
		case <-timer.C:
			waiting = false
		case <-done:
			waiting = false
		case <-s.client.left():
			waiting = false
		case <-s.pump.done:
			s.pump.done <- struct{}{} // for stopPump
			if s.pump.fault == nil {
				// The client is there, with its next request or more of this one.
				select {
				case <-timer.C:
				case <-done:
				}
			}
			waiting = false
		}
	}
	s.stopPump()
	switch {
	case s.pump.fault != nil:
		x.Answer(s.pump.fault)
		return false
	case s.ctx.Err() != nil:
		x.Answer(&clientGone)
		return false
	case late:
		x.Answer(&requestTimeout)
		return false
	}
	return true
}

// bodyAtHand appends what has already come of the body, so that a small request leaves in one write and without a pump, and
// a broken one not at all.
func (a *attempt) bodyAtHand() *filter.Answer {
	s := a.s
	if s.in.Done() {
		return nil
	}
	prompt := s.client.prompt(true)
	defer s.client.prompt(false)
	for !s.in.Done() && (prompt || s.in.Ready()) && cap(a.out)-len(a.out) >= 1<<10 {
		out, n, err := appendBody(a.out, s.in, a.framed())
		a.out = out
		s.x.BytesReceived += int64(n)
		switch {
		case err == nil || isEOF(err):
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		default:
			return s.blame(err)
		}
	}
	return nil
}

// blame judges an error of reading the request's body.
func (s *server) blame(err error) *filter.Answer {
	var broken *http1.Error
	if errors.As(err, &broken) {
		return clientProtocol(broken)
	}
	if f := s.client.gone(); f != nil {
		return f
	}
	return departure(err)
}

// errStale is not an answer: the request is to be sent again.
var errStale = &filter.Answer{}

// send connects and writes what is at hand.
func (a *attempt) send(anew bool) *filter.Answer {
	s := a.s
	s.x.Upstream.Failure = ""
	if f := a.connect(anew || s.req.WebSocket); f != nil {
		return f
	}
	l := a.up.About()
	s.x.Upstream.Local, s.x.Upstream.Remote, s.x.Upstream.TLS = l.Local, l.Remote, l.TLS
	uploads := !s.in.Done()
	err := a.up.request(a, !uploads)
	a.sentAt = time.Now()
	if err != nil && a.stale(err) {
		a.drop()
		return errStale
	}
	if !uploads {
		s.trySent(a.sentAt)
	}
	// After another error there may still be an answer to read.
	switch {
	case !s.client.tells():
		s.readUpstream(a.up, a.sentAt.Add(patience))
	case !a.d.http2 || s.limits.first() != 0:
		s.readUpstream(a.up, a.sentAt.Add(s.e.cfg.Timeouts.StreamIdle))
	}
	s.active.Store(a.sentAt.UnixNano())
	if uploads && err == nil {
		s.startPump(a.up, true)
	}
	return nil
}

// stale reports whether the request got nowhere and is to be sent again: one that the upstream says it has not read, or an
// idempotent one without a body (RFC 9110 section 9.2.2) whose connection was closed by the upstream as it was taken.
func (a *attempt) stale(err error) bool {
	s := a.s
	if a.again >= maxAgain || a.answered || s.pump.running {
		return false
	}
	switch a.up.lost(err) {
	case unread:
		return !a.informed
	case raced:
		return a.bare() && idempotent(s.req.Method)
	}
	return false
}

func idempotent(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// connect gets a connection to an endpoint of the decision.
func (a *attempt) connect(anew bool) *filter.Answer {
	s := a.s
	a.endpoint = a.choose()
	if a.endpoint == nil {
		return &noHealthyUpstream
	}
	if w := a.endpoint.Workload; w != nil {
		s.x.Ends.Destination = w
	}
	s.x.Upstream.Remote = a.endpoint.Target(a.d.port).Addr
	if !a.endpoint.Begin() {
		return &overflow
	}
	up, err := a.dial(anew)
	if err == nil {
		a.up = up
		s.client.hold(up)
		return nil
	}
	a.endpoint.Done()
	if f := s.limits.passed(time.Now()); f != nil {
		return f
	}
	if errors.Is(err, upstream.ErrOverflow) {
		return &overflow
	}
	s.x.Upstream.Failure = err.Error()
	return connectFailure(err)
}

// dial gets a connection of HTTP/1, or a stream of HTTP/2. anew demands one that has carried no exchange before; streams
// are always new.
func (a *attempt) dial(anew bool) (link, error) {
	s := a.s
	tr, port := s.e.cfg.Transport, a.d.port
	if !anew && !a.d.http2 {
		if c := a.endpoint.Idle(tr, port); c != nil {
			a.one = link1{Conn: c, toHead: string(s.req.Method) == "HEAD"}
			return &a.one, nil
		}
	}
	ctx := s.ctx
	if to := a.endpoint.Target(port); to.NamesClients() {
		ctx = upstream.For(ctx, s.c.Downstream(), s.c.OriginalDst)
	}
	if t := s.limits.total.Load(); t != 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, time.Unix(0, t))
		defer cancel()
	}
	if a.d.http2 {
		st, err := a.endpoint.Open(ctx, tr, port, &a.opening, a.bare())
		if err != nil {
			return nil, err
		}
		a.two = link2{st}
		return &a.two, nil
	}
	c, err := a.endpoint.Dial(ctx, tr, port)
	if err != nil {
		return nil, err
	}
	a.one = link1{Conn: c, toHead: string(s.req.Method) == "HEAD"}
	return &a.one, nil
}

func (a *attempt) choose() *upstream.Endpoint {
	s := a.s
	switch {
	case a.d.cluster != nil:
		return a.balance(a.d.cluster)
	case a.d.endpoint != nil:
		return a.d.endpoint
	case a.d.tls != nil:
		return s.e.cfg.Transport.Originate(a.d.address, a.d.tls, a.d.serverName)
	}
	if s.plain == nil {
		s.plain = s.e.cfg.Transport.Plain(a.d.address)
	}
	return s.plain
}
