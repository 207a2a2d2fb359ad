package http2

import "time"

// Frames that make work without moving a message are paid for from one budget per connection, so that every flood, of
// whatever mix, ends the same way: GOAWAY with ENHANCE_YOUR_CALM. What moves messages refills it, and so does time.
// A peer that resets half of its streams, or sends a WINDOW_UPDATE and a PING for each frame it gets, never runs dry;
// one that does nothing else is cut off after some thousand frames.
const (
	glitchBudget    = 4000
	glitchPerSecond = 400

	costControl  = 1   // PING, WINDOW_UPDATE, PRIORITY, RST_STREAM of a stream that is gone, unknown types
	costEmpty    = 4   // DATA without data, CONTINUATION
	costReset    = 8   // a stream that is reset by the peer, or by its fault
	costSettings = 16  // SETTINGS beyond the first
	costTooMuch  = 100 // a header block that is longer than allowed, decompressed

	gainData     = 4 // a DATA frame with data, in either direction
	gainExchange = 8 // a stream that ended in both directions as it should
)

type budget struct {
	left int
	at   time.Duration // of the last refill
}

// spend takes n and reports whether there was as much.
func (b *budget) spend(n int, now time.Duration) bool {
	if b.left -= n; b.left >= 0 {
		return true
	}
	seconds := int((now - b.at) / time.Second)
	if seconds > 0 {
		b.at = now
		b.earn(min(seconds, 60) * glitchPerSecond)
	}
	return b.left >= 0
}

func (b *budget) earn(n int) { b.left = min(b.left+n, glitchBudget) }
