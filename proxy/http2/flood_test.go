package http2

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/composure-mesh/composure/proxy/proxytest"
)

// TestFloods sends each kind of flood and expects GOAWAY with ENHANCE_YOUR_CALM after a bounded number of frames, and of
// handlers.
func TestFloods(t *testing.T) {
	for name, flood := range proxytest.Floods() {
		t.Run(name, func(t *testing.T) {
			var running, most atomic.Int32
			addr := listen(t, Config{}, func(s *ServerStream) {
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer running.Add(-1)
				_, _ = s.Read(make([]byte, 1))
				_ = s.Respond(200, nil, true)
			})
			nc, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := proxytest.Flood(ctx, nc, flood); err != http2.ConnectionError(http2.ErrCodeEnhanceYourCalm) { //nolint:errorlint // the very value
				t.Errorf("ended with %v, want ENHANCE_YOUR_CALM", err)
			}
			if most.Load() > 100 {
				t.Errorf("%d handlers at once, want 100 at most", most.Load())
			}
		})
	}
}

// TestHeaderBomb sends small blocks that decompress to large ones: the answer is 431 and nothing is kept.
func TestHeaderBomb(t *testing.T) {
	addr := listen(t, Config{}, relay(nil))
	c := dial(t, addr, Config{})
	r := Request{Scheme: []byte("http")}
	r.Method, r.Path, r.Authority = []byte("GET"), []byte("/"), []byte("x")
	f, err := fieldOf("x-bomb", strings.Repeat("b", 100))
	if err != nil {
		t.Fatal(err)
	}
	for range 101 {
		r.Header = append(r.Header, f)
	}
	s, err := c.Open(&r, true)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if p, err := s.Response(); err != nil || p.Status != 431 {
		t.Errorf("%d, %v; want 431", p.Status, err)
	}
}

// FuzzFrames feeds a server connection with bytes: whatever they are, it ends when they do.
func FuzzFrames(f *testing.F) {
	var seed bytes.Buffer
	w := http2.NewFramer(&seed, nil)
	_ = w.WriteSettings()
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: proxytest.Block(":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"), EndHeaders: true})
	_ = w.WriteData(1, false, []byte("body"))
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: proxytest.Block("x", "y"), EndHeaders: true, EndStream: true})
	_ = w.WriteWindowUpdate(0, 5)
	_ = w.WritePing(false, [8]byte{})
	_ = w.WriteRSTStream(1, http2.ErrCodeCancel)
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, b) }()
		go func() {
			_, _ = io.WriteString(b, http2.ClientPreface)
			_, _ = b.Write(in)
			_ = b.Close()
		}()
		_ = NewServerConn(a, Config{}, func(s *ServerStream) {
			buf := make([]byte, 100)
			for {
				if _, err := s.Read(buf); err != nil {
					break
				}
			}
			_ = s.Respond(200, nil, false)
			_ = s.WriteTrailer(s.Trailer())
		}).Serve(context.Background())
	})
}
