package http2

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkUnary passes a small exchange with trailers through a proxy between a client and a server of net/http: ours,
// and as the yardstick one of net/http.
func BenchmarkUnary(b *testing.B) {
	up := origin(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "Grpc-Status")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("Grpc-Status", "0")
	}))
	theirs := client(b)
	proxies := map[string]string{
		"direct": up,
		"ours":   listen(b, Config{}, relay(dial(b, up, Config{}))),
		"net/http": origin(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			q, _ := http.NewRequestWithContext(r.Context(), r.Method, "http://"+up+r.URL.Path, r.Body)
			q.Header = r.Header
			p, err := theirs.Do(q)
			if err != nil {
				w.WriteHeader(http.StatusBadGateway)
				return
			}
			defer p.Body.Close()
			for k, v := range p.Header {
				w.Header()[k] = v
			}
			for k := range p.Trailer {
				w.Header().Add("Trailer", k)
			}
			_, _ = io.Copy(w, p.Body)
			for k, v := range p.Trailer {
				w.Header()[k] = v
			}
		})),
	}
	for _, name := range []string{"direct", "ours", "net/http"} {
		b.Run(name, func(b *testing.B) {
			c := client(b)
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r, err := c.Post("http://"+proxies[name]+"/a.B/C", "application/grpc", strings.NewReader("hello"))
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					if r.Body.Close(); r.Trailer.Get("Grpc-Status") != "0" {
						b.Errorf("trailer %v", r.Trailer)
						return
					}
				}
			})
		})
	}
}
