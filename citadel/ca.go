// Package citadel is the certificate authority of a mesh: it keeps the root, publishes it, and signs SPIFFE X.509
// certificates for processes that the keeper vouches for.
package citadel

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/atomicfile"
)

const (
	// caFile holds the root's key and certificate in one file, so that they always fit each other.
	caFile = "ca.pem"
	// rootLife is the root's: Istio's self-signed root has ten years too.
	rootLife = 10 * 365 * 24 * time.Hour
	// backdate is how far a certificate's life begins in the past, for clocks that differ.
	backdate = 30 * time.Second
)

// CA signs with the mesh's root key.
type CA struct {
	td   spiffeid.TrustDomain
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
}

// OpenCA reads the root from dir, or makes one if dir has none. A root that is there but can't be used is an error:
// a new one in its place would cut off every workload that holds a certificate of the old one.
func OpenCA(dir string, td spiffeid.TrustDomain, now time.Time) (*CA, error) {
	path := filepath.Join(dir, caFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createCA(path, td, now)
	}
	if err != nil {
		return nil, fmt.Errorf("read the mesh's root: %w", err)
	}
	ca, err := parseCA(data, td, now)
	if err != nil {
		return nil, fmt.Errorf("the mesh's root in %s: %w: put back a good copy, or remove citadel's volume to start with "+
			"a new root (then every workload gets a new certificate)", path, err)
	}
	return ca, nil
}

func createCA(path string, td spiffeid.TrustDomain, now time.Time) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the mesh's root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Composure root", Organization: []string{td.Name()}},
		URIs:                  []*url.URL{td.ID().URL()}, // X509-SVID section 4.2: a signing certificate names its trust domain
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(rootLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true, // it signs leaves only
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the mesh's root: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the mesh's root key: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return nil, fmt.Errorf("keep the mesh's root: %w", err)
	}
	return parseCA(data, td, now)
}

// parseCA reads exactly one key and one certificate that fit each other, the trust domain and the time.
func parseCA(data []byte, td spiffeid.TrustDomain, now time.Time) (*CA, error) {
	ca := &CA{td: td}
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if err := ca.add(block); err != nil {
			return nil, err
		}
	}
	switch {
	case len(data) != 0:
		return nil, errors.New("it holds something that is not PEM")
	case ca.key == nil:
		return nil, errors.New("the private key is missing")
	case ca.cert == nil:
		return nil, errors.New("the certificate is missing")
	case !ca.key.PublicKey.Equal(ca.cert.PublicKey):
		return nil, errors.New("the certificate is for another key")
	case !ca.cert.IsCA:
		return nil, errors.New("the certificate is not a CA's")
	case len(ca.cert.URIs) != 1 || ca.cert.URIs[0].String() != td.IDString():
		return nil, fmt.Errorf("the certificate is for %v, want trust domain %s", ca.cert.URIs, td.IDString())
	case now.After(ca.cert.NotAfter):
		return nil, fmt.Errorf("the certificate expired at %s", ca.cert.NotAfter.Format(time.RFC3339))
	}
	return ca, nil
}

func (ca *CA) add(block *pem.Block) error {
	switch {
	case block.Type == "PRIVATE KEY" && ca.key == nil:
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return fmt.Errorf("private key: %w", err)
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok || ec.Curve != elliptic.P256() {
			return errors.New("private key: want ECDSA on P-256")
		}
		ca.key = ec
	case block.Type == "CERTIFICATE" && ca.cert == nil:
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
		ca.cert, ca.pem = cert, pem.EncodeToMemory(block)
	default:
		return fmt.Errorf("unexpected PEM block %q, want one PRIVATE KEY and one CERTIFICATE", block.Type)
	}
	return nil
}

// Bundle is the PEM of the roots to trust.
func (ca *CA) Bundle() []byte { return ca.pem }

// Issue signs a leaf for id and pub that lives from shortly before now until lifetime after it, or until the root
// ends. It has no name but the one URI (X509-SVID section 2).
func (ca *CA) Issue(pub *ecdsa.PublicKey, id spiffeid.ID, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	until := now.Add(lifetime)
	if until.After(ca.cert.NotAfter) {
		until = ca.cert.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              until,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate for %s: %w", id, err)
	}
	return x509.ParseCertificate(der)
}

// newSerial is a random positive number of 128 bits (RFC 5280 section 4.1.2.2 allows 20 octets).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("serial number: %w", err)
	}
	n := new(big.Int).SetBytes(b)
	if n.Sign() == 0 {
		return big.NewInt(1), nil
	}
	return n, nil
}
