package ratelimit

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

const start = int64(1_800_000_000) * int64(time.Second)

// TestCellNeverLetsMorePass holds each algorithm against what it promises, for random traffic: whatever is taken is noted,
// and counted anew by the definition.
func TestCellNeverLetsMorePass(t *testing.T) {
	for _, algorithm := range []snapshot.Algorithm{snapshot.FixedWindow, snapshot.SlidingWindow, snapshot.TokenBucket} {
		for seed := range uint64(20) {
			t.Run(fmt.Sprint(algorithm, seed), func(t *testing.T) {
				r := rand.New(rand.NewPCG(seed, 1))
				rate := &snapshot.Rate{Limit: 1 + r.Int64N(20), Window: 1 + r.Int64N(3000), Algorithm: algorithm}
				w := rate.Window * int64(time.Millisecond)
				var c Cell
				type taken struct{ at, n int64 }
				var all []taken
				passed := int64(0)
				for now := start; now < start+20*w; now += 1 + r.Int64N(w/4) {
					want := 1 + r.Int64N(3)
					left := c.Left(rate, now)
					got := c.Take(rate, now, want, false)
					all, passed = append(all, taken{now, got}), passed+got
					if got != min(want, left) {
						t.Fatalf("took %d of %d with %d left", got, want, left)
					}
					if got < want {
						wait := c.Wait(rate, now, 1)
						then := Cell{window: c.window, used: c.used, parts: slices.Clone(c.parts), newest: c.newest, full: c.full}
						if left := then.Left(rate, now+int64(wait)); wait < 0 || left == 0 {
							t.Fatalf("waits %s, and then %d are left", wait, left)
						}
						now += int64(wait) / 2
					}
				}
				for i := range all {
					sum := int64(0)
					for j := i; j < len(all); j++ {
						switch {
						case algorithm == snapshot.FixedWindow && all[j].at/w != all[i].at/w,
							algorithm == snapshot.SlidingWindow && all[j].at-all[i].at >= w:
							continue
						}
						sum += all[j].n
						bound := rate.Limit
						if algorithm == snapshot.TokenBucket {
							bound += (all[j].at - all[i].at) * rate.Limit / w
						}
						if sum > bound {
							t.Fatalf("%d passed within %s, want %d at most", sum, time.Duration(all[j].at-all[i].at), bound)
						}
					}
				}
				if passed < rate.Limit*5 {
					t.Errorf("%d passed in twenty windows of %d", passed, rate.Limit)
				}
			})
		}
	}
}

func TestCellGivesBack(t *testing.T) {
	for _, algorithm := range []snapshot.Algorithm{snapshot.FixedWindow, snapshot.SlidingWindow, snapshot.TokenBucket} {
		rate := &snapshot.Rate{Limit: 10, Window: 1000, Algorithm: algorithm}
		var c Cell
		if got := c.Take(rate, start, 8, false); got != 8 {
			t.Errorf("%s: took %d", algorithm, got)
		}
		c.Give(rate, start+1, start, 5)
		if got := c.Left(rate, start+1); got != 7 {
			t.Errorf("%s: %d left, want 7", algorithm, got)
		}
		c.Take(rate, start+2, 9, true) // they have passed already
		if got := c.Left(rate, start+2); got != 0 {
			t.Errorf("%s: %d left after 12 of 10", algorithm, got)
		}
		later := start + 5*int64(time.Second)
		c.Give(rate, later, start, 3) // too late to count
		if got := c.Take(rate, later, 99, false); got != 10 {
			t.Errorf("%s: %d left in a new window, want 10", algorithm, got)
		}
		if c.Idle(rate, later) || !c.Idle(rate, later+int64(5*time.Second)) {
			t.Errorf("%s: idle is wrong", algorithm)
		}
	}
}

func TestCellOfNothing(t *testing.T) {
	for _, algorithm := range []snapshot.Algorithm{snapshot.FixedWindow, snapshot.SlidingWindow, snapshot.TokenBucket} {
		rate := &snapshot.Rate{Limit: 0, Window: 1000, Algorithm: algorithm}
		var c Cell
		if got := c.Take(rate, start, 1, false); got != 0 || c.Wait(rate, start, 1) != time.Second {
			t.Errorf("%s: took %d of a limit of 0, waits %s", algorithm, got, c.Wait(rate, start, 1))
		}
	}
}

func BenchmarkTake(b *testing.B) {
	for _, algorithm := range []snapshot.Algorithm{snapshot.FixedWindow, snapshot.SlidingWindow, snapshot.TokenBucket} {
		b.Run(string(algorithm), func(b *testing.B) {
			rate := &snapshot.Rate{Limit: 1 << 40, Window: 1000, Algorithm: algorithm}
			var c Cell
			b.ReportAllocs()
			for i := range b.N {
				c.Take(rate, start+int64(i)*1000, 1, false)
			}
		})
	}
}
