package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var testTD = spiffeid.RequireTrustDomainFromString("cluster.local")

// authority is a root that signs anything.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	var der []byte
	a.key, der = a.create(&x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true}, nil)
	a.cert = a.parse(der)
	return a
}

func (a *authority) parse(der []byte) *x509.Certificate {
	a.t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

// create signs template with by, or with its own new key.
func (a *authority) create(template *x509.Certificate, by *authority) (*ecdsa.PrivateKey, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Minute)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return key, der
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func uri(s string) []*url.URL {
	u, err := url.Parse(s)
	if err != nil {
		panic(err)
	}
	return []*url.URL{u}
}

func leafTemplate(id string) *x509.Certificate {
	return &x509.Certificate{
		URIs: uri(id), KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// source is an identity of a's.
func (a *authority) source(id string) rootsOnly {
	a.t.Helper()
	key, der := a.create(leafTemplate(id), a)
	return rootsOnly{&Material{
		ID: spiffeid.RequireFromString(id), Roots: a.pool(),
		Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: a.parse(der)},
	}}
}

const web = "spiffe://cluster.local/ns/default/sa/web"

func TestVerify(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	issue := func(by *authority, change func(*x509.Certificate)) [][]byte {
		template := leafTemplate(web)
		change(template)
		_, der := a.create(template, by)
		return [][]byte{der}
	}
	names := func(ids ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, id := range ids {
				c.URIs = append(c.URIs, uri(id)...)
			}
		}
	}
	same := func(*x509.Certificate) {}
	for name, test := range map[string]struct {
		raw [][]byte
		err string // "" is accepted
	}{
		"good":             {issue(a, same), ""},
		"nothing":          {nil, "sent no certificate"},
		"garbage":          {[][]byte{{1, 2}}, "peer certificate"},
		"bad intermediate": {append(issue(a, same), []byte{1}), "intermediate"},
		"another root":     {issue(other, same), "unknown authority"},
		"self-signed":      {issue(nil, same), "unknown authority"},
		"expired":          {issue(a, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), "expired"},
		"not yet valid":    {issue(a, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "not yet valid"},
		"a CA":             {issue(a, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), "is a CA's"},
		"no URI":           {issue(a, names()), "0 URI names"},
		"a DNS name only":  {issue(a, func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"web"} }), "0 URI names"},
		"two URIs":         {issue(a, names(web, web)), "2 URI names"},
		"another scheme":   {issue(a, names("https://cluster.local/ns/default/sa/web")), "scheme"},
		"a port":           {issue(a, names("spiffe://cluster.local:1/ns/default/sa/web")), "trust domain"},
		"dots":             {issue(a, names("spiffe://cluster.local/ns/default/sa/../web")), "path"},
		"an encoded NUL":   {issue(a, names("spiffe://cluster.local/ns/default/sa/web%00")), "path"},
		"a query":          {issue(a, names(web+"?x=1")), "characters"},
		"another usage":    {issue(a, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "usage"},
		"unknown and vital": {issue(a, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}), "critical"},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := Verify(test.raw, a.pool(), x509.ExtKeyUsageServerAuth)
			if test.err == "" {
				if err != nil || id.String() != web {
					t.Errorf("Verify = %v, %v", id, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("Verify = %v, %v; want an error with %q", id, err, test.err)
			}
		})
	}
}

// handshake returns both sides' errors, and the server's view of its peer.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan error, 1)
	var s *tls.Conn
	go func() {
		conn, err := ln.Accept()
		if err == nil {
			s = tls.Server(conn, server)
			err = s.HandshakeContext(t.Context())
			if err == nil {
				_, err = s.Write([]byte{1})
			}
			_ = conn.Close() // after a failed handshake there is nothing more to say
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := tls.Client(conn, client)
	// In TLS 1.3 a client learns only by reading that its certificate was refused.
	if _, clientErr = c.Read(make([]byte, 1)); errors.Is(clientErr, io.EOF) {
		clientErr = nil
	}
	_ = conn.Close()
	serverErr = <-done
	return s.ConnectionState(), serverErr, clientErr
}

func TestMutualTLS(t *testing.T) {
	a, stranger := newAuthority(t), newAuthority(t)
	const api = "spiffe://cluster.local/ns/default/sa/api"
	member := MemberOf(testTD)
	expired := a.source(web)
	expired.m.Certificate.Leaf.NotAfter = time.Now().Add(-time.Second)
	for name, test := range map[string]struct {
		server, client *tls.Config
		serverErr      string
		clientErr      string
	}{
		"both known":               {ServerTLS(a.source(api), member, "x"), ClientTLS(a.source(web), AnyOf(spiffeid.RequireFromString(api)), "x"), "", ""},
		"another than was dialled": {ServerTLS(a.source(api), member), ClientTLS(a.source(web), AnyOf(spiffeid.RequireFromString(web))), "bad certificate", "peer is " + api + ", want [" + web + "]"},
		"a client not admitted":    {ServerTLS(a.source(api), AnyOf(spiffeid.RequireFromString(api))), ClientTLS(a.source(web), member), "peer is " + web, "bad certificate"},
		"a stranger's client":      {ServerTLS(a.source(api), member), ClientTLS(rootsOnly{&Material{Certificate: stranger.source(web).m.Certificate, Roots: a.pool(), ID: spiffeid.RequireFromString(web)}}, member), "unknown authority", "bad certificate"},
		"a stranger's server":      {ServerTLS(stranger.source(api), member), ClientTLS(a.source(web), member), "bad certificate", "unknown authority"},
		"a server without one":     {ServerTLS(rootsOnly{}, member), ClientTLS(a.source(web), member), "no certificate yet", "internal error"},
		"an expired client":        {ServerTLS(a.source(api), member), ClientTLS(expired, member), "", "the certificate of " + web + " expired"},
		"no client certificate":    {ServerTLS(a.source(api), member), &tls.Config{InsecureSkipVerify: true}, "didn't provide a certificate", "certificate required"},
		"open, to none":            {OpenServerTLS(a.source(api), member), ClientTLS(rootsOnly{&Material{Roots: a.pool()}}, member), "", ""},
		"open, to a member":        {OpenServerTLS(a.source(api), member), ClientTLS(a.source(web), member), "", ""},
		"open, to a stranger":      {OpenServerTLS(a.source(api), member), ClientTLS(rootsOnly{&Material{Certificate: stranger.source(web).m.Certificate, Roots: a.pool(), ID: spiffeid.RequireFromString(web)}}, member), "unknown authority", "bad certificate"},
		"an old version":           {ServerTLS(a.source(api), member), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}, "unsupported versions", "protocol version"},
	} {
		t.Run(name, func(t *testing.T) {
			state, serverErr, clientErr := handshake(t, test.server, test.client)
			check := func(who string, err error, want string) {
				t.Helper()
				if want == "" && err == nil || want != "" && err != nil && strings.Contains(err.Error(), want) {
					return
				}
				if want == "" && who == "server" && name == "an expired client" {
					return // the client went away
				}
				t.Errorf("%s: %v, want %q", who, err, want)
			}
			check("server", serverErr, test.serverErr)
			check("client", clientErr, test.clientErr)
			if name == "both known" {
				if id, err := PeerID(&state); err != nil || id.String() != web || state.NegotiatedProtocol != "x" || state.DidResume {
					t.Errorf("peer %v, %v, protocol %q, resumed %v", id, err, state.NegotiatedProtocol, state.DidResume)
				}
			}
		})
	}
}

// TestResumption: a second handshake is resumed, and checks the peer as the first did, by what holds now.
func TestResumption(t *testing.T) {
	const api = "spiffe://cluster.local/ns/default/sa/api"
	type pair struct {
		a              *authority
		server, client *rootsOnly
		allow          *Authorize
	}
	for _, test := range []struct {
		name    string
		between func(p pair)
		resumed bool
		refused string // by the server; empty for none
	}{
		{"nothing has changed", func(pair) {}, true, ""},
		{"the client is not admitted any more", func(p pair) { *p.allow = AnyOf(spiffeid.RequireFromString(api)) }, true, "peer is " + web},
		{"the server trusts other roots", func(p pair) { p.server.m.Roots = x509.NewCertPool() }, true, "unknown authority"},
		{"the server's own certificate has expired", func(p pair) {
			leaf := *p.server.m.Certificate.Leaf
			leaf.NotAfter = time.Now().Add(-time.Second)
			p.server.m.Certificate.Leaf = &leaf
		}, true, "the certificate of " + api + " expired"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := pair{a: newAuthority(t)}
			s, c := p.a.source(api), p.a.source(web)
			p.server, p.client = &s, &c
			allow := MemberOf(testTD)
			p.allow = &allow
			server := ServerTLS(p.server, func(id spiffeid.ID) error { return allow(id) }, "x")
			client := ClientTLS(p.client, AnyOf(spiffeid.RequireFromString(api)), "x")
			client.ServerName = "peer" // sessions are kept by it, or by the address, which is another each time here
			if state, serverErr, clientErr := handshake(t, server, client); serverErr != nil || clientErr != nil || state.DidResume {
				t.Fatalf("the first handshake: %v, %v, resumed %v", serverErr, clientErr, state.DidResume)
			}
			test.between(p)
			state, serverErr, _ := handshake(t, server, client)
			if test.refused != "" {
				if serverErr == nil || !strings.Contains(serverErr.Error(), test.refused) {
					t.Errorf("the second handshake: %v, want a refusal with %q", serverErr, test.refused)
				}
				return
			}
			if id, err := PeerID(&state); serverErr != nil || err != nil || id.String() != web || state.DidResume != test.resumed {
				t.Errorf("the second handshake: %v; peer %v, %v; resumed %v", serverErr, id, err, state.DidResume)
			}
		})
	}
}

func TestRenewal(t *testing.T) {
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	leaf := &x509.Certificate{NotBefore: start, NotAfter: start.Add(1000 * time.Second)}
	first, differs := renewal(leaf), false
	for range 1000 {
		at := renewal(leaf)
		if d := at.Sub(start); d < 475*time.Second || d > 525*time.Second {
			t.Fatalf("renewal after %s of 1000 s", d)
		}
		differs = differs || !at.Equal(first)
	}
	if !differs {
		t.Error("no jitter")
	}
}

func TestBackoff(t *testing.T) {
	for failures, limit := range map[int]time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond, 6: 2 * time.Second, 1 << 40: 2 * time.Second} {
		if d := backoff(failures); d < limit/2 || d > limit {
			t.Errorf("backoff(%d) = %s, want up to %s", failures, d, limit)
		}
	}
}
