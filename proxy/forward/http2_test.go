package forward_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"

	meshfacts "github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
)

// paths are the ways from a client of either version to an application of either, through one proxy or two.
func paths(t *testing.T, app http.HandlerFunc, f func(t *testing.T, p *proxy, c *http.Client, version int)) {
	t.Helper()
	for _, hops := range []string{"one proxy", "two sidecars"} {
		for _, tt := range []struct {
			name     string
			client   bool // HTTP/2
			declared meshfacts.Protocol
			version  int // that the application gets
		}{
			{"h1 to h1", false, "", 1},
			{"h1 to h2", false, meshfacts.ProtocolGRPC, 2},
			{"h2 to h1", true, meshfacts.ProtocolHTTP, 1},
			{"h2 to h2", true, "", 2},
		} {
			t.Run(hops+"/"+tt.name, func(t *testing.T) {
				addr := served(t, app)
				var p *proxy
				if hops == "two sidecars" {
					p, _ = pairOf(t, serverID, addr, tt.declared, tt.client)
				} else {
					n := &network{at: map[string]string{"10.0.0.1:9080": addr, "10.0.0.2:9080": addr}}
					s := mesh()
					s.Services[0].Ports = []snapshot.Port{{Number: 9080, Protocol: tt.declared}}
					s.VirtualHosts[0].Domains = append(s.VirtualHosts[0].Domains, "server")
					p = start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: s, dial: n.dial, http2: tt.client})
				}
				c := p.client()
				if tt.client {
					c = p.client2()
				}
				f(t, p, c, tt.version)
			})
		}
	}
}

// TestVersions carries every kind of message on every path.
func TestVersions(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		b, err := io.ReadAll(io.TeeReader(r.Body, sum))
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Trailer", "Grpc-Status, X-Sum")
		w.Header().Set("X-Seen", fmt.Sprintf("%d %s %s %q %q %q", r.ProtoMajor, r.Method, r.Host, r.Trailer["X-End"], r.Header["Cookie"], r.Header["Te"]))
		w.(http.Flusher).Flush() // else there would be a length, and in HTTP/1 no trailers then
		_, _ = w.Write(b)
		w.Header().Set("Grpc-Status", "7")
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "11")
		_, _ = io.WriteString(w, "hello world")
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // else a server of HTTP/1 reads the request first
		w.WriteHeader(http.StatusForbidden)
	})
	mux.HandleFunc("/abort", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	paths(t, mux.ServeHTTP, func(t *testing.T, p *proxy, c *http.Client, version int) {
		t.Helper()
		for _, size := range []int{0, 1, 100, 40_000, 3 << 20} {
			body := bytes.Repeat([]byte("x"), size)
			req, _ := http.NewRequest(http.MethodPost, "http://server/echo", io.MultiReader(bytes.NewReader(body)))
			req.Trailer = http.Header{"X-End": {"sent"}}
			req.Header.Set("Content-Type", "application/octet-stream")
			req.Header.Set("Cookie", "a=b; c=d")
			req.Header.Set("Te", "trailers")
			resp, got := do(t, c, req)
			want := fmt.Sprintf(`%d POST server ["sent"] ["a=b; c=d"] ["trailers"]`, version)
			if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Seen") != want || got != string(body) || resp.Trailer.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(body)) {
				t.Errorf("%d bytes: got %d %q, %d bytes, trailers %v; want %q", size, resp.StatusCode, resp.Header.Get("X-Seen"), len(got), resp.Trailer, want)
			}
			if r := p.record(); r.Status != 200 || r.Received != int64(size) || r.Sent != int64(size) || r.GRPCStatus != 7 || r.Flag != "" || r.Details != "via_upstream" {
				t.Errorf("%d bytes: recorded %+v", size, r)
			}
		}
		req, _ := http.NewRequest(http.MethodGet, "http://server/hints", nil)
		hints := 0
		req = req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == 103 && h.Get("Link") == "</a>" {
				hints++
			}
			return nil
		}}))
		if resp, _ := do(t, c, req); resp.StatusCode != http.StatusNoContent || hints != 1 {
			t.Errorf("hints: %d after %d of them", resp.StatusCode, hints)
		}
		p.record()
		req, _ = http.NewRequest(http.MethodHead, "http://server/length", nil)
		if resp, _ := do(t, c, req); resp.StatusCode != http.StatusOK || resp.ContentLength != 11 {
			t.Errorf("HEAD: %d, length %d", resp.StatusCode, resp.ContentLength)
		}
		p.record()
		req, _ = http.NewRequest(http.MethodPost, "http://server/early", io.MultiReader(strings.NewReader("x"), endless{t}))
		resp, err := c.Do(req)
		if err != nil || resp.StatusCode != http.StatusForbidden {
			t.Errorf("early answer: %v, %v", resp, err)
		} else {
			_ = resp.Body.Close()
		}
		if r := p.record(); r.Status != 403 || r.Flag != "" {
			t.Errorf("early answer: recorded %+v", r)
		}
		resp, err = c.Get("http://server/abort")
		status := http.StatusOK
		if err == nil {
			b, err := io.ReadAll(resp.Body)
			if status = resp.StatusCode; err == nil && status != http.StatusServiceUnavailable { // nothing of it had left
				t.Errorf("an answer that was cut arrived as whole: %d, %q", status, b)
			}
			_ = resp.Body.Close()
		}
		if r := p.record(); r.Flag == "" || r.Status != status {
			t.Errorf("a cut answer: recorded %+v", r)
		}
	})
}

// endless is a body whose end does not come before the test's.
type endless struct{ t *testing.T }

func (e endless) Read([]byte) (int, error) { <-e.t.Context().Done(); return 0, io.EOF }

// TestLeavesWithTheWholeResponse: a client that leaves in the midst of its upload, but with the whole response, did nothing that
// a record has to blame.
func TestLeavesWithTheWholeResponse(t *testing.T) {
	early := func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // else a server of HTTP/1 reads the request first
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "no")
	}
	paths(t, early, func(t *testing.T, p *proxy, c *http.Client, _ int) {
		t.Helper()
		var leave sync.WaitGroup
		for range 50 {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://server/", io.MultiReader(strings.NewReader("x"), endless{t}))
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "no" {
				t.Fatalf("%q, %v", b, err)
			}
			leave.Go(cancel)
			if r := p.record(); r.Status != 200 || r.Flag != "" {
				t.Errorf("recorded %+v", r)
			}
		}
		leave.Wait()
	})
}

// TestVersionsAtOnce sends many exchanges at the same time on every path.
func TestVersionsAtOnce(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body) // a server of HTTP/1 is not full duplex
		if err == nil {
			_, _ = w.Write(b)
		}
	}
	paths(t, echo, func(t *testing.T, p *proxy, c *http.Client, _ int) {
		t.Helper()
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				for j := range 20 {
					want := strings.Repeat(fmt.Sprintf("%d/%d ", i, j), 1+i*j*10)
					resp, err := c.Post("http://server/", "text/plain", strings.NewReader(want))
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(resp.Body)
					_ = resp.Body.Close()
					if err != nil || string(got) != want {
						t.Errorf("%d/%d: got %d bytes, %v; want %d", i, j, len(got), err, len(want))
						return
					}
				}
			})
		}
		wg.Wait()
		for range 400 {
			if r := p.record(); r.Status != 200 || r.Flag != "" {
				t.Fatalf("recorded %+v", r)
			}
		}
	})
}
