package proxy

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// secured are both proxies with citadel's part for each.
func (m *testMesh) secured(client, server snapshot.Authentication) *testMesh {
	with := func(cfg Config, a snapshot.Authentication) Config {
		cfg.Snapshot.Security = &snapshot.Security{Authentication: a}
		return cfg
	}
	m.client = run(m.t, with(m.clientConfig(listen.Own(m.outbound, nil)), client))
	m.server = run(m.t, with(m.serverConfig(listen.Own(nil, m.inbound)), server))
	awaitReady(m.t, m.client)
	awaitReady(m.t, m.server)
	return m
}

// strict takes plain text at the published ports alone, and there from no neighbour.
func strict(published ...uint16) snapshot.Authentication {
	return snapshot.Authentication{TLS: snapshot.ServerTLS{
		Modes: snapshot.Modes{Mode: snapshot.Strict}, Published: published, Gateways: []string{"127.0.0.1"}, Subnets: []string{"127.0.0.0/24"},
	}}
}

func refused(t *testing.T, addr, local, send string) {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}, Timeout: 20 * time.Second}
	c, err := d.Dial("tcp", addr)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = io.WriteString(c, send); err == nil {
			var n int
			if n, err = c.Read(make([]byte, 100)); n > 0 {
				t.Errorf("%s was answered", local)
			}
		}
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("%s: %v, want a reset", local, err)
	}
}

// Under STRICT, plain text is taken from the host and the outside world at a published port, and from nobody else.
func TestStrict(t *testing.T) {
	m := newMesh(t)
	m.web()
	asked := make(chan struct{}, 100)
	m.app(mailIP, each(func(c net.Conn) {
		asked <- struct{}{}
		_, _ = io.WriteString(c, "220 ready")
		_ = c.Close()
	}))
	web, _ := m.apps.Load(webIP)
	m.secured(snapshot.Authentication{}, strict(web.(netip.AddrPort).Port()))

	if code, _ := get(t, httpClient(t, m.at(webIP), ""), "http://web/"); code != 200 {
		t.Errorf("a peer gets %d", code)
	}
	for _, local := range []string{"127.0.0.1", "127.9.9.9"} {
		if code, _ := get(t, httpClient(t, m.direct(webIP), local), "http://web/"); code != 200 {
			t.Errorf("from the gateway or outside, %s, it answers %d", local, code)
		}
	}
	refused(t, m.direct(webIP), "127.0.0.77", "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	// The port of mail is not published, so nobody outside the mesh has any business there; the application does not hear of
	// it.
	for _, local := range []string{"127.0.0.1", "127.9.9.9", "127.0.0.77"} {
		refused(t, m.direct(mailIP), local, "EHLO there")
	}
	select {
	case <-asked:
		t.Error("the application was connected to for one who may not talk to it")
	default:
	}
	if n := m.server.allStats()["tls.plain_refused"]; n != 4 {
		t.Errorf("%d refusals are counted, want 4", n)
	}
}

// Who has begun to send plain text while that was allowed stops when it is no more.
func TestStrictComesIntoForce(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.start()
	plain, proven := httpClient(t, m.direct(webIP), "127.0.0.77"), httpClient(t, m.at(webIP), "")
	for _, c := range []*http.Client{plain, proven} {
		if code, _ := get(t, c, "http://web/"); code != 200 {
			t.Fatal(code)
		}
	}
	next := m.snapshot("server")
	next.Security = &snapshot.Security{Authentication: strict()}
	if err := m.server.Apply(next); err != nil {
		t.Fatal(err)
	}
	if resp, err := plain.Get("http://web/"); err == nil {
		_ = resp.Body.Close()
		t.Errorf("plain text is answered %d still", resp.StatusCode)
	}
	if code, _ := get(t, proven, "http://web/"); code != 200 {
		t.Errorf("a peer gets %d", code)
	}
}

// A client sends plain text to a port that takes no mutual TLS, unless its DestinationRule wants that.
func TestDisabledPeer(t *testing.T) {
	for _, c := range []struct {
		name  string
		modes snapshot.Modes
		rule  snapshot.TLSMode
		want  bool // mutual TLS
	}{
		{"permissive", snapshot.Modes{}, "", true},
		{"disabled", snapshot.Modes{Mode: snapshot.Disable}, "", false},
		{"disabled at another port", snapshot.Modes{Ports: []snapshot.PortMode{{Port: 1, Mode: snapshot.Disable}}}, "", true},
		{"disabled but for this port", snapshot.Modes{Mode: snapshot.Disable, Ports: []snapshot.PortMode{{Port: 0, Mode: snapshot.Permissive}}}, "", true},
		{"disabled, and the rule wants it", snapshot.Modes{Mode: snapshot.Disable}, snapshot.TLSMutual, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMesh(t)
			m.web()
			for i := range c.modes.Ports {
				if c.modes.Ports[i].Port == 0 {
					c.modes.Ports[i].Port = m.port
				}
			}
			m.secured(snapshot.Authentication{Peers: []snapshot.PeerTLS{{Workload: "server", Modes: c.modes}}}, snapshot.Authentication{TLS: snapshot.ServerTLS{Modes: c.modes}})
			if c.rule != "" {
				next := m.snapshot("client")
				next.Services[0].Policy.TLS = c.rule
				next.Services[0].Subsets[0].Policy.TLS = c.rule
				next.Security = &snapshot.Security{Authentication: snapshot.Authentication{Peers: []snapshot.PeerTLS{{Workload: "server", Modes: c.modes}}}}
				if err := m.client.Apply(next); err != nil {
					t.Fatal(err)
				}
			}
			if code, _ := get(t, httpClient(t, m.at(webIP), ""), "http://web/"); code != 200 {
				t.Fatal(code)
			}
			peers := m.server.connections
			peers.mu.Lock()
			proven, plain := len(peers.until), len(peers.plain)
			peers.mu.Unlock()
			if (proven == 1) != c.want || (plain == 1) == c.want {
				t.Errorf("%d connections with mutual TLS and %d without, want mutual TLS: %v", proven, plain, c.want)
			}
		})
	}
}

// Requests with a token are verified where they arrive, whoever sends them.
func TestRequestAuthentication(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	token := func(exp time.Time) string {
		return signedToken(private, fmt.Sprintf(`{"iss":"me","sub":"alice","exp":%d}`, exp.Unix()))
	}
	m := newMesh(t)
	got := make(chan http.Header, 10)
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header }))
	})
	m.secured(snapshot.Authentication{}, snapshot.Authentication{Tokens: []snapshot.TokenRule{{
		Source: "r", Issuer: "me", Keys: keySet(public), Headers: []snapshot.TokenHeader{{Name: "authorization", Prefix: "Bearer "}}, ClaimHeaders: []snapshot.ClaimHeader{{Name: "x-user", Claim: "sub"}},
	}}})
	for _, to := range []string{m.at(webIP), m.direct(webIP)} {
		client := httpClient(t, to, "")
		for _, c := range []struct {
			authorization, user, body string
			status                    int
		}{
			{"", "", "", 200},
			{"Bearer " + token(time.Now().Add(time.Hour)), "alice", "", 200},
			{"Bearer " + token(time.Now().Add(-time.Hour)), "", "Jwt is expired", 401},
			{"Bearer " + strings.TrimSuffix(token(time.Now().Add(time.Hour)), "A") + "x", "", "Jwt", 401},
		} {
			req, err := http.NewRequest(http.MethodPost, "http://web/", strings.NewReader("a body"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-User", "forged")
			if c.authorization != "" {
				req.Header.Set("Authorization", c.authorization)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || !strings.HasPrefix(string(body), c.body) {
				t.Errorf("%d %s, want %d %s", resp.StatusCode, body, c.status, c.body)
			}
			if c.status != 200 {
				if resp.Header.Get("WWW-Authenticate") != `Bearer realm="`+scheme(to == m.at(webIP))+`://web/", error="invalid_token"` {
					t.Errorf("WWW-Authenticate: %s", resp.Header.Get("WWW-Authenticate"))
				}
				continue
			}
			if h := <-got; h.Get("X-User") != c.user || h.Get("Authorization") != "" {
				t.Errorf("the application gets X-User %q and Authorization %q, want %q and none", h.Get("X-User"), h.Get("Authorization"), c.user)
			}
		}
	}
	m.server.log.await(t, "401", "jwt_authn_access_denied{Jwt_is_expired}")
}

func keySet(public ed25519.PublicKey) string {
	return fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":%q}]}`, base64.RawURLEncoding.EncodeToString(public))
}

func signedToken(private ed25519.PrivateKey, claims string) string {
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(`{"alg":"EdDSA"}`)) + "." + b64([]byte(claims))
	return signed + "." + b64(ed25519.Sign(private, []byte(signed)))
}

// A gateway routes by what a verified token says, and by nothing that a client only says.
func TestRoutesByClaims(t *testing.T) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t)
	m.web()
	m.server = run(t, m.serverConfig(listen.Own(nil, m.inbound)))
	awaitReady(t, m.server)
	port := edgePort()
	s := m.snapshot("client")
	to := []snapshot.Destination{{Service: mesh.FQDN("web", "default"), Port: m.port, Weight: 1}}
	s.VirtualHosts = nil
	s.Gateways = []snapshot.GatewayServer{{Port: port, Protocol: mesh.ProtocolHTTP, VirtualHosts: []snapshot.VirtualHost{{Name: "shop.example", Domains: []string{"shop.example"}, Routes: []snapshot.Route{{
		Matches:      []snapshot.Match{{Headers: []snapshot.HeaderMatch{{Name: "@request.auth.claims.groups", Claim: []string{"groups"}, Value: &snapshot.StringMatch{Exact: "staff"}}}}},
		Destinations: to,
	}}}}}}
	s.Security = &snapshot.Security{Authentication: snapshot.Authentication{Tokens: []snapshot.TokenRule{{
		Source: "r", Issuer: "me", Keys: keySet(public), Headers: []snapshot.TokenHeader{{Name: "authorization", Prefix: "Bearer "}},
	}}}}
	gw := run(t, Config{Identity: m.ca.Agent("client", clientID), Snapshot: s, GatewayPorts: []uint16{port}, GatewayHost: edge})
	awaitReady(t, gw)
	client := httpClient(t, at(edge, port).String(), "")
	groups := func(list string) string {
		return fmt.Sprintf(`{"iss":"me","groups":%s,"exp":%d}`, list, time.Now().Add(time.Hour).Unix())
	}
	_, forger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// On one connection: what one request has proven says nothing of the next.
	for _, c := range []struct {
		token  string
		status int
	}{
		{signedToken(private, groups(`["ops","staff"]`)), 200},
		{"", 404},
		{signedToken(private, groups(`["ops"]`)), 404},
		{signedToken(private, groups(`"staff"`)), 200},
		{signedToken(forger, groups(`"staff"`)), 401},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://shop.example/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%q: %d, want %d", c.token, resp.StatusCode, c.status)
		}
	}
}

func scheme(tls bool) string {
	if tls {
		return "https"
	}
	return "http"
}
