package proxy

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/proxy/listen"
)

// slowServer is the server's proxy before an application with long answers, on a port that is declared HTTP.
func slowServer(t *testing.T, values ...string) (*testMesh, *running) {
	t.Helper()
	m := newMesh(t)
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for b := make([]byte, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}))
	})
	at, _ := m.apps.Load(webIP)
	cfg := m.serverConfig(listen.Own(nil, m.inbound))
	cfg.Settings = set(append(values, "drain=1s")...)
	declare(t, cfg.Snapshot, at.(netip.AddrPort).Port(), mesh.ProtocolHTTP)
	p := run(t, cfg)
	awaitReady(t, p)
	return m, p
}

func awaitConnections(t *testing.T, count func() int, want int) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); count() != want; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%d connections, want %d", count(), want)
		}
	}
}

// TestSlowClientsAreReaped has clients that hold a connection and do nothing for it, each in its way.
func TestSlowClientsAreReaped(t *testing.T) {
	m, p := slowServer(t, "first-byte-timeout=200ms", "handshake-timeout=200ms", "header-timeout=200ms", "idle-timeout=200ms", "stream-idle-timeout=300ms")
	const get = "GET / HTTP/1.1\r\nHost: web\r\n\r\n"
	for _, tt := range []struct {
		name, send string
		dribble    string // sent again and again
	}{
		{"silent", "", ""},
		{"slow head", "GET / HTTP/1.1\r\nHost: web\r\n", "A"},
		{"slow ClientHello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x00"},
		{"body that stalls", "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 100\r\n\r\nab", ""},
		{"chunk that stalls", "POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", ""},
		{"answer that is not read", get, ""},
		{"preface and no more", http2.ClientPreface, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.stats.accepted.Load()
			for range 3 {
				c := dialFrom(t, "127.0.0.9", m.direct(webIP))
				fmt.Fprint(c, tt.send)
				if tt.dribble != "" {
					go func() {
						for {
							if _, err := fmt.Fprint(c, tt.dribble); err != nil {
								return
							}
							time.Sleep(10 * time.Millisecond)
						}
					}()
				}
			}
			awaitConnections(t, func() int { return int(p.stats.accepted.Load() - before) }, 3) //nolint:gosec // small
			awaitConnections(t, p.connections.count, 0)
		})
	}
	// Method GET or POST, :scheme http, :path /, :authority web (RFC 7541).
	const getHead, postHead = "\x82\x86\x84\x41\x03web", "\x83\x86\x84\x41\x03web"
	for _, tt := range []struct {
		name string
		head http2.HeadersFrameParam
	}{
		{"stream whose answer is not read", http2.HeadersFrameParam{EndStream: true, EndHeaders: true, BlockFragment: []byte(getHead)}},
		{"stream whose body stalls", http2.HeadersFrameParam{EndHeaders: true, BlockFragment: []byte(postHead)}},
		{"stream whose head stalls", http2.HeadersFrameParam{BlockFragment: []byte(getHead)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := p.stats.accepted.Load()
			c := dialFrom(t, "127.0.0.9", m.direct(webIP))
			fmt.Fprint(c, http2.ClientPreface)
			f := http2.NewFramer(c, c)
			_ = f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
			tt.head.StreamID = 1
			if err := f.WriteHeaders(tt.head); err != nil {
				t.Fatal(err)
			}
			awaitConnections(t, func() int { return int(p.stats.accepted.Load() - before) }, 1) //nolint:gosec // small
			awaitConnections(t, p.connections.count, 0)
		})
	}
}

// TestSilentAfterHandshake has peers finish a handshake and say nothing: each is reaped long before a connection that waits
// for its next request would be.
func TestSilentAfterHandshake(t *testing.T) {
	m, p := slowServer(t, "first-byte-timeout=200ms", "header-timeout=200ms")
	server, err := spiffeid.FromString(serverID)
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{mesh.ALPNHTTP1, mesh.ALPNHTTP2} {
		c := tls.Client(dialFrom(t, "127.0.0.1", m.direct(webIP)), identity.ClientTLS(m.ca.Agent("client", clientID), identity.AnyOf(server), protocol))
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		awaitConnections(t, func() int { return int(p.stats.accepted.Load()) }, 1) //nolint:gosec // small
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("%s: %v, want the end", protocol, err)
		}
		awaitConnections(t, p.connections.count, 0)
		p.stats.accepted.Store(0)
	}
}

// TestSilentClientsAreCheap bounds what a client costs that says nothing, in plain text and after a handshake: of ten
// thousand, 120 and 400 MB.
func TestSilentClientsAreCheap(t *testing.T) {
	if raced {
		t.Skip("the race detector has memory of its own")
	}
	const clients = 200
	server, err := spiffeid.FromString(serverID)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		tls  bool
		most int64 // bytes a client
	}{{"plain text", false, 12 << 10}, {"mutual TLS", true, 40 << 10}} {
		t.Run(tt.name, func(t *testing.T) {
			m, p := slowServer(t)
			conf := identity.ClientTLS(m.ca.Agent("client", clientID), identity.AnyOf(server), mesh.ALPNHTTP1)
			open := func() net.Conn {
				c := dialFrom(t, "127.0.0.1", m.direct(webIP))
				if tt.tls {
					// What the client's side of TLS holds is not the proxy's: only the connection is kept.
					if err := tls.Client(c, conf).Handshake(); err != nil {
						t.Fatal(err)
					}
				}
				return c
			}
			kept := []net.Conn{open()}
			awaitConnections(t, p.connections.count, 1)
			before := heap()
			for range clients {
				kept = append(kept, open())
			}
			awaitConnections(t, p.connections.count, clients+1)
			if tt.tls {
				awaitConnections(t, p.engine.Connections, clients+1) // the handshakes are over
			}
			each := int64(heap()-before) / clients //nolint:gosec // memory fits
			t.Logf("%d bytes each", each)
			if each > tt.most {
				t.Errorf("%d bytes each, want at most %d", each, tt.most)
			}
			runtime.KeepAlive(kept)
		})
	}
}
