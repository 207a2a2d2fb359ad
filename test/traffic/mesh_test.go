package traffic

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/tlsconf"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// facts are those of bookinfo in plain text: productpage, reviews v1 to v3, ratings, details, and a gateway. The last
// number of an address is the place in the list, from 1 on.
func facts() mesh.Facts {
	f := mesh.Facts{Project: "shop"}
	add := func(name, service, version string, role mesh.Role, port mesh.Port) {
		f.Workloads = append(f.Workloads, mesh.Workload{
			Name: name, Namespace: "default", ServiceAccount: name, Role: role, Services: []string{service}, Running: true,
			Labels:    map[string]string{"app": service, "version": version},
			Addresses: []mesh.Address{{Network: "shop_default", IPv4: fmt.Sprintf("10.0.0.%d", len(f.Workloads)+1)}},
			Ports:     []mesh.Port{port},
		})
	}
	for _, name := range []string{"details-v1", "productpage-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"} {
		service, version, _ := strings.Cut(name, "-")
		add(name, service, version, mesh.RoleApp, mesh.Port{Number: 9080, Protocol: mesh.ProtocolHTTP})
	}
	add("istio-ingressgateway", "istio-ingressgateway", "", mesh.RoleGateway, mesh.Port{Number: 80, Published: []string{"8080"}})
	f.Workloads[len(f.Workloads)-1].Labels = map[string]string{"istio": "ingressgateway"}
	return f
}

// anywhere is what DNS says of a name that is no service's: a server outside of the mesh.
const anywhere = "10.0.0.250:9080"

// shop is the applications, and the proxy of one workload before them.
type shop struct {
	t     *testing.T
	facts mesh.Facts
	from  string

	table  atomic.Pointer[table.Table]
	snap   *snapshot.Snapshot // that the table was made of
	certs  *tlsconf.Store
	engine *forward.Engine
	done   chan exchange.Exchange

	mu   sync.Mutex
	seen map[string][]string // what each workload got: "METHOD path host"
	dial map[netip.AddrPort]string
	down map[string]bool // workloads that refuse connections

	dials map[string]int // connections to each workload
}

// open starts the applications and a proxy for the workload from, with rules.
func open(t *testing.T, from, rules string) *shop {
	t.Helper()
	s := &shop{
		t: t, facts: facts(), from: from, done: make(chan exchange.Exchange, 1000),
		seen: map[string][]string{}, dial: map[netip.AddrPort]string{}, down: map[string]bool{}, dials: map[string]int{},
	}
	for _, w := range s.facts.Workloads {
		app := httptest.NewServer(s.app(w.Name))
		t.Cleanup(app.Close)
		s.dial[netip.AddrPortFrom(netip.MustParseAddr(w.Addresses[0].IPv4), w.Ports[0].Number)] = app.Listener.Addr().String()
	}
	for name, at := range map[string]string{"outside": anywhere, "static": "192.0.2.80:9080"} {
		app := httptest.NewServer(s.app(name))
		t.Cleanup(app.Close)
		s.dial[netip.MustParseAddrPort(at)] = app.Listener.Addr().String()
	}
	s.certs = tlsconf.New(nil, spiffeid.TrustDomain{}, slog.New(slog.DiscardHandler))
	s.apply(rules)
	s.engine = forward.New(forward.Config{
		Table: s.table.Load, Transport: upstream.New(upstream.Config{Dial: s.connect, ClientTLS: s.certs.Client}), Recorder: s, Log: slog.New(slog.DiscardHandler),
	})
	return s
}

// apply makes rules the only ones, as pilot and the proxy would.
func (s *shop) apply(rules string) {
	s.t.Helper()
	docs, err := api.DecodeYAML(api.Kinds(), "mesh.yaml", strings.NewReader(rules))
	if err != nil {
		s.t.Fatal(err)
	}
	view := compile.View{Facts: s.facts, TrustDomain: "cluster.local"}
	for i, d := range docs {
		d.Object.Meta.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
		view.Intent = append(view.Intent, d.Object)
	}
	snap, _, err := compile.Compile(view, s.from)
	if err != nil {
		s.t.Fatal(err)
	}
	next, err := table.Build(snap, s.table.Load())
	if err != nil {
		s.t.Fatal(err)
	}
	s.certs.Apply(snap)
	s.table.Store(next)
	s.snap = snap
}

func (s *shop) connect(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	s.mu.Lock()
	addr, known := s.dial[to]
	name := s.workloadAt(to.Addr())
	down := s.down[name]
	s.dials[name]++
	s.mu.Unlock()
	if !known || down {
		return nil, fmt.Errorf("connect to %s: connection refused", to)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (s *shop) workloadAt(ip netip.Addr) string {
	for _, w := range s.facts.Workloads {
		if w.Addresses[0].IPv4 == ip.String() {
			return w.Name
		}
	}
	return ""
}

// app answers with who it is and what it got. /status/503 asks for a status, /grpc/14 for one of gRPC, /hang for no
// answer at all, and /reset for the connection's end; "@v1" at the end of a segment asks it of that version alone.
func (s *shop) app(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen[name] = append(s.seen[name], r.Method+" "+r.RequestURI+" "+r.Host)
		s.mu.Unlock()
		h := w.Header()
		h.Set("X-Workload", name)
		h.Set("X-App", "1")
		for k, v := range r.Header {
			h["Saw-"+k] = []string{strings.Join(v, ",")}
		}
		h.Set("Saw-Host", r.Host)
		h.Set("Saw-Path", r.RequestURI)
		command, arg, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		arg, version, only := strings.Cut(arg, "@")
		if only && !strings.HasSuffix(name, version) {
			command = ""
		} else if n, err := strconv.Atoi(arg); err == nil && command == "status" {
			w.WriteHeader(n)
		}
		switch command {
		case "grpc":
			h.Set("Content-Type", "application/grpc")
			h.Set("Grpc-Status", arg)
		case "hang":
			<-r.Context().Done()
		case "reset":
			panic(http.ErrAbortHandler)
		}
	})
}

// Exchange is told of each exchange.
func (s *shop) Exchange(x *exchange.Exchange) {
	c := *x
	s.done <- c
}

// SessionOpened is not called: all is HTTP.
func (s *shop) SessionOpened(*exchange.Session) {}

// SessionClosed is not called: all is HTTP.
func (s *shop) SessionClosed(*exchange.Session) {}

// answer is what became of a request.
type answer struct {
	*http.Response
	body   string
	record exchange.Exchange
}

// workload is who answered, "" where it was the proxy itself.
func (a *answer) workload() string { return a.Header.Get("X-Workload") }

// client is a connection to the proxy.
type client struct {
	http *http.Client
	s    *shop
}

// client is one whose requests go to a service, as if by DNS, or to an address with port.
func (s *shop) client(service string) *client {
	to := netip.MustParseAddrPort(anywhere)
	c := exchange.Connection{Direction: exchange.Outbound, Remote: netip.MustParseAddrPort("10.0.0.2:40000")}
	if strings.Contains(s.from, "gateway") {
		c.Direction, c.Remote = exchange.Gateway, netip.MustParseAddrPort("192.0.2.7:40000")
		to = netip.MustParseAddrPort("10.0.0.7:80")
	}
	if at, err := netip.ParseAddrPort(service); err == nil {
		to = at
	}
	for _, w := range s.facts.Workloads {
		if slices.Contains(w.Services, service) {
			to = netip.AddrPortFrom(netip.MustParseAddr(w.Addresses[0].IPv4), w.Ports[0].Number)
			break
		}
	}
	c.OriginalDst = to
	ctx := s.t.Context()
	tr := &http.Transport{DisableCompression: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
		near, far, err := pair(ctx)
		if err == nil {
			conn := c
			conn.Start = time.Now()
			go func() { _ = s.engine.ServeHTTP1(context.WithoutCancel(ctx), far, &conn) }()
		}
		return near, err
	}}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &client{s: s, http: &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// pair is both ends of a connection.
func pair(ctx context.Context) (near, far net.Conn, err error) {
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if near, err = (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	far, err = ln.Accept()
	return near, far, err
}

// do sends a request to host, which is an authority, and waits for the record of it.
func (c *client) do(method, url string, header ...string) *answer {
	c.s.t.Helper()
	host, path, _ := strings.Cut(url, "/")
	req, err := http.NewRequestWithContext(c.s.t.Context(), method, "http://"+host+"/"+path, nil)
	if err != nil {
		c.s.t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ":")
		req.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.s.t.Fatal(err)
	}
	return &answer{Response: resp, body: string(body), record: <-c.s.done}
}

// dialled is how many connections a workload got.
func (s *shop) dialled(workload string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dials[workload]
}

// active is how many requests each endpoint of reviews has under way.
func (s *shop) active() (counts []int64) {
	for _, e := range s.table.Load().Cluster("reviews.default.svc.cluster.local", "").Endpoints {
		counts = append(counts, e.Active())
	}
	return counts
}

// until waits for a condition that comes without a sign.
func (s *shop) until(done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("it did not come to that in 20 s")
		}
	}
}

// hang sends n requests that nobody answers, one after the other, and returns when all have arrived. They end with end.
func (s *shop) hang(n int, url string) *hung {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	h := &hung{}
	arrived := func() (all int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, got := range s.seen {
			all += len(got)
		}
		return all
	}
	before := arrived()
	for i := range n {
		c := s.client("reviews")
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+url, nil)
		if err != nil {
			s.t.Fatal(err)
		}
		h.wg.Go(func() {
			if resp, err := c.http.Do(req); err == nil {
				resp.Body.Close()
			}
		})
		s.until(func() bool { return arrived() == before+i+1 })
	}
	h.cancel = func() {
		cancel()
		for range n {
			<-s.done // its record: then it counts no more
		}
	}
	return h
}

// background sends a request, the status of whose answer comes later.
func (s *shop) background(url string, status chan<- int) {
	c := s.client("reviews")
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, "http://"+url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	go func() {
		resp, err := c.http.Do(req)
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
}

// requests are how many a workload has got, and forgets them all.
func (s *shop) requests() map[string][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = map[string][]string{}
	return seen
}
