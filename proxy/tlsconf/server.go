package tlsconf

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// serverConfig is how a server ends TLS, with its certificates as they are now.
func (s *Store) serverConfig(r *reader, server *snapshot.TLSServer) (*tls.Config, []tls.Certificate, error) {
	var protocols []string
	if server.Protocol == mesh.ProtocolHTTP {
		protocols = []string{"h2", "http/1.1"}
	}
	t := &server.TLS
	if t.Mode == snapshot.ServerMeshMutual {
		if s.identity == nil {
			return nil, nil, errors.New("this proxy has no certificate of the mesh to show")
		}
		if server.Protocol == mesh.ProtocolHTTP {
			protocols = append([]string{mesh.ALPNHTTP2, mesh.ALPNHTTP1}, protocols...)
		} else {
			protocols = []string{mesh.ALPNTCP}
		}
		return identity.ServerTLS(s.identity, identity.MemberOf(s.trustDomain), protocols...), nil, nil
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: t.MaxVersion, CipherSuites: t.CipherSuites, NextProtos: protocols}
	if t.MinVersion != 0 {
		conf.MinVersion = t.MinVersion
	}
	for _, c := range t.Certificates {
		pair, err := r.pair(c)
		if err != nil {
			return nil, nil, err
		}
		conf.Certificates = append(conf.Certificates, pair)
	}
	if t.Mode == snapshot.ServerSimple {
		return conf, conf.Certificates, nil
	}
	cas, err := r.authorities(t.CA)
	if err != nil {
		return nil, nil, err
	}
	conf.ClientCAs = cas // named to clients, so that they choose the right one
	conf.ClientAuth = tls.RequireAnyClientCert
	if t.Mode == snapshot.ServerOptionalMutual {
		conf.ClientAuth = tls.RequestClientCert
	}
	conf.VerifyConnection = func(cs tls.ConnectionState) error { return verifyClient(&cs, cas, t) }
	return conf, conf.Certificates, nil
}

// verifyClient checks the certificate of a client in every handshake, a resumed one included.
func verifyClient(cs *tls.ConnectionState, cas *x509.CertPool, t *snapshot.EdgeTLS) error {
	if len(cs.PeerCertificates) == 0 {
		return nil // crypto/tls has seen to it where one is required
	}
	if err := verifyChain(cs.PeerCertificates, cas, x509.ExtKeyUsageClientAuth); err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	leaf := cs.PeerCertificates[0]
	if len(t.SubjectAltNames) > 0 && !hasName(leaf, t.SubjectAltNames) {
		return fmt.Errorf("client certificate: it is for %v, want one of %v", namesOf(leaf), t.SubjectAltNames)
	}
	if len(t.SPKI)+len(t.Hashes) > 0 {
		key, sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo), sha256.Sum256(leaf.Raw)
		if !slices.Contains(t.SPKI, base64.StdEncoding.EncodeToString(key[:])) && !slices.Contains(t.Hashes, hex.EncodeToString(sum[:])) {
			return errors.New("client certificate: neither it nor its key is one of those that are pinned")
		}
	}
	return nil
}

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// namesOf are the subject's alternative names (RFC 5280 section 4.2.1.6) of the kinds that people name.
func namesOf(c *x509.Certificate) []string {
	names := append(slices.Clone(c.DNSNames), c.EmailAddresses...)
	for _, u := range c.URIs {
		names = append(names, u.String())
	}
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func hasName(c *x509.Certificate, wanted []string) bool {
	return slices.ContainsFunc(namesOf(c), func(n string) bool { return slices.Contains(wanted, n) })
}
