package citadel

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

var testNow = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// bench is an authority with the keeper's key at hand.
type bench struct {
	t      *testing.T
	keeper ed25519.PrivateKey
	*authority
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	ca, err := OpenCA(dir, testTD, testNow)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, authority: &authority{ca: ca, lifetime: time.Hour, keyFile: filepath.Join(dir, "attest.pub"), ledger: newLedger(filepath.Join(dir, "issued.json"), quiet(t)), limits: newLimits()}}
	b.newKeeper()
	return b
}

// newKeeper publishes another attestation key, as a restarted keeper does.
func (b *bench) newKeeper() {
	b.t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	b.keeper = key
	b.publish(pub)
}

func (b *bench) publish(pub any) {
	b.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(b.keyFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// request is a good request, changed by change, of a new key.
func (b *bench) request(key crypto.Signer, csr *x509.CertificateRequest, change func(*attest.Statement)) attest.SignRequest {
	b.t.Helper()
	hash, err := attest.KeyHash(key.Public())
	if err != nil {
		b.t.Fatal(err)
	}
	st := attest.Statement{
		Container: strings.Repeat("c", 64), Role: mesh.RoleProxy, Workload: "web", Identity: "spiffe://cluster.local/ns/default/sa/web",
		KeyHash: hash, Expires: testNow.Add(attest.Lifetime),
	}
	if change != nil {
		change(&st)
	}
	signed, err := attest.Sign(b.keeper, st)
	if err != nil {
		b.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, csr, key)
	if err != nil {
		b.t.Fatal(err)
	}
	return attest.SignRequest{Statement: signed, CSR: der}
}

func p256(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Whatever a request asks for, the certificate says what the keeper said.
func TestSignUsesNothingButTheKey(t *testing.T) {
	b := newBench(t)
	key := p256(t)
	foreign := &x509.CertificateRequest{
		Subject:        pkix.Name{CommonName: "citadel", Organization: []string{"system:masters"}},
		DNSNames:       []string{"citadel", "*.default.svc.cluster.local"},
		IPAddresses:    []net.IP{net.IPv4(127, 0, 0, 1)},
		EmailAddresses: []string{"root@localhost"},
		URIs:           []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/composure-system/sa/citadel"}},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:true
			{Id: []int{1, 2, 3, 4}, Value: []byte{5, 0}},
		},
	}
	leaf, st, err := b.sign(b.request(key, foreign, nil), testNow)
	if err != nil {
		t.Fatal(err)
	}
	if st.Workload != "web" {
		t.Errorf("statement: %+v", st)
	}
	switch {
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/web":
		t.Errorf("URI names: %v", leaf.URIs)
	case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 || len(leaf.Subject.Names) != 0:
		t.Errorf("other names: %v %v %v %v", leaf.DNSNames, leaf.IPAddresses, leaf.EmailAddresses, leaf.Subject)
	case leaf.IsCA || !leaf.BasicConstraintsValid || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		t.Errorf("CA %v, key usage %v", leaf.IsCA, leaf.KeyUsage)
	case len(leaf.ExtKeyUsage) != 2 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageServerAuth || leaf.ExtKeyUsage[1] != x509.ExtKeyUsageClientAuth:
		t.Errorf("extended key usage: %v", leaf.ExtKeyUsage)
	case !key.PublicKey.Equal(leaf.PublicKey):
		t.Error("another key")
	case !leaf.NotBefore.Equal(testNow.Add(-30*time.Second)) || !leaf.NotAfter.Equal(testNow.Add(time.Hour)):
		t.Errorf("life: %s to %s", leaf.NotBefore, leaf.NotAfter)
	case leaf.SerialNumber.Sign() <= 0 || leaf.SerialNumber.BitLen() < 64:
		t.Errorf("serial number: %x", leaf.SerialNumber)
	}
	for _, ext := range leaf.Extensions {
		switch ext.Id.String() {
		case "1.2.3.4":
			t.Error("an extension of the request's is in the certificate")
		case "2.5.29.17": // RFC 5280 section 4.2.1.6: critical where the subject is empty
			if !ext.Critical {
				t.Error("the names are not critical")
			}
		}
	}
}

func TestSignRefuses(t *testing.T) {
	b := newBench(t)
	good := p256(t)
	identity := func(role mesh.Role, id string) func(*attest.Statement) {
		return func(s *attest.Statement) { s.Role, s.Identity = role, id }
	}
	with := func(change func(*attest.Statement)) attest.SignRequest {
		return b.request(good, &x509.CertificateRequest{}, change)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stolen := with(nil)
	stolen.CSR = b.request(p256(t), &x509.CertificateRequest{}, nil).CSR
	forged := with(nil)
	forged.Statement.Payload = bytes.Replace(forged.Statement.Payload, []byte("sa/web"), []byte("sa/pay"), 1)
	unsigned := with(nil)
	unsigned.CSR = bytes.Clone(unsigned.CSR)
	unsigned.CSR[len(unsigned.CSR)-1] ^= 1
	for name, test := range map[string]struct {
		req  attest.SignRequest
		want string
	}{
		"an expired statement":               {with(func(s *attest.Statement) { s.Expires = testNow.Add(-time.Second) }), "has expired"},
		"a forged statement":                 {forged, "not signed by this mesh's keeper"},
		"no statement":                       {attest.SignRequest{CSR: stolen.CSR}, "not signed by this mesh's keeper"},
		"a statement with another's key":     {stolen, "its key is not the one that was attested"},
		"a request with a broken signature":  {unsigned, "signature"},
		"no request":                         {attest.SignRequest{Statement: stolen.Statement}, "signing request"},
		"RSA":                                {b.request(rsaKey, &x509.CertificateRequest{}, nil), "want ECDSA on P-256"},
		"P-384":                              {b.request(p384, &x509.CertificateRequest{}, nil), "want ECDSA on P-256"},
		"another trust domain":               {with(identity(mesh.RoleProxy, "spiffe://bank/ns/default/sa/web")), "want a member of trust domain"},
		"a proxy that would be citadel":      {with(identity(mesh.RoleProxy, "spiffe://cluster.local/ns/composure-system/sa/citadel")), "outside namespace composure-system"},
		"a gateway that would be pilot":      {with(identity(mesh.RoleGateway, "spiffe://cluster.local/ns/composure-system/sa/pilot")), "outside namespace composure-system"},
		"pilot that would be citadel":        {with(identity(mesh.RolePilot, "spiffe://cluster.local/ns/composure-system/sa/citadel")), "sa/pilot for role pilot"},
		"an identity of another form":        {with(identity(mesh.RoleProxy, "spiffe://cluster.local/web")), "want spiffe://cluster.local/ns/<namespace>/sa/<service account>"},
		"an identity that is none":           {with(identity(mesh.RoleProxy, "web")), `identity "web"`},
		"an application":                     {with(identity(mesh.RoleApp, "spiffe://cluster.local/ns/default/sa/web")), `role "app" gets no certificate`},
		"the keeper, which needs no such":    {with(identity(mesh.RoleKeeper, "spiffe://cluster.local/ns/composure-system/sa/keeper")), "gets no certificate"},
		"a hash that is the beginning of it": {with(func(s *attest.Statement) { s.KeyHash = s.KeyHash[:16] }), "its key is not the one that was attested"},
	} {
		t.Run(name, func(t *testing.T) {
			leaf, _, err := b.sign(test.req, testNow)
			if leaf != nil || !errors.Is(err, errRefused) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("sign: %v, want a refusal with %q", err, test.want)
			}
		})
	}
	if got := b.ledger.list(testNow); len(got) != 0 {
		t.Errorf("the ledger has %v", got)
	}
}

// A statement that is used twice gives its holder, and only its holder, another certificate: its life is a minute,
// and a client that lost an answer may ask again.
func TestSignBindsAStatementToItsKey(t *testing.T) {
	b := newBench(t)
	req := b.request(p256(t), &x509.CertificateRequest{}, nil)
	first, _, err := b.sign(req, testNow)
	if err != nil {
		t.Fatal(err)
	}
	again, _, err := b.sign(req, testNow.Add(attest.Lifetime))
	if err != nil || first.SerialNumber.Cmp(again.SerialNumber) == 0 {
		t.Errorf("the second use: %v", err)
	}
	if _, _, err := b.sign(req, testNow.Add(attest.Lifetime+time.Nanosecond)); !errors.Is(err, attest.ErrExpired) {
		t.Errorf("a replay after a minute: %v", err)
	}
	if list := b.ledger.list(testNow); len(list) != 1 || list[0].Serial != again.SerialNumber.Text(16) {
		t.Errorf("the ledger has %+v, want the newest alone", list)
	}
}

// A statement may be used again within its minute, but not to keep citadel busy.
func TestSignIsLimitedByContainer(t *testing.T) {
	b := newBench(t)
	req := b.request(p256(t), &x509.CertificateRequest{}, nil)
	for i := range signBurst {
		if _, _, err := b.sign(req, testNow); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
	}
	if _, _, err := b.sign(req, testNow); !errors.Is(err, errTooMany) || errors.Is(err, errRefused) {
		t.Errorf("one more at once: %v, want %v", err, errTooMany)
	}
	other := b.request(p256(t), &x509.CertificateRequest{}, func(st *attest.Statement) { st.Container = strings.Repeat("b", 64) })
	if _, _, err := b.sign(other, testNow); err != nil {
		t.Errorf("another container: %v", err)
	}
	if _, _, err := b.sign(req, testNow.Add(time.Second)); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestSignFollowsTheKeeper(t *testing.T) {
	b := newBench(t)
	old := b.request(p256(t), &x509.CertificateRequest{}, nil)
	b.newKeeper()
	if _, _, err := b.sign(old, testNow); !errors.Is(err, attest.ErrSignature) {
		t.Errorf("a statement of the keeper before: %v", err)
	}
	if _, _, err := b.sign(b.request(p256(t), &x509.CertificateRequest{}, nil), testNow); err != nil {
		t.Errorf("a statement of the keeper now: %v", err)
	}
	for name, spoil := range map[string]func(){
		"want Ed25519":                     func() { b.publish(p256(t).Public()) },
		"no PEM block":                     func() { _ = os.WriteFile(b.keyFile, []byte("x"), 0o600) },
		"the keeper publishes it when it ": func() { _ = os.Remove(b.keyFile) },
	} {
		spoil()
		if _, _, err := b.sign(old, testNow); err == nil || errors.Is(err, errRefused) || !strings.Contains(err.Error(), name) {
			t.Errorf("sign: %v, want %q, and not the caller's fault", err, name)
		}
	}
}

func TestOpenCA(t *testing.T) {
	dir := t.TempDir()
	first, err := OpenCA(dir, testTD, testNow)
	if err != nil {
		t.Fatal(err)
	}
	root := first.cert
	if !root.IsCA || !root.MaxPathLenZero || root.MaxPathLen != 0 || root.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("root: %+v", root)
	}
	if years := root.NotAfter.Sub(testNow).Hours() / 24 / 365; years != 10 {
		t.Errorf("the root lives %v years", years)
	}
	file := filepath.Join(dir, caFile)
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("store: %v, %v", fi, err)
	}
	second, err := OpenCA(dir, testTD, testNow)
	if err != nil || !bytes.Equal(first.Bundle(), second.Bundle()) {
		t.Errorf("opened again: %v", err)
	}
	// A certificate outlives no root.
	leaf, err := second.Issue(&p256(t).PublicKey, testTD.ID(), root.NotAfter.Add(-time.Minute), time.Hour)
	if err != nil || leaf.NotAfter.After(root.NotAfter) {
		t.Errorf("leaf at the root's end: %v, %v", leaf.NotAfter, err)
	}

	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, cert, found := bytes.Cut(good, []byte("-----END PRIVATE KEY-----\n"))
	if !found {
		t.Fatalf("store: %s", good)
	}
	key := good[:len(good)-len(cert)]
	other, err := OpenCA(t.TempDir(), testTD, testNow)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		data []byte
		now  time.Time
		want string
	}{
		"empty":                {data: nil, want: "private key is missing"},
		"key alone":            {data: key, want: "certificate is missing"},
		"certificate alone":    {data: cert, want: "private key is missing"},
		"torn":                 {data: good[:len(good)-40], want: "not PEM"},
		"garbage":              {data: []byte("\x00\x01\x02"), want: "not PEM"},
		"flipped key":          {data: bytes.Replace(good, key[60:64], []byte("AAAA"), 1), want: "key"},
		"another's key":        {data: append(bytes.Clone(key), other.Bundle()...), want: "is for another key"},
		"two certificates":     {data: append(bytes.Clone(good), cert...), want: "unexpected PEM block"},
		"ten years later":      {data: good, now: testNow.Add(rootLife + time.Hour), want: "expired at"},
		"some other PEM block": {data: append(bytes.Clone(good), []byte("-----BEGIN X-----\nAAAA\n-----END X-----\n")...), want: "unexpected PEM block"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(file, test.data, 0o600); err != nil {
				t.Fatal(err)
			}
			now := test.now
			if now.IsZero() {
				now = testNow
			}
			_, err := OpenCA(dir, testTD, now)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "put back a good copy, or remove citadel's volume") {
				t.Errorf("OpenCA: %v, want %q and what to do", err, test.want)
			}
			if left, err := os.ReadFile(file); err != nil || !bytes.Equal(left, test.data) {
				t.Error("the store was changed")
			}
		})
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	bank, err := OpenCA(dir, otherTD, testNow)
	if err == nil || !strings.Contains(err.Error(), "want trust domain spiffe://bank") {
		t.Errorf("OpenCA of another trust domain: %v, %v", bank, err)
	}
}

func TestLedgerForgets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issued.json")
	l := newLedger(file, quiet(t))
	until := func(container, workload string, end time.Time) Issued {
		return Issued{Container: container, Workload: workload, Role: mesh.RoleProxy, NotAfter: end}
	}
	l.add(until("1", "web", testNow.Add(time.Hour)), testNow)
	l.add(until("2", "api", testNow.Add(2*time.Hour)), testNow)
	l.add(Issued{Role: mesh.RoleCitadel, NotAfter: testNow.Add(2 * time.Hour)}, testNow)
	if got := l.list(testNow); len(got) != 3 || got[0].Role != mesh.RoleCitadel || got[1].Workload != "api" || got[2].Workload != "web" {
		t.Errorf("list: %+v", got)
	}
	l.add(until("3", "cart", testNow.Add(3*time.Hour)), testNow.Add(90*time.Minute))
	if got := l.list(testNow); len(got) != 3 || got[2].Workload != "cart" || got[1].Workload != "api" {
		t.Errorf("list after web's has expired: %+v", got)
	}
	if got := l.list(testNow.Add(150 * time.Minute)); len(got) != 1 || got[0].Workload != "cart" {
		t.Errorf("list after api's has expired: %+v", got)
	}
}

func TestLedgerOutlivesARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issued.json")
	l := newLedger(file, quiet(t))
	l.add(Issued{Container: "1", Workload: "web", Serial: "a1", NotAfter: time.Now().Add(time.Hour)}, time.Now())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.run(ctx); err != nil { // saves at its end
		t.Fatal(err)
	}
	if got := newLedger(file, quiet(t)).list(time.Now()); len(got) != 1 || got[0].Serial != "a1" {
		t.Errorf("list after a restart: %+v", got)
	}
	if err := os.WriteFile(file, []byte("[{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := newLedger(file, quiet(t)).list(time.Now()); len(got) != 0 {
		t.Errorf("list of a torn file: %+v", got)
	}
}

func TestSignOverHTTP(t *testing.T) {
	w := newWorld(t, time.Hour)
	post := func(body string) (int, string) {
		rec := httptest.NewRecorder()
		w.citadel.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/v1/sign", strings.NewReader(body)))
		return rec.Code, rec.Body.String()
	}
	for name, test := range map[string]struct {
		body   string
		status int
	}{
		"no JSON":         {"{", http.StatusBadRequest},
		"too large":       {`{"csr":"` + strings.Repeat("A", maxRequest) + `"}`, http.StatusBadRequest},
		"nothing":         {"{}", http.StatusForbidden},
		"wrong signature": {`{"statement":{"payload":"e30=","signature":"AAAA"},"csr":"AAAA"}`, http.StatusForbidden},
	} {
		if status, answer := post(test.body); status != test.status || !strings.HasPrefix(answer, `{"error":`) {
			t.Errorf("%s: %d %s, want %d", name, status, answer, test.status)
		}
	}
	if err := os.Remove(w.path("attest.pub")); err != nil {
		t.Fatal(err)
	}
	if status, _ := post("{}"); status != http.StatusServiceUnavailable {
		t.Errorf("without the keeper's key: %d", status)
	}
	rec := httptest.NewRecorder()
	w.citadel.self.Current()
	w.citadel.AdminHandler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/debug/certs", nil))
	var list []Issued
	if err := json.Unmarshal(rec.Body.Bytes(), &list); err != nil || len(list) != 1 || list[0].Role != mesh.RoleCitadel {
		t.Errorf("certs: %s, %v", rec.Body, err)
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	w := newWorld(t, time.Hour)
	for want, change := range map[string]func(*Config){
		"certificate lifetime is 59s, want 1m0s to 2160h0m0s": func(c *Config) { c.Lifetime = 59 * time.Second },
		"certificate lifetime is 2161h0m0s":                   func(c *Config) { c.Lifetime = 2161 * time.Hour },
		`trust domain "No Domain"`:                            func(c *Config) { c.TrustDomain = "No Domain" },
		"read the mesh's root":                                func(c *Config) { c.StateDir = c.AttestKey },
	} {
		cfg := w.citadelConfig()
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want %q", err, want)
		}
	}
}
