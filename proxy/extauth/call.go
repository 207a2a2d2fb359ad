package extauth

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// reply is what an authorizer answers.
type reply struct {
	status          int
	header, trailer http1.Header
	body            []byte
}

// maxReply bounds the body of a reply.
const maxReply = 1 << 20

var (
	errUnknown  = errors.New("this proxy knows no such service")
	errNobody   = errors.New("the service has no endpoint that is well")
	errBusy     = errors.New("the service's policy allows no more requests")
	errTooLarge = fmt.Errorf("its answer has more than %d bytes", maxReply)
)

// attempts are how often a question is sent whose connection an idle server has closed just then.
const attempts = 2

// call sends the question and reads the reply.
func (q *Question) call(ctx context.Context, tr *upstream.Transport) (reply, error) {
	p := q.p
	if p.Cluster == nil {
		return reply{}, fmt.Errorf("%s:%d: %w", p.Host, p.Authorizer.Port, errUnknown)
	}
	for again := 1; ; again++ {
		e := p.Cluster.Pick(nil)
		if e == nil {
			return reply{}, fmt.Errorf("%s: %w", p.Host, errNobody)
		}
		if !e.Begin() {
			return reply{}, fmt.Errorf("%s: %w", p.Host, errBusy)
		}
		r, stale, err := q.send(ctx, tr, e, again > 1)
		e.Done()
		if err == nil || !stale || again == attempts || ctx.Err() != nil {
			return r, err
		}
	}
}

func (q *Question) send(ctx context.Context, tr *upstream.Transport, e *upstream.Endpoint, anew bool) (r reply, stale bool, err error) {
	if q.p.GRPC || q.p.HTTP2 {
		return q.sendHTTP2(ctx, tr, e)
	}
	return q.sendHTTP1(ctx, tr, e, anew)
}

func (q *Question) sendHTTP1(ctx context.Context, tr *upstream.Transport, e *upstream.Endpoint, anew bool) (r reply, stale bool, err error) {
	var c *upstream.Conn
	if !anew {
		c = e.Idle(tr, q.p.Port)
	}
	if c == nil {
		if c, err = e.Dial(ctx, tr, q.p.Port); err != nil {
			return r, false, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	idle, keep, err := q.exchange(c, &r)
	if !stop() {
		keep, err = false, ctx.Err()
	}
	if keep {
		c.Keep(idle)
		return r, false, err
	}
	stale = c.Reused && c.Reader.Buffered() == 0 && r.status == 0
	c.Discard()
	return r, stale, err
}

// exchange writes the request and reads its response. What is read is copied, since the connection goes back.
func (q *Question) exchange(c *upstream.Conn, r *reply) (idle time.Duration, keep bool, err error) {
	out := http1.AppendRequestLine(nil, q.head.Method, q.head.Path)
	out = http1.AppendField(out, "Host", q.head.Authority)
	for i := range q.head.Header {
		out = http1.AppendField(out, q.head.Header[i].Name, q.head.Header[i].Value)
	}
	out = append(append(out, "\r\n"...), q.body...)
	if _, err := c.Write(out); err != nil {
		return 0, false, err
	}
	var p http1.Response
	for p.Status < 200 {
		err := c.Reader.ParseResponse(&p, string(q.head.Method) == "HEAD")
		switch {
		case errors.Is(err, http1.ErrIncomplete):
			if err := c.Reader.Fill(); err != nil {
				return 0, false, err
			}
		case err != nil:
			return 0, false, err
		case p.Status == 101:
			return 0, false, errors.New("it switches protocols")
		}
	}
	r.status, r.header = p.Status, p.Header.Clone()
	if r.body, err = readAll(c.Reader); err != nil {
		return 0, false, err
	}
	return p.IdleTimeout, p.KeepAlive && c.Reader.Done(), nil
}

func (q *Question) sendHTTP2(ctx context.Context, tr *upstream.Transport, e *upstream.Endpoint) (r reply, stale bool, err error) {
	head := q.head
	if until, ok := ctx.Deadline(); ok && q.p.GRPC {
		left := max(time.Until(until).Milliseconds(), 1)
		head.Header = append(head.Header[:len(head.Header):len(head.Header)], http1.NewField("grpc-timeout", strconv.FormatInt(left, 10)+"m"))
	}
	s, err := e.Open(ctx, tr, q.p.Port, &http2.Request{Request: head, Scheme: []byte("http")}, len(q.body) == 0)
	if err != nil {
		return r, errors.Is(err, http2.ErrUnavailable), err
	}
	stop := context.AfterFunc(ctx, s.Close)
	defer func() {
		if !stop() {
			err = ctx.Err()
		}
		s.Release()
	}()
	if len(q.body) > 0 {
		if err := s.Write(q.body, true); err != nil {
			return r, http2.Lost(err) || http2.Unprocessed(err), err
		}
	}
	for r.status < 200 {
		p, err := s.Response()
		if err != nil {
			return r, http2.Lost(err) || http2.Unprocessed(err), err
		}
		r.status, r.header = p.Status, p.Header.Clone()
	}
	if r.body, err = readAll(s); err != nil {
		return r, false, err
	}
	r.trailer = s.Trailer().Clone()
	return r, false, nil
}

func readAll(from io.Reader) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(from, maxReply+1))
	if err == nil && len(body) > maxReply {
		return nil, errTooLarge
	}
	return body, err
}

// grpcHead is that of a call of Authorization/Check
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
func grpcHead(p *Provider) http1.Request {
	return http1.Request{
		Method: []byte("POST"), Path: []byte("/envoy.service.auth.v3.Authorization/Check"), Authority: []byte(p.Host + ":" + strconv.Itoa(int(p.Authorizer.Port))),
		Header: http1.Header{http1.NewField("content-type", "application/grpc"), http1.NewField("te", "trailers")},
	}
}

// frame is a message as gRPC sends it: uncompressed, behind its length.
func frame(m []byte) []byte {
	out := make([]byte, 5, 5+len(m))
	binary.BigEndian.PutUint32(out[1:], uint32(len(m))) //nolint:gosec // a body is bounded, and so is a head
	return append(out, m...)
}

// grpcVerdict reads the reply to a call.
func (q *Question) grpcVerdict() (*verdict, error) {
	r := &q.reply
	if r.status != 200 {
		return nil, fmt.Errorf("it answers with %d to a call of gRPC", r.status)
	}
	trailer := r.trailer
	if len(r.body) == 0 && !has(trailer, "grpc-status") {
		trailer = r.header // a call that fails may have nothing else
	}
	status, message := "", ""
	for i := range trailer {
		switch f := &trailer[i]; {
		case http1.EqualFold(f.Name, "grpc-status"):
			status = string(f.Value)
		case http1.EqualFold(f.Name, "grpc-message"):
			message = string(f.Value)
		}
	}
	if status != "0" {
		if plain, err := url.PathUnescape(message); err == nil {
			message = plain
		}
		return nil, fmt.Errorf("its call ends with status %q: %s", status, message)
	}
	if len(r.body) < 5 || r.body[0] != 0 || int(binary.BigEndian.Uint32(r.body[1:])) != len(r.body)-5 {
		return nil, errors.New("its answer is not one message, uncompressed")
	}
	return checkResponse(r.body[5:])
}
