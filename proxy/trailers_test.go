package proxy

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strconv"
	"testing"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/listen"
)

// TestTrailersAfterALength sends bodies of a declared length with trailers after them, which HTTP/2 can, from HTTP/2 to
// HTTP/1 and back.
func TestTrailersAfterALength(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789"), 10<<10)
	for _, tt := range []struct {
		name   string
		app    mesh.Protocol
		client func(t *testing.T, addr string) *http.Client
	}{
		{"a request to HTTP/1", mesh.ProtocolHTTP, h2client},
		{"a response to HTTP/1", mesh.ProtocolHTTP2, func(t *testing.T, addr string) *http.Client { t.Helper(); return httpClient(t, addr, "") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t)
			ln := listenTCP(t, "127.0.0.1:0")
			m.apps.Store(webIP, listen.AddrPort(ln.Addr()))
			srv := bothVersions(func(w http.ResponseWriter, r *http.Request) {
				got, err := io.ReadAll(r.Body)
				w.Header().Set("Trailer", "X-Sum")
				w.Header().Set("Content-Length", strconv.Itoa(len(got)))
				w.Header().Set("X-Saw", fmt.Sprint(r.Proto, " ", r.TransferEncoding, " ", r.Trailer.Get("X-Sum"), " ", len(got), " ", err))
				_, _ = w.Write(got)
				w.Header().Set("X-Sum", "of the response")
			})
			go func() { _ = srv.Serve(ln) }()
			cfg := m.serverConfig(listen.Own(nil, m.inbound))
			at, _ := m.apps.Load(webIP)
			declare(t, cfg.Snapshot, at.(netip.AddrPort).Port(), tt.app)
			m.client, m.server = run(t, m.clientConfig(listen.Own(m.outbound, nil))), run(t, cfg)
			awaitReady(t, m.client)
			awaitReady(t, m.server)
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/", io.NopCloser(bytes.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			r.Trailer = http.Header{"X-Sum": {"of the request"}}
			if tt.app == mesh.ProtocolHTTP {
				r.ContentLength = int64(len(body)) // over HTTP/1 it can't have one
			}
			resp, err := tt.client(t, m.at(webIP)).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			want := fmt.Sprintf("HTTP/1.1 [chunked] of the request %d <nil>", len(body))
			if tt.app == mesh.ProtocolHTTP2 {
				want = fmt.Sprintf("HTTP/2.0 [] of the request %d <nil>", len(body))
				if sum := resp.Trailer.Get("X-Sum"); sum != "of the response" || resp.ContentLength != -1 {
					t.Errorf("the response's trailer is %q, its length %d", sum, resp.ContentLength)
				}
			}
			if saw := resp.Header.Get("X-Saw"); saw != want {
				t.Errorf("the application saw %q, want %q", saw, want)
			}
		})
	}
}
