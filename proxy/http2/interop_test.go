package http2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
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
