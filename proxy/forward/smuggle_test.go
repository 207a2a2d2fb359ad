package forward_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/proxy/exchange"
)

// TestAmbiguousRequestsReachNobody sends requests that different servers read differently. Each is refused with the
// status that is wanted, its connection closed, and not one byte of it sent on. A second request rides behind each, and
// must not be looked at.
func TestAmbiguousRequestsReachNobody(t *testing.T) {
	o := scripted(t, func(_ int, c *rawConn) { _, _ = c.r.ReadByte() })
	p := start(t, options{direction: exchange.Inbound, dst: o.addr})
	const next = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	h := "POST / HTTP/1.1\r\nHost: x\r\n"
	tests := []struct {
		name, request string
		status        int
	}{
		{"length and encoding", h + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"encoding and length", h + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400},
		{"encoding xchunked", h + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501},
		{"encoding with vertical tab", h + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400},
		{"encoding in quotes", h + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501},
		{"encoding with comma", h + "Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", 501},
		{"encoding gzip, chunked", h + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"encoding identity", h + "Transfer-Encoding: identity\r\n\r\n", 501},
		{"encoding twice", h + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"encoding empty", h + "Transfer-Encoding:\r\n\r\n", 501},
		{"encoding in 1.0", "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		{"encoding with underscore", h + "Transfer_Encoding: chunked\r\n\r\n", 400},
		{"length with underscore", h + "Content_Length: 5\r\n\r\n", 400},
		{"client cert with underscore", h + "X_Forwarded_Client_Cert: By=x\r\n\r\n", 400},
		{"length twice", h + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400},
		{"length twice the same", h + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"length list", h + "Content-Length: 5, 5\r\n\r\nhello", 400},
		{"length plus", h + "Content-Length: +5\r\n\r\nhello", 400},
		{"length minus", h + "Content-Length: -1\r\n\r\n", 400},
		{"length hex", h + "Content-Length: 0x5\r\n\r\nhello", 400},
		{"length with space", h + "Content-Length: 5 5\r\n\r\nhello", 400},
		{"length with underscore in it", h + "Content-Length: 1_0\r\n\r\n", 400},
		{"length empty", h + "Content-Length:\r\n\r\n", 400},
		{"length beyond int64", h + "Content-Length: 99999999999999999999\r\n\r\n", 400},
		{"bare LF", "GET / HTTP/1.1\nHost: x\n\n", 400},
		{"bare LF in fields", "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400},
		{"bare CR in value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", 400},
		{"NUL in value", "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", 400},
		{"control in name", "GET / HTTP/1.1\r\nHost: x\r\nA\x01: b\r\n\r\n", 400},
		{"DEL in value", "GET / HTTP/1.1\r\nHost: x\r\nA: \x7f\r\n\r\n", 400},
		{"folded line", "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", 400},
		{"space before colon", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length : 5\r\n\r\n", 400},
		{"leading space", "GET / HTTP/1.1\r\n Host: x\r\n\r\n", 400},
		{"empty name", "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", 400},
		{"no colon", "GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400},
		{"no host", "GET / HTTP/1.1\r\nA: b\r\n\r\n", 400},
		{"two hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
		{"two equal hosts", "GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
		{"empty host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
		{"host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400},
		{"host with userinfo", "GET / HTTP/1.1\r\nHost: u@x\r\n\r\n", 400},
		{"host with path", "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400},
		{"host with bad port", "GET / HTTP/1.1\r\nHost: x:99999\r\n\r\n", 400},
		{"target with userinfo", "GET http://u@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"target with fragment", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"target without slash", "GET a HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"target with space", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"target with control", "GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"target of another scheme", "GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"star for GET", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"connect", "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 405},
		{"version 0.9", "GET /\r\n", 400},
		{"version 1.2", "GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505},
		{"version 2.0", "GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505},
		{"version in lower case", "GET / http/1.1\r\nHost: x\r\n\r\n", 400},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"bad method", "G@T / HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"expectation", h + "Expect: something\r\nContent-Length: 1\r\n\r\nx", 417},
		{"connection names host", "GET / HTTP/1.1\r\nHost: x\r\nConnection: host\r\n\r\n", 400},
		{"connection names authorization", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close, Authorization\r\n\r\n", 400},
		{"connection names x-forwarded-for", "GET / HTTP/1.1\r\nHost: x\r\nConnection: X-Forwarded-For\r\n\r\n", 400},
		{"connection names content-length", h + "Connection: Content-Length\r\nContent-Length: 5\r\n\r\nhello", 400},
		{"connection names request id", "GET / HTTP/1.1\r\nHost: x\r\nConnection: x-request-id\r\n\r\n", 400},
		{"chunk size hex prefix", h + "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400},
		{"chunk size minus", h + "Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400},
		{"chunk size underscore", h + "Transfer-Encoding: chunked\r\n\r\n1_0\r\n", 400},
		{"chunk size leading space", h + "Transfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n", 400},
		{"chunk size trailing space", h + "Transfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n", 400},
		{"chunk size too long", h + "Transfer-Encoding: chunked\r\n\r\n00000000000000001\r\na\r\n0\r\n\r\n", 400},
		{"chunk size empty", h + "Transfer-Encoding: chunked\r\n\r\n\r\n", 400},
		{"chunk size bare LF", h + "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", 400},
		{"chunk size bare CR", h + "Transfer-Encoding: chunked\r\n\r\n1\ra\r\n0\r\n\r\n", 400},
		{"chunk data too long", h + "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400},
		{"chunk data ends bare LF", h + "Transfer-Encoding: chunked\r\n\r\n1\r\na\n0\r\n\r\n", 400},
		{"chunk extension with control", h + "Transfer-Encoding: chunked\r\n\r\n1;\x01\r\na\r\n0\r\n\r\n", 400},
		{"chunk extension bare LF", h + "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n", 400},
		{"chunk extension too long", h + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("a", 2000) + "\r\na\r\n0\r\n\r\n", 400},
		{"trailer content-length", h + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n", 400},
		{"trailer host", h + "Transfer-Encoding: chunked\r\n\r\n0\r\nHost: y\r\n\r\n", 400},
		{"trailer authorization", h + "Transfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: y\r\n\r\n", 400},
		{"trailer client cert", h + "Transfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-Client-Cert: y\r\n\r\n", 400},
		{"trailer bare LF", h + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\n\r\n", 400},
		{"trailer folded", h + "Transfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n c\r\n\r\n", 400},
		{"101 fields", "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 100) + "\r\n", 431},
		{"61 KiB head", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 61<<10) + "\r\n\r\n", 431},
		{"1 MiB field", "GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 1<<20), 431},
		{"9 KiB target", "GET /" + strings.Repeat("a", 9<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", 414},
		{"endless target", "GET /" + strings.Repeat("a", 100<<10), 414},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := p.raw()
			_, _ = c.Write([]byte(tt.request + next)) // the proxy may refuse before it has all
			resp, body := c.response("POST")
			if resp.StatusCode != tt.status {
				t.Errorf("status %d %q, want %d", resp.StatusCode, body, tt.status)
			}
			if resp.Header.Get("Connection") != "close" && !resp.Close {
				t.Error("answer does not say Connection: close")
			}
			_ = c.Close()
			if r := p.record(); r.Status != tt.status || r.Flag != exchange.FlagDownstreamProtocol {
				t.Errorf("recorded %+v", r)
			}
			if got := o.received(); got != "" {
				t.Errorf("upstream received %q", got)
			}
		})
	}
	if n := o.connections(); n != 0 {
		t.Errorf("%d connections were opened upstream, want none", n)
	}
}

// TestBrokenChunkMidway breaks a body after its beginning has been sent on: the client is blamed, and the upstream
// sees no end of the body.
func TestBrokenChunkMidway(t *testing.T) {
	begun, broken := make(chan struct{}), make(chan error, 1)
	o := scripted(t, func(_ int, c *rawConn) {
		req, err := http.ReadRequest(c.r)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := io.ReadFull(req.Body, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		close(begun)
		_, err = io.ReadAll(req.Body)
		broken <- err
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr})
	c := p.raw()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	<-begun
	c.send("zz\r\n")
	resp, _ := c.response("POST")
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d, want 400", resp.StatusCode)
	}
	_ = c.Close()
	if err := <-broken; err == nil {
		t.Error("upstream took the body for complete")
	}
	if r := p.record(); r.Flag != exchange.FlagDownstreamProtocol {
		t.Errorf("recorded %+v", r)
	}
}

// TestBadResponses has upstreams answer with what can be read in two ways or not at all: 502, and the connection is
// not used again.
func TestBadResponses(t *testing.T) {
	tests := []struct{ name, response string }{
		{"length and encoding", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"length twice", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"},
		{"bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n"},
		{"folded line", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n"},
		{"space before colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"},
		{"NUL", "HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 0\r\n\r\n"},
		{"HTTP/0.9", "hello\r\n\r\n"},
		{"status 099", "HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n"},
		{"status 1000", "HTTP/1.1 1000 X\r\nContent-Length: 0\r\n\r\n"},
		{"encoding in 1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"encoding gzip", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"},
		{"unasked 101", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},
		{"101 fields", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 101) + "\r\n"},
		{"2 MB head", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 2<<20) + "\r\n\r\n"},
		{"17 informational", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 17) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := scripted(t, func(_ int, c *rawConn) {
				if _, _, err := c.request(); err == nil {
					_, _ = c.Write([]byte(tt.response))
					_, _ = c.r.ReadByte()
				}
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			for n := 1; n <= 2; n++ {
				c.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				resp, _ := c.response("GET")
				for resp.StatusCode < 200 {
					resp, _ = c.response("GET")
				}
				if resp.StatusCode != http.StatusBadGateway {
					t.Fatalf("status %d, want 502", resp.StatusCode)
				}
				if r := p.record(); r.Flag != exchange.FlagUpstreamProtocol {
					t.Errorf("recorded %+v", r)
				}
				if got := o.connections(); got != n {
					t.Errorf("%d connections upstream after %d requests", got, n)
				}
				if resp.Close {
					c = p.raw()
				}
			}
		})
	}
}
