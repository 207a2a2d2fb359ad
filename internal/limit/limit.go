// Package limit bounds how often each of many callers may ask.
package limit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// PerCaller is a token bucket for each caller. Set its fields before the first use; it may then be used by many goroutines.
type PerCaller struct {
	Rate  rate.Limit // a second
	Burst int

	mu   sync.Mutex
	each map[string]*rate.Limiter
}

// maxCallers bounds the memory: beyond it, callers that have not asked for a while are forgotten, which gives them no more
// than they have anyway.
const maxCallers = 1024

// Allow reports whether the caller may ask at the time now.
func (l *PerCaller) Allow(caller string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.each == nil {
		l.each = map[string]*rate.Limiter{}
	}
	if len(l.each) >= maxCallers {
		for c, lim := range l.each {
			if lim.TokensAt(now) >= float64(l.Burst) {
				delete(l.each, c)
			}
		}
	}
	if l.each[caller] == nil {
		l.each[caller] = rate.NewLimiter(l.Rate, l.Burst)
	}
	return l.each[caller].AllowN(now, 1)
}
