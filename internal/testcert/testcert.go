// Package testcert makes certificates for tests.
package testcert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"
)

// CA issues certificates.
type CA struct {
	Certificate *x509.Certificate
	PEM         []byte
	key         *ecdsa.PrivateKey
}

// NewCA makes a CA of the name.
func NewCA(tb testing.TB, name string) *CA {
	tb.Helper()
	key := newKey(tb)
	template := template(tb, name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	leaf, chain := sign(tb, template, template, key, key)
	return &CA{Certificate: leaf, PEM: chain, key: key}
}

// Issue makes a certificate for names, of which an IP address or a URI becomes a name of its kind, with its key: both
// in PEM.
func (ca *CA) Issue(tb testing.TB, names ...string) (leaf *x509.Certificate, chain, key []byte) {
	tb.Helper()
	return ca.IssueUntil(tb, time.Now().Add(time.Hour), names...)
}

// IssueUntil is Issue of a certificate that is valid until then, which may be past.
func (ca *CA) IssueUntil(tb testing.TB, then time.Time, names ...string) (leaf *x509.Certificate, chain, key []byte) {
	tb.Helper()
	private := newKey(tb)
	template := template(tb, names[0])
	template.NotAfter = then
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range names {
		switch u, err := url.Parse(name); {
		case err == nil && u.Scheme != "":
			template.URIs = append(template.URIs, u)
		case net.ParseIP(name) != nil:
			template.IPAddresses = append(template.IPAddresses, net.ParseIP(name))
		default:
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, chain = sign(tb, template, ca.Certificate, private, ca.key)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return leaf, chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// New is Issue of a CA that nobody keeps.
func New(tb testing.TB, names ...string) (leaf *x509.Certificate, chain, key []byte) {
	tb.Helper()
	return NewCA(tb, "nobody's").Issue(tb, names...)
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func template(tb testing.TB, name string) *x509.Certificate {
	tb.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		tb.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
}

func sign(tb testing.TB, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return leaf, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
