package traffic

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/testcert"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/compile"
	"github.com/composure-mesh/composure/proxy"
)

// edge is a gateway's proxy as a whole, compiled for from YAML, before one application.
type edge struct {
	t     *testing.T
	ca    *testcert.CA
	facts mesh.Facts
	port  uint16 // PORT in the rules
	app   uint16 // APP
	proxy *proxy.Server
	log   *safeBuffer
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func free(t *testing.T, ip string) (net.Listener, uint16) {
	t.Helper()
	ln, err := net.Listen("tcp", ip+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln, uint16(ln.Addr().(*net.TCPAddr).Port) //nolint:gosec // a port
}

// edgeIP is the gateway's address. Its ports are free and found before it binds them, so it must be none where servers of
// other tests, or the proxy's own, take any port.
const edgeIP = "127.0.0.41"

func newEdge(t *testing.T, rules string) *edge {
	t.Helper()
	e := &edge{t: t, ca: testcert.NewCA(t, "edge"), log: &safeBuffer{}}
	ln, port := free(t, edgeIP)
	_ = ln.Close()
	given, other := free(t, edgeIP)
	_ = given.Close()
	e.port = port
	app, appPort := free(t, "127.0.0.2")
	e.app = appPort
	go func() {
		_ = http.Serve(app, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s proto=%s cert=%s", r.Host, r.URL.Path, r.Header.Get("X-Forwarded-Proto"), r.Header.Get("X-Forwarded-Client-Cert"))
		}))
	}()
	workload := func(name, ip string, role mesh.Role, port mesh.Port) mesh.Workload {
		return mesh.Workload{
			Name: name, Namespace: "default", ServiceAccount: name, Role: role, Services: []string{name}, Running: true, Labels: map[string]string{"istio": name},
			Addresses: []mesh.Address{{Network: "shop_default", IPv4: ip}}, Ports: []mesh.Port{port},
		}
	}
	e.facts = mesh.Facts{Project: "shop", Workloads: []mesh.Workload{
		workload("ingressgateway", edgeIP, mesh.RoleGateway, mesh.Port{Number: port, Published: []string{"443"}}),
		workload("web", "127.0.0.2", mesh.RoleApp, mesh.Port{Number: appPort, Protocol: mesh.ProtocolHTTP}),
	}}
	level := new(slog.LevelVar)
	s, err := proxy.New(proxy.Config{
		Mesh: "test", TrustDomain: mesh.DefaultTrustDomain, Build: "test", Level: level, Log: slog.New(slog.NewTextHandler(e.log, nil)),
		Snapshot: e.compile(rules), GatewayPorts: []uint16{other}, GatewayHost: edgeIP,
		AdminAddr: "127.0.0.1:0", ReadyAddr: "127.0.0.1:0", MetricsAddr: "127.0.0.1:0",
	})
	if err != nil {
		t.Fatal(err)
	}
	e.proxy = s
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *edge) compile(rules string) *snapshot.Snapshot {
	e.t.Helper()
	return e.compileFor(rules, "ingressgateway")
}

func (e *edge) compileFor(rules, workload string) *snapshot.Snapshot {
	e.t.Helper()
	rules = strings.NewReplacer("PORT", strconv.Itoa(int(e.port)), "APP", strconv.Itoa(int(e.app))).Replace(rules)
	docs, err := api.DecodeYAML(api.Kinds(), "mesh.yaml", strings.NewReader(rules))
	if err != nil {
		e.t.Fatal(err)
	}
	view := compile.View{Facts: e.facts, TrustDomain: mesh.DefaultTrustDomain}
	for i, d := range docs {
		d.Object.Meta.CreationTimestamp = metav1.NewTime(time.Unix(int64(i), 0))
		view.Intent = append(view.Intent, d.Object)
	}
	snap, _, err := compile.Compile(view, workload)
	if err != nil {
		e.t.Fatal(err)
	}
	return snap
}

func (e *edge) apply(rules string) {
	e.t.Helper()
	if err := e.proxy.Apply(e.compile(rules)); err != nil {
		e.t.Fatal(err)
	}
}

// client trusts the edge's CA, and asks for the server name whatever the URL's host.
func (e *edge) client(change func(*tls.Config)) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.ca.PEM)
	conf := &tls.Config{RootCAs: pool}
	if change != nil {
		change(conf)
	}
	tr := &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", net.JoinHostPort(edgeIP, strconv.Itoa(int(e.port))))
	}}
	e.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func fetch(t *testing.T, c *http.Client, url string) (*http.Response, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// refused is the error of a request that gets no answer.
func refused(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	if err == nil {
		_ = resp.Body.Close()
		t.Fatalf("%s: got %s, want a refusal", url, resp.Status)
	}
	return err.Error()
}

func secret(name string, values map[string][]byte) string {
	var text strings.Builder
	fmt.Fprintf(&text, "---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s}\ndata:\n", name)
	for key, v := range values {
		fmt.Fprintf(&text, "  %s: %s\n", key, base64.StdEncoding.EncodeToString(v))
	}
	return text.String()
}

func (e *edge) pair(name string, hosts ...string) string {
	_, chain, key := e.ca.Issue(e.t, hosts...)
	return secret(name, map[string][]byte{"tls.crt": chain, "tls.key": key})
}

func gatewayYAML(servers ...string) string {
	var text strings.Builder
	text.WriteString("---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: front}\nspec:\n  selector: {istio: ingressgateway}\n  servers:\n")
	for i, s := range servers {
		fmt.Fprintf(&text, "  - {name: s%d, %s}\n", i, strings.ReplaceAll(s, "HTTPS", fmt.Sprintf("port: {number: PORT, name: s%d, protocol: HTTPS}", i)))
	}
	return text.String()
}

func routeTo(hosts string) string {
	return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r-" + fmt.Sprintf("%x", sha256.Sum256([]byte(hosts)))[:8] + "}\nspec:\n  hosts: [" + hosts +
		"]\n  gateways: [front]\n  http:\n  - route: [{destination: {host: web, port: {number: APP}}}]\n"
}

func TestGatewayEndsTLS(t *testing.T) {
	e := newEdge(t, "")
	dir := t.TempDir()
	_, chain, key := e.ca.Issue(t, "*.wild.example")
	crt, pem := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write(t, crt, chain)
	write(t, pem, key)
	rules := gatewayYAML(
		"HTTPS, tls: {mode: SIMPLE, credentialName: a}, hosts: [a.example]",
		"HTTPS, tls: {mode: SIMPLE, serverCertificate: "+crt+", privateKey: "+pem+"}, hosts: ['*.wild.example']",
		"HTTPS, tls: {mode: SIMPLE, credentialName: deep}, hosts: [x.wild.example]",
		"HTTPS, tls: {mode: SIMPLE, credentialName: missing}, hosts: [closed.example]",
	) + routeTo("a.example, '*.wild.example', closed.example") + e.pair("a", "a.example") + e.pair("deep", "x.wild.example")
	e.apply(rules)

	c := e.client(nil)
	for _, url := range []string{"https://a.example/x", "https://b.wild.example/x", "https://x.wild.example/x"} {
		resp, body := fetch(t, c, url)
		host := strings.TrimPrefix(strings.TrimSuffix(url, "/x"), "https://")
		if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 || body != host+" /x proto=https cert=" {
			t.Errorf("%s: %s %s %q", url, resp.Proto, resp.Status, body)
		}
	}
	old := e.client(nil)
	old.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	if resp, _ := fetch(t, old, "https://a.example/"); resp.ProtoMajor != 1 {
		t.Errorf("without ALPN: %s, want HTTP/1.1", resp.Proto)
	}
	// A server has its own hosts alone, whatever else is asked for once inside.
	req, err := http.NewRequest(http.MethodGet, "https://a.example/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "b.wild.example"
	if resp, err := c.Do(req); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("another server's host: %v, %v, want 404", resp, err)
	}
	for url, want := range map[string]string{"https://unknown.example/": "unrecognized name", "https://wild.example/": "unrecognized name", "https://closed.example/": "internal error"} {
		if err := refused(t, c, url); !strings.Contains(err, want) {
			t.Errorf("%s: %s, want %q", url, err, want)
		}
	}
	if !strings.Contains(e.log.String(), "there is no Secret default/missing") {
		t.Errorf("the log does not say why a server is closed:\n%s", e.log)
	}
	e.apply(rules + e.pair("missing", "closed.example"))
	if resp, _ := fetch(t, c, "https://closed.example/"); resp.StatusCode != http.StatusOK {
		t.Errorf("with its secret: %s", resp.Status)
	}
	// A client of plain HTTP is told nothing that it could understand, and is let go.
	if conn, err := net.Dial("tcp", net.JoinHostPort(edgeIP, strconv.Itoa(int(e.port)))); err != nil {
		t.Error(err)
	} else {
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
		if b, _ := io.ReadAll(conn); len(b) > 0 {
			t.Errorf("plain HTTP got %q", b)
		}
		_ = conn.Close()
	}
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// New certificates are shown to new connections; those that are open go on.
func TestCertificatesAreReloaded(t *testing.T) {
	e := newEdge(t, "")
	dir := t.TempDir()
	crt, pem := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	issue := func(host string) (string, []byte, []byte) {
		leaf, chain, key := e.ca.Issue(t, host)
		return fmt.Sprintf("%x", leaf.SerialNumber), chain, key
	}
	serial := func(host string) string {
		resp, _ := fetch(t, e.client(nil), "https://"+host+"/")
		return fmt.Sprintf("%x", resp.TLS.PeerCertificates[0].SerialNumber)
	}
	rules := gatewayYAML(
		"HTTPS, tls: {mode: SIMPLE, serverCertificate: "+crt+", privateKey: "+pem+"}, hosts: [file.example]",
		"HTTPS, tls: {mode: SIMPLE, credentialName: s}, hosts: [secret.example]",
	) + routeTo("file.example, secret.example")
	fileSerial, chain, key := issue("file.example")
	write(t, crt, chain)
	write(t, pem, key)
	secretSerial, chain, key := issue("secret.example")
	e.apply(rules + secret("s", map[string][]byte{"cert": chain, "key": key}))
	if got := serial("file.example"); got != fileSerial {
		t.Errorf("file: %s, want %s", got, fileSerial)
	}
	if got := serial("secret.example"); got != secretSerial {
		t.Errorf("secret: %s, want %s", got, secretSerial)
	}
	kept := map[string]*http.Client{}
	for _, host := range []string{"file.example", "secret.example"} {
		kept[host] = e.client(nil)
		fetch(t, kept[host], "https://"+host+"/")
	}

	secretSerial, chain, key = issue("secret.example")
	e.apply(rules + secret("s", map[string][]byte{"cert": chain, "key": key}))
	if got := serial("secret.example"); got != secretSerial {
		t.Errorf("the new secret: %s, want %s", got, secretSerial)
	}
	// Half of a new pair is no pair: the one before stays until the other half is there.
	before := fileSerial
	fileSerial, chain, key = issue("file.example")
	write(t, crt, chain)
	eventually(t, "the log tells of the half pair", func() bool { return strings.Contains(e.log.String(), "the ones before stay") })
	if got := serial("file.example"); got != before {
		t.Errorf("file, half: %s, want %s", got, before)
	}
	write(t, pem, key)
	eventually(t, "the new file is shown", func() bool { return serial("file.example") == fileSerial })
	// A secret that is bad is not taken; one that is gone closes its server.
	e.apply(rules + secret("s", map[string][]byte{"cert": chain, "key": []byte("none")}))
	if got := serial("secret.example"); got != secretSerial {
		t.Errorf("a bad secret: %s, want %s", got, secretSerial)
	}
	for host, c := range kept {
		resp, err := c.Get("https://" + host + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := fmt.Sprintf("%x", resp.TLS.PeerCertificates[0].SerialNumber); got == fileSerial || got == secretSerial {
			t.Errorf("%s: the open connection was not used", host)
		}
	}
	e.apply(rules)
	if err := refused(t, e.client(nil), "https://secret.example/"); !strings.Contains(err, "internal error") {
		t.Errorf("without the secret: %s", err)
	}
	if log := e.log.String(); strings.Contains(log, "PRIVATE KEY") || strings.Contains(log, string(key)) {
		t.Error("a key is in the log")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func TestGatewayMutualTLS(t *testing.T) {
	e := newEdge(t, "")
	leaf, chain, key := e.ca.Issue(t, "client.example", "spiffe://example/client")
	_, otherChain, otherKey := e.ca.Issue(t, "other.example")
	_, foreignChain, foreignKey := testcert.New(t, "client.example")
	key1 := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	raw := sha256.Sum256(leaf.Raw)
	sum := fmt.Sprintf("%x", raw)
	colons := strings.ReplaceAll(fmt.Sprintf("% X", raw), " ", ":")
	hosts := []string{"mutual.example", "optional.example", "names.example", "spki.example", "hash.example"}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.pem"), e.ca.PEM)
	e.apply(gatewayYAML(
		"HTTPS, tls: {mode: MUTUAL, credentialName: s}, hosts: [mutual.example]",
		"HTTPS, tls: {mode: OPTIONAL_MUTUAL, credentialName: s, caCertificates: "+filepath.Join(dir, "ca.pem")+"}, hosts: [optional.example]",
		"HTTPS, tls: {mode: MUTUAL, credentialName: s, subjectAltNames: ['spiffe://example/client']}, hosts: [names.example]",
		"HTTPS, tls: {mode: MUTUAL, credentialName: s, verifyCertificateSpki: ['"+base64.StdEncoding.EncodeToString(key1[:])+"']}, hosts: [spki.example]",
		"HTTPS, tls: {mode: MUTUAL, credentialName: s, verifyCertificateHash: ['"+colons+"']}, hosts: [hash.example]",
	) + routeTo(strings.Join(hosts, ", ")) + e.pair("s", hosts...) + secret("s-cacert", map[string][]byte{"cacert": e.ca.PEM}))
	// What a client of TLS 1.3 is told comes after its handshake: with the next read.
	alert := func(host string, chain, key []byte) string {
		conf := &tls.Config{ServerName: host, RootCAs: e.client(nil).Transport.(*http.Transport).TLSClientConfig.RootCAs}
		if chain != nil {
			pair, err := tls.X509KeyPair(chain, key)
			if err != nil {
				t.Fatal(err)
			}
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		conn, err := tls.Dial("tcp", net.JoinHostPort(edgeIP, strconv.Itoa(int(e.port))), conf)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
			return err.Error()
		}
		if _, err = conn.Read(make([]byte, 1)); err == nil {
			t.Fatalf("%s: an answer, want a refusal", host)
		}
		return err.Error()
	}
	with := func(chain, key []byte) *http.Client {
		return e.client(func(c *tls.Config) {
			pair, err := tls.X509KeyPair(chain, key)
			if err != nil {
				t.Fatal(err)
			}
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		})
	}
	for _, host := range hosts {
		resp, body := fetch(t, with(chain, key), "https://"+host+"/")
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", host, resp.Status)
		}
		for _, want := range []string{"Hash=" + sum, `Subject="CN=client.example"`, "URI=spiffe://example/client", "DNS=client.example", "Cert=\"-----BEGIN%20CERTIFICATE"} {
			if !strings.Contains(body, want) {
				t.Errorf("%s: the application was told %q, want %s", host, body, want)
			}
		}
		if err := alert(host, foreignChain, foreignKey); !strings.Contains(err, "bad certificate") {
			t.Errorf("%s: another CA's certificate: %s", host, err)
		}
		if host != "mutual.example" && host != "optional.example" {
			if err := alert(host, otherChain, otherKey); !strings.Contains(err, "bad certificate") {
				t.Errorf("%s: another's certificate: %s", host, err)
			}
		}
		if host == "optional.example" {
			if resp, body := fetch(t, e.client(nil), "https://"+host+"/"); resp.StatusCode != http.StatusOK || !strings.HasSuffix(body, "cert=") {
				t.Errorf("%s without a certificate: %s %q", host, resp.Status, body)
			}
			continue
		}
		if err := alert(host, nil, nil); !strings.Contains(err, "certificate required") {
			t.Errorf("%s without a certificate: %s", host, err)
		}
	}
	// Nobody from outside speaks of certificates but the gateway.
	req, err := http.NewRequest(http.MethodGet, "https://optional.example/", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-Client-Cert", "URI=spiffe://example/root")
	resp, err := e.client(nil).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); !strings.HasSuffix(string(body), "cert=") {
		t.Errorf("a client's own word was passed on: %q", body)
	}
}

func TestGatewayTLSVersions(t *testing.T) {
	e := newEdge(t, "")
	hosts := "default.example, old.example, new.example, suite.example"
	e.apply(gatewayYAML(
		"HTTPS, tls: {mode: SIMPLE, credentialName: s}, hosts: [default.example]",
		"HTTPS, tls: {mode: SIMPLE, credentialName: s, minProtocolVersion: TLSV1_0, maxProtocolVersion: TLSV1_2}, hosts: [old.example]",
		"HTTPS, tls: {mode: SIMPLE, credentialName: s, minProtocolVersion: TLSV1_3}, hosts: [new.example]",
		"HTTPS, tls: {mode: SIMPLE, credentialName: s, maxProtocolVersion: TLSV1_2, cipherSuites: [ECDHE-ECDSA-AES256-GCM-SHA384]}, hosts: [suite.example]",
	) + routeTo(hosts) + e.pair("s", strings.Split(hosts, ", ")...))
	for _, tt := range []struct {
		host  string
		offer uint16 // the client's latest
		want  uint16 // 0: refused
	}{
		{"default.example", tls.VersionTLS11, 0}, {"default.example", tls.VersionTLS12, tls.VersionTLS12}, {"default.example", 0, tls.VersionTLS13},
		{"old.example", tls.VersionTLS10, tls.VersionTLS10}, {"old.example", 0, tls.VersionTLS12},
		{"new.example", tls.VersionTLS12, 0}, {"new.example", 0, tls.VersionTLS13},
		{"suite.example", 0, tls.VersionTLS12},
	} {
		c := e.client(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tt.offer })
		resp, err := c.Get("https://" + tt.host + "/")
		switch {
		case err != nil && tt.want != 0:
			t.Errorf("%s, at most %x: %v", tt.host, tt.offer, err)
		case err == nil && resp.TLS.Version != tt.want:
			t.Errorf("%s, at most %x: got %x, want %x", tt.host, tt.offer, resp.TLS.Version, tt.want)
		case err == nil && tt.host == "suite.example" && resp.TLS.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:
			t.Errorf("%s: cipher suite %s", tt.host, tls.CipherSuiteName(resp.TLS.CipherSuite))
		}
		if err == nil {
			_ = resp.Body.Close()
		}
	}
}

// A port may end the TLS of one name, pass another's through, and end a third's whose bytes are none of HTTP.
func TestGatewayTLSBesidePassthrough(t *testing.T) {
	e := newEdge(t, "")
	_, chain, key := e.ca.Issue(t, "own.example")
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, ownPort := free(t, "127.0.0.3")
	go func() {
		_ = http.Serve(tls.NewListener(raw, &tls.Config{Certificates: []tls.Certificate{pair}}), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "its own TLS")
		}))
	}()
	echo, echoPort := free(t, "127.0.0.3")
	go func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	own := e.facts.Workloads[1]
	own.Name, own.Services, own.Addresses = "own", []string{"own"}, []mesh.Address{{Network: "shop_default", IPv4: "127.0.0.3"}}
	own.Ports = []mesh.Port{{Number: ownPort, Protocol: mesh.ProtocolTLS}, {Number: echoPort, Protocol: mesh.ProtocolTCP}}
	e.facts.Workloads = append(e.facts.Workloads, own)
	e.apply(gatewayYAML(
		"HTTPS, tls: {mode: SIMPLE, credentialName: s}, hosts: ['*.example']",
		"port: {number: PORT, name: pass, protocol: TLS}, tls: {mode: PASSTHROUGH}, hosts: [own.example]",
		"port: {number: PORT, name: bytes, protocol: TLS}, tls: {mode: SIMPLE, credentialName: s}, hosts: [echo.example]",
	) + routeTo("'*.example'") + e.pair("s", "*.example") + fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: own}
spec:
  hosts: [own.example]
  gateways: [front]
  tls: [{match: [{sniHosts: [own.example]}], route: [{destination: {host: own, port: {number: %d}}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo.example]
  gateways: [front]
  tcp: [{route: [{destination: {host: own, port: {number: %d}}}]}]
`, ownPort, echoPort))
	if _, body := fetch(t, e.client(nil), "https://own.example/"); body != "its own TLS" {
		t.Errorf("passed through: %q", body)
	}
	if resp, body := fetch(t, e.client(nil), "https://web.example/x"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "web.example /x") {
		t.Errorf("ended here: %s %q", resp.Status, body)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(e.ca.PEM)
	conn, err := tls.Dial("tcp", net.JoinHostPort(edgeIP, strconv.Itoa(int(e.port))), &tls.Config{RootCAs: pool, ServerName: "echo.example"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make([]byte, 5)
	if _, err := io.WriteString(conn, "bytes"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "bytes" {
		t.Errorf("bytes: %q, %v", got, err)
	}
}

// TestEgressGatewayOriginatesTLS: what reaches an egress gateway in plain text leaves it as TLS, with the client's certificate
// of a Secret that no sidecar is given.
func TestEgressGatewayOriginatesTLS(t *testing.T) {
	e := newEdge(t, "")
	ca, clients := testcert.NewCA(t, "outside"), testcert.NewCA(t, "clients")
	_, chain, key := clients.Issue(t, "egress")
	conf := serverConfig(t, ca, "ext.example")
	conf.ClientCAs, conf.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	conf.ClientCAs.AppendCertsFromPEM(clients.PEM)
	ln, port := free(t, "127.0.0.4")
	go func() {
		_ = http.Serve(tls.NewListener(ln, conf), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s sni=%s client=%s", r.Host, r.TLS.ServerName, r.TLS.PeerCertificates[0].Subject.CommonName)
		}))
	}()
	rules := fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext}
spec:
  hosts: [ext.example]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: %[1]d, name: http-tls, protocol: HTTP}]
  endpoints: [{address: 127.0.0.4}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: front}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: PORT, name: http, protocol: HTTP}, hosts: [ext.example]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ext}
spec:
  hosts: [ext.example]
  gateways: [mesh, front]
  http:
  - match: [{gateways: [mesh]}]
    route: [{destination: {host: ingressgateway, port: {number: PORT}}}]
  - match: [{gateways: [front]}]
    route: [{destination: {host: ext.example, port: {number: %[1]d}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: ext}
spec:
  host: ext.example
  trafficPolicy:
    portLevelSettings: [{port: {number: %[1]d}, tls: {mode: MUTUAL, credentialName: egress}}]
`, port)
	e.apply(rules)
	url := fmt.Sprintf("http://ext.example:%d/", e.port)
	if resp, body := fetch(t, e.client(nil), url); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "there is no Secret default/egress") {
		t.Errorf("without the secret: %s %q", resp.Status, body)
	}
	e.apply(rules + secret("egress", map[string][]byte{"tls.crt": chain, "tls.key": key, "ca.crt": ca.PEM}))
	want := fmt.Sprintf("ext.example:%d sni=ext.example client=egress", e.port)
	if resp, body := fetch(t, e.client(nil), url); resp.StatusCode != http.StatusOK || body != want {
		t.Errorf("%s %q, want %q", resp.Status, body, want)
	}
	if snap := e.compileFor(rules+secret("egress", map[string][]byte{"tls.crt": chain, "tls.key": key, "ca.crt": ca.PEM}), "web"); len(snap.Secrets) > 0 {
		t.Errorf("a sidecar is given %d secrets", len(snap.Secrets))
	}
}

// TestGatewayTLSOfRealClients: curl and openssl get through, and are told in their own words why not.
func TestGatewayTLSOfRealClients(t *testing.T) {
	for _, tool := range []string{"curl", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s: %v", tool, err)
		}
	}
	e := newEdge(t, "")
	dir := t.TempDir()
	_, chain, key := e.ca.Issue(t, "client")
	for name, content := range map[string][]byte{"ca.pem": e.ca.PEM, "crt.pem": chain, "key.pem": key} {
		write(t, filepath.Join(dir, name), content)
	}
	e.apply(gatewayYAML(
		"HTTPS, tls: {mode: SIMPLE, credentialName: s}, hosts: [simple.example]",
		"HTTPS, tls: {mode: MUTUAL, credentialName: s}, hosts: [mutual.example]",
	) + routeTo("simple.example, mutual.example") + e.pair("s", "simple.example", "mutual.example") + secret("s-cacert", map[string][]byte{"ca.crt": e.ca.PEM}))
	port := strconv.Itoa(int(e.port))
	run := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		out, _ := cmd.CombinedOutput() // a refusal is an answer, too
		return string(out)
	}
	curl := func(host string, args ...string) string {
		return run("curl", append([]string{"-sS", "--max-time", "20", "--cacert", "ca.pem", "--resolve", host + ":" + port + ":" + edgeIP, "-w", " %{http_code} %{http_version}", "https://" + host + ":" + port + "/x"}, args...)...)
	}
	for _, c := range []struct{ got, want string }{
		{curl("simple.example"), " 200 2"},
		{curl("simple.example", "--http1.1"), " 200 1.1"},
		{curl("mutual.example", "--cert", "crt.pem", "--key", "key.pem"), " 200 2"},
		{curl("mutual.example", "--tlsv1.2", "--tls-max", "1.2"), "alert"},
		{curl("nobody.example"), "unrecognized name"},
		{run("openssl", "s_client", "-connect", edgeIP+":"+port, "-servername", "simple.example", "-CAfile", "ca.pem", "-alpn", "h2"), "ALPN protocol: h2"},
		{run("openssl", "s_client", "-connect", edgeIP+":"+port, "-servername", "simple.example", "-CAfile", "ca.pem"), "Verify return code: 0 (ok)"},
		{run("openssl", "s_client", "-connect", edgeIP+":"+port, "-noservername"), "unrecognized name"},
	} {
		if !strings.Contains(c.got, c.want) {
			t.Errorf("want %q in:\n%s", c.want, c.got)
		}
	}
}
