package forward

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/composure-mesh/composure/proxy/extauth"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/table"
)

// authorize asks the extension providers that have to allow the request. They are the first to see it, so that what they put
// into it, such as a token, is checked as what the client has sent
// (https://istio.io/latest/docs/concepts/security/#implicit-enablement).
func (s *server) authorize(t *table.Table) *filter.Answer {
	for _, asked := range t.Access().Ask(&s.f) {
		if refused := s.ask(t, asked.Provider, asked.Rule.Name); refused != nil {
			return refused
		}
	}
	return nil
}

func (s *server) ask(t *table.Table, provider, rule string) *filter.Answer {
	p := t.Authorizer(provider)
	if p == nil {
		return extauth.Unknown(rule)
	}
	body, refused := s.seen(p)
	if refused != nil {
		return refused
	}
	self := ""
	if w := t.Self(); w != nil {
		self = w.Identity
	}
	q := extauth.New(p, rule, self, s.c, &s.f, body)
	if gone := s.await(q); gone != nil {
		return gone
	}
	answer, err := q.Finish(&s.f)
	if err != nil {
		s.x.Upstream.Failure = err.Error() // the access log says why
		s.e.cfg.Log.Debug("an external authorizer can't be asked", "rule", rule, "fail_open", p.FailOpen, "error", err)
	}
	return answer
}

// await asks, with an eye on the client where it takes long. It is not nil where that leaves.
func (s *server) await(q *extauth.Question) *filter.Answer {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Ask(ctx, s.e.cfg.Transport)
	}()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
	}
	if !s.client.tells() {
		s.startPump(nil, false)
	}
	left, pumped := s.client.left(), s.pump.done
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-left:
			left = nil
			cancel()
		case <-pumped:
			s.pump.done <- struct{}{} // for stopPump
			pumped = nil
			if s.pump.fault != nil {
				cancel()
			}
		}
	}
	s.stopPump()
	return s.pump.fault
}

// seen is as much of the request's body as p is to see. It is sent on with the rest.
func (s *server) seen(p *extauth.Provider) (extauth.Body, *filter.Answer) {
	if p.Body == nil || s.in.Done() {
		return extauth.Body{}, nil
	}
	most := int(p.Body.MaxBytes)
	if s.req.Framing == http1.Length && s.req.Length > int64(most) && !p.Body.Partial {
		return extauth.Body{}, extauth.TooLarge()
	}
	if s.req.Continue {
		s.req.Continue = false
		if err := s.client.inform(&http1.Response{Status: 100, Reason: []byte("Continue")}, nil); err != nil {
			return extauth.Body{}, &clientGone
		}
	}
	in, ok := s.in.(*ahead)
	if !ok {
		in = &ahead{source: s.in}
		s.in = in
	}
	s.pump.ran = true // the deadlines of reading are others now
	for len(in.kept) <= most && !in.ended {
		_ = s.client.SetReadDeadline(time.Now().Add(s.e.cfg.Timeouts.StreamIdle))
		err := in.more(most + 1)
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return extauth.Body{}, &streamIdle
		default:
			return extauth.Body{}, s.blame(err)
		}
	}
	switch {
	case len(in.kept) <= most:
		return extauth.Body{Bytes: in.kept}, nil
	case !p.Body.Partial:
		return extauth.Body{}, extauth.TooLarge()
	}
	return extauth.Body{Bytes: in.kept[:most], Cut: true}, nil
}

// ahead is a body of which the beginning has been read, and is read once more.
type ahead struct {
	source
	kept  []byte
	at    int  // how much of it was read again
	ended bool // kept is all
	done  bool
}

// more reads on until there are at most n bytes.
func (b *ahead) more(n int) error {
	have := len(b.kept)
	room := min(n-have, http1.CopySize)
	b.kept = append(b.kept, make([]byte, room)...)
	got, err := b.source.Read(b.kept[have:])
	b.kept = b.kept[:have+got]
	if isEOF(err) {
		b.ended = true
		return nil
	}
	return err
}

func (b *ahead) Read(p []byte) (int, error) {
	if b.at == len(b.kept) && !b.ended {
		n, err := b.source.Read(p)
		b.done = isEOF(err)
		return n, err
	}
	n := copy(p, b.kept[b.at:])
	b.at += n
	if b.ended && b.at == len(b.kept) {
		b.done = true
		return n, io.EOF
	}
	return n, nil
}

func (b *ahead) Done() bool  { return b.done }
func (b *ahead) Ready() bool { return b.at < len(b.kept) || b.ended || b.source.Ready() }

// Await waits until Read would not.
func (b *ahead) Await() {
	if w, ok := b.source.(waiter); ok && !b.Ready() {
		w.Await()
	}
}
