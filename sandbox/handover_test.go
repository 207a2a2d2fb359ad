//go:build linux

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// never is a grace that no test lives to see.
const never = time.Hour

// serving runs a server on ports of its own, for peers of the test's own user plus uidOffset.
func serving(t *testing.T, grace time.Duration, uidOffset int) (*Server, string) {
	t.Helper()
	socket := fmt.Sprintf("@composure-test/%d/%s", os.Getpid(), t.Name())
	s, err := listen(Config{Grace: grace, Log: slog.New(slog.DiscardHandler)}, place{
		outbound: "127.0.0.1:0", inbound: "127.0.0.1:0", socket: socket, uid: uint32(os.Getuid() + uidOffset),
	})
	if err != nil {
		t.Fatal(err)
	}
	untilTheEnd(t, s.Run)
	return s, socket
}

// proxy is the other end: it greets whoever connects to the listeners it was handed.
type proxy struct {
	conn              *net.UnixConn
	outbound, inbound net.Listener
	accepting         sync.WaitGroup
}

// ask connects to the hand-over socket and reads the message.
func ask(t *testing.T, socket string) (*proxy, error) {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	p := &proxy{conn: conn}
	t.Cleanup(p.stop)
	buf, oob := make([]byte, 8), make([]byte, 64)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return p, err
	}
	if n == 0 {
		return p, io.EOF
	}
	if string(buf[:n]) != "1" {
		t.Fatalf("message is %q, want 1", buf[:n])
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d control messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 2 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	p.outbound, p.inbound = fileListener(t, fds[0]), fileListener(t, fds[1])
	return p, nil
}

func fileListener(t *testing.T, fd int) net.Listener {
	t.Helper()
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// mustAsk is a proxy that holds the listeners and accepts from both.
func mustAsk(t *testing.T, socket, greeting string) *proxy {
	t.Helper()
	p, err := ask(t, socket)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []net.Listener{p.outbound, p.inbound} {
		p.accepting.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, greeting)
				_ = c.Close()
			}
		})
	}
	return p
}

// stop lets go of the listeners once what was accepted is served.
func (p *proxy) stop() {
	if p.outbound != nil {
		_ = p.outbound.Close()
		_ = p.inbound.Close()
	}
	p.accepting.Wait()
	_ = p.conn.Close()
}

// greet connects and reads until the end.
func greet(l net.Listener) (string, error) {
	c, err := net.DialTimeout("tcp", l.Addr().String(), patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func wantGreeting(t *testing.T, l net.Listener, want string) {
	t.Helper()
	if got, err := greet(l); err != nil || got != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
}

func TestHandover(t *testing.T) {
	s, socket := serving(t, never, 0)
	p := mustAsk(t, socket, "a")
	if got, want := p.outbound.Addr().String(), s.outbound.Addr().String(); got != want {
		t.Errorf("the first listener is %s, want the outbound one, %s", got, want)
	}
	wantGreeting(t, s.outbound, "a")
	wantGreeting(t, s.inbound, "a")
}

func TestTwoHolders(t *testing.T) {
	s, socket := serving(t, 0, 0)
	a, b := mustAsk(t, socket, "x"), mustAsk(t, socket, "x")
	wantGreeting(t, s.outbound, "x")
	a.stop()
	for range 20 { // one holder is left, so nothing is refused
		wantGreeting(t, s.outbound, "x")
		wantGreeting(t, s.inbound, "x")
	}
	b.stop()
	wantRefusal(t, s.outbound)
}

func TestStrangerGetsNothing(t *testing.T) {
	_, socket := serving(t, never, 1)
	if _, err := ask(t, socket); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("got %v, want the end of the stream", err)
	}
}

// TestBacklogWaits connects while nobody holds the listeners; the next proxy serves it.
func TestBacklogWaits(t *testing.T) {
	s, socket := serving(t, never, 0)
	first := mustAsk(t, socket, "first")
	wantGreeting(t, s.inbound, "first")
	first.stop()
	c, err := net.Dial("tcp", s.inbound.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mustAsk(t, socket, "second")
	if b, err := io.ReadAll(c); err != nil || string(b) != "second" {
		t.Errorf("got %q, %v", b, err)
	}
}

// wantRefusal waits in the backlog, if need be, for the reset that comes when the grace is over.
func wantRefusal(t *testing.T, l net.Listener) {
	t.Helper()
	if got, err := greet(l); !errors.Is(err, unix.ECONNRESET) {
		t.Fatalf("got %q, %v, want a reset", got, err)
	}
}

func TestRefusesAfterGrace(t *testing.T) {
	s, socket := serving(t, 0, 0)
	for range 50 {
		wantRefusal(t, s.outbound)
		wantRefusal(t, s.inbound)
		p := mustAsk(t, socket, "x") // the refusers must be out of the way before the proxy knows
		for range 3 {
			wantGreeting(t, s.outbound, "x")
			wantGreeting(t, s.inbound, "x")
		}
		p.stop()
	}
}

// TestReplacement replaces the proxy again and again under a stream of connections. None is lost.
func TestReplacement(t *testing.T) {
	s, socket := serving(t, never, 0)
	stop := make(chan struct{})
	var clients sync.WaitGroup
	counts := make([]int, 4)
	for i := range counts {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got, err := greet(s.inbound); err != nil || got != "x" {
					t.Errorf("connection %d: %q, %v", counts[i], got, err)
					return
				}
				counts[i]++
			}
		})
	}
	for range 20 {
		p := mustAsk(t, socket, "x")
		wantGreeting(t, s.inbound, "x")
		p.stop()
	}
	last := mustAsk(t, socket, "x")
	close(stop)
	clients.Wait()
	last.stop()
	t.Logf("connections: %v", counts)
}

// TestStop ends Run while a proxy holds the listeners and while connections are being refused.
func TestStop(t *testing.T) {
	t.Run("held", func(t *testing.T) {
		s, socket := serving(t, never, 0)
		mustAsk(t, socket, "x")
		wantGreeting(t, s.outbound, "x")
	})
	t.Run("refusing", func(t *testing.T) {
		s, _ := serving(t, 0, 0)
		wantRefusal(t, s.outbound)
	})
}

func TestListenNamesWhatIsTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, err = listen(Config{}, place{outbound: "127.0.0.1:0", inbound: taken.Addr().String()})
	if !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("got %v, want address in use", err)
	}
}

// untilTheEnd has run go on until the test ends, and is told its error then.
func untilTheEnd(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}
