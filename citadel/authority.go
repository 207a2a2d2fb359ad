package citadel

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/limit"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

// authority decides who gets a certificate.
type authority struct {
	ca       *CA
	lifetime time.Duration
	keyFile  string // the keeper's public key, mesh.AttestKey
	ledger   *ledger
	limits   *limit.PerCaller // by container
}

// A container asks for a certificate when it starts and at half of its life, a minute at the least; while something is in
// the way it tries again every one or two seconds. A statement may be used as often as one likes within its minute, so the
// keeper's own limit does not bound what is signed here.
const (
	signRate  = 1 // a second
	signBurst = 20
)

// errTooMany marks a caller that asks too often.
var errTooMany = errors.New("too many requests of one container")

// errRefused marks what the caller is to blame for, apart from what went wrong here.
var errRefused = errors.New("refused")

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errRefused, fmt.Errorf(format, args...))
}

func newLimits() *limit.PerCaller { return &limit.PerCaller{Rate: signRate, Burst: signBurst} }

// sign issues a certificate for a statement of the keeper's and a signing request of which nothing but the key is
// used. A repeated statement gives its holder nothing new: it is bound to one key, and the request proves that key.
func (a *authority) sign(req attest.SignRequest, now time.Time) (*x509.Certificate, attest.Statement, error) {
	// Read at each request: a restarted keeper has a new key, and requests are few.
	key, err := readAttestKey(a.keyFile)
	if err != nil {
		return nil, attest.Statement{}, err
	}
	st, err := attest.Verify(key, req.Statement, now)
	if err != nil {
		return nil, st, refused("%w", err)
	}
	id, err := checkStatement(st, a.ca.td)
	if err != nil {
		return nil, st, refused("statement for container %.12s: %w", st.Container, err)
	}
	if !a.limits.Allow(st.Container, now) {
		return nil, st, fmt.Errorf("signing request of %s: %w %.12s", id, errTooMany, st.Container)
	}
	pub, err := requestKey(req.CSR)
	if err != nil {
		return nil, st, refused("signing request of %s: %w", id, err)
	}
	hash, err := attest.KeyHash(pub)
	if err != nil {
		return nil, st, err
	}
	if subtle.ConstantTimeCompare(hash, st.KeyHash) != 1 {
		return nil, st, refused("signing request of %s: its key is not the one that was attested", id)
	}
	leaf, err := a.ca.Issue(pub, id, now, a.lifetime)
	if err != nil {
		return nil, st, err
	}
	a.ledger.add(newIssued(st, leaf), now)
	return leaf, st, nil
}

// checkStatement holds a statement against what the keeper may vouch for: so a mistake there makes no plane of a
// workload here.
func checkStatement(st attest.Statement, td spiffeid.TrustDomain) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(st.Identity)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("identity %q: %w", st.Identity, err)
	}
	if !id.MemberOf(td) {
		return spiffeid.ID{}, fmt.Errorf("identity is %s, want a member of trust domain %s", id, td)
	}
	switch st.Role {
	case mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer:
		want, err := mesh.PlaneID(td.Name(), st.Role)
		if err != nil {
			return spiffeid.ID{}, err
		}
		if id != want {
			return spiffeid.ID{}, fmt.Errorf("identity is %s, want %s for role %s", id, want, st.Role)
		}
	case mesh.RoleProxy, mesh.RoleGateway:
		parts := strings.Split(id.Path(), "/") // "", ns, <namespace>, sa, <service account>
		if len(parts) != 5 || parts[1] != "ns" || parts[3] != "sa" || parts[2] == mesh.SystemNamespace {
			return spiffeid.ID{}, fmt.Errorf("identity is %s, want %s/ns/<namespace>/sa/<service account> outside namespace %s",
				id, td.IDString(), mesh.SystemNamespace)
		}
	default:
		return spiffeid.ID{}, fmt.Errorf("role %q gets no certificate", st.Role)
	}
	return id, nil
}

// requestKey is the key of a PKCS #10 request whose sender has proved to hold it.
func requestKey(der []byte) (*ecdsa.PublicKey, error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, err
	}
	pub, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, errors.New("key type: want ECDSA on P-256")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return pub, nil
}

func readAttestKey(path string) (ed25519.PublicKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the keeper's attestation key: %w (the keeper publishes it when it starts)", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("the keeper's attestation key %s: no PEM block", path)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("the keeper's attestation key %s: %w", path, err)
	}
	pub, ok := key.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("the keeper's attestation key %s: it is %T, want Ed25519", path, key)
	}
	return pub, nil
}
