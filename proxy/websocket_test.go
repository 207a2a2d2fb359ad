package proxy

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // RFC 6455
	"crypto/tls"
	"encoding/base64"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"
)

// TestWebSocketsOfOthers has a client and a server that nobody here wrote talk through two proxies with mutual TLS.
func TestWebSocketsOfOthers(t *testing.T) {
	const big = 16 << 20
	ended := make(chan websocket.StatusCode, 1) // what the server saw at the end
	pinged := make(chan string, 1)
	m := newMesh(t)
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
				Subprotocols: []string{"echo.v2"}, CompressionMode: websocket.CompressionContextTakeover,
				OnPingReceived: func(_ context.Context, p []byte) bool { pinged <- string(p); return true },
			})
			if err != nil {
				return
			}
			c.SetReadLimit(big + 1)
			for {
				kind, in, err := c.Reader(r.Context())
				if err != nil {
					ended <- websocket.CloseStatus(err)
					_ = c.CloseNow()
					return
				}
				switch head := make([]byte, 5); r.URL.Path {
				case "/leave": // with a word
					_, _ = io.ReadFull(in, head)
					ended <- websocket.CloseStatus(c.Close(4007, "enough of "+string(head)))
					return
				case "/break": // without one
					ended <- 0
					_ = c.CloseNow()
					return
				}
				out, err := c.Writer(r.Context(), kind)
				if err == nil {
					_, err = io.Copy(out, in) // frame by frame as it comes
				}
				if err == nil {
					err = out.Close()
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		}))
	})
	m.start()
	for _, tt := range []struct {
		name        string
		compression websocket.CompressionMode
		client      func() *http.Client
	}{
		{"plain", websocket.CompressionDisabled, func() *http.Client { return httpClient(t, m.at(webIP), "") }},
		{"compressed", websocket.CompressionContextTakeover, func() *http.Client { return httpClient(t, m.at(webIP), "") }},
		{"HTTP/2", websocket.CompressionDisabled, func() *http.Client { return extendedConnect(t, m.at(webIP)) }},
		{"HTTP/2 to the server's proxy", websocket.CompressionContextTakeover, func() *http.Client { return extendedConnect(t, m.direct(webIP)) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			connect := func(path string) *websocket.Conn {
				t.Helper()
				hc := tt.client()
				hc.Timeout = 0 // it would end the connection, too
				c, _, err := websocket.Dial(ctx, "ws://web"+path, &websocket.DialOptions{
					HTTPClient: hc, Subprotocols: []string{"echo.v1", "echo.v2"}, CompressionMode: tt.compression,
				})
				if err != nil {
					t.Fatal(err)
				}
				c.SetReadLimit(big + 1)
				t.Cleanup(func() { _ = c.CloseNow() })
				return c
			}
			awaitEnd := func(want websocket.StatusCode) {
				t.Helper()
				select {
				case got := <-ended:
					if got != want {
						t.Errorf("the server saw %v, want %v", got, want)
					}
				case <-ctx.Done():
					t.Error("the server was not told of the end")
				}
			}

			c := connect("/echo")
			if got := c.Subprotocol(); got != "echo.v2" {
				t.Errorf("subprotocol %q", got)
			}
			noise := make([]byte, big)
			for i := range noise {
				noise[i] = byte(rand.Uint32())
			}
			for _, tt := range []struct {
				kind  websocket.MessageType
				data  []byte
				parts int // frames that it is sent in
			}{
				{websocket.MessageText, []byte("hello"), 1},
				{websocket.MessageText, nil, 1},
				{websocket.MessageBinary, noise[:125], 1},
				{websocket.MessageBinary, noise[:126], 1},
				{websocket.MessageBinary, noise[:1<<16], 1},
				{websocket.MessageText, []byte(strings.Repeat("fragment ", 10000)), 9},
				{websocket.MessageBinary, noise[:300<<10], 17},
				{websocket.MessageBinary, noise, 1},
				{websocket.MessageBinary, noise, 64},
			} {
				sent := make(chan error, 1)
				go func() { sent <- sendIn(ctx, c, tt.kind, tt.data, tt.parts) }()
				kind, got, err := c.Read(ctx)
				if err != nil || kind != tt.kind || !bytes.Equal(got, tt.data) {
					t.Fatalf("%d bytes in %d parts: %v of %d bytes comes back, %v", len(tt.data), tt.parts, kind, len(got), err)
				}
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
			}
			reading := c.CloseRead(ctx) // pongs are read there
			if err := c.Ping(ctx); err != nil {
				t.Errorf("ping: %v", err)
			}
			<-pinged
			if reading.Err() != nil {
				t.Error("the connection ended with a ping")
			}
			if err := c.Close(4001, "done"); err != nil {
				t.Errorf("close: %v", err)
			}
			awaitEnd(4001)

			c = connect("/leave")
			if err := c.Write(ctx, websocket.MessageText, []byte("talks")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != 4007 || !strings.Contains(err.Error(), "enough of talks") {
				t.Errorf("the client is told %v", err)
			}
			<-ended

			c = connect("/echo")
			_ = c.CloseNow()
			awaitEnd(-1) // no close frame

			c = connect("/break")
			if err := c.Write(ctx, websocket.MessageText, []byte("talks")); err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Read(ctx); err == nil || websocket.CloseStatus(err) != -1 || ctx.Err() != nil {
				t.Errorf("the client is told %v, want an end without a close frame", err)
			}
			<-ended
		})
	}
}

// sendIn sends a message in parts.
func sendIn(ctx context.Context, c *websocket.Conn, kind websocket.MessageType, data []byte, parts int) error {
	if parts == 1 {
		return c.Write(ctx, kind, data)
	}
	w, err := c.Writer(ctx, kind)
	for size := len(data)/parts + 1; err == nil && len(data) > 0; {
		n := min(size, len(data))
		_, err = w.Write(data[:n])
		data = data[n:]
	}
	if err == nil {
		err = w.Close()
	}
	return err
}

// extendedConnect is a client for a library of WebSockets that knows the handshake of HTTP/1 alone: it makes that the one of
// HTTP/2 (RFC 8441), which golang.org/x/net/http2 speaks, to addr whatever the URL says.
func extendedConnect(t *testing.T, addr string) *http.Client {
	t.Helper()
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) { //nolint:staticcheck // net/http's takes no :protocol
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}}
	t.Cleanup(tr.CloseIdleConnections) //nolint:staticcheck // as above
	return &http.Client{Transport: roundTrip(func(q *http.Request) (*http.Response, error) {
		up, send := io.Pipe()
		connect, err := http.NewRequestWithContext(q.Context(), http.MethodConnect, q.URL.String(), up)
		if err != nil {
			return nil, err
		}
		connect.Header = q.Header.Clone()
		for _, name := range []string{"Connection", "Upgrade", "Sec-WebSocket-Key"} {
			connect.Header.Del(name)
		}
		connect.Header[":protocol"] = []string{"websocket"}
		resp, err := tr.RoundTrip(connect) //nolint:staticcheck // as above
		if err != nil || resp.StatusCode != http.StatusOK {
			return resp, err
		}
		if accept := resp.Header.Get("Sec-WebSocket-Accept"); accept != "" {
			t.Errorf("HTTP/2 is told Sec-WebSocket-Accept: %s", accept)
		}
		resp.StatusCode = http.StatusSwitchingProtocols
		sum := sha1.Sum([]byte(q.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		for name, value := range map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Accept": base64.StdEncoding.EncodeToString(sum[:])} {
			resp.Header.Set(name, value)
		}
		resp.Body = tunnel{resp.Body, send}
		return resp, nil
	})}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(q *http.Request) (*http.Response, error) { return f(q) }

// tunnel is both directions of a stream.
type tunnel struct {
	io.ReadCloser
	io.Writer
}
