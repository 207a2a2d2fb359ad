package forward_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/http2"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// unary returns an exchange of gRPC's shape by way of a client of this package's kind: directly with a server, or
// through an engine between them.
func unary(tb testing.TB, proxied bool) func(tb testing.TB) {
	tb.Helper()
	listen := func(serve func(net.Conn)) string {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
		return ln.Addr().String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(cancel)
	head := http1.Header{http1.NewField("content-type", "application/grpc")}
	trailer := http1.Header{http1.NewField("grpc-status", "0")}
	message := make([]byte, 105)
	addr := listen(func(c net.Conn) {
		_ = http2.NewServerConn(c, http2.Config{}, func(s *http2.ServerStream) {
			buf := http1.GetBuffer()
			defer http1.PutBuffer(buf)
			for err := error(nil); err == nil; {
				_, err = s.Read(buf[:])
			}
			_ = s.Respond(http.StatusOK, head, false)
			_ = s.Write(message, false)
			_ = s.WriteTrailer(trailer)
		}).Serve(ctx)
	})
	if proxied {
		tab, err := table.Build(mesh(), nil)
		if err != nil {
			tb.Fatal(err)
		}
		to := addr
		e := forward.New(forward.Config{
			Table: func() *table.Table { return tab },
			Transport: upstream.New(upstream.Config{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", to)
			}}),
			Recorder: discard{},
			Log:      slog.New(slog.DiscardHandler),
		})
		addr = listen(func(c net.Conn) {
			_ = e.ServeHTTP2(ctx, c, &exchange.Connection{Direction: exchange.Outbound, OriginalDst: netip.MustParseAddrPort("10.0.0.1:9080"), Remote: netip.MustParseAddrPort("10.0.0.9:1")})
		})
	}
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		tb.Fatal(err)
	}
	c := http2.NewClientConn(nc, http2.Config{})
	go func() { _ = c.Run() }()
	tb.Cleanup(c.Close)
	q := &http2.Request{Scheme: []byte("http")}
	q.Method, q.Path, q.Authority = []byte("POST"), []byte("/shop.Cart/Add"), []byte("a")
	q.Header = http1.Header{
		http1.NewField("content-type", "application/grpc"), http1.NewField("user-agent", "grpc-go/1.83"),
		http1.NewField("te", "trailers"), http1.NewField("grpc-timeout", "1S"),
	}
	return func(tb testing.TB) {
		tb.Helper()
		s, err := c.Open(q, false)
		if err == nil {
			err = s.Write(message, true)
		}
		if err != nil {
			tb.Fatal(err)
		}
		if p, err := s.Response(); err != nil || p.Status != http.StatusOK {
			tb.Fatal(p.Status, err)
		}
		var buf [200]byte
		for err = nil; err == nil; {
			_, err = s.Read(buf[:])
		}
		if err != io.EOF || len(s.Trailer()) != 1 { //nolint:errorlint // the very value
			tb.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkUnary is a gRPC exchange, 16 of them at once: direct is what client and server cost by themselves.
func BenchmarkUnary(b *testing.B) {
	for name, proxied := range map[string]bool{"direct": false, "proxied": true} {
		b.Run(name, func(b *testing.B) {
			one := unary(b, proxied)
			one(b)
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					one(b)
				}
			})
		})
	}
}

// TestMemoryOfAnIdleStream bounds what a stream costs on which nothing happens, as those do that wait for news. Client
// and server are counted in.
func TestMemoryOfAnIdleStream(t *testing.T) {
	if raced {
		t.Skip("the race detector is on")
	}
	const n = 400
	addr := streamed(t, func(_, _ int, _ *http2.ServerConn, s *http2.ServerStream) {
		_ = s.Respond(http.StatusOK, nil, false)
		_ = s.Write([]byte("hello"), false)
		_, _ = s.Read(make([]byte, 1))
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr, http2: true})
	measure := func() uint64 {
		runtime.GC()
		runtime.GC() // the first only empties pools by half
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := measure()
	var c *http2.ClientConn
	for i := range n {
		if i%100 == 0 {
			c = p.h2conn()
		}
		s := openStream(t, c, http.MethodPost, false)
		if r, err := s.Response(); err != nil || r.Status != http.StatusOK {
			t.Fatal(r.Status, err)
		}
		if _, err := io.ReadFull(readFunc(s.Read), make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
	}
	each := (int64(measure()) - int64(before)) / n
	t.Logf("%d bytes an idle stream", each)
	if each > 40_000 {
		t.Errorf("an idle stream takes %d bytes, want at most 40000", each)
	}
}

// TestUnaryAllocates bounds what the engine and both its connections allocate for an exchange: the streams, the goroutine,
// and what the Framer and hpack make.
func TestUnaryAllocates(t *testing.T) {
	if raced {
		t.Skip("the race detector is on")
	}
	count := func(proxied bool) float64 {
		one := unary(t, proxied)
		for range 100 {
			one(t)
		}
		return testing.AllocsPerRun(1000, func() { one(t) })
	}
	direct, proxied := count(false), count(true)
	t.Logf("%v allocations an exchange, %v of them client's and server's", proxied, direct)
	if n := proxied - direct; n > 16 {
		t.Errorf("%v allocations an exchange, want 16 at most", n)
	}
}
