// Package proxytest has what tests of the data plane share: a certificate authority, and pairs of TCP connections.
package proxytest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/identity"
)

// CA issues identities.
type CA struct {
	tb   testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// NewCA makes a root.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return &CA{tb: tb, key: key, cert: cert}
}

// Issue makes an identity that is good for an hour.
func (ca *CA) Issue(id string) *identity.Material {
	ca.tb.Helper()
	sid, err := spiffeid.FromString(id)
	if err != nil {
		ca.tb.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), URIs: []*url.URL{sid.URL()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.tb.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		ca.tb.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return &identity.Material{ID: sid, Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Roots: roots}
}

// Agent is an identity that is there from the start: identity.Agent's part in tests.
type Agent struct {
	Material *identity.Material
	Name     string // of the workload
	ready    chan struct{}
}

// Agent issues an identity for a workload.
func (ca *CA) Agent(workload, id string) *Agent {
	a := &Agent{Material: ca.Issue(id), Name: workload, ready: make(chan struct{})}
	close(a.ready)
	return a
}

// Current is the identity.
func (a *Agent) Current() *identity.Material { return a.Material }

// Ready is closed.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Workload is the workload's name.
func (a *Agent) Workload() string { return a.Name }

// Reason is none.
func (a *Agent) Reason() string { return "" }

// Status tells the identity.
func (a *Agent) Status() identity.Status {
	return identity.Status{Identity: a.Material.ID.String(), Workload: a.Name}
}

// Run waits for the end.
func (a *Agent) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Pair is two ends of a TCP connection over loopback, closed with the test.
func Pair(tb testing.TB) (dialled, accepted *net.TCPConn) {
	tb.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	var d net.Dialer
	c, err := d.DialContext(tb.Context(), "tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = c.Close(), s.Close() }) // tests close them, too
	return c.(*net.TCPConn), s.(*net.TCPConn)
}
