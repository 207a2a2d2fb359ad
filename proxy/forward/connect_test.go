package forward_test

import (
	"crypto/sha1" //nolint:gosec // RFC 6455
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
	"github.com/composure-mesh/composure/proxy/proxytest"
)

// frames is a client of HTTP/2 that sends what the test says.
type frames struct {
	*http2.Framer
	t *testing.T
}

func (p *proxy) frames() frames {
	c := p.raw()
	c.send(http2.ClientPreface)
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		p.t.Fatal(err)
	}
	return frames{f, p.t}
}

func (f frames) open(end bool, fields ...string) {
	f.t.Helper()
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: proxytest.Block(fields...), EndHeaders: true, EndStream: end}); err != nil {
		f.t.Fatal(err)
	}
}

func (f frames) send(data string, end bool) {
	f.t.Helper()
	if err := f.WriteData(1, end, []byte(data)); err != nil {
		f.t.Fatal(err)
	}
}

// next is the next frame of the stream.
func (f frames) next() http2.Frame {
	f.t.Helper()
	for {
		got, err := f.ReadFrame()
		if err != nil {
			f.t.Fatal(err)
		}
		if got.Header().StreamID == 1 && got.Header().Type != http2.FrameWindowUpdate {
			return got
		}
	}
}

// head is the response's head.
func (f frames) head() (status string, fields map[string]string) {
	f.t.Helper()
	h, ok := f.next().(*http2.MetaHeadersFrame)
	if !ok {
		f.t.Fatal("no head")
	}
	fields = map[string]string{}
	for _, field := range h.RegularFields() {
		fields[field.Name] = field.Value
	}
	return h.PseudoValue("status"), fields
}

// rest reads to the end of the stream, and returns the code if it was reset.
func (f frames) rest() (data string, code http2.ErrCode) {
	f.t.Helper()
	for {
		switch got := f.next().(type) {
		case *http2.DataFrame:
			data += string(got.Data())
			if got.StreamEnded() {
				return data, http2.ErrCodeNo
			}
		case *http2.RSTStreamFrame:
			return data, got.ErrCode
		default:
			f.t.Fatalf("%v", got)
		}
	}
}

var extended = []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":path", "/ws?x", ":authority", "x"}

func acceptOf(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) //nolint:gosec // RFC 6455
	return base64.StdEncoding.EncodeToString(sum[:])
}

func switched(key string) string {
	return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: " + acceptOf(key) + "\r\n\r\n"
}

// TestExtendedConnect has a client of HTTP/2 get a WebSocket from a server of HTTP/1 (RFC 8441 section 5).
func TestExtendedConnect(t *testing.T) {
	early := make(chan int, 1)
	o := scripted(t, func(_ int, c *rawConn) {
		req, _, err := c.request()
		if err != nil {
			return
		}
		keys := req.Header.Values("Sec-Websocket-Key")
		if req.Method != http.MethodGet || req.RequestURI != "/ws?x" || req.Host != "x" || req.ContentLength != 0 || len(keys) != 1 || keys[0] == "forged" ||
			req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Connection") != "Upgrade" || req.Header.Get("Sec-Websocket-Version") != "13" {
			t.Errorf("the server is asked %s %s %v", req.Method, req.RequestURI, req.Header)
		}
		if key, err := base64.StdEncoding.DecodeString(keys[0]); len(key) != 16 || err != nil {
			t.Errorf("the key is %q", keys[0])
		}
		early <- c.r.Buffered()
		_, _ = io.WriteString(c, switched(keys[0])+"first ")
		_, _ = io.Copy(c, c.r) // until the client's end
		_, _ = io.WriteString(c, "last")
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr, http2: true})
	f := p.frames()
	f.open(false, append(extended, "sec-websocket-version", "13", "sec-websocket-key", "forged")...)
	f.send("early ", false)
	status, fields := f.head()
	if _, told := fields["sec-websocket-accept"]; status != "200" || told || fields["sec-websocket-protocol"] != "chat" || fields["upgrade"] != "" {
		t.Errorf("the client is told %s %v", status, fields)
	}
	if n := <-early; n != 0 {
		t.Errorf("%d bytes were sent on before the switch", n)
	}
	f.send("late ", true)
	if data, code := f.rest(); data != "first early late last" || code != http2.ErrCodeNo {
		t.Errorf("the client receives %q, %v", data, code)
	}
	if r := p.record(); r.Method != http.MethodGet || r.Status != 200 || r.Received != 11 || r.Sent != 21 {
		t.Errorf("recorded %+v", r)
	}
}

// TestExtendedConnectRefused: by the server, for a server that is none of WebSockets, and for a request that is none.
func TestExtendedConnectRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer string // of the server; empty where it must not be asked
		end    bool
		fields []string
		status string // empty where the stream is reset
	}{
		{"by the server", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", false, extended, "403"},
		{"a server that does not switch", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno", false, extended, "200"},
		{"another's key", switched("another's"), false, extended, "502"},
		{"no proof", strings.Replace(switched(""), "Accept", "Other", 1), false, extended, "502"},
		{"another protocol", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", false, extended, "502"},
		{"not websocket", "", false, append([]string{":protocol", "connect-udp"}, without(extended, ":protocol")...), "501"},
		{"a length", "", false, append(extended, "content-length", "5"), "400"},
		{"an expectation", "", false, append(extended, "expect", "100-continue"), "400"},
		{"an end", "", true, extended, "400"},
		{"CONNECT", "", false, []string{":method", "CONNECT", ":authority", "x:1"}, "405"},
		{"no path", "", false, without(extended, ":path"), ""},
		{"no scheme", "", false, without(extended, ":scheme"), ""},
		{"GET", "", false, append([]string{":method", "GET"}, without(extended, ":method")...), ""},
		{"an upgrade", "", false, append(extended, "upgrade", "websocket"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := scripted(t, func(_ int, c *rawConn) {
				if _, _, err := c.request(); err == nil {
					_, _ = io.WriteString(c, tt.answer)
				}
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr, http2: true})
			f := p.frames()
			f.open(tt.end, tt.fields...)
			if tt.status == "" {
				if r, ok := f.next().(*http2.RSTStreamFrame); !ok || r.ErrCode != http2.ErrCodeProtocol {
					t.Errorf("%v, want a reset for a protocol error", r)
				}
			} else if status, _ := f.head(); status != tt.status {
				t.Errorf("status %s, want %s", status, tt.status)
			}
			if asked := o.connections() > 0; asked != (tt.answer != "") {
				t.Errorf("the server is asked: %v", asked)
			}
		})
	}
}

func without(fields []string, name string) (out []string) {
	for i := 0; i < len(fields); i += 2 {
		if fields[i] != name {
			out = append(out, fields[i:i+2]...)
		}
	}
	return out
}

// TestExtendedConnectReset: a reset is passed on as one, in either direction.
func TestExtendedConnectReset(t *testing.T) {
	for name, client := range map[string]bool{"by the client": true, "by the server": false} {
		t.Run(name, func(t *testing.T) {
			reset, seen := make(chan struct{}), make(chan error, 1)
			o := scripted(t, func(_ int, c *rawConn) {
				req, _, err := c.request()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, switched(req.Header.Get("Sec-Websocket-Key")))
				if client {
					_, err := io.Copy(io.Discard, c.r)
					seen <- err
					return
				}
				<-reset
				listen.Reset(c.Conn.(*teeConn).Conn)
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr, http2: true})
			f := p.frames()
			f.open(false, extended...)
			if status, _ := f.head(); status != "200" {
				t.Fatalf("status %s", status)
			}
			close(reset)
			if !client {
				if _, code := f.rest(); code != http2.ErrCodeCancel {
					t.Errorf("the stream ends with %v, want a reset", code)
				}
				return
			}
			if err := f.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
				t.Fatal(err)
			}
			if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server sees %v, want a reset", err)
			}
		})
	}
}

// TestUpgradeToHTTP2 asks a server that would switch to HTTP/2 to do so (docs/adr/0004): it is not asked, nothing behind the
// request reaches it, and where it switches all the same the client is not told.
func TestUpgradeToHTTP2(t *testing.T) {
	const switches = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
	for _, tt := range []struct {
		name, fields, answer string
		status               int
	}{
		{"alone", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "", 200},
		{"among others", "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n", "", 200},
		{"for TLS", "Connection: Upgrade\r\nUpgrade: h2\r\n", "", 200},
		{"not nominated", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "", 200},
		{"unasked", "", switches, 502},
		{"in the place of websocket", "Connection: Upgrade\r\nUpgrade: websocket\r\n", switches, 502},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := scripted(t, func(_ int, c *rawConn) {
				req, _, err := c.request()
				if err != nil {
					return
				}
				if h := req.Header; tt.answer == "" && (h.Get("Upgrade") != "" || h.Get("HTTP2-Settings") != "" || h.Get("Connection") != "") {
					t.Errorf("the server is asked %v", h)
				}
				answer := tt.answer
				if answer == "" {
					answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
				}
				_, _ = io.WriteString(c, answer)
				_, _ = io.Copy(io.Discard, c.r)
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			c.send("GET / HTTP/1.1\r\nHost: x\r\n" + tt.fields + "\r\n" + http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			if resp, _ := c.response(http.MethodGet); resp.StatusCode != tt.status || resp.Header.Get("Upgrade") != "" {
				t.Errorf("the client is told %d %v", resp.StatusCode, resp.Header)
			}
			_, _ = io.Copy(io.Discard, c.r)
			if got := o.received(); strings.Contains(got, "PRI") {
				t.Errorf("the server receives %q", got)
			}
		})
	}
}
