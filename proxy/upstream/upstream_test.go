package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/proxytest"
)

func endpoints(n int) []*Endpoint {
	eps := make([]*Endpoint, n)
	for i := range eps {
		eps[i] = NewEndpoint(nil, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), "", nil)
	}
	return eps
}

func TestPick(t *testing.T) {
	const rounds = 6000
	tests := []struct {
		name   string
		policy snapshot.LoadBalancer
		busy   []int // requests under way at each endpoint
		check  func(t *testing.T, got []int)
	}{
		{"round robin is even", snapshot.RoundRobin, []int{9, 0, 0}, func(t *testing.T, got []int) {
			t.Helper()
			if got[0] != rounds/3 || got[1] != rounds/3 || got[2] != rounds/3 {
				t.Errorf("got %v", got)
			}
		}},
		{"random is about even", snapshot.Random, []int{9, 0, 0}, func(t *testing.T, got []int) {
			t.Helper()
			for _, n := range got { // six standard deviations of a binomial with p = 1/3
				if n < 2000-220 || n > 2000+220 {
					t.Errorf("got %v", got)
				}
			}
		}},
		{"least request never takes the busiest", snapshot.LeastRequest, []int{1, 0, 0}, func(t *testing.T, got []int) {
			t.Helper()
			if got[0] != 0 || got[1] == 0 || got[2] == 0 {
				t.Errorf("got %v", got)
			}
		}},
		{"least request of two takes the idle one", "", []int{0, 1}, func(t *testing.T, got []int) {
			t.Helper()
			if got[0] != rounds {
				t.Errorf("got %v", got)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			eps := endpoints(len(tt.busy))
			index := map[*Endpoint]int{}
			for i, n := range tt.busy {
				index[eps[i]] = i
				for range n {
					eps[i].Begin()
				}
			}
			c := NewCluster(nil, "", snapshot.Policy{LoadBalancer: tt.policy}, eps, nil, nil)
			got := make([]int, len(eps))
			for range rounds {
				got[index[c.Pick(nil)]]++
			}
			tt.check(t, got)
		})
	}
}

func TestPickAvoids(t *testing.T) {
	eps := endpoints(3)
	for _, policy := range []snapshot.LoadBalancer{snapshot.LeastRequest, snapshot.RoundRobin, snapshot.Random} {
		c := NewCluster(nil, "", snapshot.Policy{LoadBalancer: policy}, eps, nil, nil)
		for range 100 {
			if got := c.Pick(eps[:2]); got != eps[2] {
				t.Fatalf("%s picked one to avoid", policy)
			}
			if c.Pick(eps) == nil {
				t.Fatalf("%s picked none where all are to be avoided", policy)
			}
		}
	}
	if NewCluster(nil, "", snapshot.Policy{}, nil, nil, nil).Pick(nil) != nil {
		t.Error("picked one of none")
	}
}

func TestRoundRobinGoesOnInTheNextTable(t *testing.T) {
	eps := endpoints(4)
	one := NewCluster(nil, "", snapshot.Policy{LoadBalancer: snapshot.RoundRobin}, eps, nil, nil)
	seen := map[*Endpoint]bool{}
	seen[one.Pick(nil)], seen[one.Pick(nil)] = true, true
	two := NewCluster(nil, "", snapshot.Policy{LoadBalancer: snapshot.RoundRobin}, eps, one, nil)
	seen[two.Pick(nil)], seen[two.Pick(nil)] = true, true
	if len(seen) != 4 {
		t.Errorf("%d different endpoints in four turns", len(seen))
	}
}

// peer accepts connections and keeps them.
type peer struct {
	addr netip.AddrPort
	mu   sync.Mutex
	all  []net.Conn
	came chan net.Conn
}

func listen(t *testing.T) *peer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{addr: ln.Addr().(*net.TCPAddr).AddrPort(), came: make(chan net.Conn, 100)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.all = append(p.all, c)
			p.mu.Unlock()
			p.came <- c
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
		for _, c := range p.all {
			_ = c.Close()
		}
	})
	return p
}

func obtain(t *testing.T, tr *Transport, e *Endpoint, port uint16) *Conn {
	t.Helper()
	c, err := e.Get(context.Background(), tr, port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPoolReuses(t *testing.T) {
	p := listen(t)
	tr := New(Config{MaxIdle: 1})
	e := tr.Plain(p.addr)
	a, b := obtain(t, tr, e, p.addr.Port()), obtain(t, tr, e, p.addr.Port())
	if a.Reused || b.Reused {
		t.Error("new connections say that they were used")
	}
	a.Keep(0)
	b.Keep(0) // one too many
	if c := obtain(t, tr, e, p.addr.Port()); c != a || !c.Reused {
		t.Error("the idle connection was not reused")
	}
	if c := obtain(t, tr, e, p.addr.Port()); c == b {
		t.Error("a connection beyond the limit was kept")
	}
	a.Keep(0)
	if c, err := e.Dial(context.Background(), tr, p.addr.Port()); err != nil || c == a {
		t.Errorf("a dedicated connection was taken from the pool, %v", err)
	}
	if tr.Plain(p.addr) != e {
		t.Error("another endpoint for an address with idle connections")
	}
}

// TestPoolDropsWhatThePeerTouched takes no idle connection that has got a byte or an end.
func TestPoolDropsWhatThePeerTouched(t *testing.T) {
	for name, touch := range map[string]func(net.Conn) error{
		"byte": func(c net.Conn) error { _, err := io.WriteString(c, "x"); return err },
		"end":  func(c net.Conn) error { return c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			p := listen(t)
			tr := New(Config{})
			e := tr.Plain(p.addr)
			a := obtain(t, tr, e, p.addr.Port())
			if err := touch(<-p.came); err != nil {
				t.Fatal(err)
			}
			for a.quiet() { // until the kernel has delivered it
			}
			a.Keep(0)
			if c := obtain(t, tr, e, p.addr.Port()); c == a {
				t.Error("was taken")
			}
		})
	}
}

func TestPoolHonoursKeepAliveTimeout(t *testing.T) {
	p := listen(t)
	tr := New(Config{})
	e := tr.Plain(p.addr)
	a := obtain(t, tr, e, p.addr.Port())
	a.Keep(time.Second) // a second less than that is nothing
	if c := obtain(t, tr, e, p.addr.Port()); c == a {
		t.Error("kept beyond the peer's timeout")
	}
}

func TestPoolDropsExpiredPeers(t *testing.T) {
	p := listen(t)
	tr := New(Config{})
	e := tr.Plain(p.addr)
	for _, tt := range []struct {
		left time.Duration // until the peer's certificate runs out
		kept bool
	}{{time.Hour, true}, {-time.Second, false}} {
		a, err := e.Dial(context.Background(), tr, p.addr.Port())
		if err != nil {
			t.Fatal(err)
		}
		a.until = time.Now().Add(tt.left)
		a.Keep(0)
		if got := obtain(t, tr, e, p.addr.Port()) == a; got != tt.kept {
			t.Errorf("with %v left: kept %v, want %v", tt.left, got, tt.kept)
		}
	}
}

func TestSweepForgets(t *testing.T) {
	p := listen(t)
	tr := New(Config{IdleTimeout: 5 * time.Millisecond})
	e := tr.Plain(p.addr)
	obtain(t, tr, e, p.addr.Port()).Keep(0)
	c := <-p.came
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("idle connection: %v, want its end", err)
	}
	for {
		tr.mu.Lock()
		n := len(tr.plain)
		tr.mu.Unlock()
		if n == 0 {
			break
		}
	}
}

func TestManyPortsAreBounded(t *testing.T) {
	var m portMap[int]
	for port := range 1000 {
		if got := m.add(uint16(port), port); got != port {
			t.Fatalf("port %d: %d", port, got)
		}
	}
	if n := len(*m.list.Load()); n != portMapLimit {
		t.Errorf("%d entries, want %d", n, portMapLimit)
	}
	if v, ok := m.get(3); !ok || v != 3 || m.add(3, 7) != 3 {
		t.Error("an entry was lost")
	}
}

type source struct{ m *identity.Material }

func (s source) Current() *identity.Material { return s.m }

func TestDialChecksIdentityAndProtocol(t *testing.T) {
	ca, other := proxytest.NewCA(t), proxytest.NewCA(t)
	const spiffe = "spiffe://cluster.local/ns/default/sa/"
	client, server := source{ca.Issue(spiffe + "client")}, source{ca.Issue(spiffe + "server")}
	want := server.m.ID.String()
	anyone := identity.MemberOf(spiffeid.RequireTrustDomainFromString(mesh.DefaultTrustDomain))
	tests := []struct {
		name   string
		server *tls.Config
		source identity.Source
		target string
		ok     bool
	}{
		{"right", identity.ServerTLS(server, anyone, mesh.ALPNHTTP1), client, want, true},
		{"another identity", identity.ServerTLS(source{ca.Issue(spiffe + "imposter")}, anyone, mesh.ALPNHTTP1), client, want, false},
		{"another authority", identity.ServerTLS(source{other.Issue(spiffe + "server")}, anyone, mesh.ALPNHTTP1), client, want, false},
		{"another protocol", identity.ServerTLS(server, anyone, mesh.ALPNTCP), client, want, false},
		{"no protocol", identity.ServerTLS(server, anyone), client, want, false},
		{"no source", identity.ServerTLS(server, anyone, mesh.ALPNHTTP1), nil, want, false},
		{"no certificate yet", identity.ServerTLS(server, anyone, mesh.ALPNHTTP1), source{}, want, false},
		{"identity that is none", identity.ServerTLS(server, anyone, mesh.ALPNHTTP1), client, "spiffe:///x", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ln, err := tls.Listen("tcp", "127.0.0.1:0", tt.server)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = ln.Close() }()
			go func() {
				if c, err := ln.Accept(); err == nil {
					_, _ = io.Copy(c, c)
					_ = c.Close()
				}
			}()
			tr := New(Config{Identity: tt.source})
			c, err := tr.Dial(context.Background(), Target{Addr: ln.Addr().(*net.TCPAddr).AddrPort(), Identity: tt.target}, mesh.ALPNHTTP1)
			if (err == nil) != tt.ok {
				t.Fatalf("dial: %v, want success %v", err, tt.ok)
			}
			if err == nil {
				_, _ = io.WriteString(c, "hi")
				b := make([]byte, 2)
				if _, err := io.ReadFull(c, b); err != nil || string(b) != "hi" {
					t.Errorf("read %q, %v", b, err)
				}
				_ = c.Close()
			}
		})
	}
}

func TestDialTimesOut(t *testing.T) {
	tr := New(Config{ConnectTimeout: time.Millisecond, Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if _, err := tr.Dial(context.Background(), Target{}, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
