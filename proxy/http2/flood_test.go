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
	"golang.org/x/net/http2/hpack"
)

func block(fields ...string) []byte {
	var b bytes.Buffer
	e := hpack.NewEncoder(&b)
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return b.Bytes()
}

var getBlock = []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}

// TestFloods sends each kind of flood and expects GOAWAY with ENHANCE_YOUR_CALM after a bounded number of frames, and of
// handlers.
func TestFloods(t *testing.T) {
	get := block(getBlock...)
	open := func(f *http2.Framer, id uint32, end bool) {
		_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: get, EndHeaders: true, EndStream: end})
	}
	floods := map[string]func(f *http2.Framer, n uint32){
		"PING":     func(f *http2.Framer, _ uint32) { _ = f.WritePing(false, [8]byte{}) },
		"SETTINGS": func(f *http2.Framer, _ uint32) { _ = f.WriteSettings() },
		"SETTINGS window toggle": func(f *http2.Framer, n uint32) {
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n % 2 * 1000})
		},
		"PRIORITY":      func(f *http2.Framer, n uint32) { _ = f.WritePriority(2*n+1, http2.PriorityParam{}) },
		"unknown type":  func(f *http2.Framer, _ uint32) { _ = f.WriteRawFrame(0x0b, 0, 0, nil) },
		"WINDOW_UPDATE": func(f *http2.Framer, _ uint32) { _ = f.WriteWindowUpdate(0, 1) },
		"empty DATA": func(f *http2.Framer, n uint32) {
			if n == 0 {
				open(f, 1, false)
			}
			_ = f.WriteData(1, false, nil)
		},
		"padding only": func(f *http2.Framer, n uint32) {
			if n == 0 {
				open(f, 1, false)
			}
			_ = f.WriteDataPadded(1, false, nil, make([]byte, 10))
		},
		"rapid reset": func(f *http2.Framer, n uint32) {
			open(f, 2*n+1, true)
			_ = f.WriteRSTStream(2*n+1, http2.ErrCodeCancel)
		},
		"MadeYouReset": func(f *http2.Framer, n uint32) {
			open(f, 2*n+1, true)
			_ = f.WriteRawFrame(http2.FrameWindowUpdate, 0, 2*n+1, make([]byte, 4))
		},
		"too many streams": func(f *http2.Framer, n uint32) { open(f, 2*n+1, false) },
		"CONTINUATION": func(f *http2.Framer, n uint32) {
			if n == 0 {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
			}
			_ = f.WriteContinuation(1, false, nil)
		},
		"CONTINUATION bytes": func(f *http2.Framer, n uint32) {
			if n == 0 {
				_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: get})
			}
			_ = f.WriteContinuation(1, false, block("x", strings.Repeat("~", 1<<10)))
		},
	}
	for name, flood := range floods {
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
			_, _ = io.WriteString(nc, http2.ClientPreface)
			ended := make(chan error, 1)
			w := http2.NewFramer(nc, nil)
			w.AllowIllegalWrites = true
			_ = w.WriteSettings()
			go func() {
				r := http2.NewFramer(nil, nc)
				for {
					f, err := r.ReadFrame()
					if err != nil {
						ended <- err
						return
					}
					if g, ok := f.(*http2.GoAwayFrame); ok {
						ended <- http2.ConnectionError(g.ErrCode)
						return
					}
				}
			}()
			deadline := time.After(20 * time.Second)
			for n := range uint32(1_000_000) {
				flood(w, n)
				select {
				case err := <-ended:
					if err != http2.ConnectionError(http2.ErrCodeEnhanceYourCalm) { //nolint:errorlint // the very value
						t.Errorf("ended with %v after %d rounds, want ENHANCE_YOUR_CALM", err, n)
					}
					if most.Load() > 100 {
						t.Errorf("%d handlers at once, want 100 at most", most.Load())
					}
					return
				case <-deadline:
					t.Fatalf("not cut off after %d rounds", n)
				default:
				}
			}
			t.Error("not cut off")
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
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(getBlock...), EndHeaders: true})
	_ = w.WriteData(1, false, []byte("body"))
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("x", "y"), EndHeaders: true, EndStream: true})
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
