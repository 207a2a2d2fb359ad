package mixer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
)

// authority is a CA for tests.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &authority{key: key, cert: sign(t, template, template, key, key)}
}

// issue makes an identity that is valid until end.
func (a *authority) issue(t *testing.T, id spiffeid.ID, end time.Time) fixed {
	t.Helper()
	key := newKey(t)
	leaf := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: end.Add(-2 * time.Hour), NotAfter: end, URIs: []*url.URL{id.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, key, a.key)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return fixed{&identity.Material{ID: id, Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, Roots: roots}}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// fixed is an identity that never changes.
type fixed struct{ m *identity.Material }

func (f fixed) Current() *identity.Material { return f.m }

func (f fixed) Reason() string {
	if f.m == nil {
		return "no certificate yet"
	}
	return ""
}

func workloadID(t *testing.T, account string) spiffeid.ID {
	t.Helper()
	id, err := mesh.IdentityID(mesh.DefaultTrustDomain, mesh.DefaultNamespace, account)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// series is one HTTP series of n requests by a proxy that is called name.
func series(name string, code string, n uint64) report.HTTPSeries {
	s := report.HTTPSeries{
		Labels: report.Labels{
			Reporter: report.ReporterSource, ResponseCode: code, RequestProtocol: "http",
			Source: report.Peer{Workload: name, Principal: "spiffe://cluster.local/ns/default/sa/" + name},
		},
		Requests: n,
	}
	for _, h := range []*report.Histogram{&s.Duration, &s.RequestBytes, &s.ResponseBytes} {
		h.Counts[3], h.Sum = n, float64(10*n)
	}
	return s
}

// exposition is the metrics of t.
func exposition(t *testing.T, sums *totals) string {
	t.Helper()
	var b bytes.Buffer
	if err := writeMetrics(&b, sums.collect(), func(string) bool { return true }, "test"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
