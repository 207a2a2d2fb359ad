package http1_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/proxytest/messages"
)

// request reads a head with what Fill brings.
func request(r *http1.Reader, q *http1.Request) error {
	return parsed(r, func() error { return r.ParseRequest(q) })
}

func response(r *http1.Reader, p *http1.Response, toHead bool) error {
	return parsed(r, func() error { return r.ParseResponse(p, toHead) })
}

func parsed(r *http1.Reader, parse func() error) error {
	for {
		if err := parse(); !errors.Is(err, http1.ErrIncomplete) {
			return err
		}
		if err := r.Fill(); err != nil {
			return err
		}
	}
}

func TestRequest(t *testing.T) {
	tests := []struct {
		name, in                string
		method, path, authority string
		minor                   int
		framing                 http1.Framing
		length                  int64
		keepAlive, webSocket    bool
		fields                  int
	}{
		{"plain", "GET /a?b HTTP/1.1\r\nHost: x:80\r\nA:b\r\nC: \t d \r\n\r\n", "GET", "/a?b", "x:80", 1, http1.NoBody, 0, true, false, 3},
		{"absolute", "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "/a", "y", 1, http1.NoBody, 0, true, false, 1},
		{"absolute without path", "GET HTTPS://y HTTP/1.1\r\nHost: x\r\n\r\n", "GET", "/", "y", 1, http1.NoBody, 0, true, false, 1},
		{"star", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "OPTIONS", "*", "x", 1, http1.NoBody, 0, true, false, 1},
		{"IPv6 host", "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET", "/", "[::1]:80", 1, http1.NoBody, 0, true, false, 1},
		{"underscore in host", "GET / HTTP/1.1\r\nHost: my_app_1\r\n\r\n", "GET", "/", "my_app_1", 1, http1.NoBody, 0, true, false, 1},
		{"own method", "BREW / HTTP/1.1\r\nHost: x\r\n\r\n", "BREW", "/", "x", 1, http1.NoBody, 0, true, false, 1},
		{"length", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n", "POST", "/", "x", 1, http1.Length, 7, true, false, 2},
		{"length 0", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 000\r\n\r\n", "POST", "/", "x", 1, http1.NoBody, 0, true, false, 2},
		{"chunked", "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n", "POST", "/", "x", 1, http1.Chunked, 0, true, false, 2},
		{"close", "GET / HTTP/1.1\r\nHost: x\r\nConnection: a, , Close\r\n\r\n", "GET", "/", "x", 1, http1.NoBody, 0, false, false, 2},
		{"1.0", "GET / HTTP/1.0\r\n\r\n", "GET", "/", "", 0, http1.NoBody, 0, false, false, 0},
		{"1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET", "/", "", 0, http1.NoBody, 0, true, false, 1},
		{"websocket", "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: WebSocket\r\nConnection: keep-alive, upgrade\r\n\r\n", "GET", "/", "x", 1, http1.NoBody, 0, true, true, 3},
		{"websocket by POST", "POST / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "POST", "/", "x", 1, http1.NoBody, 0, true, false, 3},
		{"websocket without connection", "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n", "GET", "/", "x", 1, http1.NoBody, 0, true, false, 2},
		{"bytes beyond ASCII", "GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\nA: \xff\r\n\r\n", "GET", "/\xc3\xa4", "x", 1, http1.NoBody, 0, true, false, 2},
	}
	for _, tt := range tests {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/slow=%v", tt.name, slow), func(t *testing.T) {
				var src io.Reader = strings.NewReader(tt.in)
				if slow {
					src = iotest.OneByteReader(src)
				}
				r := http1.NewReader(src, http1.Limits{})
				var q http1.Request
				if err := request(r, &q); err != nil {
					t.Fatal(err)
				}
				if string(q.Method) != tt.method || string(q.Path) != tt.path || string(q.Authority) != tt.authority || q.Minor != tt.minor ||
					q.Framing != tt.framing || q.Length != tt.length || q.KeepAlive != tt.keepAlive || q.WebSocket != tt.webSocket || len(q.Header) != tt.fields {
					t.Errorf("got %+v", q)
				}
			})
		}
	}
}

func TestFieldsAreTrimmedAndKeepTheirCase(t *testing.T) {
	r := http1.NewReader(strings.NewReader("GET / HTTP/1.1\r\nhOST: x\r\nAbC: \t d e \t\r\n\r\n"), http1.Limits{})
	var q http1.Request
	if err := request(r, &q); err != nil {
		t.Fatal(err)
	}
	if f := q.Header[1]; string(f.Name) != "AbC" || string(f.Value) != "d e" {
		t.Errorf("got %q: %q", f.Name, f.Value)
	}
}

// TestKinds guards the lookup by first letter: every name that a proxy acts on is known in any case, and no near miss is.
func TestKinds(t *testing.T) {
	tests := map[string]http1.Kind{
		"host": http1.Host, "content-length": http1.ContentLength, "transfer-encoding": http1.TransferEncoding, "connection": http1.Connection,
		"keep-alive": http1.KeepAlive, "proxy-connection": http1.ProxyConnection, "te": http1.TE, "trailer": http1.Trailer, "upgrade": http1.Upgrade, "http2-settings": http1.HTTP2Settings,
		"expect": http1.Expect, "user-agent": http1.UserAgent, "content-type": http1.ContentType, "authorization": http1.Authorization,
		"cookie": http1.Cookie, "set-cookie": http1.SetCookie, "x-request-id": http1.RequestID, "x-forwarded-for": http1.ForwardedFor,
		"x-forwarded-proto": http1.ForwardedProto, "x-forwarded-host": http1.ForwardedOther, "x-forwarded-port": http1.ForwardedOther,
		"forwarded": http1.ForwardedOther, "x-forwarded-client-cert": http1.ClientCert, "x-envoy-upstream-service-time": http1.ServiceTime,
		"x-envoy-internal": http1.EnvoyInternal, "x-envoy-attempt-count": http1.EnvoyInternal, "grpc-status": http1.GRPCStatus,
		"content-encoding": http1.Content, "content-range": http1.Content, "date": http1.Content, "cache-control": http1.Content,
		"x-forwarded": http1.Other, "hos": http1.Other, "hosts": http1.Other, "x-request-ids": http1.Other, "tf": http1.Other, "x": http1.Other,
	}
	for name, want := range tests {
		for _, n := range []string{name, strings.ToUpper(name), strings.ToUpper(name[:1]) + name[1:]} {
			value := "1"
			switch want {
			case http1.Host:
				value = "x"
			case http1.TransferEncoding:
				value = "chunked"
			case http1.Expect:
				value = "100-continue"
			}
			head := "GET / HTTP/1.0\r\n"
			if want == http1.TransferEncoding {
				head = "GET / HTTP/1.1\r\nHost: x\r\n"
			}
			var q http1.Request
			if err := request(http1.NewReader(strings.NewReader(head+n+": "+value+"\r\n\r\n"), http1.Limits{}), &q); err != nil {
				t.Errorf("%s: %v", n, err)
				continue
			}
			if got := q.Header[len(q.Header)-1].Kind; got != want {
				t.Errorf("%s is kind %d, want %d", n, got, want)
			}
		}
	}
}

func TestResponse(t *testing.T) {
	tests := []struct {
		name, in  string
		toHead    bool
		status    int
		framing   http1.Framing
		body      string
		keepAlive bool
	}{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false, 200, http1.Length, "hi", true},
		{"until close", "HTTP/1.1 200 OK\r\n\r\nhi", false, 200, http1.UntilClose, "hi", false},
		{"chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", false, 200, http1.Chunked, "hi", true},
		{"to HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", true, 200, http1.NoBody, "", true},
		{"204", "HTTP/1.1 204 No Content\r\n\r\n", false, 204, http1.NoBody, "", true},
		{"304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", false, 304, http1.NoBody, "", true},
		{"100", "HTTP/1.1 100 Continue\r\n\r\n", false, 100, http1.NoBody, "", true},
		{"no reason", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false, 200, http1.NoBody, "", true},
		{"1.0", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false, 200, http1.NoBody, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := http1.NewReader(strings.NewReader(tt.in), http1.Limits{})
			var p http1.Response
			if err := response(r, &p, tt.toHead); err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r)
			if err != nil || string(body) != tt.body || p.Status != tt.status || p.Framing != tt.framing || p.KeepAlive != tt.keepAlive {
				t.Errorf("got %+v, body %q, %v", p, body, err)
			}
		})
	}
}

func TestKeepAliveTimeout(t *testing.T) {
	for in, want := range map[string]string{"timeout=5, max=10": "5s", "max=10": "0s", "timeout=0": "1ns", "timeout=x": "0s"} {
		var p http1.Response
		r := http1.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\nKeep-Alive: "+in+"\r\nContent-Length: 0\r\n\r\n"), http1.Limits{})
		if err := response(r, &p, false); err != nil || p.IdleTimeout.String() != want {
			t.Errorf("%q: %v, %v, want %s", in, p.IdleTimeout, err, want)
		}
	}
}

// TestHeadStaysWhileTheBodyIsRead reads a long body and a long pipelined rest, and then looks at the head's slices.
func TestHeadStaysWhileTheBodyIsRead(t *testing.T) {
	var in strings.Builder
	in.WriteString("POST /first HTTP/1.1\r\nHost: one\r\nX-Long: " + strings.Repeat("a", 3900) + "\r\nTransfer-Encoding: chunked\r\n\r\n")
	for range 5000 {
		in.WriteString("5\r\nhello\r\n")
	}
	in.WriteString("0\r\nT: end\r\n\r\nGET /second HTTP/1.1\r\nHost: two\r\n\r\n")
	r := http1.NewReader(strings.NewReader(in.String()), http1.Limits{})
	var q http1.Request
	if err := request(r, &q); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r)
	if err != nil || len(body) != 25000 {
		t.Fatalf("body of %d bytes, %v", len(body), err)
	}
	if string(q.Path) != "/first" || string(q.Header[0].Value) != "one" || string(q.Header[1].Name) != "X-Long" {
		t.Errorf("head has changed: %q %q", q.Path, q.Header[0].Value)
	}
	if tr := r.Trailer(); len(tr) != 1 || string(tr[0].Value) != "end" {
		t.Errorf("trailer %v", tr)
	}
	if err := request(r, &q); err != nil || string(q.Path) != "/second" {
		t.Errorf("second request: %q, %v", q.Path, err)
	}
}

// TestExpiredDeadlineLeavesNoTrace interrupts the source at every byte: the message is read all the same.
func TestExpiredDeadlineLeavesNoTrace(t *testing.T) {
	in := "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;e\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\n\r\n"
	r := http1.NewReader(&interrupted{src: iotest.OneByteReader(strings.NewReader(in))}, http1.Limits{})
	var q http1.Request
	for {
		err := request(r, &q)
		if err == nil {
			break
		}
		if !errors.Is(err, errInterrupted) {
			t.Fatal(err)
		}
	}
	var body []byte
	buf := make([]byte, 1024)
	for !r.Done() {
		n, err := r.Read(buf)
		body = append(body, buf[:n]...)
		if err != nil && !errors.Is(err, errInterrupted) && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
	}
	if string(body) != "hello!" || len(r.Trailer()) != 1 {
		t.Errorf("body %q, trailer %v", body, r.Trailer())
	}
}

var errInterrupted = errors.New("interrupted")

type interrupted struct {
	src  io.Reader
	turn bool
}

func (i *interrupted) Read(p []byte) (int, error) {
	if i.turn = !i.turn; i.turn {
		return 0, errInterrupted
	}
	return i.src.Read(p)
}

// drain reads a body to its end, and tells where in the input of the given size it ended.
func drain(r *http1.Reader, src *bytes.Reader) (body []byte, end int64, err error) {
	body, err = io.ReadAll(r)
	return body, src.Size() - int64(src.Len()) - int64(r.Buffered()), err
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n",
		"\r\nGET http://a/b HTTP/1.0\r\nConnection: keep-alive, x\r\nX: y\r\n\r\n", "GET / HTTP/1.1\r\nHost: x\r\n A: b\r\nTransfer_Encoding: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	for _, c := range messages.Requests(f) {
		if len(c.Input) < 8<<10 {
			f.Add([]byte(c.Input))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src := bytes.NewReader(data)
		r := http1.NewReader(src, http1.Limits{})
		var q http1.Request
		if err := request(r, &q); err != nil {
			slow := http1.NewReader(iotest.OneByteReader(bytes.NewReader(data)), http1.Limits{})
			if request(slow, &q) == nil {
				t.Fatalf("refused with %v, but not byte by byte", err)
			}
			return
		}
		body, end, err := drain(r, src)
		if err != nil {
			return
		}
		slow := http1.NewReader(iotest.OneByteReader(bytes.NewReader(data)), http1.Limits{})
		var q2 http1.Request
		if err := request(slow, &q2); err != nil || string(q2.Path) != string(q.Path) {
			t.Fatalf("byte by byte the head is read otherwise: %v", err)
		}
		if b, err := io.ReadAll(slow); err != nil || !bytes.Equal(b, body) {
			t.Fatalf("byte by byte the body is read otherwise: %q, %v, want %q", b, err, body)
		}
		oracleRequest(t, data, &q, body, end)
	})
}

// oracleRequest has net/http read what was accepted. The target is replaced: net/http judges URLs, we pass them on.
func oracleRequest(t *testing.T, data []byte, q *http1.Request, body []byte, end int64) {
	t.Helper()
	rest := bytes.TrimPrefix(data, []byte("\r\n"))
	skipped := int64(len(data) - len(rest))
	line, _, _ := bytes.Cut(rest, []byte("\r\n"))
	plain := fmt.Appendf(nil, "%s / HTTP/1.%d", q.Method, q.Minor)
	shift := int64(len(line) - len(plain))
	under := bytes.NewReader(append(plain, rest[len(line):]...))
	br := bufio.NewReader(under)
	req, err := http.ReadRequest(br)
	if err != nil {
		if strings.Contains(err.Error(), "bad trailer key") {
			return
		}
		t.Fatalf("accepted what net/http refuses: %v", err)
	}
	got, err := io.ReadAll(req.Body)
	if err != nil {
		t.Fatalf("accepted a body that net/http refuses: %v", err)
	}
	if !bytes.Equal(got, body) {
		t.Errorf("body is %q, net/http reads %q", body, got)
	}
	if want := under.Size() - int64(under.Len()) - int64(br.Buffered()) + shift + skipped; end != want {
		t.Errorf("message ends at %d, net/http says %d", end, want)
	}
	if host, _ := q.Header.First(http1.Host); string(host) != req.Host {
		t.Errorf("host is %q, net/http reads %q", host, req.Host)
	}
}

func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\nx",
		"HTTP/1.0 304 X\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200\r\n\r\nuntil the end",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	for _, c := range messages.Responses(f) {
		if len(c.Input) < 8<<10 {
			f.Add([]byte(c.Input), false)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, toHead bool) {
		src := bytes.NewReader(data)
		r := http1.NewReader(src, http1.Limits{})
		var p http1.Response
		if response(r, &p, toHead) != nil {
			return
		}
		body, end, err := drain(r, src)
		if err != nil {
			return
		}
		method := "GET"
		if toHead {
			method = "HEAD"
		}
		under := bytes.NewReader(data)
		br := bufio.NewReader(under)
		resp, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			if strings.Contains(err.Error(), "bad trailer key") {
				return
			}
			t.Fatalf("accepted what net/http refuses: %v", err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("accepted a body that net/http refuses: %v", err)
		}
		if !bytes.Equal(got, body) || resp.StatusCode != p.Status {
			t.Errorf("read %d %q, net/http reads %d %q", p.Status, body, resp.StatusCode, got)
		}
		if want := under.Size() - int64(under.Len()) - int64(br.Buffered()); end != want {
			t.Errorf("message ends at %d, net/http says %d", end, want)
		}
	})
}

func FuzzChunked(f *testing.F) {
	for _, s := range []string{"5\r\nhello\r\n0\r\n\r\n", "1;a\r\nx\r\nA;b=\"c\"\r\n0123456789\r\n0\r\nT: v\r\n\r\n", "000\r\n\r\n"} {
		f.Add([]byte(s), uint8(3))
	}
	const head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		r := http1.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(data)), http1.Limits{})
		var q http1.Request
		if err := request(r, &q); err != nil {
			t.Fatal(err)
		}
		var body []byte
		buf := make([]byte, int(size)+1)
		for !r.Done() {
			n, err := r.Read(buf)
			body = append(body, buf[:n]...)
			if err != nil && !errors.Is(err, io.EOF) {
				return
			}
		}
		want, err := io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(data)))
		if err != nil || !bytes.Equal(body, want) {
			t.Fatalf("read %q, net/http reads %q, %v", body, want, err)
		}
		again := http1.AppendLastChunk(append(append(http1.AppendChunkHead(nil, len(body)), body...), "\r\n"...), r.Trailer())
		if len(body) == 0 {
			again = http1.AppendLastChunk(nil, r.Trailer())
		}
		r2 := http1.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(again)), http1.Limits{})
		if err := request(r2, &q); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r2); err != nil || !bytes.Equal(b, body) || len(r2.Trailer()) != len(r.Trailer()) {
			t.Fatalf("written as %q it reads %q, %v", again, b, err)
		}
	})
}

// repeat yields the same bytes for ever, one message a read.
type repeat []byte

func (r repeat) Read(p []byte) (int, error) { return copy(p, r), nil }

const typical = "GET /productpage?u=normal HTTP/1.1\r\nHost: productpage:9080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,application/xhtml+xml\r\n" +
	"Accept-Encoding: gzip, deflate\r\nAccept-Language: en\r\nCookie: session=eyJ1c2VyIjoiamFzb24ifQ\r\nX-Request-Id: 7a0f3f3e-5f0e-4b6d-9f0a-1b2c3d4e5f60\r\nConnection: keep-alive\r\n\r\n"

func TestParsingDoesNotAllocate(t *testing.T) {
	r := http1.NewReader(repeat(typical), http1.Limits{})
	var q http1.Request
	one := func() {
		if err := request(r, &q); err != nil {
			t.Fatal(err)
		}
	}
	one()
	if n := testing.AllocsPerRun(1000, one); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	r := http1.NewReader(repeat(typical), http1.Limits{})
	var q http1.Request
	b.SetBytes(int64(len(typical)))
	b.ReportAllocs()
	for b.Loop() {
		if err := request(r, &q); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkChunked(b *testing.B) {
	message := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("100\r\n"+strings.Repeat("x", 256)+"\r\n", 8) + "0\r\n\r\n"
	r := http1.NewReader(repeat(message), http1.Limits{})
	var p http1.Response
	buf := make([]byte, 32<<10)
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		if err := response(r, &p, false); err != nil {
			b.Fatal(err)
		}
		for !r.Done() {
			if _, err := r.Read(buf); err != nil && !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
	}
}
