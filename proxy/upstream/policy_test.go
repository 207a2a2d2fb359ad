package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// places are endpoints w0, w1, … at 10.0.0.1 and on.
func places(n int) []*Endpoint {
	var eps []*Endpoint
	for i := range n {
		w := &snapshot.Workload{Name: fmt.Sprintf("w%d", i), Identity: "spiffe://td/ns/default/sa/w"}
		eps = append(eps, NewEndpoint(w, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), w.Identity, nil))
	}
	return eps
}

func TestHash(t *testing.T) {
	const keys = 20_000
	owners := func(c *Cluster) []string {
		var names []string
		for k := range keys {
			names = append(names, c.PickKey(HashKey(fmt.Appendf(nil, "key-%d", k))).Workload.Name)
		}
		return names
	}
	for _, h := range []snapshot.Hash{{Header: "x"}, {Header: "x", RingSize: 4096}, {Header: "x", MaglevSize: 65537}} {
		t.Run(fmt.Sprintf("ring %d, maglev %d", h.RingSize, h.MaglevSize), func(t *testing.T) {
			policy := snapshot.Policy{Hash: &h}
			five := NewCluster(nil, "", policy, places(5), nil, nil)
			before := owners(five)
			share := map[string]int{}
			for _, name := range before {
				share[name]++
			}
			for name, n := range share {
				if n < keys/5*7/10 || n > keys/5*13/10 {
					t.Errorf("%s has %d keys of %d, want about a fifth", name, n, keys)
				}
			}
			if len(share) != 5 {
				t.Errorf("%d endpoints have keys, want 5", len(share))
			}
			moved := 0
			for i, name := range owners(NewCluster(nil, "", policy, places(6), five, nil)) {
				if name != before[i] {
					moved++
				}
			}
			if moved < keys/10 || moved > keys*3/10 {
				t.Errorf("%d of %d keys moved to make room for a sixth, want about a sixth", moved, keys)
			}
			// The addresses have changed, the workloads have not.
			elsewhere := places(5)
			for i, e := range elsewhere {
				e.Addr = netip.AddrFrom4([4]byte{10, 9, 9, byte(i + 1)})
			}
			for i, name := range owners(NewCluster(nil, "", policy, elsewhere, nil, nil)) {
				if name != before[i] {
					t.Fatalf("key %d moved from %s to %s with the addresses", i, before[i], name)
				}
			}
		})
	}
}

// clockwork is a detector's time.
type clockwork struct{ at time.Time }

func (c *clockwork) now() time.Time { return c.at }

func ejecting(n int, o snapshot.Outlier) (*Cluster, *clockwork) {
	o.Interval, o.BaseTime = snapshot.Duration(10*time.Second), snapshot.Duration(30*time.Second)
	c := NewCluster(nil, "", snapshot.Policy{Outlier: &o}, places(n), nil, nil)
	clock := &clockwork{time.Unix(1_800_000_000, 0)}
	c.state.detector.now = clock.now
	return c, clock
}

func (c *Cluster) outNow() (out []string) {
	for _, e := range c.Endpoints {
		if e.out(c.state.detector.now().UnixNano()) {
			out = append(out, e.Workload.Name)
		}
	}
	return out
}

func TestOutlier(t *testing.T) {
	five := snapshot.Outlier{Consecutive5xx: 5, MaxPercent: 10}
	cases := []struct {
		name    string
		n       int
		o       snapshot.Outlier
		reports [][]int // for w0, w1, …
		out     string
	}{
		{"five in a row", 3, five, [][]int{{503, 500, 503, 500, 503}}, "[w0]"},
		{"a success between", 3, five, [][]int{{503, 503, 503, 503, 200, 503, 503, 503, 503}}, "[]"},
		{"a local failure is a 5xx", 3, five, [][]int{{0, 0, 503, 0, 0}}, "[w0]"},
		{"404 is none", 3, five, [][]int{{404, 404, 404, 404, 404, 404}}, "[]"},
		{"one of two", 2, five, [][]int{{500, 500, 500, 500, 500}, {500, 500, 500, 500, 500}}, "[w0]"},
		{"never the only one", 1, five, [][]int{{500, 500, 500, 500, 500}}, "[]"},
		{"a share", 10, snapshot.Outlier{Consecutive5xx: 1, MaxPercent: 30}, [][]int{{500}, {500}, {500}, {500}}, "[w0 w1 w2]"},
		{"all may be out", 2, snapshot.Outlier{Consecutive5xx: 1, MaxPercent: 100}, [][]int{{500}, {500}}, "[w0 w1]"},
		{"gateway errors", 3, snapshot.Outlier{ConsecutiveGateway: 2, MaxPercent: 10}, [][]int{{500, 502, 500, 503}, {502, 504}}, "[w1]"},
		{"off", 3, snapshot.Outlier{MaxPercent: 10}, [][]int{{500, 500, 500, 500, 500, 500}}, "[]"},
		{"split: not local", 3, snapshot.Outlier{Consecutive5xx: 2, SplitLocal: true, ConsecutiveLocalFailure: 3, MaxPercent: 10}, [][]int{{0, 0}}, "[]"},
		{"split: local", 3, snapshot.Outlier{Consecutive5xx: 2, SplitLocal: true, ConsecutiveLocalFailure: 3, MaxPercent: 10}, [][]int{{0, 0, 0}}, "[w0]"},
		{"split: answered between", 3, snapshot.Outlier{Consecutive5xx: 9, SplitLocal: true, ConsecutiveLocalFailure: 3, MaxPercent: 10}, [][]int{{0, 0, 200, 0}}, "[]"},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := ejecting(tt.n, tt.o)
			for i, reports := range tt.reports {
				for _, status := range reports {
					c.Endpoints[i].Report(status)
				}
			}
			if got := fmt.Sprint(c.outNow()); got != tt.out {
				t.Errorf("out are %s, want %s", got, tt.out)
			}
			for range 50 {
				e := c.Pick(nil)
				if len(c.outNow()) == tt.n {
					if e != nil {
						t.Fatal("all are out, and one was picked")
					}
				} else if e == nil || e.out(c.state.detector.now().UnixNano()) {
					t.Fatalf("picked %v, want one that is in", e)
				}
			}
		})
	}
}

// An endpoint is out for longer each time, and forgiven with time.
func TestEjectionTime(t *testing.T) {
	c, clock := ejecting(2, snapshot.Outlier{Consecutive5xx: 1, MaxPercent: 10})
	e := c.Endpoints[0]
	eject := func(want time.Duration) {
		t.Helper()
		e.Report(500)
		if got := time.Unix(0, e.state.health.until.Load()).Sub(clock.at); got != want {
			t.Errorf("out for %s, want %s", got, want)
		}
		clock.at = time.Unix(0, e.state.health.until.Load())
		if len(c.outNow()) != 0 || c.state.detector.clock(c.Endpoints) != 0 {
			t.Error("still out when its time is over")
		}
	}
	eject(30 * time.Second)
	eject(60 * time.Second)
	eject(90 * time.Second)
	clock.at = clock.at.Add(25 * time.Second) // two intervals
	eject(60 * time.Second)
	clock.at = clock.at.Add(time.Hour)
	eject(30 * time.Second)
	for range 20 {
		e.Report(500)
		clock.at = time.Unix(0, e.state.health.until.Load())
	}
	eject(300 * time.Second)
}

func TestPanic(t *testing.T) {
	c, _ := ejecting(4, snapshot.Outlier{Consecutive5xx: 1, MaxPercent: 100, MinHealthPercent: 50})
	for i := range 3 {
		c.Endpoints[i].Report(500)
		seen := map[string]bool{}
		for range 200 {
			seen[c.Pick(nil).Workload.Name] = true
		}
		want := []int{3, 2, 4}[i]
		if len(seen) != want {
			t.Errorf("with %d out, %d are used, want %d", i+1, len(seen), want)
		}
	}
}

// What is counted lasts as long as the policy does, whatever else of the table changes.
func TestStateSurvives(t *testing.T) {
	o := &snapshot.Outlier{Consecutive5xx: 1, MaxPercent: 10, BaseTime: snapshot.Duration(time.Hour)}
	policy := snapshot.Policy{Outlier: o, Connections: &snapshot.Connections{MaxRequests: 1}}
	one := NewCluster(nil, "", policy, places(3), nil, nil)
	one.Endpoints[1].Report(500)
	if !one.Endpoints[0].Begin() {
		t.Fatal("the first request is one too many")
	}
	again := *o
	policy.Outlier = &again // equal, not the same
	two := NewCluster(nil, "", policy, places(3), one, nil)
	if got := two.outNow(); len(got) != 1 || got[0] != "w1" {
		t.Errorf("out are %v, want w1", got)
	}
	if two.Endpoints[2].Begin() {
		t.Error("a second request began, want one of the cluster at most")
	}
	one.Endpoints[0].Done()
	if !two.Endpoints[2].Begin() {
		t.Error("no request began after the first was done")
	}
	policy.Outlier = nil
	three := NewCluster(nil, "", policy, places(3), two, nil)
	if three.Endpoints[1].out(time.Now().UnixNano()) {
		t.Error("an endpoint is out without a policy")
	}
}

func TestRetryLimits(t *testing.T) {
	count := func(c *Cluster) (n int) {
		for n < 100 && c.BeginRetry() {
			n++
		}
		for range n {
			c.EndRetry()
		}
		return n
	}
	fixed := NewCluster(nil, "", snapshot.Policy{Connections: &snapshot.Connections{MaxRetries: 3}}, places(1), nil, nil)
	if n := count(fixed); n != 3 {
		t.Errorf("%d retries at a time, want 3", n)
	}
	budget := NewCluster(nil, "", snapshot.Policy{RetryBudget: &snapshot.RetryBudget{Percent: 20, MinConcurrency: 3}}, places(1), nil, nil)
	if n := count(budget); n != 3 {
		t.Errorf("%d retries at a time, want the least, 3", n)
	}
	for range 50 {
		budget.Endpoints[0].Begin()
	}
	if n := count(budget); n != 10 {
		t.Errorf("%d retries with 50 requests under way, want a fifth", n)
	}
	if n := count(NewCluster(nil, "", snapshot.Policy{}, places(1), nil, nil)); n != 100 {
		t.Errorf("%d retries without a policy, want no bound", n)
	}
}

func TestWarmup(t *testing.T) {
	w := &snapshot.Warmup{Duration: snapshot.Duration(100 * time.Second)}
	policy := snapshot.Policy{LoadBalancer: snapshot.RoundRobin, Warmup: w}
	old := NewCluster(nil, "", policy, places(1), nil, nil)
	if got := old.Endpoints[0].warm(w, time.Now()); got != 1 {
		t.Errorf("an endpoint of the start has a share of %v, want 1", got)
	}
	c := NewCluster(nil, "", policy, places(2), old, nil)
	e := c.Endpoints[1]
	start := e.state.born
	for after, want := range map[time.Duration]float64{0: .1, 5 * time.Second: .1, 50 * time.Second: .5, 100 * time.Second: 1} {
		if got := e.warm(w, start.Add(after)); got != want {
			t.Errorf("after %s its share is %v, want %v", after, got, want)
		}
	}
	bent := &snapshot.Warmup{Duration: w.Duration, Aggression: 2, MinimumPercent: 60}
	if got := e.warm(bent, start.Add(25*time.Second)); got != .6 {
		t.Errorf("a share of %v, want the least of .6", got)
	}
	if got := e.warm(bent, start.Add(64*time.Second)); got != .8 {
		t.Errorf("a share of %v, want .8", got)
	}
	n := 0
	for range 1000 {
		if c.Pick(nil) == e {
			n++
		}
	}
	if n == 0 || n > 300 {
		t.Errorf("a cold endpoint got %d of 1000 requests, want about 90", n)
	}
}

func TestTLSMode(t *testing.T) {
	eps := places(1)
	if e := NewCluster(nil, "", snapshot.Policy{TLS: snapshot.TLSDisable}, eps, nil, nil).Endpoints[0]; e.Target(80).Identity != "" {
		t.Error("DISABLE dials with mutual tls")
	}
	if e := NewCluster(nil, "", snapshot.Policy{TLS: snapshot.TLSMutual}, eps, nil, nil).Endpoints[0]; e.Target(80).Identity == "" || e.Target(80).Unreachable != nil {
		t.Error("MUTUAL does not dial with mutual tls")
	}
	plain := NewEndpoint(&snapshot.Workload{Name: "p"}, eps[0].Addr, "", nil)
	e := NewCluster(nil, "", snapshot.Policy{TLS: snapshot.TLSMutual}, []*Endpoint{plain}, nil, nil).Endpoints[0]
	if _, err := e.Dial(t.Context(), New(Config{}), 80); !errors.Is(err, errNoIdentity) {
		t.Errorf("error is %v, want that it has no proxy", err)
	}
}

// pipes dials connections that nobody answers on, and counts them.
type pipes struct{ open chan net.Conn }

func (p *pipes) dial(context.Context, netip.AddrPort) (net.Conn, error) {
	near, far := net.Pipe()
	p.open <- far
	return near, nil
}

func TestConnectionLimit(t *testing.T) {
	p := &pipes{make(chan net.Conn, 100)}
	tr := New(Config{Dial: p.dial})
	policy := snapshot.Policy{TLS: snapshot.TLSDisable, Connections: &snapshot.Connections{MaxConnections: 1, MaxPending: 1}}
	c := NewCluster(nil, "", policy, places(2), nil, nil)
	first, err := c.Endpoints[0].Get(t.Context(), tr, 80)
	if err != nil {
		t.Fatal(err)
	}
	type got struct {
		c   *Conn
		err error
	}
	second := make(chan got)
	get := func(e *Endpoint) { c, err := e.Get(t.Context(), tr, 80); second <- got{c, err} }
	wait := func() {
		for {
			c.state.limits.mu.Lock()
			n := len(c.state.limits.waiting)
			c.state.limits.mu.Unlock()
			if n == 1 {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	go get(c.Endpoints[0])
	wait()
	if _, err := c.Endpoints[0].Get(t.Context(), tr, 80); !errors.Is(err, ErrOverflow) {
		t.Errorf("a second request waits: %v, want overflow", err)
	}
	first.Keep(0)
	g := <-second
	if g.err != nil || g.c != first {
		t.Fatalf("got %v, %v, want the connection that became idle", g.c, g.err)
	}
	// One for another endpoint waits until this one may be closed for it.
	go get(c.Endpoints[1])
	wait()
	g.c.Keep(0)
	g = <-second
	if g.err != nil || g.c == first || g.c.Remote.Addr() != c.Endpoints[1].Addr {
		t.Fatalf("got %v, %v, want a connection to the other endpoint", g.c, g.err)
	}
	go get(c.Endpoints[0])
	wait()
	g.c.Discard()
	if g = <-second; g.err != nil {
		t.Fatal(g.err)
	}
	if n := len(p.open); n != 3 {
		t.Errorf("%d connections were opened, want 3", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Endpoints[1].Dial(ctx, tr, 80); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want that nobody waits any more", err)
	}
	if l := c.state.limits; l.connections != 1 || l.pending != 0 || len(l.waiting) != 0 {
		t.Errorf("%d connections, %d pending, %d waiting, want 1, 0, 0", l.connections, l.pending, len(l.waiting))
	}
}

func TestConnectionSettings(t *testing.T) {
	p := &pipes{make(chan net.Conn, 100)}
	tr := New(Config{Dial: p.dial})
	kept := func(s snapshot.Connections, uses int) bool {
		e := NewCluster(nil, "", snapshot.Policy{TLS: snapshot.TLSDisable, Connections: &s}, places(1), nil, nil).Endpoints[0]
		c, err := e.Dial(t.Context(), tr, 80)
		if err != nil {
			t.Fatal(err)
		}
		for range uses {
			c.Keep(0)
			if c = e.Idle(tr, 80); c == nil {
				return false
			}
		}
		return true
	}
	for _, tt := range []struct {
		name string
		s    snapshot.Connections
		uses int
		want bool
	}{
		{"no bound", snapshot.Connections{MaxConnections: 9}, 50, true},
		{"one each", snapshot.Connections{MaxPerConnection: 1}, 1, false},
		{"two each, once", snapshot.Connections{MaxPerConnection: 2}, 1, true},
		{"two each, twice", snapshot.Connections{MaxPerConnection: 2}, 2, false},
		{"idle", snapshot.Connections{IdleTimeout: 1}, 1, false},
		{"old", snapshot.Connections{MaxAge: 1}, 1, false},
		{"young", snapshot.Connections{MaxAge: snapshot.Duration(time.Hour)}, 1, true},
	} {
		if got := kept(tt.s, tt.uses); got != tt.want {
			t.Errorf("%s: kept for another request: %v, want %v", tt.name, got, tt.want)
		}
	}
	slow := New(Config{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		at, _ := ctx.Deadline()
		return nil, fmt.Errorf("%s", time.Until(at).Round(time.Minute))
	}})
	e := NewCluster(nil, "", snapshot.Policy{TLS: snapshot.TLSDisable, Connections: &snapshot.Connections{ConnectTimeout: snapshot.Duration(time.Hour)}}, places(1), nil, nil).Endpoints[0]
	if _, err := e.Dial(t.Context(), slow, 80); err == nil || err.Error() != "1h0m0s" {
		t.Errorf("the time to connect is %v, want an hour", err)
	}
}

// Consistent hashing gives endpoints their weight of the keys, and one that is next to nothing still has some.
func TestHashWeights(t *testing.T) {
	weighted := func(weights ...uint32) []*Endpoint {
		var endpoints []*Endpoint
		for i, weight := range weights {
			ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
			endpoints = append(endpoints, NewPlace(&snapshot.Workload{Name: ip.String()}, ip, "", &snapshot.Place{Weight: weight}))
		}
		return endpoints
	}
	for _, h := range []snapshot.Hash{{Header: "x"}, {Header: "x", MaglevSize: 65537}} {
		policy := snapshot.Policy{Hash: &h}
		share := func(c *Cluster) map[string]float64 {
			const keys = 40_000
			got := map[string]float64{}
			for k := range keys {
				got[c.PickKey(HashKey(fmt.Appendf(nil, "key-%d", k))).Addr.String()] += 1. / keys
			}
			return got
		}
		c := NewCluster(nil, "", policy, weighted(1, 0, 6), nil, nil)
		for ip, want := range map[string]float64{"192.0.2.1": 0.125, "192.0.2.2": 0.125, "192.0.2.3": 0.75} {
			if got := share(c)[ip]; got < want-0.06 || got > want+0.06 {
				t.Errorf("maglev %d: %s has %.3f of the keys, want %.3f", h.MaglevSize, ip, got, want)
			}
		}
		if got := share(NewCluster(nil, "", policy, weighted(6, 0, 1), c, nil))["192.0.2.1"]; got < 0.6 {
			t.Errorf("maglev %d: the first has %.3f of the keys after it became the heaviest, want 0.75", h.MaglevSize, got)
		}
		far := NewCluster(nil, "", policy, weighted(1, 1_000_000), nil, nil)
		if _, light := slices.BinarySearch(indexes(far.points), 0); !light {
			t.Errorf("maglev %d: a light endpoint has no keys", h.MaglevSize)
		}
	}
}

// indexes are the endpoints that have points, in order.
func indexes(p *points) []int {
	var found []int
	for _, pt := range p.ring {
		found = append(found, pt.index)
	}
	for _, i := range p.table {
		found = append(found, int(i))
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// Each load balancer gives endpoints their weight of the requests, and what is out gets none.
func TestWeights(t *testing.T) {
	for _, lb := range []snapshot.LoadBalancer{snapshot.LeastRequest, snapshot.RoundRobin, snapshot.Random} {
		var endpoints []*Endpoint
		for i, weight := range []uint32{1, 0, 6} {
			ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
			endpoints = append(endpoints, NewPlace(&snapshot.Workload{Name: ip.String()}, ip, "", &snapshot.Place{Weight: weight}))
		}
		c := NewCluster(nil, "", snapshot.Policy{LoadBalancer: lb}, endpoints, nil, nil)
		const n = 8000
		share := func(avoid ...*Endpoint) map[string]float64 {
			got := map[string]float64{}
			for range n {
				got[c.Pick(avoid).Addr.String()] += 1. / n
			}
			return got
		}
		got := share()
		for ip, want := range map[string]float64{"192.0.2.1": 0.125, "192.0.2.2": 0.125, "192.0.2.3": 0.75} {
			if got[ip] < want-0.04 || got[ip] > want+0.04 {
				t.Errorf("%s: %s gets %.3f of the requests, want %.3f", lb, ip, got[ip], want)
			}
		}
		if got := share(c.Endpoints[2]); got["192.0.2.3"] != 0 || got["192.0.2.1"] < 0.46 || got["192.0.2.1"] > 0.54 {
			t.Errorf("%s: without the third, shares are %v", lb, got)
		}
	}
}
