package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/composure-mesh/composure/proxy/listen"
)

// one starts the client's proxy alone, with the given settings, in front of an application that is dialled in plain text.
func one(t *testing.T, serve func(net.Conn), values ...string) (*running, string) {
	t.Helper()
	m := newMesh(t)
	ln := listenTCP(t, "127.0.0.1:0")
	go each(serve)(ln)
	to := listen.AddrPort(ln.Addr())
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Settings = set(values...)
	cfg.Capture.OriginalDst = func(*net.TCPConn, bool) (netip.AddrPort, error) { return to, nil }
	p := run(t, cfg)
	awaitReady(t, p)
	return p, m.outbound.Addr().String()
}

func answerAll(c net.Conn) {
	defer c.Close()
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

// TestSettingsOfRequests sends what is just within a bound, and what is just beyond.
func TestSettingsOfRequests(t *testing.T) {
	fields := func(n int) string { return strings.Repeat("A: b\r\n", n) }
	for _, tt := range []struct {
		setting, within, beyond string
		want                    int
	}{
		{"header-count=4", "GET / HTTP/1.1\r\nHost: web\r\n" + fields(3) + "\r\n", "GET / HTTP/1.1\r\nHost: web\r\n" + fields(4) + "\r\n", 431},
		{"header-size=1k", "GET / HTTP/1.1\r\nHost: web\r\nA: " + strings.Repeat("b", 900) + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: web\r\nA: " + strings.Repeat("b", 1024) + "\r\n\r\n", 431},
		{"header-size=100k", "GET / HTTP/1.1\r\nHost: web\r\nA: " + strings.Repeat("b", 99<<10) + "\r\n\r\n", "GET / HTTP/1.1\r\nHost: web\r\nA: " + strings.Repeat("b", 100<<10) + "\r\n\r\n", 431},
		{"target-size=100", "GET /" + strings.Repeat("b", 99) + " HTTP/1.1\r\nHost: web\r\n\r\n", "GET /" + strings.Repeat("b", 100) + " HTTP/1.1\r\nHost: web\r\n\r\n", 414},
		{"header-timeout=100ms", "GET / HTTP/1.1\r\nHost: web\r\n\r\n", "GET / HTTP/1.1\r\n", 408},
	} {
		t.Run(tt.setting, func(t *testing.T) {
			_, addr := one(t, answerAll, tt.setting)
			c := dial(t, addr)
			in := bufio.NewReader(c)
			for _, next := range []struct {
				request string
				want    int
			}{{tt.within, 200}, {tt.beyond, tt.want}} {
				fmt.Fprint(c, next.request)
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				if resp.StatusCode != next.want {
					t.Errorf("%.60q: %d, want %d", next.request, resp.StatusCode, next.want)
				}
			}
		})
	}
}

func TestSettingsOfResponses(t *testing.T) {
	_, addr := one(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 5)+"Content-Length: 0\r\n\r\n")
		_ = c.Close()
	}, "header-count=5")
	if code, _ := get(t, httpClient(t, addr, ""), "http://web/"); code != http.StatusBadGateway {
		t.Errorf("%d, want 502", code)
	}
}

// TestSettingsOfTime waits until each time is over: with the defaults the test would last too long.
func TestSettingsOfTime(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: web\r\n\r\n"
	silent := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	for _, tt := range []struct {
		setting string
		app     func(net.Conn)
		send    string
		want    string // the beginning of what comes until the proxy ends the connection
	}{
		{"idle-timeout=100ms", answerAll, request, "HTTP/1.1 200 "},
		{"stream-idle-timeout=100ms", silent, request, "HTTP/1.1 504 "},
		{"tcp-idle-timeout=100ms", silent, "\x00", ""},
		{"handshake-timeout=100ms", silent, "\x16\x03\x01\x02\x00\x01", ""},
	} {
		t.Run(tt.setting, func(t *testing.T) {
			p, addr := one(t, tt.app, tt.setting)
			c := dial(t, addr)
			fmt.Fprint(c, tt.send)
			if tt.setting == "stream-idle-timeout=100ms" { // the connection lives on
				b := make([]byte, len(tt.want))
				if _, err := io.ReadFull(c, b); err != nil || string(b) != tt.want {
					t.Errorf("%q, %v", b, err)
				}
				return
			}
			got, err := io.ReadAll(c)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the connection lives on after %q", got)
			}
			if !strings.HasPrefix(string(got), tt.want) || tt.want == "" && len(got) > 0 {
				t.Errorf("got %q", got)
			}
			if n := p.allStats()["listen.slow_clients"]; tt.setting == "handshake-timeout=100ms" && n != 1 {
				t.Errorf("%d slow clients, want 1", n)
			}
		})
	}
}

// TestConnectTimeout has a peer that accepts and never shakes hands.
func TestConnectTimeout(t *testing.T) {
	m := newMesh(t)
	go each(func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })(m.inbound)
	cfg := m.clientConfig(listen.Own(m.outbound, nil))
	cfg.Settings = set("connect-timeout=100ms")
	p := run(t, cfg)
	awaitReady(t, p)
	if code, _ := get(t, httpClient(t, m.at(webIP), ""), "http://web/"); code != http.StatusServiceUnavailable {
		t.Errorf("%d, want 503", code)
	}
	p.log.await(t, "UF")
}

// TestUpstreamIdleTimeout waits until the proxy closes the connection that it keeps for the next request.
func TestUpstreamIdleTimeout(t *testing.T) {
	closed := make(chan struct{})
	_, addr := one(t, func(c net.Conn) {
		answerAll(c)
		close(closed)
	}, "upstream-idle-timeout=100ms")
	if code, _ := get(t, httpClient(t, addr, ""), "http://web/"); code != http.StatusOK {
		t.Fatalf("%d", code)
	}
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Error("the idle connection stays open")
	}
}

func TestMaxStreams(t *testing.T) {
	_, addr := one(t, answerAll, "max-streams=7")
	c := dial(t, addr)
	fmt.Fprint(c, http2.ClientPreface)
	f := http2.NewFramer(c, c)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	frame, err := f.ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	if n, ok := frame.(*http2.SettingsFrame).Value(http2.SettingMaxConcurrentStreams); !ok || n != 7 {
		t.Errorf("%v", frame)
	}
}
