package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"sync"

	"golang.org/x/crypto/x509roots/fallback/bundle"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// client is the TLS of connections to servers outside of the mesh, as one policy wants it for one server name.
type client struct {
	of    snapshot.ClientTLS
	conf  *tls.Config // with sessions to resume
	files map[string]stamp
	stale bool // its certificates may have changed
}

// sessions is how many servers' sessions are kept to resume: those behind one name.
const sessions = 16

// Client is the configuration for a connection by the policy t to a server of the given name; protocols are offered by ALPN.
// It is the same for the same arguments while the certificates are, so that sessions are resumed.
func (s *Store) Client(t *snapshot.ClientTLS, name string, protocols ...string) (*tls.Config, error) {
	if t.ServerName != "" {
		name = t.ServerName
	}
	key, err := json.Marshal([]any{t, name, protocols})
	if err != nil {
		return nil, fmt.Errorf("tls policy: %w", err)
	}
	s.mu.RLock()
	c := s.clients[string(key)]
	s.mu.RUnlock()
	if c != nil && !c.stale {
		return c.conf, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &reader{secrets: s.secrets, files: map[string]stamp{}}
	conf, err := clientConfig(r, t, name, protocols)
	switch {
	case err != nil && c != nil && s.hasSecrets([]snapshot.Credential{t.Certificate, t.CA}):
		s.log.Warn("the new certificates of a DestinationRule can't be used, the ones before stay", "server", name, "error", err)
		conf = c.conf
	case err != nil:
		return nil, err
	}
	s.clients[string(key)] = &client{of: *t, conf: conf, files: r.files}
	return conf, nil
}

func clientConfig(r *reader, t *snapshot.ClientTLS, name string, protocols []string) (*tls.Config, error) {
	conf := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name, NextProtos: protocols, ClientSessionCache: tls.NewLRUClientSessionCache(sessions),
		InsecureSkipVerify: t.Unverified || len(t.SubjectAltNames) > 0, //nolint:gosec // the user's word, or VerifyConnection sees to it
	}
	if t.Certificate != (snapshot.Credential{}) {
		pair, err := r.pair(t.Certificate)
		if err != nil {
			return nil, fmt.Errorf("the client's certificate: %w", err)
		}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	if t.Unverified {
		return conf, nil
	}
	if t.CA == (snapshot.Credential{}) {
		conf.RootCAs = publicRoots()
	} else {
		roots, err := r.authorities(t.CA)
		if err != nil {
			return nil, fmt.Errorf("the server's CAs: %w", err)
		}
		conf.RootCAs = roots
	}
	if len(t.SubjectAltNames) > 0 {
		conf.VerifyConnection = func(cs tls.ConnectionState) error {
			if err := verifyChain(cs.PeerCertificates, conf.RootCAs, x509.ExtKeyUsageServerAuth); err != nil {
				return fmt.Errorf("server certificate: %w", err)
			}
			if leaf := cs.PeerCertificates[0]; !hasName(leaf, t.SubjectAltNames) {
				return fmt.Errorf("server certificate: it is for %v, want one of %v", namesOf(leaf), t.SubjectAltNames)
			}
			return nil
		}
	}
	return conf, nil
}

// publicRoots are the machine's, or Mozilla's where there are none, as in an image of the mesh. They are made when first
// needed: most proxies never are.
var publicRoots = sync.OnceValue(func() *x509.CertPool {
	if pool, err := x509.SystemCertPool(); err == nil && !pool.Equal(x509.NewCertPool()) {
		return pool
	}
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		ca, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			continue // one that this build can't read verifies nobody
		}
		if root.Constraint == nil {
			pool.AddCert(ca)
		} else {
			pool.AddCertWithConstraint(ca, root.Constraint)
		}
	}
	return pool
})

// ageClients marks the configurations whose certificates may have changed; s.mu is held.
func (s *Store) ageClients(before map[string]*snapshot.Secret) {
	for key, c := range s.clients {
		if !c.stale && (filesChanged(c.files) || !s.sameCredentials(before, c.of.Certificate, c.of.CA)) {
			aged := *c
			aged.stale = true
			s.clients[key] = &aged // others may be reading c
		}
	}
}
