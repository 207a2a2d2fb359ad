package quota

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/expression"
)

// user is a request of which only x-user is known.
type user string

func (u user) Attribute(name string) (expression.Value, bool, error) {
	if name == "user" && u != "" {
		return expression.Value{Type: snapshot.String, Str: string(u)}, true, nil
	}
	return expression.Value{}, false, nil
}

var byUser = []snapshot.RateLimitKey{{Name: "user", Value: snapshot.Expression{Type: snapshot.String, Attribute: "user"}}}

func perUser(limit int64, window time.Duration, change ...func(*snapshot.RateLimit)) snapshot.RateLimit {
	r := snapshot.RateLimit{
		Name: "ratelimit/default/per-user", Key: byUser, Charge: 1,
		Rate: snapshot.Rate{Limit: limit, Window: window.Milliseconds(), Algorithm: snapshot.FixedWindow},
	}
	for _, c := range change {
		c(&r)
	}
	return r
}

func global(onFailure snapshot.OnFailure) func(*snapshot.RateLimit) {
	return func(r *snapshot.RateLimit) { r.Global, r.OnFailure = true, onFailure }
}

func build(t *testing.T, old *Set, limits ...snapshot.RateLimit) *Set {
	t.Helper()
	s, err := Build(limits, old)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pass sends n requests of the user at once and says how many passed.
func pass(s *Set, u user, n int) (passed int) {
	var m Scratch
	for range n {
		if _, refused := s.Take(u, time.Now(), &m); !refused {
			passed++
		}
	}
	return passed
}

func TestLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := build(t, nil, perUser(3, time.Minute))
		if a, b, nobody := pass(s, "a", 5), pass(s, "b", 2), pass(s, "", 9); a != 3 || b != 2 || nobody != 9 {
			t.Errorf("passed %d of a, %d of b, %d of nobody; want 3, 2, and 9 that no key counts", a, b, nobody)
		}
		var m Scratch
		r, refused := s.Take(user("a"), time.Now(), &m)
		if !refused || r.Failed || r.Wait <= 0 || r.Wait > time.Minute || r.Rate.Limit != 3 {
			t.Errorf("refusal is %+v, %v", r, refused)
		}
		time.Sleep(r.Wait)
		if got := pass(s, "a", 5); got != 3 {
			t.Errorf("%d passed in the next window, want 3", got)
		}
		// The counters of a limit that is the same go on, those of another begin.
		s = build(t, s, perUser(3, time.Minute))
		if got := pass(s, "a", 1); got != 0 {
			t.Error("a new table forgot the count")
		}
		s = build(t, s, perUser(4, time.Minute))
		if got := pass(s, "a", 9); got != 4 {
			t.Errorf("%d passed by the new limit, want 4", got)
		}
		// What it has refused is told of all limits of that name, also when it was away meanwhile.
		s = build(t, build(t, s), perUser(5, time.Minute))
		if refused, _ := s.Stats(); refused["ratelimit/default/per-user"] != 11 {
			t.Errorf("refused %v, want 11", refused)
		}
	})
}

func TestOverridesMatchAndShadow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := perUser(1, time.Minute, func(r *snapshot.RateLimit) {
			r.Overrides = []snapshot.RateOverride{
				{Key: map[string]string{"user": "gold"}, Rate: snapshot.Rate{Limit: 5, Window: 60000, Algorithm: snapshot.SlidingWindow}},
				{Key: map[string]string{"user": "gold", "other": "x"}, Rate: snapshot.Rate{Limit: 7, Window: 60000, Algorithm: snapshot.SlidingWindow}},
			}
			no := "nobody"
			r.Match = &snapshot.Expression{Type: snapshot.Bool, Function: "!=", Arguments: []snapshot.Expression{
				byUser[0].Value, {Type: snapshot.String, Constant: &no},
			}}
		})
		s := build(t, nil, r)
		if gold, tin, nobody := pass(s, "gold", 9), pass(s, "tin", 9), pass(s, "nobody", 9); gold != 5 || tin != 1 || nobody != 9 {
			t.Errorf("passed %d, %d, %d; want 5 by the override, 1, and 9 that do not match", gold, tin, nobody)
		}
		r.Shadow = true
		s = build(t, nil, r)
		if got := pass(s, "tin", 9); got != 9 {
			t.Errorf("%d passed a limit that only watches, want 9", got)
		}
		if _, shadowed := s.Stats(); shadowed[r.Name] != 8 {
			t.Errorf("shadowed %v, want 8", shadowed)
		}
		m := s.Report()
		if len(m) != 1 || m[0].Name != report.RateLimited || !reflect.DeepEqual(m[0].Series, []report.MetricSeries{
			{Values: []string{r.Name, "refused"}}, {Values: []string{r.Name, "shadowed"}, Value: 8},
		}) || build(t, nil).Report() != nil {
			t.Errorf("reports %+v", m)
		}
	})
}

// A request that one limit refuses is counted in none.
func TestRefusedIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, algorithm := range []snapshot.Algorithm{snapshot.FixedWindow, snapshot.SlidingWindow, snapshot.TokenBucket} {
			wide, narrow := perUser(5, time.Minute), perUser(2, time.Minute)
			wide.Name, wide.Key, wide.Algorithm = "all", nil, algorithm
			s := build(t, nil, wide, narrow)
			if a, b, c := pass(s, "a", 9), pass(s, "b", 9), pass(s, "c", 9); a != 2 || b != 2 || c != 1 {
				t.Errorf("%s: passed %d, %d, %d; want 2, 2 and the 1 that is left of all", algorithm, a, b, c)
			}
		}
	})
}

func TestTooManyKeys(t *testing.T) {
	s := build(t, nil, perUser(1, time.Hour))
	passed := 0
	for i := range 3 * shards * perShard {
		passed += pass(s, user(strconv.Itoa(i)), 1)
	}
	if passed < shards*perShard/2 || passed > shards*perShard+1 {
		t.Errorf("%d new users passed, want about one for each of %d counters and one for the rest", passed, shards*perShard)
	}
	for i := range s.limits[0].shards {
		if n := len(s.limits[0].shards[i].cells); n > perShard {
			t.Fatalf("a shard has %d counters", n)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	text := snapshot.Expression{Type: snapshot.String, Attribute: "user"}
	for name, r := range map[string]snapshot.RateLimit{
		"a window of nothing": perUser(1, 0),
		"no charge":           perUser(1, time.Second, func(r *snapshot.RateLimit) { r.Charge = 0 }),
		"a match of text":     perUser(1, time.Second, func(r *snapshot.RateLimit) { r.Match = &text }),
		"an override":         perUser(1, time.Second, func(r *snapshot.RateLimit) { r.Overrides = []snapshot.RateOverride{{}} }),
	} {
		if _, err := Build([]snapshot.RateLimit{r}, nil); err == nil {
			t.Errorf("%s was built", name)
		}
	}
}

// central is a mixer in the smallest form: one count, told exactly.
type central struct {
	mu sync.Mutex
	// hear are the proxies that are told when it is used up.
	hear    []func(*lease.Count)
	limit   int64
	used    int64
	away    bool
	unknown bool
	delay   time.Duration
	calls   int
}

func (c *central) fetch(_ context.Context, req *lease.Request) (*lease.Answer, error) {
	time.Sleep(c.delay)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	if c.away {
		return nil, errors.New("away")
	}
	a := &lease.Answer{}
	for _, ask := range req.Asks {
		c.used += ask.Used - ask.Back
		g := lease.Grant{Unknown: c.unknown, TTL: 1000, At: 1}
		left := max(0, c.limit-c.used)
		g.Tokens = min(ask.Want, (left+1)/2)
		c.used += g.Tokens
		if g.Left = max(0, c.limit-c.used); g.Left == 0 {
			g.Wait = 60_000
			for _, hear := range c.hear {
				hear(&lease.Count{Limit: ask.Limit, Key: ask.Key, Override: ask.Override, At: 1, Wait: g.Wait})
			}
		}
		a.Grants = append(a.Grants, g)
	}
	return a, nil
}

func (c *central) counted() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// proxies run leases for sets against one central count.
func proxies(t *testing.T, c *central, n int, limit snapshot.RateLimit) (sets []*Set, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	for range n {
		s := build(t, nil, limit)
		sets = append(sets, s)
		done.Go(func() { _ = s.Leases().Run(ctx, c.fetch, slog.New(slog.DiscardHandler)) })
	}
	synctest.Wait()
	return sets, func() { cancel(); done.Wait() }
}

// Slower than leases are asked for, the count is exact at however many proxies, as mixer tells all of them when there is
// nothing left. Where it does not, each further proxy lets no more than one request besides pass: it learns from its own.
func TestGlobalIsExactAtLowRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, limit := range []int64{1, 2, 7, 50} {
			for _, told := range []bool{true, false} {
				for _, n := range []int{1, 2, 3, 9} {
					c := &central{limit: limit, delay: time.Millisecond}
					sets, stop := proxies(t, c, n, perUser(limit, time.Hour, global(snapshot.FailClosed)))
					allowed := int64(n - 1)
					if told {
						c.follow(t, sets)
						allowed = 0
					}
					passed := 0
					for i := range 100 {
						passed += pass(sets[i%n], "a", 1)
						time.Sleep(60 * time.Millisecond)
					}
					stop()
					if over := int64(passed) - limit; over < 0 || over > allowed {
						t.Errorf("%d passed at %d proxies, told: %t; want %d, and at most %d besides", passed, n, told, limit, allowed)
					}
				}
			}
		}
	})
}

// follow lets the sets hear what c tells, until the test ends.
func (c *central) follow(t *testing.T, sets []*Set) {
	t.Helper()
	for _, s := range sets {
		go func() {
			_ = s.Leases().Follow(t.Context(), func() *Set { return s }, func(ctx context.Context, hear func(*lease.Count)) error {
				c.mu.Lock()
				c.hear = append(c.hear, hear)
				c.mu.Unlock()
				<-ctx.Done()
				return ctx.Err()
			})
		}()
	}
	synctest.Wait()
}

// What mixer tells is taken for the counter that it names, in the order in which it was said.
func TestHear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &central{limit: 1000}
		sets, stop := proxies(t, c, 1, perUser(1000, time.Hour, global(snapshot.FailClosed)))
		defer stop()
		c.follow(t, sets)
		pass(sets[0], "first", 1)
		time.Sleep(time.Second)
		key := func(user string) []byte { return append([]byte{0, 0, 0, byte(len(user))}, user...) }
		name := sets[0].limits[0].Name
		for i, step := range []struct {
			count lease.Count
			want  int
		}{
			{lease.Count{Limit: name, Key: key("b"), At: 10, Wait: 1000}, 1},
			{lease.Count{Limit: "another", Key: key("a"), At: 10, Wait: 1000}, 1},
			{lease.Count{Limit: name, Key: key("a"), At: 10, Override: 1, Wait: 1000}, 1},
			{lease.Count{Limit: name, Key: []byte("a"), At: 10, Wait: 1000}, 1},
			{lease.Count{Limit: name, Key: []byte{255, 255, 255, 255, 'a'}, At: 10, Wait: 1000}, 1},
			{lease.Count{Limit: name, Key: []byte("rest"), At: 10, Wait: 1000}, 1},
			{lease.Count{Limit: name, Key: key("a"), At: 10, Wait: 100_000}, 0},
			{lease.Count{Limit: name, Key: key("a"), At: 9, Left: 3}, 0}, // said before
			{lease.Count{Limit: name, Key: key("a"), At: 11, Left: 3}, 1},
			{lease.Count{Limit: name, Key: key("a"), At: 12, Wait: 100_000}, 0},
			{lease.Count{Limit: name, Key: key("a"), At: 12 - int64(time.Hour), Left: 3}, 1}, // of another clock
		} {
			c.hear[0](&step.count)
			if got := pass(sets[0], "a", 1); got != step.want {
				t.Errorf("step %d: %d passed after %+v, want %d", i, got, step.count, step.want)
			}
			time.Sleep(200 * time.Millisecond) // it is told, and nothing is leased
		}
	})
}

// However many come at once, no more pass than the limit and what the proxies may hold.
func TestGlobalBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for seed := range uint64(10) {
			r := rand.New(rand.NewPCG(seed, 7))
			limit := 1 + r.Int64N(500)
			const n = 4
			c := &central{limit: limit, delay: time.Duration(r.Int64N(5)) * time.Millisecond}
			sets, stop := proxies(t, c, n, perUser(limit, time.Hour, global(snapshot.FailClosed)))
			passed := int64(0)
			for range 4000 {
				passed += int64(pass(sets[r.IntN(n)], "a", 1+r.IntN(3)))
				time.Sleep(time.Duration(r.Int64N(2_000_000)))
			}
			stop()
			if bound := limit + n*min(limit, max(burst, limit/burst)); passed < limit*9/10 || passed > bound {
				t.Errorf("seed %d: %d passed, want %d to %d", seed, passed, limit*9/10, bound)
			}
			if c.calls > 4000 {
				t.Errorf("seed %d: %d calls for 8000 requests", seed, c.calls)
			}
		}
	})
}

// At a high rate below the limit nothing is refused, and mixer hears of many requests at once.
func TestGlobalBelowTheLimitPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &central{limit: 1 << 30, delay: time.Millisecond}
		sets, stop := proxies(t, c, 1, perUser(1<<30, time.Hour, global(snapshot.FailClosed)))
		defer stop()
		for i := range 20000 {
			if pass(sets[0], "a", 1) != 1 {
				t.Fatalf("request %d was refused", i)
			}
			time.Sleep(100 * time.Microsecond)
		}
		if c.calls > 1000 {
			t.Errorf("%d calls for 20000 requests in two seconds", c.calls)
		}
	})
}

func TestOnFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for onFailure, want := range map[snapshot.OnFailure]int{snapshot.FailOpen: 20, snapshot.FailClosed: 0, snapshot.FailLocal: 2} {
			c := &central{limit: 1000}
			sets, stop := proxies(t, c, 1, perUser(2, time.Hour, global(onFailure)))
			s := sets[0]
			c.mu.Lock()
			c.away = true
			c.mu.Unlock()
			pass(s, "first", 1) // finds out that mixer is away
			time.Sleep(time.Second)
			if got := pass(s, "a", 20); got != want {
				t.Errorf("%s: %d passed while mixer is away, want %d", onFailure, got, want)
			}
			var m Scratch
			if r, refused := s.Take(user("a"), time.Now(), &m); refused && r.Failed != (onFailure == snapshot.FailClosed) {
				t.Errorf("%s: refusal is %+v", onFailure, r)
			}
			c.mu.Lock()
			c.away = false
			c.mu.Unlock()
			time.Sleep(time.Second)
			pass(s, "a", 1) // finds out that it is back
			time.Sleep(time.Second)
			if got := pass(s, "b", 1); got != 1 {
				t.Errorf("%s: refused with mixer back", onFailure)
			}
			stop()
			// Without Run, as in a proxy that stands alone, it is the same.
			if got := pass(build(t, nil, perUser(2, time.Hour, global(onFailure))), "a", 20); got != want {
				t.Errorf("%s: %d passed without mixer, want %d", onFailure, got, want)
			}
		}
	})
}

// While mixer does not know the limit, as its configuration is newer or older, onFailure holds.
func TestUnknownLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &central{limit: 1000, unknown: true}
		sets, stop := proxies(t, c, 1, perUser(3, time.Hour, global(snapshot.FailLocal)))
		defer stop()
		pass(sets[0], "a", 1)
		time.Sleep(time.Second)
		if got := pass(sets[0], "a", 9); got != 3 {
			t.Errorf("%d passed, want 3 as this proxy counts", got)
		}
	})
}

// What is leased and not used is given back.
func TestLeaseIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &central{limit: 10000, delay: time.Millisecond}
		sets, stop := proxies(t, c, 1, perUser(10000, time.Hour, global(snapshot.FailClosed)))
		defer stop()
		passed := 0
		for range 1000 {
			passed += pass(sets[0], "a", 1)
			time.Sleep(time.Millisecond)
		}
		if used := c.counted(); int64(passed) >= used {
			t.Fatalf("%d passed, %d counted: nothing was leased ahead", passed, used)
		}
		time.Sleep(5 * time.Second)
		passed += pass(sets[0], "a", 1)
		time.Sleep(time.Second)
		if used := c.counted(); int64(passed) != used {
			t.Errorf("%d passed, %d counted", passed, used)
		}
	})
}

func TestTakeDoesNotAllocate(t *testing.T) {
	for name, r := range map[string]snapshot.RateLimit{
		"local": perUser(1<<40, time.Hour), "global, alone": perUser(1<<40, time.Hour, global(snapshot.FailLocal)),
	} {
		s := build(t, nil, r)
		var m Scratch
		var a expression.Attributes = user("a")
		now := time.Now()
		if n := testing.AllocsPerRun(1000, func() { s.Take(a, now, &m) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkTake(b *testing.B) {
	for name, r := range map[string]snapshot.RateLimit{
		"local": perUser(1<<40, time.Hour), "global": perUser(1<<40, time.Hour, global(snapshot.FailLocal)),
	} {
		b.Run(name, func(b *testing.B) {
			s, err := Build([]snapshot.RateLimit{r}, nil)
			if err != nil {
				b.Fatal(err)
			}
			var m Scratch
			var a expression.Attributes = user("a")
			b.ReportAllocs()
			for b.Loop() {
				s.Take(a, time.Now(), &m)
			}
		})
	}
}
