package forward_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	meshfacts "github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
	"github.com/composure-mesh/composure/proxy/proxytest"
	"github.com/composure-mesh/composure/proxy/table"
	"github.com/composure-mesh/composure/proxy/upstream"
)

const get = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestHeadsOfRequests(t *testing.T) {
	self := &snapshot.Snapshot{Proxy: snapshot.Workload{Name: "me", Identity: "spiffe://cluster.local/ns/default/sa/me", Service: "me"}}
	const peer = "spiffe://cluster.local/ns/default/sa/you"
	tests := []struct {
		name      string
		direction exchange.Direction
		peer      string
		request   string
		want      string // ID stands for a request id that was made
	}{
		{
			"order and case are kept", exchange.Outbound, "",
			"GET /a HTTP/1.1\r\nhOsT: x\r\nB: 1\r\na: 2\r\nB: 3\r\nx-ReQuest-id: r\r\nx-forwarded-proto: https\r\n\r\n",
			"GET /a HTTP/1.1\r\nhOsT: x\r\nB: 1\r\na: 2\r\nB: 3\r\nx-ReQuest-id: r\r\nx-forwarded-proto: https\r\n\r\n",
		},
		{
			"hop-by-hop fields go", exchange.Outbound, "",
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Gone, HTTP2-Settings, Upgrade\r\nGone: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nStays: 2\r\nX-Request-Id: r\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nStays: 2\r\nX-Request-Id: r\r\nX-Forwarded-Proto: http\r\n\r\n",
		},
		{
			"te trailers stays", exchange.Outbound, "",
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: TE\r\nTE: trailers\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nX-Forwarded-Proto: http\r\nX-Request-Id: ID\r\n\r\n",
		},
		{
			"absolute target wins", exchange.Outbound, "",
			"GET http://y:81/p?q HTTP/1.1\r\nHost: x\r\n\r\n",
			"GET /p?q HTTP/1.1\r\nHost: y:81\r\nX-Forwarded-Proto: http\r\nX-Request-Id: ID\r\n\r\n",
		},
		{
			"empty line before", exchange.Outbound, "",
			"\r\n" + get,
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: http\r\nX-Request-Id: ID\r\n\r\n",
		},
		{
			"upgrade with a body is none", exchange.Outbound, "",
			"POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
			"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nX-Forwarded-Proto: http\r\nX-Request-Id: ID\r\n\r\nhi",
		},
		{
			"chunks and trailers", exchange.Outbound, "",
			"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;ext=1\r\na\r\n2\r\nbc\r\n0\r\nSum: 3\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: http\r\nX-Request-Id: ID\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nSum: 3\r\n\r\n",
		},
		{
			"forged client certificate", exchange.Inbound, "",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-Client-Cert: By=a\r\nx-forwarded-client-CERT: By=b\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\nX-Request-Id: ID\r\n\r\n",
		},
		{
			"a client from outside the mesh is named", exchange.Inbound, "",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2\r\nX-Request-Id: r\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: r\r\nX-Forwarded-For: 192.0.2.1, 192.0.2.2, 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\r\n",
		},
		{
			"client certificate", exchange.Inbound, peer,
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Client-Cert: By=a\r\n\r\n",
			"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Request-Id: ID\r\nX-Forwarded-Client-Cert: By=" +
				"spiffe://cluster.local/ns/default/sa/me;URI=" + peer + "\r\n\r\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan struct{})
			o := scripted(t, func(_ int, c *rawConn) {
				if _, _, err := c.request(); err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				close(done)
			})
			p := start(t, options{direction: tt.direction, dst: o.addr, snapshot: self, peer: tt.peer})
			c := p.raw()
			c.send(tt.request)
			if resp, _ := c.response("GET"); resp.StatusCode != http.StatusOK {
				t.Fatalf("status %d", resp.StatusCode)
			}
			<-done
			want := strings.Replace(tt.want, "ID", p.record().RequestID, 1)
			if got := o.received(); got != want {
				t.Errorf("upstream received\n%q, want\n%q", got, want)
			}
		})
	}
}

// took is the only part of a response that a test can't foresee.
var took = regexp.MustCompile(`(Service-Time: )\d+`)

func TestHeadsOfResponses(t *testing.T) {
	tests := []struct {
		name, request, response string
		want                    string
		close                   bool
	}{
		{
			"kept", get, "HTTP/1.1 201 Made It\r\nx-B: 1\r\nA: 2\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-Envoy-Upstream-Service-Time: 7\r\n\r\nhi",
			"HTTP/1.1 201 Made It\r\nx-B: 1\r\nA: 2\r\nContent-Length: 2\r\nX-Envoy-Upstream-Service-Time: 0\r\n\r\nhi", false,
		},
		{
			"close is asked for", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Envoy-Upstream-Service-Time: 0\r\nConnection: close\r\n\r\nhi", true,
		},
		{
			"chunks", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\nT: 1\r\n\r\n",
			"HTTP/1.1 200 OK\r\nX-Envoy-Upstream-Service-Time: 0\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nT: 1\r\n\r\n", false,
		},
		{
			"chunks to HTTP/1.0", "GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\nT: 1\r\n\r\n",
			"HTTP/1.1 200 OK\r\nX-Envoy-Upstream-Service-Time: 0\r\nConnection: close\r\n\r\nab", true,
		},
		{
			"keep-alive with HTTP/1.0", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Envoy-Upstream-Service-Time: 0\r\nConnection: keep-alive\r\n\r\nhi", false,
		},
		{
			"HTTP/1.0 gets no 1xx", "GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Envoy-Upstream-Service-Time: 0\r\nConnection: close\r\n\r\nhi", true,
		},
		{
			"early hints", get, "HTTP/1.1 103 Early Hints\r\nLink: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
			"HTTP/1.1 103 Early Hints\r\nLink: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Envoy-Upstream-Service-Time: 0\r\n\r\nhi", false,
		},
		{
			"204 with a length", get, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 204 No Content\r\nX-Envoy-Upstream-Service-Time: 0\r\n\r\n", false,
		},
		{
			"304 with a length", get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
			"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\nX-Envoy-Upstream-Service-Time: 0\r\n\r\n", false,
		},
		{
			"HEAD with a length", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nX-Envoy-Upstream-Service-Time: 0\r\n\r\n", false,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := scripted(t, func(_ int, c *rawConn) {
				if _, _, err := c.request(); err == nil {
					_, _ = io.WriteString(c, tt.response)
					_, _ = c.r.ReadByte()
				}
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			c.send(tt.request)
			var raw []byte
			got := ""
			for len(got) < len(tt.want) {
				b, err := c.r.ReadByte()
				if err != nil {
					t.Fatalf("client received\n%q (%v), want\n%q", got, err, tt.want)
				}
				raw = append(raw, b)
				got = took.ReplaceAllString(string(raw), "${1}0")
			}
			if got != tt.want {
				t.Fatalf("client received\n%q, want\n%q", got, tt.want)
			}
			if tt.close {
				c.expectClosed()
			} else if p.engine.Connections() != 1 {
				t.Error("connection was closed")
			}
		})
	}
}

// TestUnasked gives away bytes that belong to no response: they must not become the answer to the next request.
func TestUnasked(t *testing.T) {
	for _, tt := range []struct{ name, request, response string }{
		{"after a length", get, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"},
		{"after 204", get, "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"},
		{"after HEAD", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := scripted(t, func(n int, c *rawConn) {
				for {
					if _, _, err := c.request(); err != nil {
						return
					}
					if n == 1 {
						_, _ = io.WriteString(c, tt.response)
					} else {
						_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")
					}
				}
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			c.send(tt.request)
			c.response(strings.Fields(tt.request)[0])
			c.send(get)
			if _, body := c.response("GET"); body != "good" {
				t.Errorf("second request got %q", body)
			}
		})
	}
}

// TestStaleConnection has the upstream close an idle connection just as the next request is sent on it.
func TestStaleConnection(t *testing.T) {
	for _, tt := range []struct {
		method string
		status int
		conns  int
	}{{"GET", 200, 2}, {"DELETE", 200, 2}, {"POST", 503, 1}} {
		t.Run(tt.method, func(t *testing.T) {
			o := scripted(t, func(n int, c *rawConn) {
				for i := 0; ; i++ {
					if _, _, err := c.request(); err != nil || n == 1 && i == 1 {
						return // taken, and closed without an answer
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			c.send(get)
			c.response("GET")
			c.send(tt.method + " / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
			if resp, body := c.response(tt.method); resp.StatusCode != tt.status {
				t.Errorf("status %d %q, want %d", resp.StatusCode, body, tt.status)
			}
			if n := o.connections(); n != tt.conns {
				t.Errorf("%d connections upstream, want %d", n, tt.conns)
			}
			p.record()
			if r := p.record(); tt.status == 503 && r.Flag != exchange.FlagUpstreamTermination {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// TestClosedAfterEarlyHints closes an idle connection that was taken, after a 1xx: the request was worked on, and is not
// sent again.
func TestClosedAfterEarlyHints(t *testing.T) {
	o := scripted(t, func(_ int, c *rawConn) {
		if _, _, err := c.request(); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		if _, _, err := c.request(); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
		}
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr})
	c := p.raw()
	c.send(get)
	c.response("GET")
	c.send(get)
	if resp, _ := c.response("GET"); resp.StatusCode != http.StatusEarlyHints {
		t.Fatalf("status %d, want 103", resp.StatusCode)
	}
	if resp, _ := c.response("GET"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("status %d, want 503", resp.StatusCode)
	}
	if n := o.connections(); n != 1 {
		t.Errorf("%d connections upstream, want 1", n)
	}
}

// TestClosedWhileIdle has the upstream close after each response: no request may be lost on such a connection.
func TestClosedWhileIdle(t *testing.T) {
	closed := make(chan struct{}, 1)
	o := scripted(t, func(_ int, c *rawConn) {
		if _, _, err := c.request(); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_ = c.Close()
		closed <- struct{}{}
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr})
	c := p.raw()
	for range 3 {
		c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
		if resp, _ := c.response("POST"); resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d", resp.StatusCode)
		}
		<-closed
	}
}

// TestCrowdKeepsItsConnections has a thousand clients ask at once, again and again: the upstream sees as many connections.
func TestCrowdKeepsItsConnections(t *testing.T) {
	const clients, rounds = 1000, 3
	came, answer := make(chan struct{}, clients), make(chan struct{})
	o := scripted(t, func(_ int, c *rawConn) {
		for {
			if _, _, err := c.request(); err != nil {
				return
			}
			came <- struct{}{}
			<-answer
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	to := func(context.Context, netip.AddrPort) (net.Conn, error) { return net.Dial("tcp", o.addr) }
	p := start(t, options{snapshot: mesh(), dial: to, direction: exchange.Outbound, dst: "10.0.0.1:9080"})
	crowd := make([]*rawConn, clients)
	for i := range crowd {
		crowd[i] = p.raw()
	}
	for range rounds {
		for _, c := range crowd {
			c.send("GET / HTTP/1.1\r\nHost: a\r\nOne: endpoint\r\n\r\n")
		}
		for range crowd {
			<-came
		}
		for range crowd {
			answer <- struct{}{}
		}
		for _, c := range crowd {
			c.response(http.MethodGet)
			p.record() // written once the upstream's connection is idle
		}
	}
	if n := o.connections(); n != clients {
		t.Errorf("%d connections to the upstream for %d clients", n, clients)
	}
}

func TestContinue(t *testing.T) {
	o := scripted(t, func(_ int, c *rawConn) {
		req, err := http.ReadRequest(c.r)
		if err != nil || req.Header.Get("Expect") != "100-continue" {
			t.Errorf("got %v, %v", req, err)
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		b, _ := io.ReadAll(req.Body)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr})
	c := p.raw()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if resp, _ := c.response("POST"); resp.StatusCode != http.StatusContinue {
		t.Fatalf("status %d, want 100", resp.StatusCode)
	}
	c.send("hello")
	if resp, body := c.response("POST"); resp.StatusCode != http.StatusOK || body != "hello" {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
}

// TestEarlyAnswer answers before the body has come: the client gets the answer at once, and neither connection is used
// again.
func TestEarlyAnswer(t *testing.T) {
	o := scripted(t, func(_ int, c *rawConn) {
		if _, err := http.ReadRequest(c.r); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
		_, _ = io.Copy(io.Discard, c.r)
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr})
	c := p.raw()
	c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegin")
	resp, body := c.response("POST")
	if resp.StatusCode != http.StatusRequestEntityTooLarge || body != "no" || !resp.Close {
		t.Errorf("got %d %q, close %v", resp.StatusCode, body, resp.Close)
	}
	c.expectClosed()
	if r := p.record(); r.Status != 413 || r.Received != 5 {
		t.Errorf("recorded %+v", r)
	}
}

// TestDuplex lets request and response bodies run at the same time: each part of the one is answered by the other.
func TestDuplex(t *testing.T) {
	addr := served(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		_ = rc.Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			_, _ = fmt.Fprintf(w, "%s!\n", lines.Text())
			_ = rc.Flush()
		}
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr})
	pr, pw := io.Pipe()
	req, _ := http.NewRequest(http.MethodPost, "http://x/", pr)
	resp, err := p.client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(resp.Body)
	for i := range 5 {
		_, _ = fmt.Fprintf(pw, "line %d\n", i)
		got, err := lines.ReadString('\n')
		if want := fmt.Sprintf("line %d!\n", i); got != want || err != nil {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	_ = pw.Close()
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("rest %q, %v", rest, err)
	}
	_ = resp.Body.Close()
	if r := p.record(); r.Status != 200 || r.Received != 35 || r.Sent != 40 {
		t.Errorf("recorded %+v", r)
	}
}

// TestClientGone has clients leave at three moments; each time the upstream notices.
func TestClientGone(t *testing.T) {
	for _, tt := range []struct{ name, request string }{
		{"waiting", get},
		{"sending", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			came, gone := make(chan struct{}), make(chan error, 1)
			o := scripted(t, func(_ int, c *rawConn) {
				_, err := http.ReadRequest(c.r)
				close(came)
				if err == nil {
					_, err = io.Copy(io.Discard, c.r)
				}
				gone <- err
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			c.send(tt.request)
			<-came
			_ = c.Close()
			if err := <-gone; errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("upstream did not notice: %v", err)
			}
			if r := p.record(); r.Status != 0 || r.Flag != exchange.FlagDownstreamTermination {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// TestCutResponse cuts responses short: the client must not take them for complete. Where it has got nothing of one yet, it
// gets an answer that says so.
func TestCutResponse(t *testing.T) {
	for _, tt := range []struct {
		name, request, response string
		status                  int
	}{
		{"length", get, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", 200},
		{"chunks", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200},
		{"bad chunk", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", 502},
		{"begun", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\n" + strings.Repeat("x", 0x5000) + "\r\nzz\r\n", 200},
		{"half a chunk's size", get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5", 503},
		{"chunks to HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 200},
		{"bad chunk to HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 502},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := scripted(t, func(_ int, c *rawConn) {
				if _, _, err := c.request(); err == nil {
					_, _ = io.WriteString(c, tt.response)
				}
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			c := p.raw()
			c.send(tt.request)
			req, _ := http.NewRequest(http.MethodGet, "http://x/", nil)
			resp, err := http.ReadResponse(c.r, req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.status || (err == nil) != (tt.status >= 500) {
				t.Errorf("the client got %d, %q, %v", resp.StatusCode, body, err)
			}
			if r := p.record(); r.Status != tt.status || r.Flag == "" || tt.status >= 500 && r.Sent != int64(len(body)) {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

func TestPipelining(t *testing.T) {
	addr := served(t, func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })
	p := start(t, options{direction: exchange.Outbound, dst: addr})
	c := p.raw()
	var all strings.Builder
	for i := range 20 {
		fmt.Fprintf(&all, "POST /%d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", i)
	}
	c.send(all.String())
	for i := range 20 {
		if _, body := c.response("POST"); body != fmt.Sprintf("/%d", i) {
			t.Fatalf("response %d is %q", i, body)
		}
	}
}

func TestWebSocket(t *testing.T) {
	const upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"
	early := make(chan int, 1)
	o := scripted(t, func(n int, c *rawConn) {
		req, _, err := c.request()
		if err != nil {
			return
		}
		if req.URL.Path != "/ws" {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return
		}
		if n == 1 || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Connection") != "Upgrade" {
			t.Errorf("connection %d, head %v", n, req.Header)
		}
		early <- c.r.Buffered()
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\nfirst")
		_, _ = io.Copy(c, c.r) // until the client's end
		_, _ = io.WriteString(c, "last")
	})
	p := start(t, options{direction: exchange.Outbound, dst: o.addr})
	c := p.raw()
	c.send(get)
	c.response("GET")
	c.send(upgrade + "early")
	resp, _ := c.response("GET")
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-Websocket-Accept") != "a" {
		t.Fatalf("got %d %v", resp.StatusCode, resp.Header)
	}
	if n := <-early; n != 0 {
		t.Errorf("%d bytes were sent on before the switch", n)
	}
	c.send(" late")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(c.r)
	if string(b) != "firstearly latelast" || err != nil {
		t.Errorf("client received %q, %v", b, err)
	}
	p.record()
	if r := p.record(); r.Status != 101 || r.Received != 10 || r.Sent != 19 {
		t.Errorf("recorded %+v", r)
	}
}

func TestWebSocketRefused(t *testing.T) {
	addr := served(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) })
	p := start(t, options{direction: exchange.Outbound, dst: addr})
	c := p.raw()
	for range 2 {
		c.send("GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		if resp, _ := c.response("GET"); resp.StatusCode != http.StatusForbidden {
			t.Fatalf("status %d", resp.StatusCode)
		}
	}
}

func TestDrain(t *testing.T) {
	came, answer := make(chan struct{}), make(chan struct{})
	addr := served(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(came)
			<-answer
		}
		_, _ = io.WriteString(w, "ok")
	})
	p := start(t, options{direction: exchange.Outbound, dst: addr, timeouts: forward.Timeouts{Drain: 20 * time.Millisecond}})
	waiting, working := p.raw(), p.raw()
	waiting.send(get)
	waiting.response("GET")
	working.send("GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-came
	p.engine.Drain()
	waiting.expectClosed()
	close(answer)
	resp, body := working.response("GET")
	if body != "ok" || !resp.Close {
		t.Errorf("got %q, close %v", body, resp.Close)
	}
	working.expectClosed()
	late := p.raw()
	late.send(get)
	if resp, _ := late.response("GET"); !resp.Close {
		t.Error("a response on a new connection does not say close")
	}
}

// TestDrainLosesNoRequest sends a request on a connection that was idle as the drain began.
func TestDrainLosesNoRequest(t *testing.T) {
	addr := served(t, func(http.ResponseWriter, *http.Request) {})
	p := start(t, options{direction: exchange.Outbound, dst: addr, timeouts: forward.Timeouts{Drain: 10 * time.Second}})
	idle, fresh := p.raw(), p.raw()
	idle.send(get)
	idle.response("GET")
	p.engine.Drain()
	for _, c := range []*rawConn{idle, fresh} {
		c.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi")
		if resp, _ := c.response("POST"); resp.StatusCode != http.StatusOK || !resp.Close {
			t.Errorf("got %d, close %v", resp.StatusCode, resp.Close)
		}
		c.expectClosed()
	}
}

type panics struct{ discard }

func (panics) Exchange(*exchange.Exchange) { panic("broken invariant") }

// TestPanicEndsOneConnection breaks an exchange: its connection ends, the log says why, and others go on.
func TestPanicEndsOneConnection(t *testing.T) {
	tab, err := table.Build(&snapshot.Snapshot{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	e := forward.New(forward.Config{
		Table: func() *table.Table { return tab }, Transport: upstream.New(upstream.Config{}), Recorder: panics{},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	near, far := proxytest.Pair(t)
	_, _ = io.WriteString(near, "nonsense\r\n\r\n")
	if err := e.ServeHTTP1(context.Background(), far, &exchange.Connection{}); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "broken invariant") || e.Connections() != 0 {
		t.Errorf("%d connections are left, log: %s", e.Connections(), log.String())
	}
}

func TestTimeouts(t *testing.T) {
	block := make(chan struct{})
	addr := served(t, func(http.ResponseWriter, *http.Request) { <-block })
	defer close(block)
	p := start(t, options{direction: exchange.Outbound, dst: addr, timeouts: forward.Timeouts{Header: 20 * time.Millisecond, StreamIdle: 100 * time.Millisecond}})
	c := p.raw()
	c.send("GET / HTTP/1.1\r\nHo")
	if resp, _ := c.response("GET"); resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("slow head: status %d, want 408", resp.StatusCode)
	}
	p.record()
	c = p.raw()
	c.send(get)
	if resp, body := c.response("GET"); resp.StatusCode != http.StatusGatewayTimeout || body != "stream timeout" {
		t.Errorf("slow upstream: got %d %q, want 504", resp.StatusCode, body)
	}
	if r := p.record(); r.Flag != exchange.FlagStreamIdle {
		t.Errorf("recorded %+v", r)
	}
}

// mesh is a snapshot of a few workloads, for dialling through a table of who really answers where.
func mesh() *snapshot.Snapshot {
	all := func(service, subset string) []snapshot.Destination {
		return []snapshot.Destination{{Service: service, Subset: subset, Weight: 1}}
	}
	return &snapshot.Snapshot{
		Proxy: snapshot.Workload{Name: "client", Service: "client", Addresses: []string{"10.0.0.9"}},
		Workloads: []snapshot.Workload{
			{Name: "a-1", Service: "a", Namespace: "default", Addresses: []string{"10.0.0.1"}},
			{Name: "a-2", Service: "a", Namespace: "default", Addresses: []string{"10.0.0.2"}},
			{Name: "b", Service: "b", Namespace: "default", Addresses: []string{"10.0.0.3"}},
		},
		Services: []snapshot.Service{
			{Host: "a.default.svc.cluster.local", Name: "a", Endpoints: []string{"a-1", "a-2"}, Subsets: []snapshot.Subset{
				{Name: "none"}, {Name: "one", Endpoints: []string{"a-1"}},
			}},
			{Host: "b.default.svc.cluster.local", Name: "b", Endpoints: []string{"b"}},
		},
		VirtualHosts: []snapshot.VirtualHost{
			{Name: "a", Domains: []string{"a", "a.default"}, Service: "a.default.svc.cluster.local", Routes: []snapshot.Route{
				{Name: "none", Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Exact: "/none"}}}, Destinations: all("a.default.svc.cluster.local", "none")},
				{Name: "missing", Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Exact: "/missing"}}}, Destinations: all("a.default.svc.cluster.local", "missing")},
				{Name: "one", Matches: []snapshot.Match{{Headers: []snapshot.HeaderMatch{{Name: "one"}}}}, Destinations: all("a.default.svc.cluster.local", "one")},
				{Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: "/"}}}, Destinations: all("a.default.svc.cluster.local", "")},
			}},
			{Name: "b", Domains: []string{"b"}, Service: "b.default.svc.cluster.local", Routes: []snapshot.Route{
				{Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: "/only"}}}, Destinations: all("b.default.svc.cluster.local", "")},
			}},
		},
		Gateways: []snapshot.GatewayServer{{Port: 8080, VirtualHosts: []snapshot.VirtualHost{
			{Name: "shop", Domains: []string{"shop.example.com"}, Routes: []snapshot.Route{{Destinations: all("a.default.svc.cluster.local", "one")}}},
		}}},
	}
}

// network dials by a table of addresses: what is not in it refuses.
type network struct {
	mu     sync.Mutex
	at     map[string]string
	dialed []string
}

func (n *network) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, to.String())
	addr := n.at[to.String()]
	n.mu.Unlock()
	if addr == "" {
		return nil, errors.New("connection refused")
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func TestRouted(t *testing.T) {
	echo := func(name string) string {
		return served(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, name+" "+r.Host+" "+r.Header.Get("X-Forwarded-For"))
		})
	}
	net := &network{at: map[string]string{"10.0.0.1:9080": echo("a-1"), "10.0.0.3:9080": echo("b"), "10.0.0.77:9080": echo("outside"), "10.0.0.1:8080": echo("a-1 at 8080")}}
	out := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: mesh(), dial: net.dial})
	outB := start(t, options{direction: exchange.Outbound, dst: "10.0.0.3:9080", snapshot: mesh(), dial: net.dial})
	outside := start(t, options{direction: exchange.Outbound, dst: "10.0.0.77:9080", snapshot: mesh(), dial: net.dial})
	gateway := start(t, options{direction: exchange.Gateway, dst: "10.0.0.9:8080", snapshot: mesh(), dial: net.dial})
	tests := []struct {
		name    string
		p       *proxy
		request string
		status  int
		body    string
		want    record // what matters of it
	}{
		{"by name", out, "GET / HTTP/1.1\r\nHost: a\r\nOne: 1\r\n\r\n", 200, "a-1 a ",
			record{Route: "one", Cluster: "outbound|9080|one|a.default.svc.cluster.local", Destination: "a-1", Service: "a.default.svc.cluster.local", Details: "via_upstream"}},
		{"empty subset", out, "GET /none HTTP/1.1\r\nHost: a\r\n\r\n", 503, "no healthy upstream",
			record{Route: "none", Cluster: "outbound|9080|none|a.default.svc.cluster.local", Service: "a.default.svc.cluster.local", Flag: "UH", Details: "no_healthy_upstream"}},
		{"missing subset", out, "GET /missing HTTP/1.1\r\nHost: a\r\n\r\n", 503, "the route's destination is not known: no such service or subset",
			record{Route: "missing", Cluster: "outbound|9080|missing|a.default.svc.cluster.local", Service: "a.default.svc.cluster.local", Flag: "NC", Details: "cluster_not_found"}},
		{"another service's name", outB, "GET /only HTTP/1.1\r\nHost: a\r\n\r\n", 200, "b a ",
			record{Route: "default", Cluster: "outbound|9080||b.default.svc.cluster.local", Destination: "b", Service: "b.default.svc.cluster.local", Details: "via_upstream"}},
		{"no route", outB, "GET / HTTP/1.1\r\nHost: b\r\n\r\n", 404, "no route for this host and path",
			record{Destination: "b", Service: "b.default.svc.cluster.local", Flag: "NR", Details: "route_not_found"}},
		{"a service's name at an unknown address", outside, "GET / HTTP/1.1\r\nHost: a\r\nOne: 1\r\n\r\n", 200, "a-1 a ",
			record{Route: "one", Cluster: "outbound|9080|one|a.default.svc.cluster.local", Destination: "a-1", Service: "a.default.svc.cluster.local", Details: "via_upstream"}},
		{"outside", outside, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 200, "outside example.com ",
			record{Route: "allow_any", Cluster: "PassthroughCluster", Details: "via_upstream"}},
		{"gateway", gateway, "GET / HTTP/1.1\r\nHost: shop.example.com\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", 200, "a-1 at 8080 shop.example.com 1.2.3.4, 127.0.0.1",
			record{Route: "default", Cluster: "outbound|8080|one|a.default.svc.cluster.local", Destination: "a-1", Service: "a.default.svc.cluster.local", Details: "via_upstream"}},
		{"gateway without host", gateway, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 404, "no route for this host and path",
			record{Flag: "NR", Details: "route_not_found"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.p.raw()
			c.send(tt.request)
			resp, body := c.response("GET")
			if resp.StatusCode != tt.status || body != tt.body {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
			}
			r := tt.p.record()
			got := record{Route: r.Route, Cluster: r.Cluster, Destination: r.Destination, Service: r.Service, Flag: r.Flag, Details: r.Details}
			if got != tt.want {
				t.Errorf("recorded\n%+v, want\n%+v", got, tt.want)
			}
		})
	}
}

// TestAnotherEndpoint refuses connections at one endpoint: every request reaches the other. With both away it is 503 UF,
// after the two retries that are the default.
func TestAnotherEndpoint(t *testing.T) {
	n := &network{at: map[string]string{"10.0.0.2:9080": served(t, func(w http.ResponseWriter, _ *http.Request) {})}}
	p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: mesh(), dial: n.dial})
	c := p.raw()
	for range 20 {
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
		if resp, body := c.response("POST"); resp.StatusCode != http.StatusOK {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	away := &network{}
	p = start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: mesh(), dial: away.dial})
	c = p.raw()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	resp, body := c.response("GET")
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(body, "upstream connect error") || !strings.Contains(body, "connection refused") {
		t.Errorf("got %d %q", resp.StatusCode, body)
	}
	if r := p.record(); r.Flag != "UF,URX" {
		t.Errorf("recorded %+v", r)
	}
	if len(away.dialed) != 3 || away.dialed[0] == away.dialed[1] {
		t.Errorf("dialled %v, want three, the second another than the first", away.dialed)
	}
}

func (n *network) set(to, addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at[to] = addr
}

func (n *network) dials() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dialed)
}

// TestComeback has a destination go away: requests wait for it for a while, if there was one before.
func TestComeback(t *testing.T) {
	const b = "10.0.0.3:9080"
	app := served(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close") // or requests go on by that connection
		_, _ = io.Copy(w, r.Body)
	})
	build := func(p *proxy, s *snapshot.Snapshot) {
		tab, err := table.Build(s, p.table.Load())
		if err != nil {
			t.Fatal(err)
		}
		p.table.Store(tab)
	}
	with := func(endpoints ...string) *snapshot.Snapshot {
		s := mesh()
		s.Services[1].Endpoints = endpoints
		s.Services[1].Ports = []snapshot.Port{{Number: 9080, Protocol: meshfacts.ProtocolHTTP}} // whatever the client speaks
		return s
	}
	for _, http2 := range []bool{false, true} {
		begin := func(t *testing.T, comeback time.Duration) (*proxy, *network, func() string) {
			t.Helper()
			n := &network{at: map[string]string{b: app}}
			p := start(t, options{direction: exchange.Outbound, dst: b, snapshot: with("b"), dial: n.dial, http2: http2, timeouts: forward.Timeouts{Comeback: comeback}})
			c := p.client()
			if http2 {
				c = p.client2()
			}
			return p, n, func() string {
				req, err := http.NewRequest(http.MethodPost, "http://b/only", strings.NewReader("pay"))
				if err != nil {
					t.Error(err)
				}
				resp, err := c.Do(req)
				if err != nil {
					return err.Error()
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				return fmt.Sprint(resp.StatusCode, " ", string(body), " ", err, " ", p.record().Flag)
			}
		}
		const passed = "200 pay <nil> "
		name := fmt.Sprint("HTTP/2 ", http2, ", ")
		t.Run(name+"refused and back", func(t *testing.T) {
			_, n, call := begin(t, time.Hour)
			if got := call(); got != passed {
				t.Fatal(got)
			}
			n.set(b, "")
			before, done := n.dials(), make(chan string, 1)
			go func() { done <- call() }()
			for n.dials() < before+5 { // more than the retries
				time.Sleep(time.Millisecond)
			}
			n.set(b, app)
			if got := <-done; got != passed {
				t.Error(got)
			}
		})
		t.Run(name+"no endpoint and back", func(t *testing.T) {
			p, _, call := begin(t, time.Hour)
			if got := call(); got != passed {
				t.Fatal(got)
			}
			build(p, with())
			done := make(chan string, 1)
			go func() { done <- call() }()
			time.Sleep(50 * time.Millisecond) // for the request to be on its way; if it is late, nothing is different
			build(p, with("b"))
			if got := <-done; got != passed {
				t.Error(got)
			}
		})
		t.Run(name+"gone for longer", func(t *testing.T) {
			_, n, call := begin(t, time.Nanosecond)
			if got := call(); got != passed {
				t.Fatal(got)
			}
			n.set(b, "")
			if got := call(); !strings.HasPrefix(got, "503 ") || !strings.HasSuffix(got, " UF,URX") {
				t.Error(got)
			}
		})
		t.Run(name+"never there", func(t *testing.T) {
			p, n, call := begin(t, time.Hour)
			n.set(b, "")
			if got := call(); !strings.HasPrefix(got, "503 ") || n.dials() != 3 {
				t.Error(got, n.dials())
			}
			build(p, with())
			if got := call(); got != "503 no healthy upstream <nil> UH" {
				t.Error(got)
			}
		})
	}
}

// TestHashOfSourceIP: at a gateway each client has its endpoint, as far as trusted proxies tell one from another.
func TestHashOfSourceIP(t *testing.T) {
	echo := func(name string) string {
		return served(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) })
	}
	net := &network{at: map[string]string{"10.0.0.1:8080": echo("a-1"), "10.0.0.2:8080": echo("a-2")}}
	for proxies, want := range []int{1, 2} {
		s := mesh()
		s.Services[0].Policy = snapshot.Policy{Hash: &snapshot.Hash{SourceIP: true}}
		s.Gateways[0].VirtualHosts[0].Routes[0].Destinations[0].Subset = ""
		s.Security = &snapshot.Security{TrustedProxies: proxies}
		c := start(t, options{direction: exchange.Gateway, dst: "10.0.0.9:8080", snapshot: s, dial: net.dial}).raw()
		ask := func(client int) string {
			c.send(fmt.Sprintf("GET / HTTP/1.1\r\nHost: shop.example.com\r\nX-Forwarded-For: 203.0.113.%d\r\n\r\n", client))
			_, body := c.response("GET")
			return body
		}
		endpoints := map[string]bool{}
		for client := range 32 {
			at := ask(client)
			if again := ask(client); again != at {
				t.Errorf("%d proxies: the same client is served by %s and %s", proxies, at, again)
			}
			endpoints[at] = true
		}
		if len(endpoints) != want {
			t.Errorf("%d proxies: 32 clients are served by %v, want %d", proxies, endpoints, want)
		}
	}
}

// TestForwardedProto: the scheme is how the gateway was reached, unless a trusted proxy says how it was reached itself.
func TestForwardedProto(t *testing.T) {
	app := served(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, strings.Join(r.Header["X-Forwarded-Proto"], "; "))
	})
	net := &network{at: map[string]string{"10.0.0.1:8080": app}}
	for _, tt := range []struct {
		proxies int
		fields  string
		want    string
	}{
		{0, "", "http"},
		{0, "X-Forwarded-Proto: https\r\n", "http"},
		{1, "", "http"},
		{1, "X-Forwarded-Proto: https\r\n", "https"},
		{1, "x-forwarded-proto: HTTPS\r\n", "https"},
		{1, "X-Forwarded-Proto: http\r\n", "http"},
		{1, "X-Forwarded-Proto: ftp\r\n", "http"},
		{1, "X-Forwarded-Proto: https, http\r\n", "http"},
		{1, "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n", "http"},
	} {
		s := mesh()
		s.Security = &snapshot.Security{TrustedProxies: tt.proxies}
		byScheme := s.Gateways[0].VirtualHosts[0].Routes[0]
		byScheme.Name, byScheme.Matches = "https", []snapshot.Match{{Scheme: &snapshot.StringMatch{Exact: "https"}}}
		hosts := s.Gateways[0].VirtualHosts
		hosts[0].Routes = append([]snapshot.Route{byScheme}, hosts[0].Routes...)
		p := start(t, options{direction: exchange.Gateway, dst: "10.0.0.9:8080", snapshot: s, dial: net.dial})
		c := p.raw()
		c.send("GET / HTTP/1.1\r\nHost: shop.example.com\r\n" + tt.fields + "\r\n")
		if _, body := c.response("GET"); body != tt.want {
			t.Errorf("%d proxies, %q: the application is told %q, want %q", tt.proxies, tt.fields, body, tt.want)
		}
		if route := p.record().Route; (route == "https") != (tt.want == "https") {
			t.Errorf("%d proxies, %q: took the route %q", tt.proxies, tt.fields, route)
		}
	}
}
