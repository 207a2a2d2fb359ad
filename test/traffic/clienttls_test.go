package traffic

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/internal/testcert"
)

// secure starts a server of TLS at an address as the proxy dials it. It tells of each request what it saw of the TLS.
func (s *shop) secure(at string, conf *tls.Config) {
	app := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := ""
		if len(r.TLS.PeerCertificates) > 0 {
			who = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		fmt.Fprintf(w, "%s %s sni=%s client=%s resumed=%t", r.Proto, r.Host, r.TLS.ServerName, who, r.TLS.DidResume)
	}))
	app.TLS, app.EnableHTTP2 = conf, true
	app.StartTLS()
	s.t.Cleanup(app.Close)
	s.dial[netip.MustParseAddrPort(at)] = app.Listener.Addr().String()
}

func serverConfig(t *testing.T, ca *testcert.CA, names ...string) *tls.Config {
	t.Helper()
	_, chain, key := ca.Issue(t, names...)
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

const entry = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext}
spec:
  hosts: [ext.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 9080, name: http, protocol: HTTP}, {number: 9081, name: h2, protocol: HTTP2}]
  endpoints: [{address: 192.0.2.81}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ext}
spec:
  host: ext.example
  trafficPolicy: {tls: TLS}
`

// What an application sends in plain text leaves its proxy as the DestinationRule wants it.
func TestTLSOrigination(t *testing.T) {
	ca, other := testcert.NewCA(t, "ext"), testcert.NewCA(t, "other")
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		name = filepath.Join(dir, name)
		write(t, name, content)
		return name
	}
	_, chain, key := other.Issue(t, "caller")
	files := strings.NewReplacer("CA", file("ca.pem", ca.PEM), "OTHER", file("other.pem", other.PEM), "CERT", file("cert.pem", chain), "KEY", file("key.pem", key), "GONE", filepath.Join(dir, "gone.pem"))
	mutual := x509.NewCertPool()
	mutual.AppendCertsFromPEM(other.PEM)

	for name, tt := range map[string]struct {
		tls, url string
		names    []string // of the server
		mutual   bool
		want     string // the body, or a part of what is said beside 503
		fails    bool
	}{
		"simple":                  {"{mode: SIMPLE, caCertificates: CA}", "ext.example:9080/", []string{"ext.example"}, false, "HTTP/1.1 ext.example:9080 sni=ext.example client= resumed=false", false},
		"http2":                   {"{mode: SIMPLE, caCertificates: CA}", "ext.example:9081/", []string{"ext.example"}, false, "HTTP/2.0 ext.example:9081 sni=ext.example client= resumed=false", false},
		"sni":                     {"{mode: SIMPLE, caCertificates: CA, sni: front.example}", "ext.example:9080/", []string{"front.example"}, false, "HTTP/1.1 ext.example:9080 sni=front.example client= resumed=false", false},
		"names":                   {"{mode: SIMPLE, caCertificates: CA, subjectAltNames: [x.example, 'spiffe://ext/srv']}", "ext.example:9080/", []string{"spiffe://ext/srv"}, false, "HTTP/1.1 ext.example:9080 sni=ext.example client= resumed=false", false},
		"mutual":                  {"{mode: MUTUAL, caCertificates: CA, clientCertificate: CERT, privateKey: KEY}", "ext.example:9080/", []string{"ext.example"}, true, "HTTP/1.1 ext.example:9080 sni=ext.example client=caller resumed=false", false},
		"unverified":              {"{mode: SIMPLE, insecureSkipVerify: true}", "ext.example:9080/", []string{"else.example"}, false, "HTTP/1.1 ext.example:9080 sni=ext.example client= resumed=false", false},
		"another CA":              {"{mode: SIMPLE, caCertificates: OTHER}", "ext.example:9080/", []string{"ext.example"}, false, "certificate signed by unknown authority", true},
		"public CAs":              {"{mode: SIMPLE}", "ext.example:9080/", []string{"ext.example"}, false, "certificate signed by unknown authority", true},
		"another name":            {"{mode: SIMPLE, caCertificates: CA}", "ext.example:9080/", []string{"else.example"}, false, "certificate is valid for else.example, not ext.example", true},
		"none of the names":       {"{mode: SIMPLE, caCertificates: CA, subjectAltNames: [x.example]}", "ext.example:9080/", []string{"ext.example"}, false, "it is for [ext.example], want one of [x.example]", true},
		"no file":                 {"{mode: SIMPLE, caCertificates: GONE}", "ext.example:9080/", []string{"ext.example"}, false, "the server's CAs: stat " + filepath.Join(dir, "gone.pem"), true},
		"secrets are a gateway's": {"{mode: SIMPLE, credentialName: ca}", "ext.example:9080/", []string{"ext.example"}, false, "there is no Secret default/ca that this proxy was given", true},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, "productpage-v1", "")
			conf := serverConfig(t, ca, tt.names...)
			if tt.mutual {
				conf.ClientCAs, conf.ClientAuth = mutual, tls.RequireAndVerifyClientCert
			}
			s.secure("192.0.2.81:9080", conf.Clone())
			s.secure("192.0.2.81:9081", conf.Clone())
			s.apply(strings.Replace(entry, "TLS}", files.Replace(tt.tls)+"}", 1))
			_, port, _ := strings.Cut(strings.TrimSuffix(tt.url, "/"), ":")
			a := s.client("10.0.0.250:"+port).do("GET", tt.url)
			switch {
			case !tt.fails && (a.StatusCode != http.StatusOK || a.body != tt.want):
				t.Errorf("%d %q, want %q", a.StatusCode, a.body, tt.want)
			case tt.fails && (a.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(string(a.record.Flag), "UF") || !strings.Contains(a.body, tt.want)):
				t.Errorf("%d %s %q, want 503 UF with %q", a.StatusCode, a.record.Flag, a.body, tt.want)
			}
			if !tt.fails {
				if a := s.client("10.0.0.250:"+port).do("GET", tt.url, "Connection: close"); a.StatusCode != http.StatusOK {
					t.Errorf("again: %d %q", a.StatusCode, a.body)
				}
			}
		})
	}
}

// A new connection resumes the session of one before.
func TestTLSOriginationResumes(t *testing.T) {
	ca := testcert.NewCA(t, "ext")
	file := filepath.Join(t.TempDir(), "ca.pem")
	write(t, file, ca.PEM)
	s := open(t, "productpage-v1", "")
	conf := serverConfig(t, ca, "ext.example")
	s.secure("192.0.2.81:9080", conf)
	rules := strings.Replace(entry, "tls: TLS", "tls: {mode: SIMPLE, caCertificates: "+file+"}, connectionPool: {http: {maxRequestsPerConnection: 1}}", 1)
	s.apply(rules)
	c := s.client("")
	if a := c.do("GET", "ext.example:9080/"); !strings.HasSuffix(a.body, "resumed=false") {
		t.Errorf("the first: %q", a.body)
	}
	if a := c.do("GET", "ext.example:9080/"); !strings.HasSuffix(a.body, "resumed=true") {
		t.Errorf("the second: %q", a.body)
	}
}

// TestTLSOriginationByWildcard is the egress rule for Google's APIs of Istio 1.0: whatever host of a domain the application
// asks for is asked for by TLS, at the address that it dialled.
func TestTLSOriginationByWildcard(t *testing.T) {
	ca := testcert.NewCA(t, "google")
	file := filepath.Join(t.TempDir(), "ca.pem")
	write(t, file, ca.PEM)
	s := open(t, "productpage-v1", "")
	s.secure(anywhere, serverConfig(t, ca, "*.googleapis.com"))
	rule := `
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: googleapis}
spec:
  hosts: ["*.googleapis.com"]
  ports: [{number: 9080, name: https, protocol: http}]
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: {name: googleapis}
spec:
  host: "*.googleapis.com"
  trafficPolicy: {tls: {mode: SIMPLE}}
`
	s.apply(rule)
	if a := s.client("").do("GET", "www.googleapis.com:9080/books"); a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(a.body, "unknown authority") {
		t.Errorf("a server that is not theirs: %d %q", a.StatusCode, a.body)
	}
	s.apply(strings.Replace(rule, "mode: SIMPLE", "mode: SIMPLE, caCertificates: "+file, 1))
	c := s.client("")
	for _, host := range []string{"www", "storage", "www"} {
		a := c.do("GET", host+".googleapis.com:9080/books")
		if want := fmt.Sprintf("HTTP/1.1 %s.googleapis.com:9080 sni=%s.googleapis.com", host, host); a.StatusCode != http.StatusOK || !strings.HasPrefix(a.body, want) {
			t.Errorf("%d %q, want %q", a.StatusCode, a.body, want)
		}
	}
}

// Settings of a port stand for that port alone.
func TestTLSOriginationOfOnePort(t *testing.T) {
	ca := testcert.NewCA(t, "ext")
	file := filepath.Join(t.TempDir(), "ca.pem")
	write(t, file, ca.PEM)
	s := open(t, "productpage-v1", "")
	s.secure("192.0.2.81:9080", serverConfig(t, ca, "ext.example"))
	plain := httptest.NewServer(s.app("plain"))
	t.Cleanup(plain.Close)
	s.dial[netip.MustParseAddrPort("192.0.2.81:9081")] = plain.Listener.Addr().String()
	s.apply(strings.NewReplacer("tls: TLS", "portLevelSettings: [{port: {number: 9080}, tls: {mode: SIMPLE, caCertificates: "+file+"}}]", "HTTP2", "HTTP").Replace(entry))
	if a := s.client("").do("GET", "ext.example:9080/"); a.StatusCode != http.StatusOK || !strings.Contains(a.body, "sni=ext.example") {
		t.Errorf("port 9080: %d %q", a.StatusCode, a.body)
	}
	if a := s.client("10.0.0.250:9081").do("GET", "ext.example:9081/"); a.workload() != "plain" {
		t.Errorf("port 9081: %d %q", a.StatusCode, a.body)
	}
}
