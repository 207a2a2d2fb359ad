package mixer

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/lease"
	"github.com/composure-mesh/composure/mesh/report"
	document "github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/control"
	"github.com/composure-mesh/composure/proxy/expression"
	"github.com/composure-mesh/composure/proxy/quota"
)

// redisLimit is ten requests an hour for each user, counted in a Redis, in the five objects of Istio 1.0.
const redisLimit = 10

func redisObjects(address string) map[string]string {
	return map[string]string{
		"apis/config.istio.io/v1alpha2/namespaces/default/redisquotas": `{"kind":"redisquota","metadata":{"name":"h"},"spec":{"redisServerUrl":"` + address +
			`","quotas":[{"name":"per-user.quota.default","maxAmount":10,"validDuration":"3600s","rateLimitAlgorithm":"FIXED_WINDOW"}]}}`,
		"apis/config.istio.io/v1alpha2/namespaces/default/quotas": `{"kind":"quota","metadata":{"name":"per-user"},"spec":{"dimensions":{"user":"request.headers[\"user\"]"}}}`,
		"apis/config.istio.io/v1alpha2/namespaces/default/rules": `{"kind":"rule","metadata":{"name":"r"},"spec":{"actions":[{"handler":"h.redisquota",
			"instances":["per-user.quota"]}]}}`,
		"apis/config.istio.io/v1alpha2/namespaces/default/quotaspecs": `{"kind":"QuotaSpec","metadata":{"name":"q"},"spec":{"rules":[{"quotas":[{"quota":"per-user","charge":1}]}]}}`,
		"apis/config.istio.io/v1alpha2/namespaces/default/quotaspecbindings": `{"kind":"QuotaSpecBinding","metadata":{"name":"b"},"spec":{"services":[{"name":"web"}],
			"quotaSpecs":[{"name":"q"}]}}`,
	}
}

// TestMixerProcess is a mixer of its own process for TestQuotasOfTwoMixers: one that can be killed.
func TestMixerProcess(t *testing.T) {
	dir := os.Getenv("COMPOSURE_TEST_MIXER")
	if dir == "" {
		t.Skip("TestQuotasOfTwoMixers starts it")
	}
	ca := &authority{}
	for file, parse := range map[string]func(der []byte) (err error){
		"ca.crt": func(der []byte) (err error) { ca.cert, err = x509.ParseCertificate(der); return err },
		"ca.key": func(der []byte) (err error) { ca.key, err = x509.ParseECPrivateKey(der); return err },
	} {
		der, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil {
			err = parse(der)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	srv, err := New(configIn(t, dir, ca))
	if err != nil {
		t.Fatal(err)
	}
	t.Fatal(srv.Run(t.Context())) // until it is killed
}

func configIn(t *testing.T, dir string, ca *authority) Config {
	t.Helper()
	id, err := mesh.PlaneID(mesh.DefaultTrustDomain, mesh.RoleMixer)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Socket: filepath.Join(dir, "mixer.sock"), AdminSocket: filepath.Join(dir, "admin.sock"), KeeperSocket: filepath.Join(dir, "keeper.sock"),
		StoreFile: filepath.Join(dir, "mixer.db"), Identity: ca.issue(t, id, time.Now().Add(time.Hour)), TrustDomain: mesh.DefaultTrustDomain,
		Version: "test", Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
}

// process is a mixer that TestMixerProcess runs.
type process struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command(os.Args[0], "-test.run=^TestMixerProcess$")
	p.cmd.Env = append(os.Environ(), "COMPOSURE_TEST_MIXER="+p.dir)
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be dead already
	_ = p.cmd.Wait()
}

// link is a network between the mixers and Redis, which can be parted: then bytes go in and none come out.
type link struct {
	net.Listener
	parted atomic.Bool
}

func (l *link) serve(to string) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", to)
		if err != nil {
			_ = near.Close() // as a Redis that is away
			continue
		}
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			go func() {
				defer way[0].Close()
				defer way[1].Close()
				b := make([]byte, 16<<10)
				for {
					n, err := way[0].Read(b)
					if err != nil {
						return
					}
					if l.parted.Load() {
						continue
					}
					if _, err := way[1].Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}
}

// member is a proxy's identity, and all that its way to mixer asks for.
type member struct{ fixed }

func (member) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
func (member) Workload() string { return "web" }

// caller is a request of which the user is known.
type caller string

func (c caller) Attribute(name string) (expression.Value, bool, error) {
	return expression.Value{Type: document.StringMap, Map: c}, name == "request.headers", nil
}
func (c caller) Get(key string) (string, bool) { return string(c), key == "user" }

// counting is a proxy: its limits, and what it has from mixer.
type counting struct {
	set          *quota.Set
	onFailure    document.OnFailure
	well, failed atomic.Int64
	mu           sync.Mutex
	spent        map[string]bool // users
}

func (c *counting) pass(user string, n int) (passed int) {
	var m quota.Scratch
	for range n {
		if _, refused := c.set.Take(caller(user), time.Now(), &m); !refused {
			passed++
		}
	}
	return passed
}

func (c *counting) knows(user string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spent[user]
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not within a minute: " + what)
		}
	}
}

// TestQuotasOfTwoMixers counts at six proxies of two mixers, which share a Redis: exactly, before and after a mixer is
// killed, Redis is restarted, and the network between them is parted. Meanwhile each limit goes by its onFailure.
func TestQuotasOfTwoMixers(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("there is no redis-server here: install Debian's redis-server")
	}
	redis, stopRedis := redisAt(t)
	network := &link{}
	var err error
	if network.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = network.Close() })
	go network.serve(redis)

	facts := mesh.Facts{Revision: 1, Workloads: []mesh.Workload{{
		Name: "web", Namespace: "default", Services: []string{"web"}, Identity: workloadID(t, "web").String(), Meshed: true, Running: true,
	}}}
	var mixers []*process
	var proxies []*counting
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer all.Wait()
	defer cancel()
	for range 2 {
		ca := newAuthority(t)
		p := &process{t: t, dir: t.TempDir()}
		keep(t, p.dir, ca)
		keeperWith(t, filepath.Join(p.dir, "keeper.sock"), facts)
		p.start()
		t.Cleanup(p.kill)
		mixers = append(mixers, p)
		configure(t, p.dir, network.Addr().String())
		for _, onFailure := range []document.OnFailure{document.FailOpen, document.FailClosed, document.FailLocal} {
			proxies = append(proxies, join(ctx, t, &all, p.dir, ca, onFailure))
		}
	}

	fresh := 0
	user := func() string { fresh++; return fmt.Sprintf("user-%d", fresh) }
	// listening waits until what one proxy uses up is told to all.
	listening := func() {
		t.Helper()
		eventually(t, "all proxies hear", func() bool {
			u := user()
			for range 2 * redisLimit {
				proxies[0].pass(u, 1)
			}
			heard := 0
			for deadline := time.Now().Add(5 * time.Second); heard < len(proxies) && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				heard = 0
				for _, p := range proxies {
					if p.knows(u) {
						heard++
					}
				}
			}
			return heard == len(proxies)
		})
	}
	exact := func(when string) {
		t.Helper()
		listening()
		u := user()
		passed := 0
		for i := range redisLimit {
			p := proxies[i%len(proxies)]
			time.Sleep(100 * time.Millisecond) // faster, and tokens would be leased, which each proxy may hold besides
			told := p.well.Load()
			passed += p.pass(u, 1)
			eventually(t, "mixer is told", func() bool { return p.well.Load() > told })
		}
		eventually(t, "all proxies are told that it is used up", func() bool {
			for _, p := range proxies {
				if !p.knows(u) {
					return false
				}
			}
			return true
		})
		for _, p := range proxies {
			passed += p.pass(u, 5)
		}
		if passed != redisLimit {
			t.Errorf("%s: %d passed at %d proxies, want %d", when, passed, len(proxies), redisLimit)
		}
	}
	// away waits until mixer does not answer these, and sees that they go by their onFailure.
	away := func(when string, of []*counting) {
		t.Helper()
		for _, p := range of {
			u, seen := user(), p.failed.Load()
			eventually(t, "mixer does not answer", func() bool { p.pass(u, 1); return p.failed.Load() > seen+1 })
			want := map[document.OnFailure]int{document.FailOpen: 50, document.FailClosed: 0, document.FailLocal: redisLimit}[p.onFailure]
			if got := p.pass(user(), 50); got != want {
				t.Errorf("%s: %d passed by %s, want %d", when, got, p.onFailure, want)
			}
		}
	}
	back := func() {
		t.Helper()
		for _, p := range proxies {
			u, seen := user(), p.well.Load()
			eventually(t, "mixer answers", func() bool { p.pass(u, 1); u = user(); return p.well.Load() > seen+1 })
		}
	}

	exact("at first")

	mixers[1].kill()
	away("a mixer is killed", proxies[3:])
	mixers[1].start()
	back()
	exact("after a mixer was killed")

	start := stopRedis()
	away("Redis is away", proxies)
	start()
	back()
	exact("after Redis was restarted")

	network.parted.Store(true)
	away("Redis can't be reached", proxies)
	network.parted.Store(false)
	back()
	exact("after the network was parted")
}

// redisAt runs a Redis. stop kills it, and gives what starts it again.
func redisAt(t *testing.T) (address string, stop func() (start func())) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var cmd *exec.Cmd
	start := func() {
		_, port, _ := net.SplitHostPort(address)
		cmd = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "redis listens", func() bool {
			c, err := net.Dial("tcp", address)
			if err == nil {
				_ = c.Close() // it listens
			}
			return err == nil
		})
	}
	kill := func() {
		_ = cmd.Process.Kill() // it may be dead already
		_ = cmd.Wait()
	}
	start()
	t.Cleanup(func() { kill() })
	return address, func() func() { kill(); return start }
}

// keep writes the CA for the mixer's own process.
func keep(t *testing.T, dir string, ca *authority) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(ca.key)
	if err != nil {
		t.Fatal(err)
	}
	for file, der := range map[string][]byte{"ca.crt": ca.cert.Raw, "ca.key": der} {
		if err := os.WriteFile(filepath.Join(dir, file), der, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// configure applies the limit when the mixer serves.
func configure(t *testing.T, dir, redis string) {
	t.Helper()
	admin := client(t, filepath.Join(dir, "admin.sock"), nil)
	eventually(t, "mixer serves", func() bool {
		resp, err := admin.Get("http://mixer/healthz")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close() // it is there
		}
		return err == nil
	})
	for path, object := range redisObjects(redis) {
		group, _, _ := strings.Cut(strings.TrimPrefix(path, "apis/"), "/namespaces")
		resp, err := admin.Post("http://mixer/"+path, "application/json", strings.NewReader(`{"apiVersion":"`+group+`",`+object[1:]))
		if err != nil {
			t.Fatal(err)
		}
		if code, body := answer(t, resp); code != http.StatusCreated {
			t.Fatalf("%s: %d %s", path, code, body)
		}
	}
}

// join is a proxy of the workload web at the mixer in dir.
func join(ctx context.Context, t *testing.T, all *sync.WaitGroup, dir string, ca *authority, onFailure document.OnFailure) *counting {
	t.Helper()
	usage := make(chan *document.Usage, 99)
	way, err := control.New(control.Config{
		PilotSocket: filepath.Join(dir, "none"), CitadelSocket: filepath.Join(dir, "none"), MixerSocket: filepath.Join(dir, "mixer.sock"),
		TrustDomain: mesh.DefaultTrustDomain, Identity: member{ca.issue(t, workloadID(t, "web"), time.Now().Add(time.Hour))},
		StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		ApplyUsage: func(u *document.Usage) error { usage <- u; return nil },
		Report:     func() (*report.Report, uint64) { return &report.Report{}, 0 },
	})
	if err != nil {
		t.Fatal(err)
	}
	all.Go(func() { _ = way.Run(ctx) })
	var limits []document.RateLimit
	for timeout := time.After(time.Minute); len(limits) == 0; {
		select {
		case u := <-usage:
			limits = u.RateLimits
		case <-timeout:
			t.Fatal("mixer tells of no limit")
		}
	}
	limits[0].OnFailure = onFailure // a redisquota's is OPEN
	c := &counting{onFailure: onFailure, spent: map[string]bool{}}
	if c.set, err = quota.Build(limits, nil); err != nil {
		t.Fatal(err)
	}
	fetch := func(ctx context.Context, r *lease.Request) (*lease.Answer, error) {
		a, err := way.Lease(ctx, r)
		if err != nil {
			c.failed.Add(1)
		} else {
			c.well.Add(1)
		}
		return a, err
	}
	listen := func(ctx context.Context, hear func(*lease.Count)) error {
		return way.Counts(ctx, func(n *lease.Count) {
			hear(n)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.spent[string(n.Key[4:])] = n.Left == 0
		})
	}
	all.Go(func() { _ = c.set.Leases().Run(ctx, fetch, slog.New(slog.DiscardHandler)) })
	all.Go(func() { _ = c.set.Leases().Follow(ctx, func() *quota.Set { return c.set }, listen) })
	return c
}
