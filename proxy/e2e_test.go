package proxy

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
)

func TestHTTPThroughMutualTLS(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.start()
	c := httpClient(t, m.at(webIP), "")
	resp, err := c.Post("http://web/hello", "text/plain", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || string(body) != `POST web /hello "body"` {
		t.Fatalf("%d %q, %v", resp.StatusCode, body, err)
	}
	port := fmt.Sprint(m.port)
	m.client.log.await(t, `"POST /hello HTTP/1.1" 200 - via_upstream`, "outbound|"+port+"|v2|web.default.svc.cluster.local", "default")
	m.server.log.await(t, `"POST /hello HTTP/1.1" 200 -`, "inbound|")

	src, _ := m.client.recorder.Report()
	dst, _ := m.server.recorder.Report()
	if len(src.HTTP) != 1 || len(dst.HTTP) != 1 {
		t.Fatalf("%d and %d series, want one each", len(src.HTTP), len(dst.HTTP))
	}
	s, d := src.HTTP[0].Labels, dst.HTTP[0].Labels
	for name, l := range map[string]report.Labels{report.ReporterSource: s, report.ReporterDestination: d} {
		if l.Reporter != name || l.Source.Principal != clientID || l.Destination.Principal != serverID || l.Source.Workload != "client" ||
			l.Destination.Workload != "server" || l.Destination.Version != "v2" || l.Service != "web.default.svc.cluster.local" || l.ResponseCode != "200" {
			t.Errorf("labels of the %s: %+v", name, l)
		}
	}
	if s.SecurityPolicy != "unknown" || d.SecurityPolicy != "mutual_tls" {
		t.Errorf("security policies %q and %q, want unknown and mutual_tls", s.SecurityPolicy, d.SecurityPolicy)
	}
}

func TestServerFirstThroughMutualTLS(t *testing.T) {
	m := newMesh(t)
	m.app(mailIP, each(func(c net.Conn) {
		defer c.Close()
		fmt.Fprint(c, "220 ready\r\n")
		line, err := bufio.NewReader(c).ReadString('\n')
		fmt.Fprintf(c, "250 %s %v\r\n", strings.TrimSpace(line), err)
	}))
	m.start()
	c := dial(t, m.at(mailIP))
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); line != "220 ready\r\n" {
		t.Fatalf("greeting %q, %v", line, err)
	}
	fmt.Fprint(c, "EHLO me\r\n")
	if line, err := in.ReadString('\n'); line != "250 EHLO me <nil>\r\n" {
		t.Fatalf("answer %q, %v", line, err)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after the server's end: %v", err)
	}
	_ = c.Close()
	m.client.log.await(t, `"- - -" 0 - -`, "outbound|", " 9 ")
	m.server.log.await(t, `"- - -" 0 - -`, "inbound|", " 9 ")
	r, _ := m.server.recorder.Report()
	if len(r.TCP) != 1 || r.TCP[0].Labels.Source.Principal != clientID || r.TCP[0].Closed != 1 || r.TCP[0].Received != 9 {
		t.Errorf("report of the server: %+v", r.TCP)
	}
}

// TestHTTPAfterASilence: a client that waits longer than a server-first protocol would is still served as HTTP.
func TestHTTPAfterASilence(t *testing.T) {
	m := newMesh(t)
	silent := make(chan struct{}, 1)
	m.app(webIP, each(func(c net.Conn) {
		silent <- struct{}{}
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}))
	m.start()
	c := dial(t, m.at(webIP))
	<-silent // the proxy has connected in vain, as the client is silent
	fmt.Fprint(c, "GET /late HTTP/1.1\r\nHost: web\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	m.client.log.await(t, `"GET /late HTTP/1.1" 200`)
}

func TestTheApplicationsOwnTLSPasses(t *testing.T) {
	m := newMesh(t)
	own := m.ca.Issue("spiffe://elsewhere/app")
	conf := &tls.Config{Certificates: []tls.Certificate{own.Certificate}, NextProtos: []string{"http/1.1"}}
	m.app(tlsIP, func(ln net.Listener) {
		_ = http.Serve(tls.NewListener(ln, conf), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "secret ", r.TLS.ServerName)
		}))
	})
	m.start()
	for name, addr := range map[string]string{"through both proxies": m.at(tlsIP), "from outside": m.direct(tlsIP)} {
		c := httpClient(t, addr, "")
		c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true, ServerName: "app.example"}
		if code, body := get(t, c, "https://app.example/"); code != http.StatusOK || body != "secret app.example" {
			t.Errorf("%s: %d %q", name, code, body)
		}
		c.CloseIdleConnections()
	}
	m.client.log.await(t, `"- - -" 0`, "app.example")
}

func TestPlainTextFromOutside(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.start()
	if code, body := get(t, httpClient(t, m.direct(webIP), "127.0.0.99"), "http://web.example/x"); code != http.StatusOK || body != `GET web.example /x ""` {
		t.Errorf("%d %q", code, body)
	}
	m.server.log.await(t, `"GET /x HTTP/1.1" 200`)
	r, _ := m.server.recorder.Report()
	if len(r.HTTP) != 1 || r.HTTP[0].Labels.SecurityPolicy != "none" || r.HTTP[0].Labels.Source.Workload != "" {
		t.Errorf("report %+v", r.HTTP)
	}
}

func TestWebSocket(t *testing.T) {
	m := newMesh(t)
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_ = rw.Flush()
			_, _ = io.Copy(c, rw)
		}))
	})
	m.start()
	c := dial(t, m.at(webIP))
	fmt.Fprint(c, "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	for _, frame := range []string{"hello", "again"} {
		fmt.Fprint(c, frame)
		got := make([]byte, len(frame))
		if _, err := io.ReadFull(in, got); err != nil || string(got) != frame {
			t.Fatalf("echo %q, %v; want %q", got, err, frame)
		}
	}
}

func TestNobodyThereIsAReset(t *testing.T) {
	m := newMesh(t).start()
	for name, addr := range map[string]string{"plain, from outside": m.direct(deadIP), "from a peer": m.at(deadIP)} {
		c := dial(t, addr)
		fmt.Fprint(c, "\x00\x01binary")
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the client reads %v, want a reset", name, err)
		}
	}
	m.server.log.await(t, `"- - -" 0 UF`)
}

// TestStrangersAreRefused: what offers the mesh's own protocols must prove that it belongs to the mesh.
func TestStrangersAreRefused(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.start()
	for name, conf := range map[string]*tls.Config{
		"no certificate":       {InsecureSkipVerify: true, NextProtos: []string{mesh.ALPNHTTP1}},
		"another trust domain": identity.ClientTLS(m.ca.Agent("x", "spiffe://elsewhere/ns/default/sa/client"), identity.AnyOf(m.ca.Issue(serverID).ID), mesh.ALPNHTTP1),
	} {
		c := tls.Client(dial(t, m.direct(webIP)), conf)
		err := c.Handshake()
		if err == nil { // the server's verdict comes after the client's handshake in TLS 1.3
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
			_, err = c.Read(make([]byte, 1))
		}
		if err == nil {
			t.Errorf("%s: was served", name)
		}
	}
	m.server.halt(t) // all is counted then
	if n := m.server.allStats()["tls.handshake_failed.peer_not_trusted"]; n != 2 {
		t.Errorf("counted %d handshakes of strangers, want 2: %v", n, m.server.allStats())
	}
}
