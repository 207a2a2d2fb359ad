package forward_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
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
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// record is what tests look at of an exchange.
type record struct {
	Method, Path, Authority, RequestID string
	Status                             int
	Flag                               exchange.Flag
	Details, Cluster, Route            string
	Received, Sent                     int64
	Destination, Service               string
	GRPCStatus                         int
	TLS                                bool
}

type recorder struct {
	ch chan record
}

func (r *recorder) Exchange(x *exchange.Exchange) {
	rec := record{
		Method: string(x.Method), Path: string(x.Path), Authority: string(x.Authority), RequestID: string(x.RequestID),
		Status: x.Status, Flag: x.Flag, Details: x.Details, Cluster: x.Upstream.Cluster, Route: x.Route,
		Received: x.BytesReceived, Sent: x.BytesSent, GRPCStatus: x.GRPCStatus, TLS: x.Upstream.TLS,
	}
	if x.Ends.Destination != nil {
		rec.Destination = x.Ends.Destination.Name
	}
	if x.Ends.Service != nil {
		rec.Service = x.Ends.Service.Host
	}
	r.ch <- rec
}
func (r *recorder) SessionOpened(*exchange.Session) {}
func (r *recorder) SessionClosed(*exchange.Session) {}

// proxy is an engine behind a loopback listener. Every connection that it accepts claims the direction and the
// original destination that the test sets.
type proxy struct {
	t      *testing.T
	engine *forward.Engine
	rec    *recorder
	addr   string
	table  atomic.Pointer[table.Table]
}

type options struct {
	snapshot  *snapshot.Snapshot
	dial      upstream.DialFunc
	timeouts  forward.Timeouts
	direction exchange.Direction
	dst       string
	peer      string
	identity  identity.Source
	http2     bool // what clients speak
}

func start(t *testing.T, o options) *proxy {
	t.Helper()
	if o.snapshot == nil {
		o.snapshot = &snapshot.Snapshot{}
	}
	tab, err := table.Build(o.snapshot, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, rec: &recorder{ch: make(chan record, 10000)}}
	p.table.Store(tab)
	p.engine = forward.New(forward.Config{
		Table:     p.table.Load,
		Transport: upstream.New(upstream.Config{Dial: o.dial, Identity: o.identity}),
		Recorder:  p.rec,
		Log:       slog.New(slog.DiscardHandler),
		Timeouts:  o.timeouts,
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			ec := exchange.Connection{Direction: o.direction, OriginalDst: netip.MustParseAddrPort(o.dst), Peer: o.peer, Start: time.Now()}
			ec.Remote = c.RemoteAddr().(*net.TCPAddr).AddrPort()
			if o.http2 {
				wg.Go(func() { _ = p.engine.ServeHTTP2(ctx, c, &ec) })
			} else {
				wg.Go(func() { _ = p.engine.ServeHTTP1(ctx, listen.NewConn(c), &ec) })
			}
		}
	})
	t.Cleanup(func() { _ = ln.Close(); cancel(); wg.Wait() })
	return p
}

func (p *proxy) record() record {
	p.t.Helper()
	select {
	case r := <-p.rec.ch:
		return r
	case <-time.After(10 * time.Second):
		p.t.Fatal("no exchange was recorded")
		return record{}
	}
}

func (p *proxy) client() *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", p.addr)
		},
		DisableCompression: true,
	}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// client2 is client for HTTP/2 without TLS.
func (p *proxy) client2() *http.Client {
	c := p.client()
	tr := c.Transport.(*http.Transport)
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetUnencryptedHTTP2(true)
	return c
}

// raw opens a connection that the test writes bytes to.
func (p *proxy) raw() *rawConn { return dialRaw(p.t, p.addr) }

type rawConn struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return &rawConn{t, c, bufio.NewReader(c)}
}

func (c *rawConn) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatal(err)
	}
}

func (c *rawConn) response(method string) (*http.Response, string) {
	c.t.Helper()
	req, _ := http.NewRequest(method, "http://x/", nil)
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		c.t.Fatalf("read response: %v", err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("read body: %v", err)
	}
	return resp, string(b)
}

// expectClosed fails unless the connection ends without another byte.
func (c *rawConn) expectClosed() {
	c.t.Helper()
	b, err := io.ReadAll(c.r)
	if len(b) > 0 || err != nil && errors.Is(err, net.ErrClosed) {
		c.t.Fatalf("connection still carries %q, %v", b, err)
	}
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatal("connection was not closed")
	}
}

// origin is an upstream in the hands of the test: it records what arrives, and answers as script says.
type origin struct {
	addr  string
	ln    net.Listener
	mu    sync.Mutex
	bytes bytes.Buffer
	conns []net.Conn
}

// scripted starts an upstream that hands each accepted connection to f.
func scripted(t *testing.T, f func(n int, c *rawConn)) *origin {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &origin{addr: ln.Addr().String(), ln: ln}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns = append(o.conns, c)
			n := len(o.conns)
			o.mu.Unlock()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			tee := &teeConn{Conn: c, o: o}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				f(n, &rawConn{t, tee, bufio.NewReader(tee)})
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		o.mu.Lock()
		for _, c := range o.conns {
			_ = c.Close()
		}
		o.mu.Unlock()
		wg.Wait()
	})
	return o
}

func (o *origin) received() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes.String()
}

func (o *origin) connections() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.conns)
}

type teeConn struct {
	net.Conn
	o *origin
}

func (c *teeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.o.mu.Lock()
	c.o.bytes.Write(p[:n])
	c.o.mu.Unlock()
	return n, err
}

// request reads one request with its body.
func (c *rawConn) request() (*http.Request, string, error) {
	req, err := http.ReadRequest(c.r)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(req.Body)
	return req, string(b), err
}

// served starts a net/http server.
func served(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() { _ = srv.Close(); wg.Wait() })
	return ln.Addr().String()
}

func do(t *testing.T, c *http.Client, req *http.Request) (*http.Response, string) {
	t.Helper()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp, string(b)
}

func TestPassthroughCarriesMessages(t *testing.T) {
	addr := served(t, func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("server: %v", err)
		}
		switch r.URL.Path {
		case "/stream":
			w.Header().Set("Trailer", "X-Sum")
			for range 3 {
				_, _ = io.WriteString(w, "part,")
				w.(http.Flusher).Flush()
			}
			w.Header().Set("X-Sum", "3")
		case "/none":
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %d", r.Method, r.RequestURI, r.Host, len(b)))
			_, _ = w.Write(b)
		}
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr})
	c := p.client()
	big := strings.Repeat("0123456789", 200_000)
	tests := []struct {
		name, method, target, body string
		chunked                    bool
		status                     int
		seen                       string
	}{
		{"get", "GET", "/a?b=1;c=%zz", "", false, 200, "GET /a?b=1;c=%zz example.com 0"},
		{"head", "HEAD", "/", "", false, 200, "HEAD / example.com 0"},
		{"post", "POST", "/p", "hello", false, 200, "POST /p example.com 5"},
		{"post chunked", "POST", "/p", "hello", true, 200, "POST /p example.com 5"},
		{"post big", "PUT", "/p", big, false, 200, "PUT /p example.com 2000000"},
		{"post big chunked", "PUT", "/p", big, true, 200, "PUT /p example.com 2000000"},
		{"no content", "GET", "/none", "", false, 204, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var body io.Reader
			if tt.body != "" {
				body = strings.NewReader(tt.body)
				if tt.chunked {
					body = io.MultiReader(body)
				}
			}
			req, err := http.NewRequest(tt.method, "http://example.com"+tt.target, body)
			if err != nil {
				t.Fatal(err)
			}
			resp, got := do(t, c, req)
			if resp.StatusCode != tt.status || resp.Header.Get("X-Seen") != tt.seen {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, resp.Header.Get("X-Seen"), tt.status, tt.seen)
			}
			if got != tt.body {
				t.Errorf("got a body of %d bytes, want %d", len(got), len(tt.body))
			}
			r := p.record()
			if r.Status != tt.status || r.Received != int64(len(tt.body)) || r.Sent != int64(len(got)) || r.Cluster != "PassthroughCluster" ||
				r.Method != tt.method || r.Path != tt.target || r.Authority != "example.com" || r.Flag != "" || r.Details != "via_upstream" {
				t.Errorf("recorded %+v", r)
			}
			if len(r.RequestID) != 36 {
				t.Errorf("request id %q, want a UUID", r.RequestID)
			}
		})
	}
	req, _ := http.NewRequest(http.MethodGet, "http://example.com/stream", nil)
	resp, got := do(t, c, req)
	if got != "part,part,part," || resp.Trailer.Get("X-Sum") != "3" {
		t.Errorf("stream: got %q, trailers %v", got, resp.Trailer)
	}
}
