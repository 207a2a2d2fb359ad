package forward

import (
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/filter"
)

// limits are the times at which an exchange, or a try of it, has lasted too long, in unix nanoseconds; 0 is never. They
// begin with the request's last byte, so the pump may be the one to set them.
type limits struct {
	total, try atomic.Int64
}

func (l *limits) reset() {
	// Seldom anything is set, and loads are cheaper than stores.
	if l.total.Load() != 0 {
		l.total.Store(0)
	}
	if l.try.Load() != 0 {
		l.try.Store(0)
	}
}

// requestComplete starts the exchange's time, unless it runs already: the whole of the request has come.
func (s *server) requestComplete(now time.Time) {
	if t := s.f.Timeout; t > 0 && s.limits.total.Load() == 0 {
		s.limits.total.Store(now.Add(t).UnixNano())
	}
}

// requestSent starts the times that begin with the end of the request, in the midst of a wait for the response.
func (s *server) requestSent(up link) {
	if s.f.Timeout == 0 && s.f.PerTry == 0 {
		return
	}
	now := time.Now()
	s.requestComplete(now)
	s.trySent(now)
	if t := s.limits.first(); t != 0 {
		// Whoever waits sets deadlines too, and looks at the limits afterwards: the earlier one stands in the end.
		_ = up.SetReadDeadline(time.Unix(0, t))
	}
}

func (s *server) trySent(now time.Time) {
	if t := s.f.PerTry; t > 0 {
		s.limits.try.Store(now.Add(t).UnixNano())
	}
}

// first is the earlier one, 0 if there is none.
func (l *limits) first() int64 {
	total, try := l.total.Load(), l.try.Load()
	if total == 0 || try != 0 && try < total {
		return try
	}
	return total
}

// passed is the answer for the limit that is over, nil if none is.
func (l *limits) passed(now time.Time) *filter.Answer {
	n := now.UnixNano()
	if t := l.total.Load(); t != 0 && n >= t {
		return &requestTimeout
	}
	if t := l.try.Load(); t != 0 && n >= t {
		return &perTryTimeout
	}
	return nil
}

// readUpstream gives reading from the upstream a deadline: t, or a limit that comes before.
func (s *server) readUpstream(up link, t time.Time) {
	_ = up.SetReadDeadline(t)
	if l := s.limits.first(); l != 0 && l < t.UnixNano() {
		_ = up.SetReadDeadline(time.Unix(0, l))
	}
}
