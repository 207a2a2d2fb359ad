package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// Fixed is an identity that is there from the start and never renewed: that of a proxy which runs without planes. It
// stands where an Agent does otherwise.
type Fixed struct {
	material *Material
	workload string
	ready    chan struct{}
}

func newFixed(m *Material, workload string) *Fixed {
	f := &Fixed{material: m, workload: workload, ready: make(chan struct{})}
	close(f.ready)
	return f
}

// FromFiles reads the identity of a workload from PEM files: the chain, leaf first, its key, and the roots to trust.
func FromFiles(workload, certFile, keyFile, rootsFile string) (*Fixed, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile) // sets Leaf
	if err != nil {
		return nil, fmt.Errorf("identity: %s with %s: %w", certFile, keyFile, err)
	}
	rootsPEM, err := os.ReadFile(rootsFile)
	if err != nil {
		return nil, fmt.Errorf("identity: roots: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(rootsPEM) {
		return nil, fmt.Errorf("identity: roots: no certificate in %s", rootsFile)
	}
	id, err := leafID(cert.Leaf)
	if err != nil {
		return nil, fmt.Errorf("identity: %s: %w", certFile, err)
	}
	return newFixed(&Material{ID: id, Certificate: cert, Roots: roots, RootsPEM: rootsPEM}, workload), nil
}

// Current is the identity.
func (f *Fixed) Current() *Material { return f.material }

// Run waits for the end: there is nothing to renew.
func (f *Fixed) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Ready is closed.
func (f *Fixed) Ready() <-chan struct{} { return f.ready }

// Workload is the name of the workload.
func (f *Fixed) Workload() string { return f.workload }

// Reason says why the certificate proves nothing, or "".
func (f *Fixed) Reason() string {
	leaf := f.material.Certificate.Leaf
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		return "the certificate has expired, and a proxy without planes does not renew it: start it with a new one"
	case now.Before(leaf.NotBefore):
		return "the certificate is not valid yet: the clock may be wrong"
	}
	return ""
}

// Status is the identity for people.
func (f *Fixed) Status() Status {
	leaf := f.material.Certificate.Leaf
	return Status{
		Role: mesh.RoleProxy, Identity: f.material.ID.String(), Workload: f.workload, Serial: leaf.SerialNumber.Text(16),
		NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Reason: f.Reason(),
	}
}
