package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// The application behind all proxies: nginx for small answers, as it costs the least, or this program.

// smallBackend answers every request with 1 KB; h2 makes it speak HTTP/2 in plain text.
func (b *bench) smallBackend(h2 bool) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	proto := ""
	if h2 {
		proto = " http2"
	}
	conf := fmt.Sprintf("server { listen %s%s backlog=8192; location / { default_type text/plain; return 200 %q; } }", addr, proto, strings.Repeat("0123456789abcde\n", 64))
	_, err = b.nginx(b.loadCPU, addr, conf, "off")
	return addr, err
}

// ownBackend is this program as an application.
func (b *bench) ownBackend(what string) (string, error) {
	port, err := freePort()
	if err != nil {
		return "", err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	_, err = b.start(b.loadCPU, addr, 0, []string{"GOMAXPROCS=1"}, b.self, "backend", what, addr)
	return addr, err
}

// nginx starts one for HTTP; servers is what goes into its http block, and log its access log: "off", or a name.
func (b *bench) nginx(cpu int, ready, servers, log string) (*process, error) {
	return b.startNginx(cpu, ready, fmt.Sprintf(`http {
  access_log %s;
  client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  keepalive_requests 1000000000; keepalive_timeout 1h; http2_max_concurrent_streams 1024;
  client_max_body_size 0; client_body_timeout 1h; send_timeout 1h;
  %s
}
`, log, servers))
}

// startNginx starts one with one worker.
func (b *bench) startNginx(cpu int, ready, block string) (*process, error) {
	dir, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return nil, err
	}
	conf := fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
worker_processes 1;
pid pid;
error_log stderr crit;
events { worker_connections %d; }
%s`, b.files-100, block)
	file := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	return b.start(cpu, ready, 1, nil, "nginx", "-p", dir, "-c", file)
}

// nginxHop is the location that does what our proxy does to a request and a response: a request id, the scheme, the
// upstream's time. Its Connection and buffering are as its documentation says for keep-alive upstreams.
const nginxHop = `proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_set_header X-Request-Id $request_id; proxy_set_header X-Forwarded-Proto $scheme;
      add_header X-Envoy-Upstream-Service-Time $upstream_response_time;`

// hopOptions vary a hop.
type hopOptions struct {
	log    bool // access log on
	stream bool // bodies are not buffered
}

// nginxSide is one plaintext hop.
func (b *bench) nginxSide(backend string, o hopOptions) (*side, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	extra, log := "", "off"
	if o.log {
		log = "access.log combined"
	}
	if o.stream {
		extra = "proxy_request_buffering off; proxy_buffering off;"
	}
	p, err := b.nginx(b.proxyCPU, addr, fmt.Sprintf(`upstream app { server %s; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server { listen %s backlog=8192; location / { %s %s proxy_pass http://app; } }`, backend, addr, nginxHop, extra), log)
	if err != nil {
		return nil, err
	}
	return &side{name: "nginx", addr: addr, procs: []*process{p}}, nil
}

// pairPlaces are the folder of a pair's certificates, and the addresses where clients come in and where the second is
// reached by TLS.
func (b *bench) pairPlaces() (certs, front, back string, err error) {
	if certs, err = b.certificates(); err != nil {
		return "", "", "", err
	}
	for _, addr := range []*string{&front, &back} {
		port, err := freePort()
		if err != nil {
			return "", "", "", err
		}
		*addr = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return certs, front, back, nil
}

// nginxPair is a client's and a server's nginx with TLS 1.3 and a client certificate between, the cipher the one that
// Go prefers.
func (b *bench) nginxPair(backend string) (*side, error) {
	certs, addr, tls, err := b.pairPlaces()
	if err != nil {
		return nil, err
	}
	server, err := b.nginx(b.proxyCPU, tls, fmt.Sprintf(`upstream app { server %s; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server { listen %s ssl backlog=8192; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_certificate %[3]s/cert.pem; ssl_certificate_key %[3]s/key.pem; ssl_client_certificate %[3]s/ca.pem; ssl_verify_client on;
    ssl_session_cache shared:s:10m;
    location / { %[4]s proxy_pass http://app; } }`, backend, tls, certs, strings.Replace(nginxHop, "$request_id", "$http_x_request_id", 1)), "off")
	if err != nil {
		return nil, err
	}
	client, err := b.nginx(b.proxyCPU, addr, fmt.Sprintf(`upstream peer { server %[1]s; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server { listen %[2]s backlog=8192;
    location / { %[3]s proxy_pass https://peer; proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
      proxy_ssl_certificate %[4]s/cert.pem; proxy_ssl_certificate_key %[4]s/key.pem; proxy_ssl_trusted_certificate %[4]s/ca.pem;
      proxy_ssl_verify on; proxy_ssl_name bench; } }`, tls, addr, nginxHop, certs), "off")
	if err != nil {
		return nil, err
	}
	return &side{name: "nginx pair", addr: addr, procs: []*process{client, server}}, nil
}

// nginxStreamPair is nginxPair for bytes: each connection of a client takes a TLS connection, resumed if so wanted.
func (b *bench) nginxStreamPair(backend string, resume bool) (*side, error) {
	certs, addr, tls, err := b.pairPlaces()
	if err != nil {
		return nil, err
	}
	server, err := b.startNginx(b.proxyCPU, tls, fmt.Sprintf(`stream { server { listen %s ssl backlog=8192; ssl_protocols TLSv1.3;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_session_cache shared:s:10m;
    ssl_certificate %[2]s/cert.pem; ssl_certificate_key %[2]s/key.pem; ssl_client_certificate %[2]s/ca.pem; ssl_verify_client on;
    proxy_pass %[3]s; } }`, tls, certs, backend))
	if err != nil {
		return nil, err
	}
	reuse, name := "off", "nginx stream pair, full handshakes"
	if resume {
		reuse, name = "on", "nginx stream pair, resumed sessions"
	}
	client, err := b.startNginx(b.proxyCPU, addr, fmt.Sprintf(`stream { server { listen %s backlog=8192; proxy_pass %s;
    proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; proxy_ssl_session_reuse %s;
    proxy_ssl_certificate %[4]s/cert.pem; proxy_ssl_certificate_key %[4]s/key.pem; proxy_ssl_trusted_certificate %[4]s/ca.pem;
    proxy_ssl_verify on; proxy_ssl_name bench; } }`, addr, tls, reuse, certs))
	if err != nil {
		return nil, err
	}
	return &side{name: name, addr: addr, procs: []*process{client, server}}, nil
}

// nginxGRPC is one hop of HTTP/2 in plain text by grpc_pass.
func (b *bench) nginxGRPC(backend string) (*side, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	p, err := b.nginx(b.proxyCPU, addr, fmt.Sprintf(`upstream app { server %s; keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server { listen %s http2 backlog=8192; location / { grpc_set_header X-Request-Id $request_id; grpc_set_header X-Forwarded-Proto $scheme;
    grpc_read_timeout 1h; grpc_send_timeout 1h; grpc_pass grpc://app; } }`, backend, addr), "off")
	if err != nil {
		return nil, err
	}
	return &side{name: "nginx grpc_pass", addr: addr, procs: []*process{p}}, nil
}

// haproxySide is one hop of HTTP, or of bytes with splice.
func (b *bench) haproxySide(backend string, tcp bool) (*side, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "haproxy-")
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	mode := `mode http
  http-reuse always
  http-request set-header X-Request-Id %[uuid()]
  http-request set-header X-Forwarded-Proto http`
	if tcp {
		mode = "mode tcp\n  option splice-auto"
	}
	conf := fmt.Sprintf(`global
  nbthread 1
  maxconn %d
defaults
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen hop
  bind %s backlog 8192
  %s
  server app %s pool-max-conn 1024
`, b.files/4-100, addr, mode, backend)
	file := filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	p, err := b.start(b.proxyCPU, addr, 0, nil, "haproxy", "-db", "-f", file)
	if err != nil {
		return nil, err
	}
	return &side{name: "haproxy", addr: addr, procs: []*process{p}}, nil
}

// Our side. Every proxy has an address of 127.0.90.0/24 to itself.

const (
	clientIP = "127.0.90.1"
	webIP    = "127.0.90.2"
	webHost  = "web.default.svc.cluster.local"
)

// ourProxy starts a proxy with the given snapshot and listeners.
func (b *bench) ourProxy(s *snapshot.Snapshot, listen string, log bool, args ...string) (p *process, admin string, err error) {
	dir, err := os.MkdirTemp(b.dir, "proxy-")
	if err != nil {
		return nil, "", err
	}
	data, err := json.Marshal(s)
	if err != nil {
		return nil, "", err
	}
	file := filepath.Join(dir, "snapshot.json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, "", err
	}
	env := []string{"GOMAXPROCS=1", "COMPOSURE_LOG_LEVEL=error", "COMPOSURE_ACCESS_LOG=off", "COMPOSURE_DRAIN=1s"}
	args = append([]string{"--snapshot", file}, args...)
	for _, name := range []string{"--admin", "--ready", "--metrics"} {
		port, err := freePort()
		if err != nil {
			return nil, "", err
		}
		own := fmt.Sprintf("127.0.0.1:%d", port)
		if name == "--admin" {
			admin = own
		}
		args = append(args, name, own)
	}
	if log {
		env[2] = "COMPOSURE_ACCESS_LOG=text"
		// A file, as nginx's.
		args = append([]string{"-c", `exec "$0" "$@" >` + dir + "/access.log", b.proxy}, args...)
		p, err = b.start(b.proxyCPU, listen, 0, env, "sh", args...)
		return p, admin, err
	}
	p, err = b.start(b.proxyCPU, listen, 0, env, b.proxy, args...)
	return p, admin, err
}

// ourSide is one plaintext hop: an outbound proxy with a virtual host of two routes, of which the second matches.
func (b *bench) ourSide(backend string, o hopOptions, change ...func(*snapshot.Snapshot)) (*side, error) {
	ip, port := split(backend)
	s := client(ip, "", uint16(port))
	for _, c := range change {
		c(s)
	}
	listen, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", listen)
	p, admin, err := b.ourProxy(s, addr, o.log, "--outbound", addr+"="+backend)
	if err != nil {
		return nil, err
	}
	return &side{name: "ours", addr: addr, admin: admin, procs: []*process{p}}, nil
}

// ourPair is a client's and a server's proxy with mutual TLS between, and access rules at the server's.
func (b *bench) ourPair(backend string, change ...func(*snapshot.Snapshot)) (*side, error) {
	front, err := freePort()
	if err != nil {
		return nil, err
	}
	inbound, err := freePort()
	if err != nil {
		return nil, err
	}
	in := fmt.Sprintf("%s:%d", webIP, inbound)
	s := client(webIP, accountID("web"), uint16(inbound)) //nolint:gosec // a port
	s.Security = accessRules(10)
	for _, c := range change {
		c(s)
	}
	return b.pair(s, in, fmt.Sprintf("127.0.0.1:%d", front), backend)
}

// pair starts the server's proxy, which listens at in, and the client's, by the snapshot s.
func (b *bench) pair(s *snapshot.Snapshot, in, addr, backend string) (*side, error) {
	ca := filepath.Join(b.dir, "ca")
	web := *s
	web.Proxy = s.Workloads[1]
	server, _, err := b.ourProxy(&web, in, false, "--ca", ca, "--outbound=", "--inbound", in+"="+backend)
	if err != nil {
		return nil, err
	}
	cl, admin, err := b.ourProxy(s, addr, false, "--ca", ca, "--outbound", addr+"="+in)
	if err != nil {
		return nil, err
	}
	return &side{name: "ours", addr: addr, admin: admin, procs: []*process{cl, server}}, nil
}

// ourTCP is one hop of bytes to a port declared TCP.
func (b *bench) ourTCP(backend string) (*side, error) {
	ip, port := split(backend)
	s := client(ip, "", uint16(port))
	s.Workloads[1].Ports[0].Protocol = mesh.ProtocolTCP
	listen, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", listen)
	p, admin, err := b.ourProxy(s, addr, false, "--outbound", addr+"="+backend)
	if err != nil {
		return nil, err
	}
	return &side{name: "ours", addr: addr, admin: admin, procs: []*process{p}}, nil
}

// ourTCPPair is a pair for bytes: each connection of a client takes one of mutual TLS.
func (b *bench) ourTCPPair(backend string) (*side, error) {
	front, err := freePort()
	if err != nil {
		return nil, err
	}
	inbound, err := freePort()
	if err != nil {
		return nil, err
	}
	in, addr := fmt.Sprintf("%s:%d", webIP, inbound), fmt.Sprintf("127.0.0.1:%d", front)
	s := client(webIP, accountID("web"), uint16(inbound)) //nolint:gosec // a port
	s.Workloads[1].Ports[0].Protocol = mesh.ProtocolTCP
	return b.pair(s, in, addr, backend)
}

// speaksHTTP2 declares the application's port so.
func speaksHTTP2(s *snapshot.Snapshot) { s.Workloads[1].Ports[0].Protocol = mesh.ProtocolHTTP2 }

func accountID(account string) string { return "spiffe://cluster.local/ns/default/sa/" + account }

// client is the snapshot of a client of the service web, which stands at ip.
func client(ip, id string, port uint16) *snapshot.Snapshot {
	me := snapshot.Workload{Name: "client", Namespace: "default", ServiceAccount: "client", Service: "client", Identity: accountID("client"), Addresses: []string{clientIP}}
	web := snapshot.Workload{
		Name: "web", Namespace: "default", ServiceAccount: "web", Service: "web", Identity: id, Addresses: []string{ip},
		Labels: map[string]string{"app": "web", "version": "v1"}, Ports: []snapshot.Port{{Number: port, Protocol: mesh.ProtocolHTTP}},
	}
	to := func() []snapshot.Destination {
		return []snapshot.Destination{{Service: webHost, Subset: "v1", Port: port, Weight: 1}}
	}
	return &snapshot.Snapshot{
		TrustDomain: mesh.DefaultTrustDomain, Proxy: me, Workloads: []snapshot.Workload{me, web},
		Services: []snapshot.Service{{
			Host: webHost, Name: "web", Namespace: "default", Endpoints: []string{"web"},
			Subsets: []snapshot.Subset{{Name: "v1", Endpoints: []string{"web"}}},
		}},
		VirtualHosts: []snapshot.VirtualHost{{
			Name: webHost, Domains: []string{"web", webHost}, Service: webHost,
			Routes: []snapshot.Route{
				{Name: "jason", Matches: []snapshot.Match{{Headers: []snapshot.HeaderMatch{{Name: "end-user", Value: &snapshot.StringMatch{Exact: "jason"}}}}}, Destinations: to()},
				{Name: "default", Destinations: to()},
			},
		}},
	}
}

func split(addr string) (ip string, port int) {
	ip, p, _ := strings.Cut(addr, ":")
	_, _ = fmt.Sscan(p, &port) // made by ourselves
	return ip, port
}

// certificates makes an authority and a certificate for nginx, ECDSA P-256 as ours, once.
func (b *bench) certificates() (string, error) {
	dir := filepath.Join(b.dir, "certs")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{"bench"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return "", err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	if err != nil {
		return "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return "", err
	}
	for name, block := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: rootDER}, "cert.pem": {Type: "CERTIFICATE", Bytes: leafDER}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// file writes data to a file of this run.
func (b *bench) file(name string, data []byte) (string, error) {
	path := filepath.Join(b.dir, name)
	return path, os.WriteFile(path, data, 0o600)
}

func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return io.ReadAll(resp.Body)
}
