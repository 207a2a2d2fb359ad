package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// maxFile bounds a PEM file.
const maxFile = 1 << 20

// reader reads the parts of credentials: from the secrets of a snapshot, and from files, of which it notes what they were
// like.
type reader struct {
	secrets map[string]*snapshot.Secret
	files   map[string]stamp
}

// stamp tells one state of a file from another; zero is a file that can't be read.
type stamp struct {
	modified time.Time
	size     int64
}

func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.ModTime(), info.Size()}
}

func (r *reader) secret(name string) (*snapshot.Secret, error) {
	if s := r.secrets[name]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("there is no Secret %s that this proxy was given", name)
}

func (r *reader) file(path string) ([]byte, error) {
	// The stamp comes first: a file that changes while it is read is read again.
	r.files[path] = stampOf(path)
	info, err := os.Stat(path)
	if err == nil && info.Size() > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	var content []byte
	if err == nil {
		content, err = os.ReadFile(path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: uid %d must be able to read it", err, os.Getuid())
	}
	return content, err
}

// pair is the certificate of c with its key.
func (r *reader) pair(c snapshot.Credential) (tls.Certificate, error) {
	if c.Secret != "" {
		s, err := r.secret(c.Secret)
		if err != nil {
			return tls.Certificate{}, err
		}
		if s.Certificate == "" || s.PrivateKey == "" {
			return tls.Certificate{}, fmt.Errorf("Secret %s: it wants a certificate and its key, tls.crt and tls.key", c.Secret) //nolint:staticcheck // the kind's name
		}
		pair, err := tls.X509KeyPair([]byte(s.Certificate), []byte(s.PrivateKey))
		if err != nil {
			return tls.Certificate{}, fmt.Errorf("Secret %s: %w", c.Secret, err) //nolint:staticcheck // the kind's name
		}
		return pair, nil
	}
	certificate, err := r.file(c.CertificateFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := r.file(c.KeyFile)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%s and %s: %w", c.CertificateFile, c.KeyFile, err)
	}
	return pair, nil
}

// authorities are the CAs of c.
func (r *reader) authorities(c snapshot.Credential) (*x509.CertPool, error) {
	where := c.CAFile
	var content []byte
	if c.Secret != "" {
		where = "Secret " + c.Secret
		s, err := r.secret(c.Secret)
		if err != nil {
			return nil, err
		}
		if content = []byte(s.CA); s.CA == "" {
			return nil, fmt.Errorf("%s: it wants CAs, in cacert or ca.crt, here or in Secret %s-cacert", where, c.Secret)
		}
	} else {
		var err error
		if content, err = r.file(c.CAFile); err != nil {
			return nil, err
		}
	}
	pool := x509.NewCertPool()
	for rest, n := content, 0; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if n == 0 {
				return nil, fmt.Errorf("%s: there is no certificate in it, want PEM", where)
			}
			return pool, nil
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s: there is a %s among the CAs, want certificates alone", where, block.Type)
		}
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: certificate %d: %w", where, n+1, err)
		}
		pool.AddCert(ca)
	}
}
