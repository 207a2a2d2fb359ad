package forward_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	meshfacts "github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
)

// streamed starts an upstream of HTTP/2 that hands each stream to f, with its number and that of its connection.
func streamed(t *testing.T, f func(conn, n int, sc *http2.ServerConn, s *http2.ServerStream)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var (
		wg      sync.WaitGroup
		streams atomic.Int32
	)
	wg.Go(func() {
		for conn := 1; ; conn++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			var sc *http2.ServerConn
			ready := make(chan struct{})
			sc = http2.NewServerConn(c, http2.Config{}, func(s *http2.ServerStream) {
				<-ready
				f(conn, int(streams.Add(1)), sc, s)
			})
			close(ready)
			wg.Go(func() { _ = sc.Serve(ctx) })
		}
	})
	t.Cleanup(func() { _ = ln.Close(); cancel(); wg.Wait() })
	return ln.Addr().String()
}

// h2conn opens a connection of HTTP/2 to a proxy.
func (p *proxy) h2conn() *http2.ClientConn {
	p.t.Helper()
	nc, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	c := http2.NewClientConn(nc, http2.Config{})
	done := make(chan struct{})
	go func() { defer close(done); _ = c.Run() }()
	p.t.Cleanup(func() { c.Close(); <-done })
	return c
}

func openStream(t *testing.T, c *http2.ClientConn, method string, last bool, fields ...string) *http2.ClientStream {
	t.Helper()
	q := &http2.Request{Scheme: []byte("http")}
	q.Method, q.Path, q.Authority = []byte(method), []byte("/"), []byte("x")
	for i := 0; i < len(fields); i += 2 {
		q.Header = append(q.Header, http1.NewField(fields[i], fields[i+1]))
	}
	s, err := c.Open(q, last)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func read(s interface{ Read(p []byte) (int, error) }) (string, error) {
	var b bytes.Buffer
	_, err := io.Copy(&b, readFunc(s.Read))
	return b.String(), err
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func respond(t *testing.T, s *http2.ServerStream, body string) {
	t.Helper()
	if err := errors.Join(s.Respond(http.StatusOK, nil, false), s.Write([]byte(body), true)); err != nil {
		t.Errorf("upstream: %v", err)
	}
}

// TestUnprocessedIsSentAgain has the upstream refuse streams, and go away under them: whatever the method, no client
// notices, and no request is answered twice.
func TestUnprocessedIsSentAgain(t *testing.T) {
	for _, how := range []string{"REFUSED_STREAM", "GOAWAY"} {
		for _, body := range []string{"", "at once", "later"} {
			t.Run(how+" "+body, func(t *testing.T) {
				came := make(chan struct{}, 2)
				addr := streamed(t, func(_, n int, sc *http2.ServerConn, s *http2.ServerStream) {
					came <- struct{}{}
					if n == 1 {
						if how == "GOAWAY" {
							sc.Drain()
						}
						s.Reset(http2.RefusedStream)
						return
					}
					got, err := read(s)
					if err != nil {
						t.Errorf("upstream: %v", err)
					}
					respond(t, s, "got "+got)
				})
				p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
				s := openStream(t, p.h2conn(), http.MethodPost, body == "")
				switch body {
				case "at once":
					if err := s.Write([]byte(body), true); err != nil {
						t.Fatal(err)
					}
				case "later":
					<-came
					if err := s.Write([]byte(body), true); err != nil {
						t.Fatal(err)
					}
				}
				r, err := s.Response()
				if err != nil || r.Status != http.StatusOK {
					t.Fatalf("%d, %v", r.Status, err)
				}
				if got, err := read(s); err != nil || got != "got "+body {
					t.Errorf("%q, %v", got, err)
				}
				if r := p.record(); r.Status != http.StatusOK || r.Flag != "" || r.Received != int64(len(body)) {
					t.Errorf("recorded %+v", r)
				}
			})
		}
	}
}

// TestUpstreamsThatDrain has each upstream connection go away after some streams, under load: nothing is lost.
func TestUpstreamsThatDrain(t *testing.T) {
	addr := streamed(t, func(_, n int, sc *http2.ServerConn, s *http2.ServerStream) {
		if n%10 == 0 {
			sc.Drain()
		}
		got, err := read(s)
		if err != nil {
			t.Errorf("upstream: %v", err)
		}
		respond(t, s, got)
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
	c := p.client2()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				want := fmt.Sprintf("%d/%d", i, j)
				resp, err := c.Post("http://x/", "text/plain", strings.NewReader(want))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if string(got) != want || err != nil {
					t.Errorf("%d %q, %v; want %q", resp.StatusCode, got, err, want)
				}
			}
		})
	}
	wg.Wait()
}

// TestResetsPass sends resets both ways: each side gets to know, and the record says whose they were.
func TestResetsPass(t *testing.T) {
	came, gone := make(chan struct{}, 1), make(chan error, 1)
	addr := streamed(t, func(_, _ int, _ *http2.ServerConn, s *http2.ServerStream) {
		switch string(s.Request.Method) {
		case "GET": // the client will leave
			came <- struct{}{}
			_, err := read(s)
			gone <- err
		case "PUT":
			s.Reset(http2.EnhanceCalm)
		case "POST":
			_ = s.Respond(http.StatusOK, nil, false)
			_ = s.Write([]byte("half"), false)
			_, _ = s.Read(make([]byte, 1)) // until the client has got it
			s.Reset(http2.EnhanceCalm)
		}
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
	c := p.h2conn()
	s := openStream(t, c, http.MethodGet, false)
	<-came
	s.Reset(http2.Cancel)
	var e *http2.StreamError
	if err := <-gone; !errors.As(err, &e) || e.Code != http2.Cancel || !e.Remote {
		t.Errorf("upstream: %v, want CANCEL", err)
	}
	if r := p.record(); r.Flag != exchange.FlagDownstreamReset || r.Status != 0 || r.Details != "http2.remote_reset" {
		t.Errorf("recorded %+v", r)
	}

	s = openStream(t, c, http.MethodPut, true)
	if r, err := s.Response(); err != nil || r.Status != http.StatusServiceUnavailable {
		t.Errorf("reset before the response: %d, %v", r.Status, err)
	}
	if r := p.record(); r.Flag != exchange.FlagUpstreamReset || r.Details != "upstream_reset_before_response_started{remote_reset}" {
		t.Errorf("recorded %+v", r)
	}

	s = openStream(t, c, http.MethodPost, false)
	if r, err := s.Response(); err != nil || r.Status != http.StatusOK {
		t.Fatal(r.Status, err)
	}
	half := make([]byte, 4)
	if _, err := io.ReadFull(readFunc(s.Read), half); err != nil || string(half) != "half" {
		t.Errorf("%q, %v", half, err)
	}
	if err := s.Write([]byte("x"), false); err != nil {
		t.Error(err)
	}
	if _, err := read(s); !errors.As(err, &e) || e.Code != http2.EnhanceCalm {
		t.Errorf("client: %v, want the upstream's ENHANCE_YOUR_CALM", err)
	}
	if r := p.record(); r.Flag != exchange.FlagUpstreamReset || r.Status != http.StatusOK {
		t.Errorf("recorded %+v", r)
	}
}

// TestServerEndsFirst ends a stream that goes both ways from the server's side, while its client has not ended and, in one
// case, sends more than anyone takes.
func TestServerEndsFirst(t *testing.T) {
	for _, flooding := range []bool{false, true} {
		t.Run(fmt.Sprintf("flooding %v", flooding), func(t *testing.T) {
			addr := streamed(t, func(_, _ int, _ *http2.ServerConn, s *http2.ServerStream) {
				b := make([]byte, 100)
				n, _ := s.Read(b)
				_ = s.Respond(http.StatusOK, nil, false)
				_ = s.Write(b[:min(n, 4)], false)
				_ = s.WriteTrailer(http1.Header{http1.NewField("grpc-status", "0")})
			})
			p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
			s := openStream(t, p.h2conn(), http.MethodPost, false, "content-type", "application/grpc")
			if err := s.Write([]byte("ping"), false); err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			if flooding {
				wg.Go(func() {
					for s.Write(make([]byte, 10_000), false) == nil {
						continue
					}
				})
			}
			if r, err := s.Response(); err != nil || r.Status != http.StatusOK {
				t.Fatal(r.Status, err)
			}
			got, err := read(s)
			if err != nil || got != "ping" || len(s.Trailer()) != 1 {
				t.Errorf("%q, %v, trailers %v", got, err, s.Trailer())
			}
			if r := p.record(); r.Flag != "" || r.GRPCStatus != 0 || r.Status != http.StatusOK {
				t.Errorf("recorded %+v", r)
			}
			s.Close()
			wg.Wait()
		})
	}
}

// TestSlowReceiver leaves a response unread: its sender stops after what the windows and buffers on the way hold, and
// others on the same connections flow.
func TestSlowReceiver(t *testing.T) {
	var sent atomic.Int64
	addr := streamed(t, func(_, _ int, _ *http2.ServerConn, s *http2.ServerStream) {
		_ = s.Respond(http.StatusOK, nil, false)
		size := 4 << 20
		if string(s.Request.Method) == "PUT" {
			size = 100 << 20
		}
		for piece := make([]byte, 16<<10); size > 0; size -= len(piece) {
			if s.Write(piece, size <= len(piece)) != nil {
				return
			}
			if string(s.Request.Method) == "PUT" {
				sent.Add(int64(len(piece)))
			}
		}
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
	c := p.h2conn()
	slow := openStream(t, c, http.MethodPut, true)
	if r, err := slow.Response(); err != nil || r.Status != http.StatusOK {
		t.Fatal(r.Status, err)
	}
	for range 3 { // each goes all the way while the other stands
		s := openStream(t, c, http.MethodGet, true)
		if r, err := s.Response(); err != nil || r.Status != http.StatusOK {
			t.Fatal(r.Status, err)
		}
		if got, err := read(s); err != nil || len(got) != 4<<20 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	if n := sent.Load(); n > 1<<20 {
		t.Errorf("the sender got rid of %d bytes though nobody reads", n)
	}
}

// TestDrainOfHTTP2 lets the stream that is open end, and takes no other.
func TestDrainOfHTTP2(t *testing.T) {
	came, release := make(chan struct{}), make(chan struct{})
	addr := streamed(t, func(_, _ int, _ *http2.ServerConn, s *http2.ServerStream) {
		close(came)
		<-release
		respond(t, s, "done")
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
	c := p.h2conn()
	s := openStream(t, c, http.MethodGet, true)
	<-came
	p.engine.Drain()
	for deadline := time.Now().Add(10 * time.Second); !c.Ended(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client was not told")
		}
	}
	close(release)
	if r, err := s.Response(); err != nil || r.Status != http.StatusOK {
		t.Fatal(r.Status, err)
	}
	if got, err := read(s); err != nil || got != "done" {
		t.Errorf("%q, %v", got, err)
	}
	for deadline := time.Now().Add(10 * time.Second); p.engine.Connections() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the connection was not closed")
		}
	}
}

// TestStreamTimeouts answers for upstreams of HTTP/2 that say nothing.
func TestStreamTimeouts(t *testing.T) {
	addr := streamed(t, func(_, _ int, _ *http2.ServerConn, s *http2.ServerStream) { _, _ = s.Read(make([]byte, 1)) })
	p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true, timeouts: forward.Timeouts{StreamIdle: 100 * time.Millisecond}})
	s := openStream(t, p.h2conn(), http.MethodPost, false)
	if r, err := s.Response(); err != nil || r.Status != http.StatusGatewayTimeout {
		t.Errorf("%d, %v; want 504", r.Status, err)
	}
	if r := p.record(); r.Flag != exchange.FlagStreamIdle {
		t.Errorf("recorded %+v", r)
	}
}

// TestNothingIsSmuggledIntoHTTP1 sends heads of HTTP/2 that would be more than one message, or another one, in HTTP/1. None
// reaches the upstream, and the connection goes on, since it is a stream's fault.
func TestNothingIsSmuggledIntoHTTP1(t *testing.T) {
	o := scripted(t, func(_ int, c *rawConn) {
		for {
			if _, _, err := c.request(); err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	n := &network{at: map[string]string{"10.0.0.1:9080": o.addr, "10.0.0.2:9080": o.addr}}
	s := mesh()
	s.Services[0].Ports = append(s.Services[0].Ports, snapshot.Port{Number: 9080, Protocol: meshfacts.ProtocolHTTP})
	p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: s, dial: n.dial, http2: true})
	type fields = []string
	head := func(extra ...string) fields {
		return append(fields{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a"}, extra...)
	}
	for name, block := range map[string]fields{
		"CRLF in a value":            head("x", "a\r\nTransfer-Encoding: chunked"),
		"LF in a value":              head("x", "a\nb: c"),
		"CR in a value":              head("x", "a\rb"),
		"NUL in a value":             head("x", "a\x00b"),
		"white space around a value": head("x", " a"),
		"CRLF in a name":             head("x\r\ny", "a"),
		"colon in a name":            head("x:y", "a"),
		"space in a name":            head("x y", "a"),
		"upper case in a name":       head("X", "a"),
		"empty name":                 head("", "a"),
		"name with underscores":      head("content_length", "5"),
		"transfer-encoding":          head("transfer-encoding", "chunked"),
		"connection":                 head("connection", "close"),
		"keep-alive":                 head("keep-alive", "1"),
		"proxy-connection":           head("proxy-connection", "x"),
		"upgrade":                    head("upgrade", "websocket"),
		"te gzip":                    head("te", "gzip"),
		"two lengths":                head("content-length", "0", "content-length", "0"),
		"length with a sign":         head("content-length", "+1"),
		"length beyond the body":     head("content-length", "10"),
		"two hosts":                  head("host", "a", "host", "a"),
		"host unlike the authority":  head("host", "b"),
		"space in the path":          {":method", "GET", ":scheme", "http", ":path", "/ HTTP/1.1\r\nx: y", ":authority", "a"},
		"path without a slash":       {":method", "GET", ":scheme", "http", ":path", "x", ":authority", "a"},
		"absolute path":              {":method", "GET", ":scheme", "http", ":path", "http://b/", ":authority", "a"},
		"path *":                     {":method", "GET", ":scheme", "http", ":path", "*", ":authority", "a"},
		"fragment in the path":       {":method", "GET", ":scheme", "http", ":path", "/#a", ":authority", "a"},
		"empty path":                 {":method", "GET", ":scheme", "http", ":path", "", ":authority", "a"},
		"no path":                    {":method", "GET", ":scheme", "http", ":authority", "a"},
		"no authority":               {":method", "GET", ":scheme", "http", ":path", "/"},
		"authority with userinfo":    {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a@b"},
		"authority with a space":     {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a b"},
		"authority with CRLF":        {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a\r\nx: y"},
		"method with a space":        {":method", "GET / HTTP/1.1\r\nx", ":scheme", "http", ":path", "/", ":authority", "a"},
		"empty method":               {":method", "", ":scheme", "http", ":path", "/", ":authority", "a"},
		"CONNECT":                    {":method", "CONNECT", ":authority", "a:80"},
		"two paths":                  {":method", "GET", ":scheme", "http", ":path", "/", ":path", "/b", ":authority", "a"},
		"pseudo-field behind":        {":method", "GET", ":scheme", "http", ":path", "/", "x", "y", ":authority", "a"},
		"unknown pseudo-field":       head()[:8:8],
	} {
		if name == "unknown pseudo-field" {
			block = append(fields{":x", "y"}, block...)
		}
		t.Run(name, func(t *testing.T) {
			nc, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
			var b bytes.Buffer
			enc := hpack.NewEncoder(&b)
			for i := 0; i < len(block); i += 2 {
				_ = enc.WriteField(hpack.HeaderField{Name: block[i], Value: block[i+1]})
			}
			w := xhttp2.NewFramer(nc, nc)
			w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
			_, _ = io.WriteString(nc, xhttp2.ClientPreface)
			_ = w.WriteSettings()
			_ = w.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: true})
			for {
				f, err := w.ReadFrame()
				if err != nil {
					t.Fatalf("the connection ended: %v", err)
				}
				switch f := f.(type) {
				case *xhttp2.RSTStreamFrame:
					if f.ErrCode != xhttp2.ErrCodeProtocol {
						t.Errorf("reset with %v", f.ErrCode)
					}
					return
				case *xhttp2.MetaHeadersFrame:
					if s := f.PseudoValue("status"); s[0] != '4' {
						t.Errorf("answered with %s", s)
					}
					return
				}
			}
		})
	}
	if got := o.received(); got != "" {
		t.Errorf("the upstream received %q", got)
	}
}
