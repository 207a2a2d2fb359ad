package forward_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	meshfacts "github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/proxytest"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

const (
	clientID = "spiffe://cluster.local/ns/default/sa/client"
	serverID = "spiffe://cluster.local/ns/default/sa/server"
)

// sidecar is an inbound engine behind a TLS listener, as an inbound listener has it, in front of app.
func sidecar(t *testing.T, ca *proxytest.CA, id, app string, declared meshfacts.Protocol) (addr string, rec *recorder) {
	t.Helper()
	at := netip.MustParseAddrPort(app)
	tab, err := table.Build(&snapshot.Snapshot{Proxy: snapshot.Workload{
		Name: "server", Identity: serverID, Service: "server", Addresses: []string{at.Addr().String()},
		Ports: []snapshot.Port{{Number: at.Port(), Protocol: declared}},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	rec = &recorder{ch: make(chan record, 10000)}
	e := forward.New(forward.Config{Table: func() *table.Table { return tab }, Transport: upstream.New(upstream.Config{}), Recorder: rec, Log: slog.New(slog.DiscardHandler)})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf := identity.ServerTLS(ca.Agent("server", id), identity.MemberOf(spiffeid.RequireTrustDomainFromString("cluster.local")), meshfacts.ALPNHTTP1, meshfacts.ALPNHTTP2)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				c := tls.Server(raw, conf)
				if err := c.HandshakeContext(ctx); err != nil {
					_ = c.Close()
					return
				}
				cs := c.ConnectionState()
				peer, err := identity.PeerID(&cs)
				if err != nil {
					t.Error(err)
				}
				ec := &exchange.Connection{Direction: exchange.Inbound, OriginalDst: at, Remote: raw.RemoteAddr().(*net.TCPAddr).AddrPort(), Peer: peer.String()}
				if cs.NegotiatedProtocol == meshfacts.ALPNHTTP2 {
					_ = e.ServeHTTP2(ctx, c, ec)
				} else {
					_ = e.ServeHTTP1(ctx, c, ec)
				}
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); cancel(); wg.Wait() })
	return ln.Addr().String(), rec
}

// pair is a client's sidecar whose calls to "server" go by mutual TLS to another one, in front of app.
func pair(t *testing.T, actual, app string) (p *proxy, inbound *recorder) {
	t.Helper()
	return pairOf(t, actual, app, meshfacts.ProtocolAuto, false)
}

// pairOf is pair for an application whose port is declared, and for clients that speak HTTP/2.
func pairOf(t *testing.T, actual, app string, declared meshfacts.Protocol, http2 bool) (p *proxy, inbound *recorder) {
	t.Helper()
	ca := proxytest.NewCA(t)
	addr, inbound := sidecar(t, ca, actual, app, declared)
	s := &snapshot.Snapshot{
		Proxy:     snapshot.Workload{Name: "client", Service: "client", Identity: clientID},
		Workloads: []snapshot.Workload{{Name: "server", Namespace: "default", Service: "server", Identity: serverID, Addresses: []string{"10.0.0.1"}}},
		Services:  []snapshot.Service{{Host: "server.default.svc.cluster.local", Name: "server", Endpoints: []string{"server"}, Ports: []snapshot.Port{{Number: 9080, Protocol: declared}}}},
		VirtualHosts: []snapshot.VirtualHost{{Name: "server", Domains: []string{"server"}, Service: "server.default.svc.cluster.local",
			Routes: []snapshot.Route{{Destinations: []snapshot.Destination{{Service: "server.default.svc.cluster.local", Weight: 1}}}}}},
	}
	p = start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: s, identity: ca.Agent("client", clientID), http2: http2,
		dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}})
	return p, inbound
}

func TestPairOfSidecars(t *testing.T) {
	app := served(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		_, _ = fmt.Fprintf(w, "%s %d %s", r.Header.Get("X-Forwarded-Client-Cert"), len(b), r.Header.Get("X-Request-Id"))
	})
	p, inbound := pair(t, serverID, app)
	c := p.client()
	for _, size := range []int{0, 10, 1 << 20} {
		req, _ := http.NewRequest(http.MethodPost, "http://server/", io.MultiReader(strings.NewReader(strings.Repeat("x", size))))
		req.Header.Set("X-Forwarded-Client-Cert", "By=forged")
		_, body := do(t, c, req)
		out, in := p.record(), <-inbound.ch
		if want := fmt.Sprintf("By=%s;URI=%s %d %s", serverID, clientID, size, out.RequestID); body != want {
			t.Errorf("application saw %q, want %q", body, want)
		}
		if !out.TLS || in.TLS || in.RequestID != out.RequestID || in.Received != int64(size) {
			t.Errorf("recorded %+v and %+v", out, in)
		}
	}
}

// TestUndelivered has an application that refuses connections: the client's proxy takes the request elsewhere, which
// it does not where an application has answered, whatever that says.
func TestUndelivered(t *testing.T) {
	refusing, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = refusing.Close()
	forging := served(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Composure-Undelivered", "true")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	for name, test := range map[string]struct {
		app            string
		tries          int
		connectFailure bool
	}{
		"refused":  {refusing.Addr().String(), 3, true},
		"answered": {forging, 1, false},
	} {
		for _, http2 := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " HTTP/2 ", http2), func(t *testing.T) {
				p, inbound := pairOf(t, serverID, test.app, meshfacts.ProtocolAuto, http2)
				c := p.client()
				if http2 {
					c = p.client2()
				}
				req, err := http.NewRequest(http.MethodPost, "http://server/", strings.NewReader("pay"))
				if err != nil {
					t.Fatal(err)
				}
				resp, body := do(t, c, req)
				if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("X-Composure-Undelivered") != "" {
					t.Errorf("status %d, header %v: %s", resp.StatusCode, resp.Header, body)
				}
				out := p.record()
				if strings.Contains(string(out.Flag), string(exchange.FlagUpstreamConnect)) != test.connectFailure {
					t.Errorf("flags are %q", out.Flag)
				}
				for range test.tries {
					<-inbound.ch
				}
				select {
				case r := <-inbound.ch:
					t.Errorf("another try: %+v", r)
				default:
				}
			})
		}
	}
}

// TestPairKeepsToOneLimit sends as many fields both ways as one proxy admits: what the first adds must not make the second
// refuse.
func TestPairKeepsToOneLimit(t *testing.T) {
	o := scripted(t, func(_ int, c *rawConn) {
		if _, _, err := c.request(); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"+strings.Repeat("A: b\r\n", 99)+"\r\n")
		}
	})
	p, _ := pair(t, serverID, o.addr)
	c := p.raw()
	c.send("GET / HTTP/1.1\r\nHost: server\r\n" + strings.Repeat("A: b\r\n", 99) + "\r\n")
	if resp, body := c.response("GET"); resp.StatusCode != http.StatusOK {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

func TestImposterGetsNothing(t *testing.T) {
	var calls atomic.Int32
	app := served(t, func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	p, _ := pair(t, "spiffe://cluster.local/ns/default/sa/imposter", app)
	c := p.raw()
	c.send("GET / HTTP/1.1\r\nHost: server\r\n\r\n")
	resp, body := c.response("GET")
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "imposter") || calls.Load() != 0 {
		t.Errorf("got %d %q after %d calls", resp.StatusCode, body, calls.Load())
	}
	if r := p.record(); r.Flag != "UF,URX" {
		t.Errorf("recorded %+v", r)
	}
}

// TestClientGoneThroughThePair leaves while the application works: it notices, two proxies away.
func TestClientGoneThroughThePair(t *testing.T) {
	came, gone := make(chan struct{}), make(chan struct{})
	app := served(t, func(_ http.ResponseWriter, r *http.Request) {
		close(came)
		<-r.Context().Done()
		close(gone)
	})
	p, inbound := pair(t, serverID, app)
	c := p.raw()
	c.send("GET / HTTP/1.1\r\nHost: server\r\n\r\n")
	<-came
	_ = c.Close()
	<-gone
	for _, r := range []record{p.record(), <-inbound.ch} {
		if r.Flag != exchange.FlagDownstreamTermination {
			t.Errorf("recorded %+v", r)
		}
	}
}

// TestTableChangesUnderLoad swaps tables as fast as it can while clients send: no request fails, and each is routed by
// one table or the other.
func TestTableChangesUnderLoad(t *testing.T) {
	backends := map[string]string{}
	for i, name := range []string{"v1", "v2"} {
		backends[fmt.Sprintf("10.0.0.%d:9080", i+1)] = served(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })
	}
	n := &network{at: backends}
	build := func(subset string, old *table.Table) *table.Table {
		s := mesh()
		s.Services[0].Subsets = []snapshot.Subset{{Name: "v1", Endpoints: []string{"a-1"}}, {Name: "v2", Endpoints: []string{"a-2"}}}
		s.VirtualHosts[0].Routes = []snapshot.Route{{Destinations: []snapshot.Destination{{Service: "a.default.svc.cluster.local", Subset: subset, Weight: 1}}}}
		tab, err := table.Build(s, old)
		if err != nil {
			t.Fatal(err)
		}
		return tab
	}
	p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: mesh(), dial: n.dial})
	p.table.Store(build("v1", nil))
	stop := make(chan struct{})
	var clients, swapper sync.WaitGroup
	swapper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				p.table.Store(build([]string{"v1", "v2"}[i%2], p.table.Load()))
			}
		}
	})
	for range 4 {
		c := p.raw()
		clients.Go(func() {
			for range 200 {
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if resp, body := c.response("GET"); resp.StatusCode != http.StatusOK || body != "v1" && body != "v2" {
					t.Errorf("got %d %q", resp.StatusCode, body)
					return
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	swapper.Wait()
	if got := len(n.dialed); got > 50 {
		t.Errorf("%d connections were opened for 800 requests: pools did not survive", got)
	}
}

func TestGatewayTrustsNoClient(t *testing.T) {
	seen := make(chan http.Header, 1)
	n := &network{at: map[string]string{"10.0.0.1:8080": served(t, func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header })}}
	p := start(t, options{direction: exchange.Gateway, dst: "10.0.0.9:8080", snapshot: mesh(), dial: n.dial})
	c := p.raw()
	c.send("GET / HTTP/1.1\r\nHost: shop.example.com\r\nX-Request-Id: mine\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Client-Cert: By=me\r\nX-Envoy-Internal: true\r\nTraceparent: t\r\n\r\n")
	c.response("GET")
	h := <-seen
	if h.Get("X-Request-Id") == "mine" || h.Get("X-Forwarded-Proto") != "http" || h.Get("X-Forwarded-Client-Cert") != "" || h.Get("X-Envoy-Internal") != "" || h.Get("Traceparent") != "t" || h.Get("X-Forwarded-For") != "127.0.0.1" {
		t.Errorf("application saw %v", h)
	}
	if r := p.record(); r.RequestID != h.Get("X-Request-Id") {
		t.Errorf("recorded %q, application saw %q", r.RequestID, h.Get("X-Request-Id"))
	}
}
