package listen

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		in   string
		kind Kind
		more bool
	}{
		{"", Silent, true},
		{"G", HTTP1, true},
		{"GET", HTTP1, true},
		{"GET ", HTTP1, true},
		{"GET /pro", HTTP1, true},
		{"GET /productpage ", HTTP1, true},
		{"GET /productpage HTTP/1", HTTP1, true},
		{"GET /productpage HTTP/1.", HTTP1, true},
		{"GET /productpage HTTP/1.1", HTTP1, false},
		{"GET / HTTP/1.0\r\n", HTTP1, false},
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", HTTP1, false},
		{"OPTIONS * HTTP/1.1\r\n", HTTP1, false},
		{"CONNECT example.com:443 HTTP/1.1\r\n", HTTP1, false},
		{"GET http://reviews/ HTTP/1.1\r\n", HTTP1, false},
		{"VERSION-CONTROL / HTTP/1.1\r\n", HTTP1, false},
		{"\r\nGET / HTTP/1.1\r\n", HTTP1, false},
		{"\r", HTTP1, true},
		{"\r\n", HTTP1, true},
		{"\rG", HTTP1, true},
		{"\r\n\r\n\r\n", HTTP1, true}, // a server may leave any number of them out
		{"\n\nGET / HTTP/1.1\n", HTTP1, false},
		{"GET /\xc3\xa9 HTTP/1.1\r\n", HTTP1, false}, // the engine refuses it, as HTTP
		{"GET / HTTP/2.0\r\n", HTTP1, false},
		{"GET / HTTP/1.x\r\n", HTTP1, false},
		{"GET /\r\n", HTTP1, false}, // HTTP/0.9
		{"get\t/ HTTP/1.1\r\n", HTTP1, false},
		{"GET\v/ HTTP/1.1\r\n", HTTP1, false},
		{"GET admin HTTP/1.1\r\n", HTTP1, false},
		{"POST /a b HTTP/1.1\r\n", HTTP1, false},
		{"GET key\r\n", TCP, false},                    // Redis, inline
		{"CONNECT\naccept-version:1.2\n", TCP, false},  // STOMP
		{"OPTIONS rtsp://x/ RTSP/1.0\r\n", TCP, false}, // RTSP
		{"GETKEY / HTTP/9\r\n", TCP, false},
		{"GET  / HTTP/1.1", HTTP1, true},
		{"GET  / HTTP/1.1\r\n", HTTP1, false},
		{"GET / x HTTP/1.1", HTTP1, true},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HTTP2, false},
		{"PRI * HTTP/", HTTP1, true}, // may be either still
		{"PRI * HTTP/2", HTTP2, true},
		{"PRI * HTTP/3.0", TCP, false},
		{"PUB subject 5\r\nhello\r\n", TCP, false},       // NATS
		{"set key 0 0 5\r\nhello\r\n", TCP, false},       // memcached
		{"*1\r\n$4\r\nPING\r\n", TCP, false},             // Redis
		{"PING\r\n", TCP, false},                         // Redis, inline
		{"EHLO mail.example.com\r\n", TCP, false},        // SMTP
		{"AMQP\x00\x00\x09\x01", TCP, false},             // AMQP
		{"\x00\x00\x00\x08\x04\xd2\x16\x2f", TCP, false}, // PostgreSQL SSLRequest
		{"\x10\x0c\x00\x04MQTT", TCP, false},             // MQTT
		{"SSH-2.0-OpenSSH_9.2\r\n", TCP, false},
		{" GET / HTTP/1.1\r\n", HTTP1, false},
		{strings.Repeat("A", 33) + " / HTTP/1.1\r\n", TCP, false},
		{"GET /" + strings.Repeat("a", 8000), HTTP1, true},
		{"\x16", TLS, true},
		{"\x16\x03", TLS, true},
		{"\x16\x03\x01", TLS, true},
		{"\x16\x03\x01\x02\x00", TLS, true},
		{"\x16\x03\x01\x02\x00\x01", TLS, true},
		{"\x16\x03\x01\x00\x04\x01\x00\x00\x00", TLS, false},
		{"\x16\x03\x01\x02\x00\x02", TCP, false}, // a ServerHello
		{"\x16\x03\x05", TCP, false},
		{"\x16\x02", TCP, false},
		{"\x16\x03\x01\x00\x00", TCP, false},     // an empty record
		{"\x16\x03\x01\x40\x01\x01", TCP, false}, // a record too long
		{"\x80\x2e\x01\x00\x02", TCP, false},     // SSL 2.0
	} {
		if kind, more := Classify([]byte(tc.in)); kind != tc.kind || more != tc.more {
			t.Errorf("Classify(%.40q) = %v, more %v; want %v, more %v", tc.in, kind, more, tc.kind, tc.more)
		}
	}
}

// clientHello is what crypto/tls sends.
func clientHello(tb testing.TB, conf *tls.Config) []byte {
	tb.Helper()
	client, server := net.Pipe()
	go func() {
		defer client.Close()
		_ = tls.Client(client, conf).Handshake() // fails: nobody answers
	}()
	buf := make([]byte, 64<<10)
	n, err := server.Read(buf)
	if err != nil {
		tb.Fatal(err)
	}
	_ = server.Close()
	return buf[:n]
}

// split puts each n bytes of a record into a record of its own.
func split(record []byte, n int) []byte {
	var out []byte
	for body := record[5:]; len(body) > 0; {
		m := min(n, len(body))
		out = append(out, record[0], record[1], record[2], byte(m>>8), byte(m))
		out = append(out, body[:m]...)
		body = body[m:]
	}
	return out
}

func TestParseHello(t *testing.T) {
	whole := clientHello(t, &tls.Config{ServerName: "reviews.example.com", NextProtos: []string{"composure-http/1.1", "h2"}})
	for name, hello := range map[string][]byte{
		"one record": whole, "records of 100": split(whole, 100), "records of 1": split(whole, 1), "followed by more": append(bytes.Clone(whole), 0x17, 3, 3, 0, 1, 0),
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := ParseHello(hello)
			want := &Hello{ServerName: "reviews.example.com", Protocols: []string{"composure-http/1.1", "h2"}}
			if !ok {
				t.Fatal("ParseHello refused it")
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			end := len(hello)
			if name == "followed by more" {
				end -= 6
			}
			for n := 1; n < end; n++ {
				if _, ok := ParseHello(hello[:n]); ok {
					t.Fatalf("ParseHello took the first %d of %d bytes for a whole", n, end)
				}
				if kind, more := Classify(hello[:n]); kind != TLS || !more {
					t.Fatalf("Classify of the first %d of %d bytes = %v, more %v", n, end, kind, more)
				}
			}
		})
	}
	if got, ok := ParseHello(clientHello(t, &tls.Config{InsecureSkipVerify: true})); !ok || got.ServerName != "" || got.Protocols != nil {
		t.Errorf("a hello without names: %+v, %v", got, ok)
	}
}

// FuzzSniff checks that detection never panics, never changes its mind, and reads a ClientHello as crypto/tls does.
func FuzzSniff(f *testing.F) {
	hello := clientHello(f, &tls.Config{ServerName: "a.example", NextProtos: []string{"composure-tcp", "x"}})
	f.Add(hello)
	f.Add(split(hello, 64))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		decided := -1
		var first Kind
		for n := range min(len(b), 2048) + 1 {
			kind, more := Classify(b[:n])
			switch {
			case decided < 0 && !more:
				decided, first = n, kind
			case decided >= 0 && (more || kind != first):
				t.Fatalf("%q: %v after %d bytes, %v (more %v) after %d", b, first, decided, kind, more, n)
			}
		}
		got, ok := ParseHello(b)
		want := oracle(b)
		if want != nil && !ok {
			t.Fatalf("crypto/tls reads %q as %+v, ParseHello refuses it", b, want)
		}
		if want != nil && (got.ServerName != want.ServerName || !cmp.Equal(got.Protocols, want.SupportedProtos)) {
			t.Fatalf("ParseHello(%q) = %+v, crypto/tls reads %q %q", b, got, want.ServerName, want.SupportedProtos)
		}
	})
}

// oracle is crypto/tls's reading of a ClientHello, nil if it refuses it.
func oracle(b []byte) *tls.ClientHelloInfo {
	var info *tls.ClientHelloInfo
	stop := errors.New("enough")
	_ = tls.Server(readOnly{bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
		info = i
		return nil, stop
	}}).Handshake()
	return info
}

type readOnly struct{ io.Reader }

func (readOnly) Write(p []byte) (int, error)      { return len(p), nil }
func (readOnly) Close() error                     { return nil }
func (readOnly) LocalAddr() net.Addr              { return nil }
func (readOnly) RemoteAddr() net.Addr             { return nil }
func (readOnly) SetDeadline(time.Time) error      { return nil }
func (readOnly) SetReadDeadline(time.Time) error  { return nil }
func (readOnly) SetWriteDeadline(time.Time) error { return nil }

var testTimeouts = Timeouts{Silence: 100 * time.Millisecond, Handshake: 5 * time.Second, Header: 10 * time.Second}

// dribble writes b a byte each so often.
func dribble(c net.Conn, b []byte, every time.Duration) {
	for _, x := range b {
		time.Sleep(every)
		if _, err := c.Write([]byte{x}); err != nil {
			return
		}
	}
}

func TestSniffDribble(t *testing.T) {
	hello := clientHello(t, &tls.Config{ServerName: "a.example", NextProtos: []string{"composure-tcp"}})
	for _, tc := range []struct {
		name  string
		in    []byte
		every time.Duration
		kind  Kind
	}{
		{"http", []byte("POST /x HTTP/1.1"), 50 * time.Millisecond, HTTP1},
		{"http, slower than the silence after its first byte", append([]byte{}, "GET / HTTP/1.1"...), 90 * time.Millisecond, HTTP1},
		{"tls", hello, time.Millisecond, TLS},
		{"tcp", []byte("PING\r"), 10 * time.Millisecond, TCP},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				go dribble(client, tc.in, tc.every)
				c := NewConn(server)
				kind, hello, err := Sniff(c, testTimeouts)
				if err != nil || kind != tc.kind {
					t.Fatalf("Sniff = %v, %v; want %v", kind, err, tc.kind)
				}
				if tc.kind == TLS && (hello == nil || hello.ServerName != "a.example" || !hello.Offers("composure-tcp")) {
					t.Errorf("hello = %+v", hello)
				}
				got := make([]byte, len(tc.in))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, tc.in) {
					t.Errorf("after detection the stream reads %q, %v; want %q", got, err, tc.in)
				}
				_, _ = client.Close(), server.Close()
			})
		})
	}
}

func TestSniffTimeouts(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		kind     Kind
		slow     bool
		after    time.Duration
	}{
		{"nothing", "", Silent, false, testTimeouts.Silence},
		{"part of a method", "GE", HTTP1, true, testTimeouts.Header},
		{"part of a request line", "GET /productpage HTT", HTTP1, true, testTimeouts.Header},
		{"part of a record", "\x16\x03\x01\x02\x00\x01", TLS, true, testTimeouts.Handshake},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				go func() { _, _ = client.Write([]byte(tc.in)) }()
				begun := time.Now()
				kind, _, err := Sniff(NewConn(server), testTimeouts)
				if kind != tc.kind || errors.Is(err, ErrSlow) != tc.slow || !tc.slow && err != nil {
					t.Errorf("Sniff = %v, %v; want %v, slow %v", kind, err, tc.kind, tc.slow)
				}
				if took := time.Since(begun); took != tc.after { // the clock is synctest's
					t.Errorf("decided after %v, want %v", took, tc.after)
				}
				_, _ = client.Close(), server.Close()
			})
		})
	}
}

func TestSniffEnds(t *testing.T) {
	for in, want := range map[string]Kind{"": Silent, "GET": TCP, "\x16\x03": TCP, "\r": TCP, "GET /admin": HTTP1, "PUB a": TCP} {
		client, server := tcpPair(t)
		_, _ = client.Write([]byte(in))
		_ = client.Close()
		kind, _, err := Sniff(NewConn(server), testTimeouts)
		if kind != want || (in == "") != errors.Is(err, io.EOF) {
			t.Errorf("%q and the end: %v, %v; want %v", in, kind, err, want)
		}
	}
}

// tcpPair is two ends of a connection that can be closed at one end and still be read at the other, as net.Pipe can't.
func tcpPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err = net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server
}

func TestSniffIsBounded(t *testing.T) { synctest.Test(t, sniffIsBounded) }

func sniffIsBounded(t *testing.T) {
	client, server := net.Pipe()
	go func() {
		b := bytes.Repeat([]byte("a"), 1<<20)
		copy(b, "GET /")
		_, _ = client.Write(b) // ends with the connection
	}()
	c := NewConn(server)
	kind, _, err := Sniff(c, testTimeouts)
	if kind != HTTP1 || err != nil {
		t.Errorf("an endless request line: %v, %v; want http/1, for the engine to refuse", kind, err)
	}
	if n := len(c.Buffered()); n > maxPeek {
		t.Errorf("%d bytes were buffered, want at most %d", n, maxPeek)
	}
	_, _ = client.Close(), server.Close()
}
