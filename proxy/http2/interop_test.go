package http2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// origin is a server of net/http that speaks HTTP/2 without TLS.
func origin(tb testing.TB, h http.Handler) string {
	tb.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	tb.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func client(tb testing.TB) *http.Client {
	tb.Helper()
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: p}
	tb.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

var tiny = Config{StreamWindow: 1 << 10}

// TestInterop passes exchanges of net/http through the relay: client and server are not ours.
func TestInterop(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/hash", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		_, _ = io.Copy(h, r.Body)
		w.Header().Set("Trailer", "X-Sum")
		_, _ = w.Write(bytes.Repeat([]byte("a"), 3<<20))
		w.Header().Set("X-Sum", fmt.Sprintf("%x", h.Sum(nil)))
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden) // without reading the body
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/abort", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	up := origin(t, mux)
	for name, cfg := range map[string]Config{"default": {}, "tiny windows": tiny} {
		t.Run(name, func(t *testing.T) {
			base := "http://" + listen(t, cfg, relay(dial(t, up, cfg)))
			hc := client(t)
			body := bytes.Repeat([]byte("0123456789abcdef"), 200<<10)
			want := fmt.Sprintf("%x", sha256.Sum256(body))
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					r, err := hc.Post(base+"/hash", "text/plain", bytes.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(r.Body)
					if err != nil || len(got) != 3<<20 || r.Trailer.Get("X-Sum") != want {
						t.Errorf("got %d bytes, trailer %q, error %v; want %d and %s", len(got), r.Trailer.Get("X-Sum"), err, 3<<20, want)
					}
				})
			}
			wg.Wait()
			r, err := hc.Post(base+"/early", "text/plain", io.MultiReader(strings.NewReader("x"), neverEnds{t}))
			if err != nil || r.StatusCode != http.StatusForbidden {
				t.Errorf("early answer: %v, %v", r, err)
			}
			if r, err = hc.Get(base + "/hints"); err != nil || r.StatusCode != http.StatusNoContent {
				t.Errorf("1xx: %v, %v", r, err)
			}
			if r, err = hc.Get(base + "/abort"); err == nil {
				if b, err := io.ReadAll(r.Body); err == nil {
					t.Errorf("an answer that was cut arrived as whole: %q", b)
				}
			}
		})
	}
}

// neverEnds is a body whose end does not come before the test's.
type neverEnds struct{ t *testing.T }

func (n neverEnds) Read([]byte) (int, error) { <-n.t.Context().Done(); return 0, io.EOF }

// TestSlowNeighbour leaves one response unread and expects the others on the same connection to flow.
func TestSlowNeighbour(t *testing.T) {
	up := origin(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 4<<20))
	}))
	addr := listen(t, Config{}, relay(dial(t, up, Config{})))
	c := dial(t, addr, Config{})
	get := Request{Scheme: []byte("http")}
	get.Method, get.Path, get.Authority = []byte("GET"), []byte("/"), []byte("x")
	for range 20 { // their windows together are more than a connection's
		s, err := c.Open(&get, true)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	s, err := c.Open(&get, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if r, err := s.Response(); err != nil || r.Status != 200 {
		t.Fatal(r.Status, err)
	}
	n, err := io.Copy(io.Discard, readerOf{s})
	if err != nil || n != 4<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type readerOf struct{ s *ClientStream }

func (r readerOf) Read(p []byte) (int, error) { return r.s.Read(p) }

// TestDrain ends a connection after the stream that is open.
func TestDrain(t *testing.T) {
	a, b := net.Pipe()
	release := make(chan struct{})
	sc := NewServerConn(a, Config{}, func(s *ServerStream) { <-release; _ = s.Respond(204, nil, true) })
	served := make(chan error, 1)
	go func() { served <- sc.Serve(context.Background()) }()
	cc := NewClientConn(b, Config{})
	ran := make(chan error, 1)
	go func() { ran <- cc.Run() }()
	get := Request{Scheme: []byte("http")}
	get.Method, get.Path, get.Authority = []byte("GET"), []byte("/"), []byte("x")
	s, err := cc.Open(&get, true)
	if err != nil {
		t.Fatal(err)
	}
	sc.Drain()
	for {
		cc.c.mu.Lock()
		draining := cc.c.draining
		cc.c.mu.Unlock()
		if draining {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := cc.Open(&get, true); err == nil {
		t.Error("a stream was begun after GOAWAY")
	}
	close(release)
	if r, err := s.Response(); err != nil || r.Status != 204 {
		t.Errorf("the open stream: %d, %v", r.Status, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// TestAnswersToWhatWasGivenUp: those who give up many requests, while the server's answers are under way, leave the connection to
// the others.
func TestAnswersToWhatWasGivenUp(t *testing.T) {
	a, b := net.Pipe()
	cc := NewClientConn(b, Config{})
	ran := make(chan error, 1)
	go func() { ran <- cc.Run() }()
	fr := http2.NewFramer(a, a)
	opened := make(chan uint32, 1<<13)
	if _, err := io.ReadFull(a, make([]byte, len(http2.ClientPreface))); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(opened)
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				return
			}
			if h, ok := f.(*http2.HeadersFrame); ok {
				opened <- h.StreamID
			}
		}
	}()
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	answer := func(id uint32) {
		block := []byte{0x88} // :status 200, static table of RFC 7541
		if err := errors.Join(fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}), fr.WriteData(id, true, []byte("ok"))); err != nil {
			t.Fatal(err)
		}
	}
	get := Request{Scheme: []byte("http")}
	get.Method, get.Path, get.Authority = []byte("GET"), []byte("/"), []byte("x")
	const many = 3000
	var ids []uint32
	for range many {
		s, err := cc.Open(&get, true)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, <-opened)
		s.Close()
	}
	for _, id := range ids {
		answer(id)
	}
	s, err := cc.Open(&get, true)
	if err != nil {
		t.Fatal(err)
	}
	answer(<-opened)
	if r, err := s.Response(); err != nil || r.Status != 200 {
		t.Errorf("the one who waits: %d, %v", r.Status, err)
	}
	cc.Close()
	_ = a.Close()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// TestTunnelMayBeSilent: when a stream of the same age has been quiet for too long, a tunnel still carries what it is given.
func TestTunnelMayBeSilent(t *testing.T) {
	addr := listen(t, Config{Timeouts: Timeouts{StreamIdle: 50 * time.Millisecond}}, func(s *ServerStream) {
		if string(s.Request.Path) == "/tunnel" {
			s.Tunnel()
		}
		_ = s.Respond(200, nil, false)
		for buf := make([]byte, 10); ; {
			n, err := s.Read(buf)
			if err != nil || s.Write(buf[:n], false) != nil {
				return
			}
		}
	})
	c := dial(t, addr, Config{})
	open := func(path string) *ClientStream {
		r := Request{Scheme: []byte("http")}
		r.Method, r.Path, r.Authority = []byte("POST"), []byte(path), []byte("x")
		s, err := c.Open(&r, false)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := s.Response(); err != nil || p.Status != 200 {
			t.Fatalf("%d, %v", p.Status, err)
		}
		return s
	}
	tunnel, other := open("/tunnel"), open("/")
	defer tunnel.Close()
	defer other.Close()
	buf := make([]byte, 10)
	if _, err := other.Read(buf); !ofStream(err) {
		t.Fatalf("the quiet stream ends with %v, want a reset", err)
	}
	if err := tunnel.Write([]byte("still"), false); err != nil {
		t.Fatal(err)
	}
	if n, err := tunnel.Read(buf); string(buf[:n]) != "still" || err != nil {
		t.Errorf("the tunnel gives %q, %v", buf[:n], err)
	}
}
