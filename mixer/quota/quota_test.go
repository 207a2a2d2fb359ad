package quota

import (
	"context"
	"math/rand/v2"
	"net"
	"os/exec"
	"reflect"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// redisServer is a real Redis on loopback.
type redisServer struct {
	t       *testing.T
	port    string
	dir     string
	command *exec.Cmd
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("there is no redis-server here: install Debian's redis-server")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	r := &redisServer{t: t, port: port, dir: t.TempDir()}
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *redisServer) address() string { return "127.0.0.1:" + r.port }

func (r *redisServer) start() {
	r.t.Helper()
	r.command = exec.Command("redis-server", "--port", r.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", r.dir)
	if err := r.command.Start(); err != nil {
		r.t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c, err := net.Dial("tcp", r.address()); err == nil {
			_ = c.Close() // it listens
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal("redis does not listen")
		}
	}
}

func (r *redisServer) kill() {
	_ = r.command.Process.Kill() // it may be dead already
	_ = r.command.Wait()
}

func (r *redisServer) counter(tell Tell) *Redis {
	r.t.Helper()
	c, err := NewRedis("redis://"+r.address()+"/0", tell)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			r.t.Error(err)
		}
	})
	return c
}

func nobody(*lease.Count) {}

var algorithms = []snapshot.Algorithm{snapshot.FixedWindow, snapshot.SlidingWindow, snapshot.TokenBucket}

func count(t *testing.T, c Counter, id string, rate *snapshot.Rate, ask lease.Ask) lease.Grant {
	t.Helper()
	grants, err := c.Count(t.Context(), []Ask{{ID: id, Rate: rate, Charge: 1, Ask: &ask}})
	if err != nil || len(grants) != 1 {
		t.Fatalf("%v, %v", grants, err)
	}
	return grants[0]
}

// TestCounters holds both counters to the same steps. The windows are long, so that the clock does not matter.
func TestCounters(t *testing.T) {
	redis := startRedis(t).counter(nobody)
	for name, c := range map[string]Counter{"memory": NewMemory(nobody), "redis": redis} {
		for _, algorithm := range algorithms {
			t.Run(name+" "+string(algorithm), func(t *testing.T) {
				rate := &snapshot.Rate{Limit: 10, Window: (12 * time.Hour).Milliseconds(), Algorithm: algorithm}
				var at int64
				for i, step := range []struct {
					ask          lease.Ask
					tokens, left int64
				}{
					{lease.Ask{}, 0, 10},
					{lease.Ask{Used: 1}, 0, 9},
					{lease.Ask{Want: 3}, 3, 6},
					{lease.Ask{Want: 100}, 3, 3}, // half of what is left
					{lease.Ask{Back: 2}, 0, 5},
					{lease.Ask{Used: 9}, 0, 0}, // they have passed already
					{lease.Ask{Want: 1}, 0, 0},
				} {
					if step.ask.Back > 0 {
						step.ask.At = at
					}
					g := count(t, c, string(algorithm), rate, step.ask)
					if g.Tokens > 0 {
						at = g.At
						if g.TTL != maxTTL.Milliseconds() {
							t.Errorf("step %d: a lease of %d ms", i, g.TTL)
						}
					}
					if g.Tokens != step.tokens || g.Left != step.left || (g.Left == 0) != (g.Wait > 0) || g.Wait > rate.Window*2 {
						t.Errorf("step %d: %+v, want %d tokens and %d left", i, g, step.tokens, step.left)
					}
				}
				if g := count(t, c, string(algorithm)+" of another", rate, lease.Ask{}); g.Left != 10 {
					t.Errorf("another key has %d left", g.Left)
				}
				if g := count(t, c, string(algorithm)+" of nothing", &snapshot.Rate{Window: 1000, Algorithm: algorithm}, lease.Ask{Want: 1}); g.Tokens != 0 || g.Wait <= 0 {
					t.Errorf("a limit of 0 grants %+v", g)
				}
			})
		}
	}
}

// TestCountersTell: who follows hears when there is not enough left for a request, and when there is again, and of nothing
// else. With Redis, that is so at another mixer than the one that was asked.
func TestCountersTell(t *testing.T) {
	memory, shared := make(chan *lease.Count, 9), make(chan *lease.Count, 9)
	server := startRedis(t)
	other := server.counter(func(n *lease.Count) { shared <- n })
	redis := server.counter(nobody)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n, err := redis.client.PubSubNumSub(t.Context(), other.channel).Result(); err == nil && n[other.channel] == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody listens")
		}
	}
	for name, c := range map[string]struct {
		Counter
		news chan *lease.Count
	}{"memory": {NewMemory(func(n *lease.Count) { memory <- n }), memory}, "redis": {redis, shared}} {
		for _, algorithm := range algorithms {
			rate := &snapshot.Rate{Limit: 10, Window: (12 * time.Hour).Milliseconds(), Algorithm: algorithm}
			var at int64
			for i, step := range []struct {
				used, want, back int64
				told             bool
				left             int64
			}{
				{used: 6},
				{want: 1}, // one lease
				{used: 1, told: true, left: 2},
				{},
				{back: 1, told: true, left: 3},
				{used: 9, told: true},
			} {
				ask := &lease.Ask{Limit: "l", Key: []byte{0, '{', ' '}, Override: 2, Used: step.used, Want: step.want, Back: step.back, At: at}
				grants, err := c.Count(t.Context(), []Ask{{ID: "tell " + string(algorithm), Rate: rate, Charge: 3, Ask: ask}})
				if err != nil {
					t.Fatal(err)
				}
				if step.want > 0 {
					at = grants[0].At
				}
				if !step.told {
					continue // what is told in spite of that is found by the next step
				}
				want := lease.Count{Limit: "l", Key: ask.Key, Override: 2, At: grants[0].At, Left: step.left, Wait: grants[0].Wait}
				if n := <-c.news; !reflect.DeepEqual(*n, want) {
					t.Errorf("%s %s step %d: told %+v, want %+v", name, algorithm, i, n, want)
				}
				if (step.left < 3) != (want.Wait > 0) {
					t.Errorf("%s %s step %d: %d ms to wait with %d left", name, algorithm, i, want.Wait, step.left)
				}
			}
		}
	}
}

// TestWindowsComeBack: what was used is to be had again after the wait that was told, and not before.
func TestWindowsComeBack(t *testing.T) {
	redis := startRedis(t).counter(nobody)
	for name, c := range map[string]Counter{"memory": NewMemory(nobody), "redis": redis} {
		for _, algorithm := range algorithms {
			rate := &snapshot.Rate{Limit: 4, Window: 400, Algorithm: algorithm}
			id := "back " + string(algorithm)
			g := count(t, c, id, rate, lease.Ask{Used: 4})
			time.Sleep(time.Duration(g.Wait+2) * time.Millisecond)
			if g := count(t, c, id, rate, lease.Ask{}); g.Left == 0 {
				t.Errorf("%s %s: nothing is back after the wait: %+v", name, algorithm, g)
			}
		}
	}
}

// TestMixersShareRedis: whichever mixer is asked, and however many ask at once, no more is granted than the limit.
func TestMixersShareRedis(t *testing.T) {
	server := startRedis(t)
	for _, algorithm := range algorithms {
		rate := &snapshot.Rate{Limit: 500, Window: (12 * time.Hour).Milliseconds(), Algorithm: algorithm}
		var granted atomic.Int64
		var wg sync.WaitGroup
		for i := range 2 {
			mixer := server.counter(nobody)
			for j := range 4 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(uint64(i), uint64(j)))
					for range 200 {
						ask := lease.Ask{Want: 1 + r.Int64N(5)}
						g, err := mixer.Count(context.Background(), []Ask{{ID: string(algorithm), Rate: rate, Charge: 1, Ask: &ask}})
						if err != nil {
							t.Error(err)
							return
						}
						granted.Add(g[0].Tokens)
					}
				})
			}
		}
		wg.Wait()
		if granted.Load() != 500 {
			t.Errorf("%s: %d granted, want 500", algorithm, granted.Load())
		}
	}
}

// TestRedisRestarts: while it is away nothing is known, and mixer goes on by itself when it is back, with an empty count.
func TestRedisRestarts(t *testing.T) {
	server := startRedis(t)
	c := server.counter(nobody)
	rate := &snapshot.Rate{Limit: 3, Window: (12 * time.Hour).Milliseconds(), Algorithm: snapshot.FixedWindow}
	if g := count(t, c, "a", rate, lease.Ask{Used: 2}); g.Left != 1 {
		t.Errorf("%+v", g)
	}
	server.kill()
	began := time.Now()
	if _, err := c.Count(t.Context(), []Ask{{ID: "a", Rate: rate, Charge: 1, Ask: &lease.Ask{}}}); err == nil {
		t.Error("counted without Redis")
	}
	if took := time.Since(began); took > 10*redisTimeout {
		t.Errorf("it took %s to notice", took)
	}
	server.start()
	if g := count(t, c, "a", rate, lease.Ask{Used: 1}); g.Left != 2 { // and the script is not there any more
		t.Errorf("%+v", g)
	}
}

func TestRedisAddresses(t *testing.T) {
	for address, ok := range map[string]bool{
		"redis:6379": true, "redis://redis": true, "redis://:secret@redis:6380/2": true, "rediss://redis:6379": true,
		"": false, "redis": false, ":6379": false, "redis:port": false, "http://redis:6379": false,
	} {
		c, err := NewRedis(address, nobody)
		if (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
		if err == nil {
			_ = c.Close() // it has connected to nothing
		}
	}
}

func TestMemoryForgets(t *testing.T) {
	m := NewMemory(nobody)
	rate := &snapshot.Rate{Limit: 3, Window: 1, Algorithm: snapshot.FixedWindow}
	for i := range 100 {
		count(t, m, strconv.Itoa(i), rate, lease.Ask{Used: 1})
	}
	time.Sleep(5 * time.Millisecond)
	m.swept = time.Time{}
	count(t, m, "new", rate, lease.Ask{Used: 1})
	if len(m.cells) != 1 {
		t.Errorf("%d counters, want the new one alone", len(m.cells))
	}
}

func BenchmarkMemory(b *testing.B) {
	m := NewMemory(nobody)
	rate := &snapshot.Rate{Limit: 1 << 40, Window: 1000, Algorithm: snapshot.SlidingWindow}
	asks := make([]Ask, 64)
	for i := range asks {
		asks[i] = Ask{ID: strconv.Itoa(i), Rate: rate, Charge: 1, Ask: &lease.Ask{Used: 1}}
	}
	for b.Loop() {
		if _, err := m.Count(context.Background(), asks); err != nil {
			b.Fatal(err)
		}
	}
}
