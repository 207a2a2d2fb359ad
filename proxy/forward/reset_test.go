package forward_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/listen"
)

// lateConn reads what comes after the first limit bytes only when a write has failed: by then that has taken the error off
// the socket.
type lateConn struct {
	*net.TCPConn
	limit  int
	failed chan struct{}
}

func (c *lateConn) NetConn() net.Conn { return c.TCPConn }

func (c *lateConn) Read(p []byte) (int, error) {
	if c.limit == 0 {
		<-c.failed
		return c.TCPConn.Read(p)
	}
	n, err := c.TCPConn.Read(p[:min(len(p), c.limit)])
	c.limit -= n
	return n, err
}

func (c *lateConn) Write(p []byte) (int, error) {
	n, err := c.TCPConn.Write(p)
	if err != nil {
		close(c.failed)
	}
	return n, err
}

func dialLate(limit int) func(context.Context, netip.AddrPort) (net.Conn, error) {
	return func(_ context.Context, to netip.AddrPort) (net.Conn, error) {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
		if err != nil {
			return nil, err
		}
		return &lateConn{c, limit, make(chan struct{})}, nil
	}
}

// wasReset is for a client that writes: its write may have been told, too.
func wasReset(c *rawConn) bool { return listen.WasReset(c.Conn) }

// TestResetThatAWriteWasToldOf has an upstream reset the connection during an upload, after some of a response that ends
// with the connection: Linux tells the write, and the read finds an end.
func TestResetThatAWriteWasToldOf(t *testing.T) {
	const response = "HTTP/1.1 200 OK\r\n\r\npart"
	for _, tt := range []struct {
		name, version string
		ends          bool // the upstream ends its side before it resets: the response is whole
	}{
		{"cut", "HTTP/1.1", false}, {"cut to HTTP/1.0", "HTTP/1.0", false},
		{"whole", "HTTP/1.1", true}, {"whole to HTTP/1.0", "HTTP/1.0", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reset := make(chan struct{})
			o := scripted(t, func(_ int, c *rawConn) {
				if _, err := http.ReadRequest(c.r); err != nil {
					return
				}
				_, _ = io.WriteString(c, response)
				tc := c.Conn.(*teeConn).Conn.(*net.TCPConn)
				if tt.ends {
					_ = tc.CloseWrite()
				}
				<-reset
				listen.Reset(tc)
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr, dial: dialLate(len(response))})
			c := p.raw()
			c.send("POST / " + tt.version + "\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			start := make([]byte, len("part"))
			if _, err := io.ReadFull(resp.Body, start); err != nil || string(start) != "part" {
				t.Fatalf("%q, %v", start, err)
			}
			close(reset)
			go func() {
				for {
					if _, err := io.WriteString(c.Conn, "x"); err != nil {
						return
					}
				}
			}()
			rest, err := io.ReadAll(resp.Body)
			cut := err != nil || !tt.ends && wasReset(c)
			if len(rest) > 0 || cut == tt.ends {
				t.Errorf("then the client reads %q, %v", rest, err)
			}
			if r := p.record(); (r.Flag == exchange.FlagUpstreamTermination) == tt.ends {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

// TestUpgradedReset has either side of a WebSocket reset its connection: the other side must see no polite end.
func TestUpgradedReset(t *testing.T) {
	const response = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	for _, tt := range []struct {
		name   string
		limit  int // of what is read from the upstream before a write to it fails
		client bool
	}{
		{"by the server", 1 << 20, false}, {"by the server, as a write was told", len(response), false}, {"by the client", 1 << 20, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			reset, seen := make(chan struct{}), make(chan error, 1)
			o := scripted(t, func(_ int, c *rawConn) {
				if _, err := http.ReadRequest(c.r); err != nil {
					return
				}
				_, _ = io.WriteString(c, response)
				if tt.client {
					_, err := io.Copy(io.Discard, c.r)
					seen <- err
					return
				}
				<-reset
				listen.Reset(c.Conn.(*teeConn).Conn)
			})
			p := start(t, options{direction: exchange.Outbound, dst: o.addr, dial: dialLate(tt.limit)})
			c := p.raw()
			c.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			if resp, err := http.ReadResponse(c.r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatalf("%v, %v", resp, err)
			}
			close(reset)
			if tt.client {
				listen.Reset(c.Conn)
			} else {
				go func() {
					for {
						if _, err := io.WriteString(c.Conn, "x"); err != nil {
							return
						}
					}
				}()
				if _, err := io.Copy(io.Discard, c.r); err == nil && !wasReset(c) {
					t.Error("the client reads an end")
				}
				return
			}
			if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v, want a reset", err)
			}
		})
	}
}
