package listen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/composure-mesh/composure/proxy/proxytest"
)

func TestConnReadsWhatWasPeeked(t *testing.T) {
	client, server := net.Pipe()
	sent := bytes.Repeat([]byte("0123456789"), 1000)
	go func() {
		_, _ = client.Write(sent)
		_ = client.Close()
	}()
	c := NewConn(server)
	for len(c.Buffered()) < 6000 { // more than the pooled buffer
		if err := c.Fill(); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("read %d bytes, %v; want the %d sent, in order", len(got), err, len(sent))
	}
}

func TestConnTake(t *testing.T) {
	client, server := net.Pipe()
	go func() { _, _ = client.Write([]byte("prefix")) }()
	c := NewConn(server)
	if err := c.Fill(); err != nil {
		t.Fatal(err)
	}
	if got := string(c.Take()); got != "prefix" {
		t.Errorf("Take = %q", got)
	}
	if got := c.Take(); got != nil || len(c.Buffered()) != 0 {
		t.Errorf("after Take there is %q and %q left", got, c.Buffered())
	}
	_, _ = client.Close(), server.Close()
}

// purse lends one buffer and knows whether it is out.
type purse struct {
	buf   [16]byte
	out   bool
	loans int
}

func (p *purse) Lend() []byte { p.out, p.loans = true, p.loans+1; return p.buf[:] }
func (p *purse) Return()      { p.out = false }

// TestReadLate: what waits holds no buffer, whatever ends the wait; what was read is in the buffer that is out.
func TestReadLate(t *testing.T) {
	client, server := proxytest.Pair(t)
	c := NewConn(server)
	var p purse
	deadline := func(d time.Duration) {
		if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
			t.Fatal(err)
		}
	}
	late := func(name, want string, wantErr error) {
		t.Helper()
		p = purse{}
		n, err := c.ReadLate(&p)
		if string(p.buf[:n]) != want || !errors.Is(err, wantErr) || p.out != (n > 0) {
			t.Errorf("%s: %q, %v, buffer out: %v; want %q, %v, and a buffer only with bytes", name, p.buf[:n], err, p.out, want, wantErr)
		}
	}
	deadline(10 * time.Millisecond)
	late("deadline", "", os.ErrDeadlineExceeded)
	deadline(20 * time.Second)
	if _, err := client.Write([]byte("peeked")); err != nil {
		t.Fatal(err)
	}
	if err := c.Fill(); err != nil {
		t.Fatal(err)
	}
	late("peeked", "peeked", nil)
	if _, err := client.Write([]byte("there")); err != nil {
		t.Fatal(err)
	}
	late("there", "there", nil)
	go func() { _, _ = client.Write([]byte("later")) }()
	late("later", "later", nil)
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	late("end", "", io.EOF)
	_ = server.Close()
	late("closed", "", net.ErrClosed)

	other, broken := proxytest.Pair(t)
	c = NewConn(broken)
	Reset(other)
	late("reset", "", syscall.ECONNRESET)
	near, far := net.Pipe()
	c = NewConn(far)
	go func() { _, _ = near.Write([]byte("pipe")) }()
	late("no TCP", "pipe", nil)
	go func() { _ = near.Close() }()
	late("no TCP, end", "", io.EOF)
}

func TestResetSendsRST(t *testing.T) {
	client, server := proxytest.Pair(t)
	Reset(NewConn(server))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads %v, want a reset", err)
	}
}

// shortOfFiles is a listener whose accepts fail for want of descriptors at first.
type shortOfFiles struct {
	Listener
	failures int
	closed   chan struct{}
	waits    []time.Duration
	last     time.Time
}

func (l *shortOfFiles) AcceptTCP() (*net.TCPConn, error) {
	now := time.Now()
	if !l.last.IsZero() {
		l.waits = append(l.waits, now.Sub(l.last))
	}
	l.last = now
	if l.failures > 0 {
		l.failures--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *shortOfFiles) Addr() net.Addr { return &net.TCPAddr{} }

func (l *shortOfFiles) Close() error {
	close(l.closed)
	return nil
}

func TestAcceptWaitsOutALackOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &shortOfFiles{failures: 10, closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		told := 0
		done := make(chan error, 1)
		go func() { done <- Accept(ctx, l, func(*net.TCPConn) {}, func(error) { told++ }) }()
		time.Sleep(time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Accept = %v, want nil at the end of its context", err)
		}
		want := []int64{5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000}
		if told != 10 || len(l.waits) != len(want) {
			t.Fatalf("told %d times, waited %v", told, l.waits)
		}
		for i := range want {
			if l.waits[i].Milliseconds() != want[i] {
				t.Errorf("wait %d is %v, want %v ms", i, l.waits[i], want[i])
			}
		}
	})
}

func TestAcceptReturnsWhatDoesNotPass(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := Accept(t.Context(), ln.(*net.TCPListener), nil, nil); err != nil {
		t.Errorf("Accept on a closed listener = %v, want nil", err)
	}
	if temporary(syscall.EINVAL) || !temporary(syscall.EMFILE) || !temporary(&net.OpError{Err: syscall.ENOMEM}) {
		t.Error("temporary tells the errors apart wrongly")
	}
}

// lend serves the sandbox's end of the hand-over once, and returns the connection it keeps.
func lend(t *testing.T, data string, lns ...*net.TCPListener) (socket string, lease <-chan *net.UnixConn) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "listeners.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	out := make(chan *net.UnixConn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		var fds []int
		for _, l := range lns {
			f, err := l.File()
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			fds = append(fds, int(f.Fd()))
		}
		if data != "" {
			if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte(data), unix.UnixRights(fds...), nil); err != nil {
				t.Error(err)
			}
		} else {
			_ = c.Close()
		}
		out <- c.(*net.UnixConn)
	}()
	return socket, out
}

func tcpListen(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.(*net.TCPListener)
}

func TestAcquire(t *testing.T) {
	outbound, inbound := tcpListen(t), tcpListen(t)
	socket, lease := lend(t, "1", outbound, inbound)
	h, err := Acquire(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	if h.Outbound.Addr().String() != outbound.Addr().String() || h.Inbound.Addr().String() != inbound.Addr().String() {
		t.Errorf("got %v and %v, want %v and %v in this order", h.Outbound.Addr(), h.Inbound.Addr(), outbound.Addr(), inbound.Addr())
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if _, err := (<-lease).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the sandbox reads %v after Close, want EOF", err)
	}
	// The sockets live on: a connection now waits for the next proxy.
	c, err := net.Dial("tcp", outbound.Addr().String())
	if err != nil {
		t.Fatalf("after giving the listener back: %v", err)
	}
	defer c.Close()
	if s, err := outbound.Accept(); err != nil {
		t.Error(err)
	} else {
		_ = s.Close()
	}
	if err := h.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestAcquireNoticesTheSandboxGone(t *testing.T) {
	socket, lease := lend(t, "1", tcpListen(t), tcpListen(t))
	h, err := Acquire(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = (<-lease).Close()
	<-h.Gone()
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestAcquireRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		data string
		n    int
		want string
	}{
		"closed at once":     {"", 0, "uid 1337"},
		"one listener":       {"1", 1, "1 descriptors"},
		"another message":    {"2", 2, `message "2"`},
		"too many listeners": {"1", 3, "got message"},
	} {
		t.Run(name, func(t *testing.T) {
			var lns []*net.TCPListener
			for range tc.n {
				lns = append(lns, tcpListen(t))
			}
			socket, _ := lend(t, tc.data, lns...)
			if _, err := Acquire(t.Context(), socket); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Acquire = %v, want an error with %q", err, tc.want)
			}
		})
	}
	if _, err := Acquire(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "dial the sandbox") {
		t.Errorf("without a sandbox: %v", err)
	}
}

func TestOriginalDstOfAConnectionThatWasNotRedirected(t *testing.T) {
	_, server := proxytest.Pair(t)
	if dst, err := OriginalDst(server); err == nil && dst != AddrPort(server.LocalAddr()) {
		t.Errorf("OriginalDst = %v, want an error or the local address %v", dst, server.LocalAddr())
	}
}

func TestAddrPort(t *testing.T) {
	for _, tc := range []struct {
		in   net.Addr
		want string
	}{
		{&net.TCPAddr{IP: net.ParseIP("::ffff:10.0.0.1"), Port: 80}, "10.0.0.1:80"},
		{&net.TCPAddr{IP: net.ParseIP("fd00::1"), Port: 80}, "[fd00::1]:80"},
		{&net.UnixAddr{Name: "x"}, ""},
		{nil, ""},
	} {
		want, _ := netip.ParseAddrPort(tc.want)
		if got := AddrPort(tc.in); got != want {
			t.Errorf("AddrPort(%v) = %v, want %v", tc.in, got, want)
		}
	}
}

// TestPrompt: what wants only what has arrived waits for nothing, over TCP and below TLS.
func TestPrompt(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(server)
	defer func() { _ = c.Close() }()
	outer := NewConn(layer{c})
	buf := make([]byte, 10)
	for _, conn := range []net.Conn{c, outer} {
		if !Prompt(conn, true) {
			t.Fatal("it can't be had")
		}
		if n, err := conn.Read(buf); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("of nothing it reads %d bytes, %v", n, err)
		}
		Prompt(conn, false)
		if _, err := client.Write([]byte("first")); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf[:2]); n != 2 || err != nil { // waits
			t.Errorf("then it reads %d bytes, %v", n, err)
		}
		Prompt(conn, true)
		if n, err := conn.Read(buf); string(buf[:n]) != "rst" || err != nil {
			t.Errorf("of what is here it reads %q, %v", buf[:n], err)
		}
	}
	_ = client.Close()
	Prompt(c, false)
	if err := c.Fill(); !errors.Is(err, io.EOF) { // waits
		t.Fatal(err)
	}
	Prompt(c, true)
	if n, err := c.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end it reads %d bytes, %v", n, err)
	}
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if Prompt(NewConn(a), true) {
		t.Error("a pipe claims that it can do without waiting")
	}
}

// layer is a connection of TLS as far as it matters.
type layer struct{ *Conn }

func (l layer) NetConn() net.Conn { return l.Conn }
