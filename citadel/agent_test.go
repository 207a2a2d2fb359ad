package citadel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/keeper"
	"github.com/composure-mesh/composure/mesh"
)

const testDomain = "cluster.local"

var (
	testTD  = spiffeid.RequireTrustDomainFromString(testDomain)
	otherTD = spiffeid.RequireTrustDomainFromString("bank")
)

// world is a keeper and a citadel whose agents connect through pipes, so that it runs on synctest's clock.
type world struct {
	t        *testing.T
	dir      string
	keeper   *keeper.Keeper
	citadel  *Citadel
	caller   atomic.Pointer[keeper.Caller] // whom the keeper takes everybody for
	lifetime time.Duration

	mu   sync.Mutex
	down map[string]error // by socket
	tls  identity.Source  // citadel's identity; nil is its own
	// tamper stands between agents and the keeper, if set
	tamper func(http.Handler) http.Handler
}

func newWorld(t *testing.T, lifetime time.Duration) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), lifetime: lifetime, down: map[string]error{}}
	w.caller.Store(&keeper.Caller{
		Container: strings.Repeat("a", 64), Role: mesh.RoleProxy, Workload: "web", Identity: "spiffe://cluster.local/ns/default/sa/web",
	})
	w.startKeeper()
	w.startCitadel()
	w.write("bundle.pem", w.citadel.authority.ca.Bundle())
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) write(name string, data []byte) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), data, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) startKeeper() {
	w.t.Helper()
	k, err := keeper.New(keeper.Config{
		Scope: keeper.Scope{Mesh: "shop", TrustDomain: testDomain}, Engine: silentEngine{}, Attestor: w,
		Socket: w.path("keeper.sock"), BundleFile: w.path("bundle.pem"), AttestKey: w.path("attest.pub"), Log: quiet(w.t),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.keeper = k
}

func (w *world) startCitadel() {
	w.t.Helper()
	c, err := New(w.citadelConfig())
	if err != nil {
		w.t.Fatal(err)
	}
	w.citadel = c
}

func (w *world) citadelConfig() Config {
	return Config{
		TrustDomain: testDomain, Lifetime: w.lifetime, StateDir: w.dir, StoreFile: filepath.Join(w.t.TempDir(), "citadel.db"), Socket: w.path("citadel.sock"), AdminSocket: w.path("admin.sock"),
		KeeperSocket: w.path("keeper.sock"), BundleFile: w.path("bundle.pem"), AttestKey: w.path("attest.pub"), Log: quiet(w.t),
	}
}

// Accepted and Attest make world a keeper.Attestor.
func (w *world) Accepted(net.Conn) keeper.Evidence { return keeper.Evidence{} }

func (w *world) Attest(context.Context, keeper.Evidence) (keeper.Caller, error) {
	if c := w.caller.Load(); c != nil {
		return *c, nil
	}
	return keeper.Caller{}, keeper.ErrUnknown
}

func (w *world) setDown(socket string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down[socket] = err
}

// dial serves one connection of the wanted plane at the other end of a pipe.
func (w *world) dial(_ context.Context, socket string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.down[socket]; err != nil {
		return nil, err
	}
	client, server := bufferedPipe()
	handler := w.keeper.Handler()
	if socket == "keeper" && w.tamper != nil {
		handler = w.tamper(handler)
	}
	if socket == "citadel" {
		var src identity.Source = w.citadel.self
		if w.tls != nil {
			src = w.tls
		}
		handler, server = w.citadel.Handler(), tls.Server(server, identity.OpenServerTLS(src, identity.MemberOf(w.citadel.td), "http/1.1"))
	}
	go func() {
		srv := http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(quiet(w.t).Handler(), slog.LevelDebug)}
		_ = srv.Serve(&oneConn{conn: server}) // io.EOF after the one connection
	}()
	return client, nil
}

// bufferedPipe is net.Pipe with room: in TLS both sides may write at once.
func bufferedPipe() (net.Conn, net.Conn) {
	a, inner := net.Pipe()
	outer, b := net.Pipe()
	go pump(inner, outer)
	go pump(outer, inner)
	return a, b
}

func pump(from, to net.Conn) {
	chunks := make(chan []byte, 64)
	go func() {
		for c := range chunks {
			_, _ = to.Write(c) // a closed end reads nothing more
		}
		_ = to.Close()
	}()
	defer close(chunks)
	for {
		buf := make([]byte, 32<<10)
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		chunks <- buf[:n]
	}
}

// oneConn is a listener with a single connection.
type oneConn struct {
	conn net.Conn
	done bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.done {
		return nil, io.EOF
	}
	l.done = true
	return l.conn, nil
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

func (w *world) agent(state string, role mesh.Role) *identity.Agent {
	w.t.Helper()
	a, err := identity.NewAgent(identity.AgentConfig{
		KeeperSocket: "keeper", CitadelSocket: "citadel", BundleFile: w.path("bundle.pem"), StateDir: state,
		TrustDomain: testDomain, Role: role, Log: quiet(w.t), Dial: w.dial,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// run runs the agent, in a bubble, until stop, which waits for its end.
func run(t *testing.T, a *identity.Agent) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		time.Sleep(time.Minute) // what connections are left come to their ends
	}
}

// silentEngine has no container, and is asked for no more than that.
type silentEngine struct{ keeper.Engine }

func (silentEngine) List(context.Context, string, string) ([]keeper.Listed, error) { return nil, nil }
func (silentEngine) Inspect(context.Context, string) (keeper.Container, error) {
	return keeper.Container{}, keeper.ErrNotFound
}
func (silentEngine) Network(context.Context, string) (mesh.Network, error) {
	return mesh.Network{}, keeper.ErrNotFound
}
func (silentEngine) Events(ctx context.Context, f func(keeper.Event)) error {
	f(keeper.Event{})
	<-ctx.Done()
	return ctx.Err()
}

func quiet(t *testing.T) *slog.Logger {
	t.Helper()
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func TestAgentRenewsAtHalfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10*time.Minute)
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		<-a.Ready()
		first := a.Current()
		if got := first.ID.String(); got != "spiffe://cluster.local/ns/default/sa/web" || a.Workload() != "web" {
			t.Fatalf("identity is %s of %q", got, a.Workload())
		}
		leaf := first.Certificate.Leaf
		if got := leaf.NotAfter.Sub(leaf.NotBefore); got != 10*time.Minute+30*time.Second {
			t.Errorf("certificate lives %s", got)
		}
		// Half of 10m30s is 5m15s after the back-dated beginning; 5 % of that either way is 31.5 s.
		time.Sleep(4*time.Minute + 28*time.Second)
		synctest.Wait()
		if a.Current() != first {
			t.Error("renewed before 47.5 % of its life")
		}
		time.Sleep(35 * time.Second)
		synctest.Wait()
		second := a.Current()
		if second == first || second.ID != first.ID {
			t.Fatalf("not renewed by 52.5 %% of its life: %v", a.Status())
		}
		if second.Certificate.Leaf.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			t.Error("the serial number is the old one")
		}
		if a.Reason() != "" || a.Status().LastError != "" {
			t.Errorf("status is %+v", a.Status())
		}
	})
}

func TestAgentFailsClosedAfterExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10*time.Minute)
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		<-a.Ready()
		first := a.Current()
		w.setDown("citadel", errors.New("connection refused"))
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		if a.Reason() != "" {
			t.Errorf("an hour without citadel must not stop a mesh: %s", a.Reason())
		}
		if s := a.Status(); !strings.Contains(s.LastError, "signing by citadel") || !strings.Contains(s.LastError, "connection refused") {
			t.Errorf("last error is %q, want the signing by citadel", s.LastError)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if a.Current() != first {
			t.Error("the expired identity went away")
		}
		if got := a.Reason(); !strings.Contains(got, "the certificate of spiffe://cluster.local/ns/default/sa/web expired at") {
			t.Errorf("reason is %q", got)
		}
		if _, err := identity.ServerTLS(a, identity.MemberOf(testTD)).GetCertificate(nil); err == nil || err.Error() != a.Reason() {
			t.Errorf("a handshake offers an expired certificate: %v", err)
		}
		w.setDown("citadel", nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if a.Reason() != "" || a.Current() == first {
			t.Errorf("no recovery: %+v", a.Status())
		}
	})
}

// kept is the state directory of an agent that has run and stopped, and its certificate.
func (w *world) kept() (string, *x509.Certificate) {
	w.t.Helper()
	state := w.t.TempDir()
	a := w.agent(state, mesh.RoleProxy)
	stop := run(w.t, a)
	<-a.Ready()
	stop()
	return state, a.Current().Certificate.Leaf
}

// A restarted proxy comes up while every plane is away.
func TestAgentComesUpFromItsState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		state, leaf := w.kept()
		if fi, err := os.Stat(filepath.Join(state, "identity.json")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Fatalf("state file: %v, %v", fi, err)
		}
		w.setDown("keeper", errors.New("no such file"))
		w.setDown("citadel", errors.New("no such file"))
		a := w.agent(state, mesh.RoleProxy)
		defer run(t, a)()
		<-a.Ready()
		if !a.Current().Certificate.Leaf.Equal(leaf) || a.Workload() != "web" {
			t.Errorf("came up as %v of %q", a.Current().ID, a.Workload())
		}
	})
}

func TestAgentDropsAStateOfOtherRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		state, _ := w.kept()
		other, err := OpenCA(t.TempDir(), testTD, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		w.write("bundle.pem", other.Bundle())
		a := w.agent(state, mesh.RoleProxy)
		defer run(t, a)()
		time.Sleep(time.Minute)
		synctest.Wait()
		if a.Current() != nil {
			t.Errorf("came up as %s", a.Current().ID)
		}
	})
}

func TestAgentReplacesABadState(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"half written": func(b []byte) []byte { return b[:len(b)/2] },
		"empty":        func([]byte) []byte { return nil },
		"no key":       func([]byte) []byte { return []byte(`{"key":"","chain":""}`) },
		"no chain": func(b []byte) []byte {
			i := strings.Index(string(b), `"chain"`)
			return append(b[:i:i], `"chain":""}`...)
		},
		"another's key": func(b []byte) []byte {
			var state map[string]string
			if err := json.Unmarshal(b, &state); err != nil {
				panic(err)
			}
			state["key"] = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8(t, p256(t))}))
			b, err := json.Marshal(state)
			if err != nil {
				panic(err)
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, time.Hour)
				state, leaf := w.kept()
				file := filepath.Join(state, "identity.json")
				data, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, spoil(data), 0o600); err != nil {
					t.Fatal(err)
				}
				a := w.agent(state, mesh.RoleProxy)
				defer run(t, a)()
				<-a.Ready()
				if a.Current().Certificate.Leaf.Equal(leaf) {
					t.Error("came up with the certificate of a bad file")
				}
			})
		})
	}
}

func TestAgentFollowsTheBundle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		if err := os.Remove(w.path("bundle.pem")); err != nil {
			t.Fatal(err)
		}
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got := a.Reason(); !strings.Contains(got, "trust bundle") {
			t.Errorf("reason without a bundle is %q", got)
		}
		w.write("bundle.pem", w.citadel.authority.ca.Bundle())
		<-a.Ready()
		first := a.Current()

		// citadel lost its volume: it has a new root, and everybody needs a new certificate at once.
		if err := os.Remove(w.path(caFile)); err != nil {
			t.Fatal(err)
		}
		w.startCitadel()
		w.write("bundle.pem", w.citadel.authority.ca.Bundle())
		time.Sleep(3 * time.Second)
		synctest.Wait()
		now := a.Current()
		if now.Certificate.Leaf.Equal(first.Certificate.Leaf) {
			t.Fatalf("the certificate is of the old root: %+v", a.Status())
		}
		if _, err := identity.Verify(now.Certificate.Certificate, now.Roots, x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
	})
}

func TestAgentRefusesAnImpostor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		// A workload of this mesh, with a good certificate, listens in citadel's place.
		web := w.agent("", mesh.RoleProxy)
		stop := run(t, web)
		<-web.Ready()
		stop()
		w.mu.Lock()
		w.tls = web
		w.mu.Unlock()
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if a.Current() != nil {
			t.Fatal("took a certificate from an impostor")
		}
		want := "peer is spiffe://cluster.local/ns/default/sa/web, want [spiffe://cluster.local/ns/composure-system/sa/citadel]"
		if got := a.Reason(); !strings.Contains(got, want) {
			t.Errorf("reason is %q, want %q", got, want)
		}
	})
}

func TestAgentWantsWhatWasAttested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		w.tamper = func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				_, _ = io.WriteString(rw, strings.Replace(rec.Body.String(), `/sa/web"`, `/sa/api"`, 1)) // a lost answer fails the test below
			})
		}
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		want := "citadel's certificate is for spiffe://cluster.local/ns/default/sa/web, want spiffe://cluster.local/ns/default/sa/api"
		if got := a.Reason(); a.Current() != nil || !strings.Contains(got, want) {
			t.Errorf("reason is %q, want %q", got, want)
		}
	})
}

func TestAgentOfAPlaneInsistsOnItsIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		a := w.agent("", mesh.RolePilot)
		defer run(t, a)()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := a.Reason(); !strings.Contains(got, "want spiffe://cluster.local/ns/composure-system/sa/pilot") {
			t.Errorf("reason is %q", got)
		}
		w.caller.Store(&keeper.Caller{Container: "p", Role: mesh.RolePilot, Identity: "spiffe://cluster.local/ns/composure-system/sa/pilot"})
		<-a.Ready()
	})
}

func TestAgentSurvivesARestartedKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 10*time.Minute)
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		<-a.Ready()
		first := a.Current()
		w.mu.Lock()
		w.startKeeper() // with another attestation key
		w.mu.Unlock()
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if a.Current() == first {
			t.Errorf("not renewed: %+v", a.Status())
		}
	})
}

// go-spiffe is a foreign verifier of what citadel issues.
func TestIssuedCertificateIsAnSVID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, time.Hour)
		a := w.agent("", mesh.RoleProxy)
		defer run(t, a)()
		<-a.Ready()
		bundle, err := x509bundle.Load(testTD, w.path("bundle.pem"))
		if err != nil {
			t.Fatal(err)
		}
		m := a.Current()
		id, chains, err := x509svid.Verify([]*x509.Certificate{m.Certificate.Leaf}, bundle, x509svid.WithTime(time.Now()))
		if err != nil || id != m.ID || len(chains) != 1 {
			t.Errorf("x509svid.Verify: %v, %d chains, %v", id, len(chains), err)
		}
		if _, err := x509svid.ParseRaw(m.Certificate.Leaf.Raw, pkcs8(t, m.Certificate.PrivateKey)); err != nil {
			t.Errorf("x509svid.ParseRaw: %v", err)
		}
	})
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// The same over real unix sockets, with the bundle on its way through the keeper.
func TestPlanesOverSockets(t *testing.T) {
	w := newWorld(t, time.Hour)
	if err := os.Remove(w.path("bundle.pem")); err != nil {
		t.Fatal(err)
	}
	proxy := *w.caller.Swap(&keeper.Caller{Container: "c", Role: mesh.RoleCitadel, Identity: "spiffe://cluster.local/ns/composure-system/sa/citadel"})
	a, err := identity.NewAgent(identity.AgentConfig{
		KeeperSocket: w.path("keeper.sock"), CitadelSocket: w.path("citadel.sock"), BundleFile: w.path("bundle.pem"),
		TrustDomain: testDomain, Role: mesh.RoleProxy, Log: quiet(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err = lifecycle.Run(ctx, w.keeper.Run, w.citadel.Run, a.Run, func(ctx context.Context) error {
		defer cancel()
		for w.citadel.publisher.health() != nil { // until citadel has published, it is the caller
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(5 * time.Millisecond):
			}
		}
		w.caller.Store(&proxy)
		select {
		case <-a.Ready():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if a.Workload() != "web" {
		t.Errorf("workload is %q, status %+v", a.Workload(), a.Status())
	}
}
