// Package jwt verifies signed JSON Web Tokens (RFC 7519) of issuers whose keys are known beforehand. go-jose does the
// cryptography; what it is lax or silent about is decided here: a key says which algorithms it is for and the token's
// header only chooses among them, nothing in a token names or brings a key, one reading of base64 and of JSON, small
// limits before anything is parsed.
package jwt

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"unicode/utf8"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json" // takes "KID" for no "kid", as the standard library's would
)

// Limits of a key set, far above what issuers publish.
const (
	maxKeySet = 1 << 20
	maxKeys   = 100
)

// KeySet is the public keys of an issuer.
type KeySet struct {
	keys []key
	// Skipped says for each key of the set that can't verify tokens why, by its place.
	Skipped []string
}

// Len is how many keys verify tokens.
func (s *KeySet) Len() int { return len(s.keys) }

type key struct {
	id         string
	public     any
	algorithms []jose.SignatureAlgorithm
}

// supported are the algorithms that any key may be for.
var supported = append([]jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.EdDSA}, rsaAlgorithms...)

var rsaAlgorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}

// jwk is what of a key is looked at besides the key itself (RFC 7517, section 4).
type jwk struct {
	Kty    string   `json:"kty"`
	Kid    string   `json:"kid"`
	Use    string   `json:"use"`
	Alg    string   `json:"alg"`
	KeyOps []string `json:"key_ops"`
}

// ParseKeySet reads a JWK set (RFC 7517, section 5). Keys that are not for verifying tokens, can't be read or are too weak
// are skipped, as the standard wants it, so that one of them does not take the others along; a set without any other key is
// an error. A symmetric key is one of these: who can verify a token with it can make one.
func ParseKeySet(b []byte) (*KeySet, error) {
	if len(b) > maxKeySet {
		return nil, fmt.Errorf("key set has %d bytes, at most %d are read", len(b), maxKeySet)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := checkJSON(b); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	if err := json.Unmarshal(b, &set); err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("key set has %d keys, at most %d are read", len(set.Keys), maxKeys)
	}
	s := &KeySet{}
	for i, raw := range set.Keys {
		k, err := parseKey(raw)
		if err != nil {
			s.Skipped = append(s.Skipped, fmt.Sprintf("keys[%d]: %v", i, err))
			continue
		}
		s.keys = append(s.keys, k)
	}
	if len(s.keys) == 0 {
		return nil, fmt.Errorf("key set has no key that verifies tokens: %w", errors.Join(errorsOf(s.Skipped)...))
	}
	return s, nil
}

func errorsOf(list []string) []error {
	if len(list) == 0 {
		return []error{errors.New("keys is empty")}
	}
	out := make([]error, len(list))
	for i, s := range list {
		out[i] = errors.New(s)
	}
	return out
}

func parseKey(raw json.RawMessage) (key, error) {
	var meta jwk
	if err := json.Unmarshal(raw, &meta); err != nil {
		return key{}, err
	}
	if meta.Kty == "oct" {
		return key{}, errors.New("kty is oct, a symmetric key: who can verify a token with it can make one")
	}
	if meta.Use != "" && meta.Use != "sig" {
		return key{}, fmt.Errorf("use is %q, want sig", meta.Use)
	}
	if meta.KeyOps != nil && !slices.Contains(meta.KeyOps, "verify") {
		return key{}, fmt.Errorf("key_ops are %q, want verify among them", meta.KeyOps)
	}
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(raw); err != nil {
		return key{}, err
	}
	public := j.Public()
	if !public.Valid() {
		return key{}, fmt.Errorf("kty %q is no valid public key", meta.Kty)
	}
	k := key{id: meta.Kid, public: public.Key}
	var err error
	if k.algorithms, err = algorithms(public.Key); err != nil {
		return key{}, err
	}
	if meta.Alg != "" {
		if !slices.Contains(k.algorithms, jose.SignatureAlgorithm(meta.Alg)) {
			return key{}, fmt.Errorf("alg is %q, want one of %v for this key", meta.Alg, k.algorithms)
		}
		k.algorithms = []jose.SignatureAlgorithm{jose.SignatureAlgorithm(meta.Alg)}
	}
	return k, nil
}

// algorithms are those that a key is for (RFC 7518, section 3; RFC 8037).
func algorithms(public any) ([]jose.SignatureAlgorithm, error) {
	switch p := public.(type) {
	case *rsa.PublicKey:
		// RFC 7518, section 3.3: 2048 bits at least. An exponent of 1 signs with the message itself.
		if p.N.BitLen() < 2048 || p.E < 3 {
			return nil, fmt.Errorf("RSA key of %d bits with exponent %d, want 2048 bits and 3 at least", p.N.BitLen(), p.E)
		}
		if roca(p.N) {
			return nil, errors.New("RSA key was made by a chip whose keys can be factored (CVE-2017-15361)")
		}
		return rsaAlgorithms, nil
	case *ecdsa.PublicKey:
		switch p.Curve.Params().BitSize {
		case 256:
			return []jose.SignatureAlgorithm{jose.ES256}, nil
		case 384:
			return []jose.SignatureAlgorithm{jose.ES384}, nil
		case 521:
			return []jose.SignatureAlgorithm{jose.ES512}, nil
		}
	case ed25519.PublicKey:
		return []jose.SignatureAlgorithm{jose.EdDSA}, nil
	}
	return nil, fmt.Errorf("a key of type %T verifies no tokens", public)
}

// roca tells whether a modulus has the mark of the keys of CVE-2017-15361: modulo each of these primes it is a power of
// 65537, as the primes of that chip were made of such powers. Chance does it for one key in 2^27.
func roca(n *big.Int) bool {
	for _, p := range []int64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157} {
		rest := new(big.Int).Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		found := rest == 1
		for range p {
			power = power * 65537 % p
			found = found || power == rest
		}
		if !found {
			return false
		}
	}
	return true
}

// checkJSON refuses what has two readings: an object with a name twice, more after the value (RFC 8259, section 4;
// RFC 7515, section 4), or what is no UTF-8 (RFC 7519, section 7.2).
func checkJSON(b []byte) error {
	if !utf8.Valid(b) {
		return errors.New("JSON is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.SetNumberType(json.UnmarshalJSONNumber)
	if err := checkValue(d, 0); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows the JSON value")
	}
	return nil
}

// maxDepth is how deep a token's or a key set's JSON may be nested.
const maxDepth = 32

func checkValue(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("JSON is nested deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	names := map[string]bool{}
	for d.More() {
		if open == '{' {
			t, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := t.(string)
			if names[name] {
				return fmt.Errorf("%q stands there twice", name)
			}
			names[name] = true
		}
		if err := checkValue(d, depth+1); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}
