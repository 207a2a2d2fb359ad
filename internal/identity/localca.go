package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
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
)

// Files of a local certificate authority.
const (
	localRoot = "ca.pem"
	localKey  = "ca-key.pem"
	localLife = 365 * 24 * time.Hour
)

// FromLocalCA issues an identity from a certificate authority in a directory, which it makes if there is none: the
// proxies of one host that share the directory trust each other. For trials and benchmarks: whoever reads the
// directory can be anybody. The certificate is good for a year, as long as the authority at most.
func FromLocalCA(dir, workload, id string) (*Fixed, error) {
	sid, err := spiffeid.FromString(id)
	if err != nil {
		return nil, fmt.Errorf("identity %q: %w", id, err)
	}
	ca, caPEM, err := openLocalCA(dir)
	if err != nil {
		return nil, fmt.Errorf("certificate authority %s: %w", dir, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := localTemplate()
	if err != nil {
		return nil, err
	}
	template.URIs = []*url.URL{sid.URL()}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	if template.NotAfter.After(ca.Leaf.NotAfter) {
		template.NotAfter = ca.Leaf.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", id, err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Leaf)
	return newFixed(&Material{
		ID: sid, Certificate: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, Roots: roots, RootsPEM: caPEM,
	}, workload), nil
}

// openLocalCA reads the authority, and makes it first where there is none. Of several that make one at once, one wins,
// and all read that one: a whole directory is renamed into place.
func openLocalCA(dir string) (ca tls.Certificate, rootPEM []byte, err error) {
	root, key := filepath.Join(dir, localRoot), filepath.Join(dir, localKey)
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		if err := makeLocalCA(dir); err != nil {
			return ca, nil, err
		}
	}
	if ca, err = tls.LoadX509KeyPair(root, key); err != nil {
		return ca, nil, err
	}
	rootPEM, err = os.ReadFile(root)
	return ca, rootPEM, err
}

func makeLocalCA(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template, err := localTemplate()
	if err != nil {
		return err
	}
	template.Subject = pkix.Name{CommonName: "Composure local authority"}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir = filepath.Clean(dir)
	fresh, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-") // mode 0700
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(fresh) }() // gone where it was renamed
	for name, block := range map[string]*pem.Block{
		localRoot: {Type: "CERTIFICATE", Bytes: der}, localKey: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(fresh, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	err = os.Rename(fresh, dir)
	if _, e := os.Stat(filepath.Join(dir, localRoot)); e == nil {
		return nil // ours, or that of who was faster
	}
	return err
}

func localTemplate() (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(localLife)}, nil
}
