package tcp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/proxytest"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// recorder keeps the records of sessions.
type recorder struct {
	mu     sync.Mutex
	opened int
	closed chan exchange.Session
}

func newRecorder() *recorder { return &recorder{closed: make(chan exchange.Session, 10)} }

func (r *recorder) Exchange(*exchange.Exchange) {}

func (r *recorder) SessionOpened(*exchange.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened++
}

func (r *recorder) SessionClosed(s *exchange.Session) { r.closed <- *s }

// rig is a session between a client and a server of the test.
type rig struct {
	handler        *Handler
	recorder       *recorder
	session        *Session
	client, server *net.TCPConn
}

// start connects the rig. wrap puts a layer on the handler's side of the upstream and on the server's.
func start(t *testing.T, idle time.Duration, secure bool) *rig {
	t.Helper()
	r := &rig{recorder: newRecorder()}
	client, near := proxytest.Pair(t)
	up, server := proxytest.Pair(t)
	r.client, r.server = client, server
	var upstream net.Conn = up
	if secure {
		upstream = secured(t, up, server)
	}
	r.handler = New(Config{
		Dial:     func(context.Context, Target) (net.Conn, error) { return upstream, nil },
		Recorder: r.recorder, IdleTimeout: idle,
	})
	s, err := r.handler.Connect(t.Context(), listen.NewConn(near), &exchange.Connection{}, Target{Cluster: "outbound|5432||db"})
	if err != nil {
		t.Fatal(err)
	}
	r.session = s
	return r
}

var tlsServers sync.Map // *net.TCPConn → *tls.Conn, of secured

// secured makes up a TLS client whose server is on the other end.
func secured(t *testing.T, up, server *net.TCPConn) net.Conn {
	t.Helper()
	ca := proxytest.NewCA(t)
	a := ca.Agent("a", "spiffe://cluster.local/ns/default/sa/a")
	b := ca.Agent("b", "spiffe://cluster.local/ns/default/sa/b")
	td := spiffeid.RequireTrustDomainFromString("cluster.local")
	srv := tls.Server(server, identity.ServerTLS(b, identity.MemberOf(td), mesh.ALPNTCP))
	done := make(chan error, 1)
	go func() { done <- srv.Handshake() }()
	c := tls.Client(up, identity.ClientTLS(a, identity.AnyOf(b.Material.ID), mesh.ALPNTCP))
	if err := errors.Join(c.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	tlsServers.Store(server, srv)
	t.Cleanup(func() { tlsServers.Delete(server) })
	return c
}

// far is the server's end, with TLS where there is some.
func (r *rig) far() interface {
	net.Conn
	CloseWrite() error
} {
	if c, ok := tlsServers.Load(r.server); ok {
		return c.(*tls.Conn)
	}
	return r.server
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, c io.Writer, s string) {
	t.Helper()
	_, err := io.WriteString(c, s)
	must(t, err)
}

func expect(t *testing.T, c io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func expectEnd(t *testing.T, c io.Reader) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Fatalf("read %d bytes, %v; want the end of the stream", n, err)
	}
}

func TestSessionPassesBothWaysAndEachEndByItself(t *testing.T) {
	for name, secure := range map[string]bool{"tcp": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 0, secure)
			go r.session.Run()
			send(t, r.client, "select 1")
			expect(t, r.far(), "select 1")
			must(t, r.client.CloseWrite())
			expectEnd(t, r.far())
			send(t, r.far(), "one row") // after the client's end
			expect(t, r.client, "one row")
			must(t, r.far().CloseWrite())
			expectEnd(t, r.client)
			s := <-r.recorder.closed
			if s.BytesReceived != 8 || s.BytesSent != 7 || s.Flag != exchange.FlagNone || s.Upstream.Cluster != "outbound|5432||db" {
				t.Errorf("record %+v", s)
			}
			if r.recorder.opened != 1 || r.handler.Active() != 0 {
				t.Errorf("opened %d, active %d; want 1 and 0", r.recorder.opened, r.handler.Active())
			}
		})
	}
}

func TestSessionMovesMuch(t *testing.T) {
	for name, secure := range map[string]bool{"tcp": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 0, secure)
			go r.session.Run()
			data := bytes.Repeat([]byte("composure"), 1<<18)
			go func() {
				_, _ = io.Copy(r.far(), r.far()) // an echo
				_ = r.far().CloseWrite()
			}()
			go func() {
				_, _ = r.client.Write(data)
				_ = r.client.CloseWrite()
			}()
			got, err := io.ReadAll(r.client)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes back, %v; want the %d sent", len(got), err, len(data))
			}
			if s := <-r.recorder.closed; s.BytesReceived != int64(len(data)) || s.BytesSent != int64(len(data)) {
				t.Errorf("counted %d and %d bytes, want %d", s.BytesReceived, s.BytesSent, len(data))
			}
		})
	}
}

func TestSessionSendsThePrefixFirst(t *testing.T) {
	r := start(t, 0, false)
	send(t, r.client, "peeked ")
	must(t, r.session.client.Fill())
	go r.session.Run()
	send(t, r.client, "and more")
	expect(t, r.server, "peeked and more")
	_ = r.client.Close()
	expectEnd(t, r.server)
	_ = r.server.Close()
	if s := <-r.recorder.closed; s.BytesReceived != 15 {
		t.Errorf("counted %d bytes, want 15", s.BytesReceived)
	}
}

func TestSessionPassesResetsOn(t *testing.T) {
	for name, tc := range map[string]struct {
		reset, other func(*rig) *net.TCPConn
		flag         exchange.Flag
	}{
		"of the client": {func(r *rig) *net.TCPConn { return r.client }, func(r *rig) *net.TCPConn { return r.server }, exchange.FlagDownstreamTermination},
		"of the server": {func(r *rig) *net.TCPConn { return r.server }, func(r *rig) *net.TCPConn { return r.client }, exchange.FlagUpstreamTermination},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 0, false)
			go r.session.Run()
			send(t, r.client, "x")
			expect(t, r.server, "x")
			listen.Reset(tc.reset(r))
			if _, err := tc.other(r).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other side reads %v, want a reset", err)
			}
			if s := <-r.recorder.closed; s.Flag != tc.flag {
				t.Errorf("flag %q, details %q; want %q", s.Flag, s.Details, tc.flag)
			}
		})
	}
}

// TestSessionPassesOnAResetThatWasTold: a write takes the error off the socket, and a read after it finds an end of the stream.
func TestSessionPassesOnAResetThatWasTold(t *testing.T) {
	for name, secure := range map[string]bool{"tcp": false, "tls": true} {
		t.Run(name, func(t *testing.T) {
			r := start(t, 0, secure)
			listen.Reset(r.server)
			for !listen.WasReset(r.session.upstream) {
				time.Sleep(time.Millisecond)
			}
			if _, err := listen.TCPOf(r.session.upstream).Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("writing gives %v, want a reset", err)
			}
			go r.session.Run()
			if _, err := r.client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Fatalf("the client reads %v, want a reset", err)
			}
			if s := <-r.recorder.closed; s.Flag != exchange.FlagUpstreamTermination {
				t.Errorf("flag %q, details %q", s.Flag, s.Details)
			}
		})
	}
}

func TestConnectFailureIsRecorded(t *testing.T) {
	rec := newRecorder()
	h := New(Config{Recorder: rec, Dial: func(context.Context, Target) (net.Conn, error) { return nil, syscall.ECONNREFUSED }})
	_, near := proxytest.Pair(t)
	_, err := h.Connect(t.Context(), listen.NewConn(near), &exchange.Connection{}, Target{Target: upstream.Target{Identity: "spiffe://x/y"}})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Connect = %v", err)
	}
	s := <-rec.closed
	if rec.opened != 1 || s.Flag != exchange.FlagUpstreamConnect || s.Upstream.Failure == "" || !s.Upstream.TLS {
		t.Errorf("record %+v, opened %d", s, rec.opened)
	}
}

func TestIdleSessionEnds(t *testing.T) {
	r := start(t, 20*time.Millisecond, false)
	r.session.Run() // returns by the timeout alone
	expectEnd(t, r.client)
	expectEnd(t, r.server)
	if s := <-r.recorder.closed; s.Details != "idle_timeout" {
		t.Errorf("details %q, want idle_timeout", s.Details)
	}
}

// TestIdleOfTheTarget has a target's settings allow less silence than the handler does.
func TestIdleOfTheTarget(t *testing.T) {
	rec := newRecorder()
	client, near := proxytest.Pair(t)
	up, server := proxytest.Pair(t)
	h := New(Config{Recorder: rec, Dial: func(context.Context, Target) (net.Conn, error) { return up, nil }})
	s, err := h.Connect(t.Context(), listen.NewConn(near), &exchange.Connection{}, Target{
		Target: upstream.Target{Settings: &snapshot.Connections{SessionIdle: snapshot.Duration(20 * time.Millisecond)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Run() // returns by the timeout alone
	expectEnd(t, client)
	expectEnd(t, server)
	if s := <-rec.closed; s.Details != "idle_timeout" {
		t.Errorf("details %q, want idle_timeout", s.Details)
	}
}

func TestDrainEndsQuietSessions(t *testing.T) {
	r := start(t, time.Hour, true)
	done := make(chan struct{})
	go func() {
		r.session.Run()
		close(done)
	}()
	send(t, r.client, "x")
	expect(t, r.far(), "x")
	r.handler.Drain(20 * time.Millisecond)
	<-done
}

func TestServerSpokeFirst(t *testing.T) {
	for name, tc := range map[string]struct {
		act  func(*testing.T, *rig)
		want bool
	}{
		"server":             {func(t *testing.T, r *rig) { t.Helper(); send(t, r.far(), "220 ready") }, true},
		"client":             {func(t *testing.T, r *rig) { t.Helper(); send(t, r.client, "GET / HTTP/1.1\r\n") }, false},
		"end of the client":  {func(t *testing.T, r *rig) { t.Helper(); must(t, r.client.CloseWrite()) }, false},
		"end of the server":  {func(t *testing.T, r *rig) { t.Helper(); must(t, r.far().CloseWrite()) }, true},
		"reset of the other": {func(_ *testing.T, r *rig) { listen.Reset(r.server) }, true},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				r := start(t, 0, secure)
				done := make(chan struct{})
				go func() {
					defer close(done)
					got, err := r.session.ServerSpokeFirst(0)
					if err != nil || got != tc.want {
						t.Errorf("ServerSpokeFirst = %v, %v; want %v", got, err, tc.want)
					}
				}()
				tc.act(t, r)
				<-done
				if name != "server" {
					return
				}
				// Nothing is lost, and the connection works on after the interrupted read of the other side.
				go r.session.Run()
				expect(t, r.client, "220 ready")
				send(t, r.client, "EHLO")
				expect(t, r.far(), "EHLO")
			})
		}
	}
}

// TestBothSpoke: what the client has sent decides, also where the server was as quick.
func TestBothSpoke(t *testing.T) {
	for range 50 {
		r := start(t, 0, false)
		send(t, r.far(), "220 ready")
		send(t, r.client, "G")
		if got, err := r.session.ServerSpokeFirst(0); err != nil || got {
			t.Fatalf("ServerSpokeFirst = %v, %v; want false", got, err)
		}
		go r.session.Run()
		expect(t, r.client, "220 ready")
		expect(t, r.far(), "G")
		listen.Reset(r.client)
		<-r.recorder.closed
	}
}

func TestServerSpokeFirstGivesUp(t *testing.T) {
	r := start(t, 20*time.Millisecond, false)
	if _, err := r.session.ServerSpokeFirst(0); err == nil {
		t.Error("no error though neither side spoke within the idle timeout")
	}
}
