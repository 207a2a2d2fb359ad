package citadel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

// self is citadel's own identity, which it issues itself. It implements identity.Source.
type self struct {
	authority *authority
	log       *slog.Logger

	mu  sync.Mutex
	now *identity.Material
}

// Current renews at half life, when it is asked: citadel needs a certificate only while somebody connects.
func (s *self) Current() *identity.Material {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().Round(0) // wall clock: a laptop may have slept
	if s.now != nil && s.now.Valid(now) == nil {
		leaf := s.now.Certificate.Leaf
		if now.Before(leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 2)) {
			return s.now
		}
	}
	m, err := s.issue(now)
	if err != nil {
		s.log.Error("citadel can't renew its own certificate", "error", err)
		return s.now
	}
	s.now = m
	return m
}

func (s *self) issue(now time.Time) (*identity.Material, error) {
	ca := s.authority.ca
	id, err := mesh.PlaneID(ca.td.Name(), mesh.RoleCitadel)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	leaf, err := ca.Issue(&key.PublicKey, id, now, s.authority.lifetime)
	if err != nil {
		return nil, err
	}
	s.authority.ledger.add(newIssued(attest.Statement{Role: mesh.RoleCitadel, Identity: id.String()}, leaf), now)
	return &identity.Material{
		ID:          id,
		Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		Roots:       pool(ca.cert),
		RootsPEM:    ca.pem,
	}, nil
}

func pool(cert *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(cert)
	return p
}
