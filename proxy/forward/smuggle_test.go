package forward_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/proxytest/messages"
)

// backend is an upstream that keeps all it is sent, connection by connection, and what requests it reads in there.
type backend struct {
	addr   string
	answer string // to each request

	mu      sync.Mutex
	streams []*bytes.Buffer
	got     []string
}

func newBackend() *backend {
	return &backend{addr: "192.0.2.1:80", answer: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}
}

func (b *backend) dial(context.Context, netip.AddrPort) (net.Conn, error) {
	near, far := net.Pipe()
	c := &recordedConn{Conn: near, b: b, stream: &bytes.Buffer{}}
	b.mu.Lock()
	b.streams = append(b.streams, c.stream)
	b.mu.Unlock()
	go b.serve(far)
	return c, nil
}

func (b *backend) serve(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			break
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			break
		}
		quoted := strconv.Quote(string(body))
		b.mu.Lock()
		b.got = append(b.got, strings.Join([]string{req.Method, req.RequestURI, req.Host, quoted[1 : len(quoted)-1]}, " "))
		b.mu.Unlock()
		if _, err := io.WriteString(c, b.answer); err != nil {
			break
		}
	}
	_, _ = io.Copy(io.Discard, in)
}

// reset forgets everything and returns it.
func (b *backend) reset() (streams [][]byte, got []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.streams {
		streams = append(streams, bytes.Clone(s.Bytes()))
	}
	got = b.got
	b.streams, b.got = nil, nil
	return streams, got
}

// recordedConn records what is written before the other side can see it.
type recordedConn struct {
	net.Conn
	b      *backend
	stream *bytes.Buffer
}

func (c *recordedConn) Write(p []byte) (int, error) {
	c.b.mu.Lock()
	c.stream.Write(p)
	c.b.mu.Unlock()
	return c.Conn.Write(p)
}

const last = "GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

// TestAmbiguousRequests sends what servers read differently, and a request behind it. What is refused gets the status that
// is wanted, its connection is closed, the request behind is not looked at, and not one byte reaches the upstream. What
// passes must look the same to every model of an upstream.
func TestAmbiguousRequests(t *testing.T) {
	for _, tt := range messages.Requests(t) {
		t.Run(tt.Name, func(t *testing.T) {
			b := newBackend()
			p := start(t, options{direction: exchange.Inbound, dst: b.addr, dial: b.dial})
			c := p.raw()
			_, _ = c.Write([]byte(tt.Input + last)) // the proxy may refuse before it has all
			answered := len(tt.Passed) + 1
			if tt.Status == http.StatusOK {
				for n := range answered {
					resp, body := c.response("POST")
					if resp.StatusCode != http.StatusOK {
						t.Fatalf("status %d %q, want 200", resp.StatusCode, body)
					}
					if resp.Close && n == len(tt.Passed)-1 {
						answered = n + 1 // the request was one to close the connection after
						break
					}
				}
			} else {
				resp, body := c.response("POST")
				if resp.StatusCode != tt.Status || !resp.Close {
					t.Errorf("status %d %q, close %v, want %d and close", resp.StatusCode, body, resp.Close, tt.Status)
				}
				if r := p.record(); r.Status != tt.Status || r.Flag != exchange.FlagDownstreamProtocol {
					t.Errorf("recorded %+v", r)
				}
			}
			c.expectClosed()
			checkPassed(t, b, tt, answered)
		})
	}
}

// checkPassed compares what reached the upstream with what should have.
func checkPassed(t *testing.T, b *backend, tt messages.Case, answered int) {
	t.Helper()
	streams, got := b.reset()
	var want []string
	if tt.Status == http.StatusOK {
		for _, line := range tt.Passed {
			want = append(want, strings.ReplaceAll(line, "{address}", "192.0.2.1"))
		}
		want = append(want, "GET /last x ")[:answered]
	} else if len(streams) > 0 && len(tt.Passed) == 0 {
		t.Errorf("upstream received %q", streams)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("upstream read %q, want %q", got, want)
	}
	for _, s := range streams {
		if d := messages.Disagreement(s, false); d != "" {
			t.Errorf("%s, of %q", d, s)
		}
	}
}

var mutations = flag.Int("mutations", 3000, "how many mutated messages TestMutatedRequests and TestMutatedResponses send each")

// pieces are what mutations insert.
var pieces = []string{
	"\r\n", "\n", "\r", "\r\n\r\n", " ", "\t", "\x00", "\x0b", "\x0c", "\xa0", ":", ",", ";", "_", "-", "\"", "#", "\\",
	"Transfer-Encoding: chunked\r\n", "Transfer-Encoding:", "Content-Length: 5\r\n", "Content-Length: 0\r\n", "Content-Length:",
	"chunked", "identity", "Host: y\r\n", "Connection: close\r\n", "Connection: ", "Upgrade: websocket\r\n", "Expect: 100-continue\r\n",
	"0\r\n\r\n", "5\r\nhello\r\n", "0", "5", "f", "0x", "+", " HTTP/1.1", "HTTP/1.0", "GET /x HTTP/1.1\r\nHost: x\r\n\r\n", "X: y\r\n", " folded\r\n",
}

// mutate makes another message of one or two.
func mutate(r *rand.Rand, cases []messages.Case) string {
	text := cases[r.IntN(len(cases))].Input
	if len(text) > 4<<10 {
		text = text[:4<<10]
	}
	for range 1 + r.IntN(4) {
		at := r.IntN(len(text) + 1)
		end := min(len(text), at+r.IntN(8))
		switch r.IntN(6) {
		case 0, 1:
			text = text[:at] + pieces[r.IntN(len(pieces))] + text[at:]
		case 2:
			text = text[:at] + text[end:]
		case 3:
			text = text[:end] + text[at:]
		case 4:
			text = text[:at] + pieces[r.IntN(len(pieces))] + text[end:]
		case 5:
			other := cases[r.IntN(len(cases))].Input
			text = text[:at] + other[r.IntN(len(other)+1):]
		}
	}
	return text
}

// TestMutatedRequests sends thousands of variants of the requests. Whatever the proxy makes of them, what it passes on must
// look the same to every model.
func TestMutatedRequests(t *testing.T) {
	cases := messages.Requests(t)
	passOn(t, func(worker int, send func(string)) {
		r := rand.New(rand.NewPCG(uint64(worker), 9112)) //nolint:gosec // to be the same each time
		for range *mutations / smugglers {
			send(mutate(r, cases) + last)
		}
	})
}

const smugglers = 4

// passOn has several proxies at a time take what inputs sends. What they pass on must look the same to every model.
func passOn(t *testing.T, inputs func(worker int, send func(string))) {
	t.Helper()
	var wg sync.WaitGroup
	for worker := range smugglers {
		b := newBackend()
		b.answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
		p := start(t, options{direction: exchange.Inbound, dst: b.addr, dial: b.dial})
		wg.Go(func() {
			inputs(worker, func(input string) {
				converse(t, p.addr, input)
				streams, _ := b.reset()
				for _, s := range streams {
					if d := messages.Disagreement(s, false); d != "" {
						t.Errorf("%s, of %q, for %q", d, s, input)
					}
				}
				for len(p.rec.ch) > 0 {
					<-p.rec.ch
				}
			})
		})
	}
	wg.Wait()
}

// disguises are where tools that look for smuggling put a byte that servers take in different ways: % stands for it.
var disguises = []string{
	"Content-Length: 5\r\n%Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\nTransfer-Encoding%: chunked\r\n",
	"Content-Length: 5\r\nTransfer%Encoding: chunked\r\n", "Content-Length: 5\r\nTransfer-Encoding:%chunked\r\n",
	"Content-Length: 5\r\nTransfer-Encoding: chunked%\r\n", "Content-Length: 5\r\nX: y%Transfer-Encoding: chunked\r\n",
	"Content-Length: 5\r\nTransfer-Encoding: chunked\r%\n", "Transfer-Encoding: chunked\r\nContent-Length%: 5\r\n",
	"%Content-Length: 5\r\n", "Content%Length: 5\r\n", "Content-Length:%5\r\n", "Content-Length: 5%\r\n", "Content-Length: %5\r\n",
	"Content-Length: 5\r\nContent-Length%: 6\r\n", "X: y\r\n%\r\nContent-Length: 5\r\n", "X: y%\nContent-Length: 5\r\n",
	"Transfer-Encoding: %chunked\r\n", "Transfer-Encoding: chunked,%identity\r\n", "Connection: Content-Length%\r\nContent-Length: 5\r\n",
}

// TestEveryByte puts every byte into each of the disguises, and into the chunks and the trailers of a body, and follows them
// with a body that is 5 bytes long to some servers, and chunks and another request to others.
func TestEveryByte(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\n"
	var inputs []string
	for _, d := range disguises {
		inputs = append(inputs, head+d+"\r\n0\r\n\r\n")
	}
	for _, d := range []string{
		"%5\r\nhello\r\n0\r\n\r\n", "5%\r\nhello\r\n0\r\n\r\n", "5;%\r\nhello\r\n0\r\n\r\n", "5\r%\nhello\r\n0\r\n\r\n", "5%\nhello\r\n0\r\n\r\n",
		"5\r\nhello%\r\n0\r\n\r\n", "5\r\nhello%\n0\r\n\r\n", "5\r\nhello\r\n%0\r\n\r\n", "0%\r\n\r\n", "0\r\n%\r\n", "0\r\n%\n\r\n",
		"0\r\nContent%Length: 5\r\n\r\n", "0\r\nX: y%\r\n\r\n", "0\r\nX%: y\r\n\r\n", "0\r\nX: y%\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		inputs = append(inputs, head+"Transfer-Encoding: chunked\r\n\r\n"+d)
	}
	for _, d := range []string{
		"POST% / HTTP/1.1\r\nHost: x\r\n", "POST /%HTTP/1.1\r\nHost: x\r\n", "POST / HTTP/1.1%\r\nHost: x\r\n", "POST / HTTP/1.1%\nHost: x\r\n",
		"POST / HTTP/1%1\r\nHost: x\r\n", "%POST / HTTP/1.1\r\nHost: x\r\n", "POST / HTTP/1.1\r\nHost: x%\r\n", "POST / HTTP/1.1\r\nHost%: x\r\n",
	} {
		inputs = append(inputs, d+"Content-Length: 5\r\n\r\nhello")
	}
	passOn(t, func(worker int, send func(string)) {
		for c := worker; c < 256; c += smugglers {
			for _, in := range inputs {
				send(strings.Replace(in, "%", string([]byte{byte(c)}), 1) + last)
			}
		}
	})
}

// converse sends input and its end, and returns all that comes back.
func converse(t *testing.T, addr, input string) []byte {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(conn, input)   // it may be refused before
	_ = conn.(*net.TCPConn).CloseWrite() // as it may be closed
	out, err := io.ReadAll(conn)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		t.Errorf("no end of the answer to %q; so far %q", input, out)
	}
	return out
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

// upstreamThat answers each request with the given bytes, and then closes the connection or not.
func upstreamThat(t *testing.T, response string, closes bool) *origin {
	t.Helper()
	return scripted(t, func(_ int, c *rawConn) {
		if _, _, err := c.request(); err == nil {
			_, _ = c.Write([]byte(response))
			if !closes {
				_, _ = c.r.ReadByte()
			}
		}
	})
}

// TestAmbiguousResponses has upstreams answer with what can be read in two ways or not at all: 502, nothing of it reaches
// the client, and the connection is not used again.
func TestAmbiguousResponses(t *testing.T) {
	for _, tt := range messages.Responses(t) {
		t.Run(tt.Name, func(t *testing.T) {
			o := upstreamThat(t, tt.Input, strings.HasSuffix(tt.Name, "…"))
			p := start(t, options{direction: exchange.Outbound, dst: o.addr})
			for n := 1; n <= 2; n++ {
				out := converseUntilEnd(t, p.addr, last)
				if d := messages.Disagreement(out, true); d != "" {
					t.Fatalf("%s, of %q", d, out)
				}
				checkResponse(t, tt, out)
				p.record()
				if got := o.connections(); got != n {
					t.Errorf("%d connections upstream after %d requests", got, n)
				}
			}
		})
	}
}

// converseUntilEnd is converse without closing: the request asks for the end.
func converseUntilEnd(t *testing.T, addr, input string) []byte {
	t.Helper()
	c := dialRaw(t, addr)
	c.send(input)
	out, _ := io.ReadAll(c.r) // a reset ends it too
	_ = c.Close()
	return out
}

func checkResponse(t *testing.T, tt messages.Case, out []byte) {
	t.Helper()
	in := bufio.NewReader(bytes.NewReader(out))
	req, _ := http.NewRequest(http.MethodGet, "http://x/", nil)
	var resp *http.Response
	var err error
	for resp == nil || resp.StatusCode < 200 {
		if resp, err = http.ReadResponse(in, req); err != nil {
			break
		}
	}
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
	}
	switch {
	case tt.Status == http.StatusBadGateway:
		if err != nil || resp.StatusCode != tt.Status || strings.Contains(string(body), "hello") {
			t.Errorf("got %q, %v, want a 502 of the proxy's own", out, err)
		}
	case len(tt.Passed) == 0:
		if err == nil && resp.StatusCode == tt.Status {
			t.Errorf("the client takes %q for the whole", out)
		}
	case err != nil:
		t.Errorf("%v, of %q", err, out)
	default:
		if got := strconv.Itoa(resp.StatusCode) + " " + string(body); got != tt.Passed[0] {
			t.Errorf("the client read %q, want %q", got, tt.Passed[0])
		}
		if bytes.Contains(out, []byte("evil")) {
			t.Errorf("the client got what it did not ask for: %q", out)
		}
	}
}

// TestMutatedResponses has upstreams answer with thousands of variants of the responses: what reaches the client must look
// the same to every model.
func TestMutatedResponses(t *testing.T) {
	cases := messages.Responses(t)
	const workers = 4
	var wg sync.WaitGroup
	for worker := range workers {
		var response atomic.Pointer[string]
		dial := func(context.Context, netip.AddrPort) (net.Conn, error) {
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				if _, err := http.ReadRequest(bufio.NewReader(far)); err == nil {
					_, _ = io.WriteString(far, *response.Load())
				}
			}()
			return near, nil
		}
		p := start(t, options{direction: exchange.Inbound, dst: "192.0.2.1:80", dial: dial})
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(worker), 9110)) //nolint:gosec // to be the same each time
			for range *mutations / workers {
				text := mutate(r, cases)
				response.Store(&text)
				out := converse(t, p.addr, last)
				if d := messages.Disagreement(out, true); d != "" {
					t.Errorf("%s, of %q, for %q", d, out, text)
				}
				p.record()
			}
		})
	}
	wg.Wait()
}
