package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	xhttp2 "golang.org/x/net/http2"

	"github.com/composure-mesh/composure/proxy/proxytest"
)

// TestFloodsAtTheListeners sends each flood from several attackers at once to an inbound listener. They are cut off, what
// the proxy holds stays bounded, and an honest client is served meanwhile.
func TestFloodsAtTheListeners(t *testing.T) {
	m := newMesh(t)
	m.h2app(webIP, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "ok")
	})
	m.start()
	good := h2client(t, m.direct(webIP))
	floods := proxytest.Floods()
	bomb := proxytest.Block(append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"}, bombFields()...)...)
	floods["HPACK bomb"] = func(f *xhttp2.Framer, n uint32) {
		_ = f.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: 2*n + 1, BlockFragment: bomb, EndHeaders: true, EndStream: true})
		_ = f.WriteRSTStream(2*n+1, xhttp2.ErrCodeCancel)
	}
	for name, flood := range floods {
		t.Run(name, func(t *testing.T) {
			before := heap()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			const attackers = 4
			ended := make(chan error, attackers)
			for range attackers {
				nc, err := net.Dial("tcp", m.direct(webIP))
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				go func() { ended <- proxytest.Flood(ctx, nc, flood) }()
			}
			most := before
			for left := attackers; left > 0; {
				if status, body := get(t, good, "http://web/"); status != http.StatusOK || body != "ok" {
					t.Fatalf("the honest client got %d %q", status, body)
				}
				most = max(most, heap())
				select {
				case err := <-ended:
					left--
					if errors.Is(err, proxytest.ErrNotCutOff) {
						t.Error(err)
					}
				default:
				}
			}
			// Attackers, applications and two proxies share this process.
			if grown := int64(most) - int64(before); grown > 64<<20 {
				t.Errorf("%d MB more in use", grown>>20)
			}
		})
	}
}

func bombFields() (fields []string) {
	for range 90 { // a byte each but for the first, once they are in the table
		fields = append(fields, "x", strings.Repeat("b", 3900))
	}
	return fields
}

// heap is what is held, garbage aside.
func heap() uint64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc + s.StackInuse
}
