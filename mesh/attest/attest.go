// Package attest is the statement with which the keeper vouches for a process, and with which citadel issues
// a certificate. Nothing in it comes from the process itself but the hash of its public key.
package attest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// Lifetime is how long a statement may be used.
const Lifetime = time.Minute

// Statement says which workload or plane holds a key.
type Statement struct {
	Container string    `json:"container"` // full container id
	Role      mesh.Role `json:"role"`      // proxy, gateway, pilot, citadel or mixer
	Workload  string    `json:"workload,omitempty"`
	Identity  string    `json:"identity"` // SPIFFE ID
	KeyHash   []byte    `json:"keyHash"`  // SHA-256 of the SubjectPublicKeyInfo, DER
	Expires   time.Time `json:"expires"`
}

// Signed is a statement on the wire: the exact bytes that were signed, and their Ed25519 signature.
type Signed struct {
	Payload   []byte `json:"payload"`
	Signature []byte `json:"signature"`
}

// domain separates these signatures from any other use of the key.
const domain = "composure attestation v1\n"

// KeyHash is the Statement.KeyHash of a public key.
func KeyHash(pub any) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:], nil
}

// Sign signs s with the keeper's key.
func Sign(key ed25519.PrivateKey, s Statement) (Signed, error) {
	payload, err := json.Marshal(s)
	if err != nil {
		return Signed{}, fmt.Errorf("encode statement: %w", err)
	}
	return Signed{Payload: payload, Signature: ed25519.Sign(key, append([]byte(domain), payload...))}, nil
}

// Errors of Verify.
var (
	ErrSignature = errors.New("the attestation statement was not signed by this mesh's keeper")
	ErrExpired   = errors.New("the attestation statement has expired")
)

// Verify checks the signature and the expiry of s and returns the statement.
func Verify(key ed25519.PublicKey, s Signed, now time.Time) (Statement, error) {
	if !ed25519.Verify(key, append([]byte(domain), s.Payload...), s.Signature) {
		return Statement{}, ErrSignature
	}
	var st Statement
	if err := json.Unmarshal(s.Payload, &st); err != nil {
		return Statement{}, fmt.Errorf("decode statement: %w", err)
	}
	if now.After(st.Expires) {
		return Statement{}, ErrExpired
	}
	return st, nil
}

// Request is what a process sends to the keeper's POST /v1/attest; Response is the answer.
type Request struct {
	KeyHash []byte `json:"keyHash"`
}

// Response carries the signed statement, and in clear what the caller may know about itself.
type Response struct {
	Signed   Signed `json:"signed"`
	Identity string `json:"identity"`
	Workload string `json:"workload,omitempty"`
}

// SignRequest is what a process sends to citadel's POST /v1/sign; SignResponse is the answer.
type SignRequest struct {
	Statement Signed `json:"statement"`
	CSR       []byte `json:"csr"` // PKCS #10, DER; only its key is used
}

// SignResponse is the leaf and any intermediates, PEM, leaf first.
type SignResponse struct {
	Chain string `json:"chain"`
}

// String makes a signed statement fit for a log: never the whole.
func (s Signed) String() string {
	return "statement " + base64.RawURLEncoding.EncodeToString(s.Signature[:min(6, len(s.Signature))])
}
