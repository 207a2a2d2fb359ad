package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/internal/atomicfile"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// load makes requests until it is ended, and counts what fails.
type load struct {
	t      *testing.T
	stop   atomic.Bool
	wg     sync.WaitGroup
	served atomic.Int64
}

// startLoad lets workers make requests at addr; fresh ones open a connection for each. On a connection that is kept
// alive a request may cross with the proxy's close, which any HTTP/1 client has to reckon with: there the requests are
// GET, which net/http then sends again (RFC 9112 section 9.3.1). On a fresh one every loss shows.
func startLoad(t *testing.T, addr string, workers int, fresh bool) *load {
	t.Helper()
	l := &load{t: t}
	for i := range workers {
		c := httpClient(t, addr, "")
		c.Transport.(*http.Transport).DisableKeepAlives = fresh
		l.wg.Go(func() {
			for n := 0; !l.stop.Load(); n++ {
				var resp *http.Response
				var err error
				if url := fmt.Sprintf("http://web/%d/%d", i, n); fresh {
					resp, err = c.Post(url, "text/plain", strings.NewReader("x"))
				} else {
					resp, err = c.Get(url)
				}
				if err != nil {
					l.t.Errorf("request %d of worker %d: %v", n, i, err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					l.t.Errorf("request %d of worker %d: %d %q, %v", n, i, resp.StatusCode, body, err)
					return
				}
				l.served.Add(1)
			}
		})
	}
	return l
}

// more waits until n further requests were served, or something failed.
func (l *load) more(n int64) {
	for goal := l.served.Load() + n; l.served.Load() < goal && !l.t.Failed(); {
		time.Sleep(time.Millisecond) // watches a counter; nothing depends on the time
	}
}

func (l *load) end() {
	l.stop.Store(true)
	l.wg.Wait()
}

// sandbox hands listeners to each proxy that asks, as the real one does.
func sandbox(t *testing.T, outbound, inbound *net.TCPListener) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "listeners.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	var files []*os.File
	for _, l := range []*net.TCPListener{outbound, inbound} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		files = append(files, f)
	}
	rights := unix.UnixRights(int(files[0].Fd()), int(files[1].Fd()))
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte("1"), rights, nil); err != nil {
				t.Error(err)
			}
			go func() { _, _ = io.Copy(io.Discard, c) }() // the lease
		}
	}()
	return socket
}

func acquire(socket string) func(context.Context) (*listen.Held, error) {
	return func(ctx context.Context) (*listen.Held, error) { return listen.Acquire(ctx, socket) }
}

// TestReplacement: proxies follow one another at the same listeners under load, once overlapping and once with a gap,
// and no request is lost.
func TestReplacement(t *testing.T) {
	m := newMesh(t)
	m.web()
	// Both proxies of the mesh are of the kind that is replaced; each has its own sandbox.
	unused := listenTCP(t, "127.0.0.1:0")
	clients, servers := sandbox(t, m.outbound, unused), sandbox(t, unused, m.inbound)
	start := func() (client, server *running) {
		cc, sc := m.clientConfig(nil), m.serverConfig(nil)
		cc.Capture.Acquire, sc.Capture.Acquire = acquire(clients), acquire(servers)
		client, server = run(t, cc), run(t, sc)
		awaitReady(t, client)
		awaitReady(t, server)
		return client, server
	}
	client, server := start()
	loads := []*load{startLoad(t, m.at(webIP), 4, false), startLoad(t, m.at(webIP), 2, true)}
	more := func() {
		for _, l := range loads {
			l.more(100)
		}
	}
	more()
	client2, server2 := start() // overlapping
	more()
	server.halt(t)
	client.halt(t)
	more()
	client2.halt(t) // with a gap: new connections wait
	server2.halt(t)
	start()
	more()
	for _, l := range loads {
		l.end()
	}
}

// TestDrainFinishesWhatIsUnderWay: a request that has begun is answered, though its proxy was told to stop.
func TestDrainFinishesWhatIsUnderWay(t *testing.T) {
	m := newMesh(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-finish
			fmt.Fprint(w, "done")
		}))
	})
	m.start()
	result := make(chan string, 1)
	go func() {
		resp, err := httpClient(t, m.at(webIP), "").Get("http://web/slow")
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		result <- fmt.Sprint(resp.StatusCode, " ", string(body), " ", err)
	}()
	<-begun
	m.client.stop()
	m.server.stop()
	for _, p := range []*running{m.client, m.server} {
		reasons, changed := p.ready.State()
		for len(reasons) == 0 {
			<-changed
			reasons, changed = p.ready.State()
		}
		if !strings.Contains(reasons[0], "draining") {
			t.Errorf("while draining the reasons are %q", reasons)
		}
	}
	close(finish)
	if got := <-result; got != "200 done <nil>" {
		t.Errorf("the request under way: %s", got)
	}
	m.client.halt(t)
	m.server.halt(t)
}

// TestSnapshotsUnderLoad: tables are replaced under load and no request is lost.
func TestSnapshotsUnderLoad(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.start()
	l := startLoad(t, m.at(webIP), 4, false)
	other := m.snapshot("client")
	other.VirtualHosts[0].Routes[0].Destinations[0].Subset = ""
	for i := range 50 {
		next := m.snapshot("client")
		if i%2 == 0 {
			next = clone(t, other)
		}
		if err := m.client.Apply(next); err != nil {
			t.Fatal(err)
		}
		if err := m.server.Apply(m.snapshot("server")); err != nil {
			t.Fatal(err)
		}
		l.more(10)
	}
	l.end()
}

func clone(t *testing.T, s *snapshot.Snapshot) *snapshot.Snapshot {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	out := new(snapshot.Snapshot)
	if err := json.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPlanesAway: a proxy that finds no plane comes up by the snapshot of its last run.
func TestPlanesAway(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.server = run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	dir := t.TempDir()
	for file, part := range map[string]any{
		"snapshot.json": m.snapshot("client"), "security.json": &snapshot.Security{}, "usage.json": &snapshot.Usage{},
	} {
		data, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		if err := atomicfile.Write(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Snapshot = nil
	cfg.Control = &Planes{PilotSocket: filepath.Join(dir, "pilot.sock"), CitadelSocket: filepath.Join(dir, "citadel.sock"), MixerSocket: filepath.Join(dir, "mixer.sock"), StateDir: dir}
	m.client = run(t, cfg)
	awaitReady(t, m.client)
	awaitReady(t, m.server)
	if code, _ := get(t, httpClient(t, m.at(webIP), ""), "http://web/"); code != http.StatusOK {
		t.Errorf("status %d", code)
	}
}

// TestNotReadyWithoutASnapshot: without any, nothing is accepted that could leave in plain text.
func TestNotReadyWithoutASnapshot(t *testing.T) {
	m := newMesh(t)
	dir := t.TempDir()
	cfg := m.clientConfig(nil)
	cfg.Snapshot = nil
	cfg.Control = &Planes{PilotSocket: filepath.Join(dir, "pilot.sock"), CitadelSocket: filepath.Join(dir, "citadel.sock"), MixerSocket: filepath.Join(dir, "mixer.sock"), StateDir: dir}
	cfg.Capture.Acquire = func(context.Context) (*listen.Held, error) {
		t.Error("the listeners were asked for")
		return nil, context.Canceled
	}
	p := run(t, cfg)
	p.cfg.Level.Set(slog.LevelError)
	resp, err := http.Get("http://" + p.servers[1].listener.Addr().String() + "/healthz/ready")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "snapshot: none yet") {
		t.Errorf("%d %q, %v", resp.StatusCode, body, err)
	}
}

// TestServesWithAllParts: whatever order the planes' parts come in, nothing is in force before the last.
func TestServesWithAllParts(t *testing.T) {
	m := newMesh(t)
	dir := t.TempDir()
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Snapshot = nil
	cfg.Control = &Planes{PilotSocket: filepath.Join(dir, "pilot.sock"), CitadelSocket: filepath.Join(dir, "citadel.sock"), MixerSocket: filepath.Join(dir, "mixer.sock"), StateDir: dir}
	s := run(t, cfg)
	missing := func() string {
		reasons, _ := s.ready.State()
		return strings.Join(reasons, "\n")
	}
	for _, part := range []struct {
		apply   func() error
		missing string // the part that is waited for still
	}{
		{func() error { return s.applyUsage(&snapshot.Usage{Version: "u"}) }, needSecurity},
		{func() error { return s.applySecurity(&snapshot.Security{Version: "s"}) }, needSnapshot},
		{func() error { return s.Apply(m.snapshot("client")) }, ""},
	} {
		if err := part.apply(); err != nil {
			t.Fatal(err)
		}
		if part.missing == "" {
			break
		}
		if s.snapshot.Load() != nil || s.table.Load().Self() != nil || !strings.Contains(missing(), part.missing+": none yet") {
			t.Errorf("without the %s part: in force %v, waits for\n%s", part.missing, s.snapshot.Load(), missing())
		}
	}
	got := s.snapshot.Load()
	if got == nil || got.Security.Version != "s" || got.Usage.Version != "u" || s.table.Load().Self() == nil || strings.Contains(missing(), "none yet: pilot") {
		t.Errorf("with all parts: in force %+v, waits for\n%s", got, missing())
	}
}

func TestCutOff(t *testing.T) {
	lo, eth := net.Interface{Name: "lo", Flags: net.FlagLoopback | net.FlagUp}, net.Interface{Name: "eth0"}
	for _, tc := range []struct {
		name       string
		interfaces []net.Interface
		err        error
		want       bool
	}{
		{"connected", []net.Interface{lo, eth}, nil, false},
		{"the loopback alone", []net.Interface{lo}, nil, true},
		{"not even that", nil, nil, true},
		{"unknown", nil, io.EOF, false},
	} {
		if got := cutOff(tc.interfaces, tc.err); got != tc.want {
			t.Errorf("%s: cut off is %v", tc.name, got)
		}
	}
}
