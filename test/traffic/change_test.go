package traffic

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/settings"
	"github.com/composure-mesh/composure/pilot"
	"github.com/composure-mesh/composure/proxy"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/proxytest"
	"github.com/composure-mesh/composure/proxy/telemetry"
)

// meshInProcess is a pilot with real proxies, of a client and of two versions of a server, on loopback and unix sockets.
type meshInProcess struct {
	t     *testing.T
	dir   string
	ca    *proxytest.CA
	port  uint16 // the service port
	lines chan []byte
	admin *http.Client

	outbound string // where the client's application comes out
	revision uint64
}

func startReal(t *testing.T) *meshInProcess {
	t.Helper()
	dir, err := os.MkdirTemp("", "real") //nolint:usetesting // the path of a unix socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &meshInProcess{t: t, dir: dir, ca: proxytest.NewCA(t), lines: make(chan []byte, 10)}
	// What a plane pushes that has nothing to say, and the keeper.
	r.serve("citadel", r.tls("citadel"), stream(func(context.Context) []byte { return []byte(`{"version":"none"}` + "\n") }))
	r.serve("mixer", r.tls("mixer"), stream(func(context.Context) []byte { return []byte(`{"version":"none"}` + "\n") }))
	r.serve("keeper", nil, stream(func(ctx context.Context) []byte {
		select {
		case line := <-r.lines:
			return line
		case <-ctx.Done():
			return nil
		}
	}))
	p, err := pilot.New(pilot.Config{
		TrustDomain: mesh.DefaultTrustDomain, KeeperSocket: r.path("keeper"), MeshSocket: r.path("pilot"), AdminSocket: r.path("admin"),
		StoreFile: r.path("store"), Identity: r.ca.Agent("pilot", r.planeID("pilot")), Version: "test", Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.run(p.Run)
	r.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.path("admin"))
	}}}
	t.Cleanup(r.admin.CloseIdleConnections)

	v1 := r.listen("127.0.0.2:0")
	r.port = listen.AddrPort(v1.Addr()).Port()
	v2 := r.listen(fmt.Sprintf("127.0.0.3:%d", r.port))
	client := r.listen("127.0.0.1:0")
	r.outbound = client.Addr().String()
	r.proxy("web-v1", listen.Own(nil, v1), r.app("v1"))
	r.proxy("web-v2", listen.Own(nil, v2), r.app("v2"))
	r.proxy("client", listen.Own(client, nil), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), r.port))
	r.tell("healthy")
	return r
}

func (r *meshInProcess) path(name string) string { return filepath.Join(r.dir, name) }

func (r *meshInProcess) planeID(role mesh.Role) string {
	id, err := mesh.PlaneID(mesh.DefaultTrustDomain, role)
	if err != nil {
		r.t.Fatal(err)
	}
	return id.String()
}

func (r *meshInProcess) tls(role mesh.Role) *tls.Config {
	td := spiffeid.RequireTrustDomainFromString(mesh.DefaultTrustDomain)
	return identity.ServerTLS(r.ca.Agent("", r.planeID(role)), identity.MemberOf(td), "http/1.1")
}

// run runs a part until the test ends.
func (r *meshInProcess) run(part func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part(ctx) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Error(err)
		}
	})
}

func (r *meshInProcess) serve(name string, conf *tls.Config, h http.Handler) {
	ln, err := net.Listen("unix", r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	if conf != nil {
		ln = tls.NewListener(ln, conf)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	r.t.Cleanup(func() { _ = srv.Close() })
}

// stream sends the lines of next, the first at once and an endless wait after the last; what is posted is taken.
func stream(next func(context.Context) []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodGet {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		var last string
		for {
			line := next(q.Context())
			if line == nil || string(line) == last {
				<-q.Context().Done()
				return
			}
			last = string(line)
			if _, err := w.Write(line); err != nil || http.NewResponseController(w).Flush() != nil {
				return
			}
		}
	})
}

func (r *meshInProcess) listen(addr string) *net.TCPListener {
	ln, err := net.Listen("tcp4", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

// app is a version of the server. It tells what it is and what it saw.
func (r *meshInProcess) app(version string) netip.AddrPort {
	ln := r.listen("127.0.0.1:0")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		fmt.Fprintf(w, "%s %s %s", version, q.URL.Path, q.Header.Get("X-Rule"))
	})}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	r.t.Cleanup(func() { _ = srv.Close() })
	return listen.AddrPort(ln.Addr())
}

// proxy runs the proxy of a workload; what it captures was going to dst.
func (r *meshInProcess) proxy(workload string, held *listen.Held, dst netip.AddrPort) {
	level := new(slog.LevelVar)
	level.Set(slog.LevelError)
	set := settings.Default()
	set.Drain = time.Second
	s, err := proxy.New(proxy.Config{
		Mesh: "test", TrustDomain: mesh.DefaultTrustDomain, Build: "test", Level: level, Log: slog.New(slog.NewTextHandler(r.t.Output(), &slog.HandlerOptions{Level: level})),
		Identity: r.ca.Agent(workload, "spiffe://cluster.local/ns/default/sa/"+workload), Settings: set, AccessLogFormat: telemetry.FormatOff,
		Control:   &proxy.Planes{PilotSocket: r.path("pilot"), CitadelSocket: r.path("citadel"), MixerSocket: r.path("mixer"), StateDir: r.t.TempDir()},
		AdminAddr: "127.0.0.1:0", ReadyAddr: "127.0.0.1:0", MetricsAddr: "127.0.0.1:0",
		Capture: &proxy.Capture{
			Acquire:     func(context.Context) (*listen.Held, error) { return held, nil },
			OriginalDst: func(*net.TCPConn, bool) (netip.AddrPort, error) { return dst, nil },
		},
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.run(s.Run)
}

// tell gives pilot the facts, with the health of the first version.
func (r *meshInProcess) tell(health string) {
	r.revision++
	f := mesh.Facts{Revision: r.revision, Project: "test"}
	for i, name := range []string{"client", "web-v1", "web-v2"} {
		service, version, _ := strings.Cut(name, "-")
		w := mesh.Workload{
			Name: name, Namespace: "default", ServiceAccount: name, Identity: "spiffe://cluster.local/ns/default/sa/" + name, Role: mesh.RoleApp,
			Services: []string{service}, Labels: map[string]string{"app": service, "version": version}, Meshed: true, Running: true,
			Addresses: []mesh.Address{{Network: "test", IPv4: fmt.Sprintf("127.0.0.%d", i+1)}},
		}
		if service == "web" {
			w.Ports = []mesh.Port{{Number: r.port, Protocol: mesh.ProtocolHTTP}}
		}
		if version == "v1" {
			w.Health = health
		}
		f.Workloads = append(f.Workloads, w)
	}
	line, err := json.Marshal(f)
	if err != nil {
		r.t.Fatal(err)
	}
	r.lines <- append(line, '\n')
}

// put creates or changes an object.
func (r *meshInProcess) put(method, path, contentType, object string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://pilot/apis/networking.istio.io/v1/namespaces/default/"+path, strings.NewReader(object))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := r.admin.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode/100 != 2 {
		r.t.Fatalf("%s %s: %s %s %v", method, path, resp.Status, body, err)
	}
}

// rule is the VirtualService of change n: a path, a header of the request, one of the response, and a version of the server.
func rule(n int) string {
	return fmt.Sprintf(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"web"},"spec":{"hosts":["web"],"http":[{
		"rewrite":{"uri":"/%[1]d"},"headers":{"request":{"set":{"x-rule":"%[1]d"}},"response":{"set":{"x-rule":"%[1]d"}}},
		"route":[{"destination":{"host":"web","subset":"v%[2]d"}}]}]}}`, n, n%2+1)
}

const versions = `{"apiVersion":"networking.istio.io/v1","kind":"DestinationRule","metadata":{"name":"web"},"spec":{"host":"web",
	"subsets":[{"name":"v1","labels":{"version":"v1"}},{"name":"v2","labels":{"version":"v2"}}]}}`

// TestChangesUnderLoad: while the configuration and the health of endpoints change 500 times, no request is lost, each is
// served by the rules of one version alone, and no client goes back to an older version.
func TestChangesUnderLoad(t *testing.T) {
	const changes, together, clients = 500, 5, 4
	r := startReal(t)
	r.put(http.MethodPost, "destinationrules", "application/json", versions)
	r.put(http.MethodPost, "virtualservices", "application/json", rule(0))

	var newest atomic.Int64
	newest.Store(-1)
	seen := map[int]bool{}
	var mu sync.Mutex
	var served atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: i%2 == 0, // every other one comes on a new connection
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", r.outbound)
			},
		}}
		t.Cleanup(c.CloseIdleConnections)
		wg.Go(func() {
			last := -1
			for {
				select {
				case <-stop:
					return
				default:
				}
				n, err := oneVersion(t.Context(), c)
				switch {
				case err != nil && newest.Load() < 0:
					time.Sleep(10 * time.Millisecond) // the proxies are only starting
					continue
				case err != nil:
					t.Error(err)
					return
				case n < last:
					t.Errorf("a request by the rules of change %d after one by those of %d", n, last)
				}
				last = n
				served.Add(1)
				time.Sleep(time.Millisecond) // a load, and time for others
				mu.Lock()
				seen[n] = true
				newest.Store(max(newest.Load(), int64(n)))
				mu.Unlock()
			}
		})
	}
	await := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); newest.Load() < int64(n); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) || t.Failed() {
				t.Fatalf("change %d is not seen in force; the newest is %d", n, newest.Load())
			}
		}
	}
	defer wg.Wait()
	defer close(stop)
	await(0)
	for n := 1; n <= changes; n++ {
		if n%together == 0 {
			r.tell([]string{"healthy", "unhealthy"}[n/together%2])
		}
		r.put(http.MethodPatch, "virtualservices/web", "application/merge-patch+json", rule(n))
		if n%together == 0 {
			await(n)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) < changes/together {
		t.Errorf("%d requests saw %d versions, want %d at least", served.Load(), len(seen), changes/together)
	}
	t.Logf("%d requests saw %d versions", served.Load(), len(seen))
}

// oneVersion sends a request and tells by the rules of which change it was served; it is an error where not all that was
// done to it is of the same.
func oneVersion(ctx context.Context, c *http.Client) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://web/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, fmt.Errorf("a request is lost: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("a request is lost: %w", err)
	}
	n, err := strconv.Atoi(resp.Header.Get("X-Rule"))
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("a request is lost: %s %v %s", resp.Status, resp.Header, body)
	}
	if want := fmt.Sprintf("v%d /%d %d", n%2+1, n, n); string(body) != want {
		return 0, fmt.Errorf("the response is by change %d, and the server saw %q, want %q", n, body, want)
	}
	return n, nil
}
