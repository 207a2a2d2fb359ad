package keeper

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

// vouch is an Attestor that takes everybody for the same.
type vouch struct {
	who Caller
	err error
}

func (v *vouch) Accepted(net.Conn) Evidence { return Evidence{} }
func (v *vouch) Attest(context.Context, Evidence) (Caller, error) {
	return v.who, v.err
}

// served is a keeper that runs on a real socket.
type served struct {
	t      *testing.T
	dir    string
	vouch  *vouch
	engine *fakeEngine
	client *http.Client
}

func serve(t *testing.T, who Caller) *served {
	t.Helper()
	s := &served{t: t, dir: t.TempDir(), vouch: &vouch{who: who}, engine: newFakeEngine(workloadBoxes("web", "172.20.0.3")...)}
	k, err := New(Config{
		Scope: testScope, Engine: s.engine, Attestor: s.vouch, Socket: s.path("keeper.sock"), AdminSocket: s.path("admin.sock"),
		BundleFile: s.path("bundle.pem"), AttestKey: s.path("attest.pub"), Version: "v9", Log: quiet(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		name, _, _ := strings.Cut(addr, ":")
		return new(net.Dialer).DialContext(ctx, "unix", s.path(name+".sock"))
	}}}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return s
}

func (s *served) path(name string) string { return filepath.Join(s.dir, name) }

func (s *served) do(method, url string, body []byte) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(string(b))
}

var webProxy = Caller{Container: id("web-mesh-proxy"), Role: mesh.RoleProxy, Workload: "web", Identity: "spiffe://cluster.local/ns/default/sa/web"}

func TestServerAttests(t *testing.T) {
	s := serve(t, webProxy)
	hash := sha256.Sum256([]byte("key"))
	body, err := json.Marshal(attest.Request{KeyHash: hash[:]})
	if err != nil {
		t.Fatal(err)
	}
	status, answer := s.do("POST", "http://keeper/v1/attest", body)
	var res attest.Response
	if err := json.Unmarshal([]byte(answer), &res); status != http.StatusOK || err != nil {
		t.Fatalf("%d %s: %v", status, answer, err)
	}
	data, err := os.ReadFile(s.path("attest.pub"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	st, err := attest.Verify(key.(ed25519.PublicKey), res.Signed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if st.Container != webProxy.Container || st.Role != webProxy.Role || st.Workload != "web" || st.Identity != webProxy.Identity || !bytes.Equal(st.KeyHash, hash[:]) {
		t.Errorf("statement: %+v", st)
	}
	if _, err := attest.Verify(key.(ed25519.PublicKey), res.Signed, time.Now().Add(attest.Lifetime+time.Second)); err == nil {
		t.Error("the statement outlives its minute")
	}
	if res.Workload != "web" || res.Identity != webProxy.Identity {
		t.Errorf("response: %+v", res)
	}
}

func TestServerRefuses(t *testing.T) {
	pilot := Caller{Role: mesh.RolePilot}
	citadel := Caller{Role: mesh.RoleCitadel}
	for name, test := range map[string]struct {
		who          Caller
		err          error
		method, path string
		body         string
		status       int
		answer       string
	}{
		"strangers":                  {err: fmt.Errorf("%w: process 7", ErrUnknown), method: "POST", path: "attest", status: 403, answer: `{"error":"not a process of this mesh: process 7"}`},
		"the impatient":              {err: ErrTooMany, method: "POST", path: "attest", status: 429},
		"while the engine is away":   {err: errEngine, method: "POST", path: "attest", status: 503, answer: "connection refused"},
		"facts to a proxy":           {who: webProxy, method: "GET", path: "facts", status: 403, answer: "this is for pilot, citadel or mixer, not for proxy"},
		"a bundle from a proxy":      {who: webProxy, method: "PUT", path: "bundle", status: 403, answer: "this is for citadel"},
		"a bundle from pilot":        {who: pilot, method: "PUT", path: "bundle", status: 403},
		"a hash of another size":     {who: webProxy, method: "POST", path: "attest", body: `{"keyHash":"AAAA"}`, status: 400, answer: "3 bytes, want 32"},
		"a request that is no JSON":  {who: webProxy, method: "POST", path: "attest", body: `{`, status: 400},
		"a request beyond all size":  {who: webProxy, method: "POST", path: "attest", body: `{"keyHash":"` + strings.Repeat("A", maxRequest) + `"}`, status: 400},
		"an empty bundle":            {who: citadel, method: "PUT", path: "bundle", status: 400, answer: "want PEM of CA certificates"},
		"a bundle beyond all size":   {who: citadel, method: "PUT", path: "bundle", body: strings.Repeat("x", maxBundle+1), status: 400},
		"a bundle of something else": {who: citadel, method: "PUT", path: "bundle", body: "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", status: 400, answer: "want CERTIFICATE"},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, test.who)
			s.vouch.err = test.err
			status, answer := s.do(test.method, "http://keeper/v1/"+test.path, []byte(test.body))
			if status != test.status || !strings.Contains(answer, test.answer) || !strings.HasPrefix(answer, `{"error":`) {
				t.Errorf("%d %s, want %d %s", status, answer, test.status, test.answer)
			}
			if _, err := os.Stat(s.path("bundle.pem")); err == nil {
				t.Error("a bundle was written")
			}
		})
	}
}

func TestServerStreamsFacts(t *testing.T) {
	s := serve(t, Caller{Role: mesh.RolePilot})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://keeper/v1/facts", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	next := func() (f mesh.Facts) {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("stream ended: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if f := next(); f.Revision != 1 || f.Project != "shop" || len(f.Workloads) != 1 || !f.Workloads[0].Running {
		t.Errorf("first facts: %+v", f)
	}
	s.engine.remove(id("web"))
	stream := <-s.engine.streams
	stream.send(Event{Container: id("web")})
	if f := next(); f.Revision != 2 || f.Workloads[0].Running {
		t.Errorf("second facts: %+v", f)
	}
}

func TestServerWritesTheBundle(t *testing.T) {
	s := serve(t, Caller{Role: mesh.RoleCitadel})
	root := certificate(t, true)
	status, answer := s.do("PUT", "http://keeper/v1/bundle", append([]byte("a comment\n"), root...))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, answer)
	}
	if got, err := os.ReadFile(s.path("bundle.pem")); !bytes.Equal(got, root) || err != nil {
		t.Errorf("bundle: %q, %v", got, err)
	}
	if fi, err := os.Stat(s.path("bundle.pem")); err != nil || fi.Mode().Perm() != 0o644 {
		t.Errorf("bundle: %v, %v", fi.Mode(), err)
	}
	for name, bad := range map[string][]byte{
		"a leaf":       certificate(t, false),
		"a torn end":   append(bytes.Clone(root), root[:len(root)/2]...),
		"a torn block": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
	} {
		if status, answer := s.do("PUT", "http://keeper/v1/bundle", bad); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	if got, err := os.ReadFile(s.path("bundle.pem")); !bytes.Equal(got, root) || err != nil {
		t.Errorf("bundle after bad ones: %q, %v", got, err)
	}
}

func TestServerTellsItsHealth(t *testing.T) {
	s := serve(t, webProxy)
	for _, host := range []string{"keeper", "admin"} {
		if status, answer := s.do("GET", "http://"+host+"/version", nil); status != 200 || answer != `{"component":"keeper","version":"v9"}` {
			t.Errorf("%s version: %d %s", host, status, answer)
		}
	}
	for name, mode := range map[string]os.FileMode{"keeper.sock": 0o666, "admin.sock": 0o600, "attest.pub": 0o644} {
		if fi, err := os.Stat(s.path(name)); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", name, fi, err, mode)
		}
	}
}

// A keeper that was killed leaves its sockets; the next one takes their place.
func TestNewReplacesStaleSockets(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Scope: testScope, Engine: newFakeEngine(), Socket: filepath.Join(dir, "s"), BundleFile: filepath.Join(dir, "b"), AttestKey: filepath.Join(dir, "k"), Log: quiet(t)}
	for range 2 {
		k, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		k.socket.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
		if err := k.socket.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cfg.Socket = filepath.Join(dir, "k")
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("New over a file: %v", err)
	}
	cfg.Mesh = ""
	if _, err := New(cfg); err == nil {
		t.Error("New without a mesh")
	}
}

func certificate(t *testing.T, ca bool) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: ca, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
