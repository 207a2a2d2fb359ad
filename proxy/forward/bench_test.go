package forward_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

type discard struct{}

func (discard) Exchange(*exchange.Exchange)     {}
func (discard) SessionOpened(*exchange.Session) {}
func (discard) SessionClosed(*exchange.Session) {}

const benchRequest = "GET /productpage?u=normal HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/8.0\r\nAccept: */*\r\nX-Request-Id: 0123456789\r\n" +
	"Cookie: session=eyJ1c2VyIjoiamFzb24ifQ\r\nAccept-Encoding: gzip\r\nX-Forwarded-Proto: http\r\n\r\n"

const benchResponse = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Tue, 24 Nov 2026 20:00:00 GMT\r\nContent-Length: 64\r\n\r\n" +
	"0123456789012345678901234567890123456789012345678901234567890123"

// uploadOf is a request with a body of n bytes.
func uploadOf(n int) string {
	return fmt.Sprintf("POST /upload HTTP/1.1\r\nHost: a\r\nX-Request-Id: 0123456789\r\nX-Forwarded-Proto: http\r\nContent-Length: %d\r\n\r\n", n) + strings.Repeat("x", n)
}

// exchanges returns a function that carries one exchange through an engine over loopback, routed through a table. The
// request leaves as it comes.
func exchanges(tb testing.TB, message string) func() {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				buf, response := make([]byte, len(message)), []byte(benchResponse)
				for {
					if _, err := io.ReadFull(c, buf); err != nil {
						return
					}
					if _, err := c.Write(response); err != nil {
						return
					}
				}
			}()
		}
	}()
	tab, err := table.Build(mesh(), nil)
	if err != nil {
		tb.Fatal(err)
	}
	to := ln.Addr().String()
	e := forward.New(forward.Config{
		Table: func() *table.Table { return tab },
		Transport: upstream.New(upstream.Config{Dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to)
		}}),
		Recorder: discard{},
		Log:      slog.New(slog.DiscardHandler),
	})
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	go func() {
		c, err := front.Accept()
		if err != nil {
			return
		}
		_ = e.ServeHTTP1(context.Background(), listen.NewConn(c), &exchange.Connection{Direction: exchange.Outbound, OriginalDst: netip.MustParseAddrPort("10.0.0.1:9080"), Remote: netip.MustParseAddrPort("10.0.0.9:1")})
	}()
	c, err := net.Dial("tcp", front.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = c.Close(); _ = ln.Close(); _ = front.Close() })
	want := len("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Tue, 24 Nov 2026 20:00:00 GMT\r\nContent-Length: 64\r\nX-Envoy-Upstream-Service-Time: 0\r\n\r\n") + 64
	r := bufio.NewReaderSize(c, 4096)
	request := []byte(message)
	return func() {
		if _, err := c.Write(request); err != nil {
			tb.Fatal(err)
		}
		if _, err := r.Discard(want); err != nil {
			tb.Fatal(err)
		}
	}
}

// TestExchangeDoesNotAllocate holds the whole path to it, from the client's head to the end of the response.
func TestExchangeDoesNotAllocate(t *testing.T) {
	if raced {
		t.Skip("the race detector is on: sync.Pool loses buffers then, on purpose")
	}
	for name, message := range map[string]string{"GET": benchRequest, "10 KB": uploadOf(10_000)} {
		t.Run(name, func(t *testing.T) {
			one := exchanges(t, message)
			one()
			if n := testing.AllocsPerRun(500, one); n > 0 {
				t.Errorf("%v allocations an exchange, want 0", n)
			}
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	for name, message := range map[string]string{"GET": benchRequest, "10KB": uploadOf(10_000)} {
		b.Run(name, func(b *testing.B) {
			one := exchanges(b, message)
			one()
			b.ReportAllocs()
			for b.Loop() {
				one()
			}
		})
	}
}

// TestMemoryOfAnIdleConnection bounds what a connection costs that waits for its next request: design section 7 allows
// 150 MB for 10 000 of them, of which some is the runtime's. The client's end is counted in, too.
func TestMemoryOfAnIdleConnection(t *testing.T) {
	if raced {
		t.Skip("the race detector is on")
	}
	const n = 400
	addr := served(t, func(http.ResponseWriter, *http.Request) {})
	p := start(t, options{direction: exchange.Outbound, dst: addr})
	measure := func() uint64 {
		runtime.GC()
		runtime.GC() // the first only empties pools by half
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	warm := p.raw()
	warm.send(benchRequest)
	warm.response("GET")
	before := measure()
	var clients []net.Conn
	buf := make([]byte, 4096)
	for range n {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		if _, err := io.WriteString(c, benchRequest); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	each := (int64(measure()) - int64(before)) / n
	for _, c := range clients {
		_ = c.Close()
	}
	t.Logf("%d bytes an idle connection", each)
	if each > 11_000 {
		t.Errorf("an idle connection takes %d bytes, want at most 11000", each)
	}
}
