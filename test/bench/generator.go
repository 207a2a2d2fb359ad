package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// helpers are this program in its other parts, each a process on the load's CPU.
var helpers = map[string]func(context.Context, []string) error{"backend": serveBackend, "load": generate, "pilot": servePilot}

// loadParams say what load to make.
type loadParams struct {
	Kind        string  `json:"kind"`
	Addr        string  `json:"addr"`
	Seconds     float64 `json:"seconds"`
	Connections int     `json:"connections"`
	Bytes       int64   `json:"bytes"`  // of a body
	Upload      bool    `json:"upload"` // rather than download
	Rate        float64 `json:"rate"`   // requests a second, open loop
}

// loadResult is what it measured.
type loadResult struct {
	Count   float64 `json:"count"`
	Metrics sample  `json:"metrics"`
	Error   string  `json:"error,omitempty"`
}

func generate(ctx context.Context, args []string) error {
	var p loadParams
	if err := json.Unmarshal([]byte(args[0]), &p); err != nil {
		return err
	}
	if _, err := raiseFileLimit(); err != nil {
		return err
	}
	kinds := map[string]func(context.Context, *loadParams) (loadResult, error){
		"bodies": bodies, "connect": connects, "stream": streams, "open": openLoop, "grpc": pingPong,
	}
	r, err := kinds[p.Kind](ctx, &p)
	if err != nil {
		r = loadResult{Error: err.Error()}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// parallel runs one loop for each connection until the time is over or one fails.
func parallel(ctx context.Context, p *loadParams, one func(ctx context.Context, i int) error) (time.Duration, error) {
	begun := time.Now()
	ctx, cancel := context.WithDeadline(ctx, begun.Add(time.Duration(p.Seconds*float64(time.Second))))
	defer cancel()
	var (
		all   sync.WaitGroup
		first atomic.Pointer[error]
	)
	for i := range p.Connections {
		all.Go(func() {
			if err := one(ctx, i); err != nil {
				first.CompareAndSwap(nil, &err)
				cancel()
			}
		})
	}
	all.Wait()
	if err := first.Load(); err != nil {
		return 0, *err
	}
	return time.Since(begun), nil
}

// bodies sends requests with, or for, bodies of one size over keep-alive connections.
func bodies(ctx context.Context, p *loadParams) (loadResult, error) {
	var count atomic.Int64
	took, err := parallel(ctx, p, func(ctx context.Context, _ int) error {
		c, err := (&net.Dialer{}).DialContext(context.WithoutCancel(ctx), "tcp", p.Addr)
		if err != nil {
			return err
		}
		defer c.Close()
		head := fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: web\r\n\r\n", p.Bytes)
		if p.Upload {
			head = fmt.Sprintf("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: %d\r\n\r\n", p.Bytes)
		}
		piece := make([]byte, min(p.Bytes, 256<<10))
		first := append([]byte(head), piece[:min(len(piece), 16<<10)*b2i(p.Upload)]...)
		r := bufio.NewReaderSize(c, 64<<10)
		for ctx.Err() == nil {
			if _, err := c.Write(first); err != nil {
				return err
			}
			if p.Upload {
				for left := p.Bytes - int64(len(first)-len(head)); left > 0; {
					n, err := c.Write(piece[:min(left, int64(len(piece)))])
					if err != nil {
						return err
					}
					left -= int64(n)
				}
			}
			if err := readResponse(r, p.Bytes*int64(b2i(!p.Upload))); err != nil {
				return err
			}
			count.Add(1)
		}
		return nil
	})
	n := float64(count.Load())
	return loadResult{Count: n, Metrics: sample{
		"requests_per_second": n / took.Seconds(), "mb_per_second": n * float64(p.Bytes) / 1e6 / took.Seconds(),
	}}, err
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// readResponse reads a response with a Content-Length of want.
func readResponse(r *bufio.Reader, want int64) error {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || n != want) {
		err = fmt.Errorf("status %d, %d bytes; want 200 and %d", resp.StatusCode, n, want)
	}
	return err
}

// connects opens a connection, sends 64 bytes, gets them back, closes, and so on. Clients come from many addresses,
// so that ports do not run out.
func connects(ctx context.Context, p *loadParams) (loadResult, error) {
	var count atomic.Int64
	took, err := parallel(ctx, p, func(ctx context.Context, i int) error {
		var buf [64]byte
		for n := 0; ctx.Err() == nil; n++ {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 91, byte(i), byte(1+n%200))}} //nolint:gosec // few connections
			c, err := d.DialContext(context.WithoutCancel(ctx), "tcp", p.Addr)
			if err != nil {
				return err
			}
			if _, err = c.Write(buf[:]); err == nil {
				_, err = io.ReadFull(c, buf[:])
			}
			if err = errors.Join(err, c.Close()); err != nil {
				return err
			}
			count.Add(1)
		}
		return nil
	})
	n := float64(count.Load())
	return loadResult{Count: n, Metrics: sample{"connections_per_second": n / took.Seconds()}}, err
}

// streams reads what a server sends without end.
func streams(ctx context.Context, p *loadParams) (loadResult, error) {
	var bytes atomic.Int64
	took, err := parallel(ctx, p, func(ctx context.Context, _ int) error {
		c, err := (&net.Dialer{}).DialContext(context.WithoutCancel(ctx), "tcp", p.Addr)
		if err != nil {
			return err
		}
		defer c.Close()
		buf := make([]byte, 256<<10)
		for ctx.Err() == nil {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			bytes.Add(int64(n))
		}
		return nil
	})
	mb := float64(bytes.Load()) / 1e6
	return loadResult{Count: mb, Metrics: sample{"mb_per_second": mb / took.Seconds()}}, err
}

// openLoop sends requests at a fixed rate, whether or not earlier ones were answered, and measures each from the moment
// it was due: a stall counts for every request that it delays (no coordinated omission). Each connection is a thread
// that sleeps in the kernel, since Go's own timers are good to a millisecond only.
func openLoop(ctx context.Context, p *loadParams) (loadResult, error) {
	request := []byte("GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	total := int(p.Rate * p.Seconds)
	took := make([]time.Duration, total)
	var (
		all   sync.WaitGroup
		first atomic.Pointer[error]
	)
	runtime.GOMAXPROCS(p.Connections) // a thread in a system call keeps nobody waiting
	begin := monotonic() + int64(100*time.Millisecond)
	for i := range p.Connections {
		all.Go(func() {
			runtime.LockOSThread()
			if err := openLoopConn(p, request, begin, i, took); err != nil {
				first.CompareAndSwap(nil, &err)
			}
		})
	}
	all.Wait()
	if err := first.Load(); err != nil {
		return loadResult{}, *err
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(int(q*float64(total)), total-1)]) / float64(time.Millisecond)
	}
	return loadResult{Count: float64(total), Metrics: sample{"p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "p99.9_ms": at(0.999)}}, ctx.Err()
}

// openLoopConn sends every Connections-th request, from the i-th on.
func openLoopConn(p *loadParams, request []byte, begin int64, i int, took []time.Duration) error {
	fd, err := connectBlocking(p.Addr)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 16<<10)
	for n := i; n < len(took); n += p.Connections {
		due := begin + int64(float64(n)/p.Rate*1e9)
		ts := unix.NsecToTimespec(due)
		err := error(unix.EINTR)
		for errors.Is(err, unix.EINTR) {
			err = unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil)
		}
		if err != nil {
			return err
		}
		if _, err := unix.Write(fd, request); err != nil {
			return err
		}
		if err := readSmall(fd, buf); err != nil {
			return err
		}
		took[n] = time.Duration(monotonic() - due)
	}
	return nil
}

// readSmall reads one response with a Content-Length.
func readSmall(fd int, buf []byte) error {
	got := 0
	for {
		n, err := unix.Read(fd, buf[got:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return fmt.Errorf("read: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		got += n
		head, body, whole := strings.Cut(string(buf[:got]), "\r\n\r\n")
		if !whole {
			continue
		}
		if !strings.HasPrefix(head, "HTTP/1.1 200 ") {
			return fmt.Errorf("answer %q", head)
		}
		length := 0
		_, rest, _ := strings.Cut(head, "Content-Length: ")
		if _, err := fmt.Sscan(rest, &length); err != nil {
			return fmt.Errorf("answer %q: %w", head, err)
		}
		if len(body) >= length {
			return nil
		}
	}
}

func connectBlocking(addr string) (int, error) {
	ip, port := split(addr)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	sa := &unix.SockaddrInet4{Port: port}
	copy(sa.Addr[:], net.ParseIP(ip).To4())
	if err := unix.Connect(fd, sa); err != nil {
		return 0, errors.Join(err, unix.Close(fd))
	}
	return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

func monotonic() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // every kernel has it
	return ts.Nano()
}

// pingPong has gRPC streams on a few HTTP/2 connections, on each of which a message goes when the one before is back.
func pingPong(ctx context.Context, p *loadParams) (loadResult, error) {
	var count atomic.Int64
	const perConnection = 8
	clients := make([]*http.Client, (p.Connections+perConnection-1)/perConnection)
	for i := range clients {
		t := &http.Transport{Protocols: new(http.Protocols), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", p.Addr)
		}}
		t.Protocols.SetUnencryptedHTTP2(true)
		clients[i] = &http.Client{Transport: t}
	}
	took, err := parallel(ctx, p, func(ctx context.Context, i int) error {
		send, write := io.Pipe()
		defer func() { _ = write.Close() }() // never fails
		req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, "http://web/bench.Echo/Chat", send)
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
		resp, err := clients[i/perConnection].Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		message := grpcMessage(100)
		got := make([]byte, len(message))
		for ctx.Err() == nil {
			if _, err := write.Write(message); err != nil {
				return err
			}
			if _, err := io.ReadFull(resp.Body, got); err != nil {
				return err
			}
			count.Add(1)
		}
		return nil
	})
	n := float64(count.Load())
	return loadResult{Count: n, Metrics: sample{"messages_per_second": n / took.Seconds()}}, err
}

// grpcMessage is a message of n bytes with its five bytes of length (gRPC over HTTP/2, "Length-Prefixed-Message").
func grpcMessage(n int) []byte {
	b := make([]byte, 5+n)
	b[3], b[4] = byte(n>>8), byte(n)
	return b
}

// openIdle opens connections and has one request on each.
func openIdle(ctx context.Context, addr string, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, 0, n)
	buf := make([]byte, 16<<10)
	for range n {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, c)
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
		for got := 0; err == nil && got < 1024; { // the body alone is as long
			var m int
			m, err = c.Read(buf)
			got += m
		}
		if err != nil {
			closeAll(conns)
			return nil, fmt.Errorf("connection %d: %w", len(conns), err)
		}
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		_ = c.Close() // it was only there to be idle
	}
}
