// Package identity is the live identity of a process of the mesh: its SPIFFE certificate, the roots it trusts,
// and the TLS configurations made of both.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Material is an identity at one moment. It is never changed after it is published.
type Material struct {
	ID          spiffeid.ID
	Certificate tls.Certificate // Leaf is set
	Roots       *x509.CertPool
	RootsPEM    []byte
}

// Source yields the current identity, nil before there is one.
type Source interface {
	Current() *Material
}

// Authorize decides on a peer's verified identity; its error says whom it wanted.
type Authorize func(spiffeid.ID) error

// AnyOf admits exactly the given identities.
func AnyOf(ids ...spiffeid.ID) Authorize {
	return func(got spiffeid.ID) error {
		for _, id := range ids {
			if id == got {
				return nil
			}
		}
		return fmt.Errorf("peer is %s, want %v", got, ids)
	}
}

// MemberOf admits every identity of a trust domain.
func MemberOf(td spiffeid.TrustDomain) Authorize {
	return func(got spiffeid.ID) error {
		if !got.MemberOf(td) {
			return fmt.Errorf("peer is %s, want a member of trust domain %s", got, td)
		}
		return nil
	}
}

var errNoIdentity = errors.New("no certificate yet: citadel has not issued one")

// ServerTLS is the configuration of a listener that demands a certificate of the mesh. The certificate and the
// roots are read at each handshake, so renewal drops no connection. A session may be resumed (RFC 8446 section 2.2), which
// saves both sides most of a handshake: the certificates of the first one are verified again then, by the roots and rules
// of now. Use one configuration for a listener's life: it holds the keys of the tickets.
func ServerTLS(src Source, authorize Authorize, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		NextProtos:       protocols,
		ClientAuth:       tls.RequireAnyClientCert,
		GetCertificate:   func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(src) },
		VerifyConnection: verifier(src, authorize, x509.ExtKeyUsageClientAuth),
	}
}

// OpenServerTLS is ServerTLS that clients without a certificate may pass, too: those that come for their first. PeerID
// fails for them.
func OpenServerTLS(src Source, authorize Authorize, protocols ...string) *tls.Config {
	verify := verifier(src, authorize, x509.ExtKeyUsageClientAuth)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		NextProtos:             protocols,
		ClientAuth:             tls.RequestClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return nil
			}
			return verify(cs)
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate(src) },
	}
}

// sessions is how many peers' sessions a client keeps to resume: those behind one identity, which are few.
const sessions = 16

// ClientTLS is the configuration for dialling a peer of the mesh, whose identity authorize checks. Sessions are resumed as
// ServerTLS says.
func ClientTLS(src Source, authorize Authorize, protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		// Names are not checked, identities are: VerifyConnection verifies the whole chain.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection:   verifier(src, authorize, x509.ExtKeyUsageServerAuth),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if m := src.Current(); m != nil && m.Certificate.Leaf == nil {
				return new(tls.Certificate), nil // it has roots alone, and shows nothing
			}
			return certificate(src)
		},
		ClientSessionCache: tls.NewLRUClientSessionCache(sessions),
	}
}

func certificate(src Source) (*tls.Certificate, error) {
	m := src.Current()
	if m == nil {
		return nil, errNoIdentity
	}
	if err := m.Valid(time.Now()); err != nil {
		return nil, err
	}
	return &m.Certificate, nil
}

// verifier checks the peer of every handshake, a resumed one included: crypto/tls calls VerifyPeerCertificate for first ones
// only. Resumption asks for no certificate of our own, so that it is still good is checked here.
func verifier(src Source, authorize Authorize, usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		m := src.Current()
		if m == nil {
			return errNoIdentity
		}
		if cs.DidResume {
			if _, err := certificate(src); err != nil {
				return err
			}
		}
		id, err := verify(cs.PeerCertificates, m.Roots, usage)
		if err != nil {
			return err
		}
		return authorize(id)
	}
}

// Verify checks a peer's chain, leaf first in DER, against roots and returns the leaf's identity. The leaf must
// not be a CA and must carry exactly one URI SAN, a SPIFFE ID (X509-SVID section 2 and 5.2).
func Verify(raw [][]byte, roots *x509.CertPool, usage x509.ExtKeyUsage) (spiffeid.ID, error) {
	chain := make([]*x509.Certificate, len(raw))
	for i, der := range raw {
		c, err := x509.ParseCertificate(der)
		switch {
		case err != nil && i == 0:
			return spiffeid.ID{}, fmt.Errorf("peer certificate: %w", err)
		case err != nil:
			return spiffeid.ID{}, fmt.Errorf("peer's intermediate certificate: %w", err)
		}
		chain[i] = c
	}
	return verify(chain, roots, usage)
}

func verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, errors.New("peer sent no certificate")
	}
	leaf, intermediates := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return spiffeid.ID{}, fmt.Errorf("peer certificate: %w", err)
	}
	return leafID(leaf)
}

// PeerID is the identity of the peer of a finished handshake that Verify has passed.
func PeerID(cs *tls.ConnectionState) (spiffeid.ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return spiffeid.ID{}, errors.New("peer sent no certificate")
	}
	return leafID(cs.PeerCertificates[0])
}

func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	if leaf.IsCA {
		return spiffeid.ID{}, errors.New("peer certificate is a CA's")
	}
	if len(leaf.URIs) != 1 {
		return spiffeid.ID{}, fmt.Errorf("peer certificate has %d URI names, want exactly one SPIFFE ID", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("peer certificate: %w", err)
	}
	return id, nil
}
