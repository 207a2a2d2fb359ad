// Package testjwt signs tokens for tests.
package testjwt

import (
	"testing"

	jose "github.com/go-jose/go-jose/v4"
)

// Sign is the compact form of a token: payload, under a header with alg and whatever else header says, signed with key.
func Sign(tb testing.TB, alg jose.SignatureAlgorithm, key any, header map[string]any, payload string) string {
	tb.Helper()
	o := &jose.SignerOptions{}
	for name, v := range header {
		o.WithHeader(jose.HeaderKey(name), v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	if err != nil {
		tb.Fatal(err)
	}
	jws, err := s.Sign([]byte(payload))
	if err != nil {
		tb.Fatal(err)
	}
	out, err := jws.CompactSerialize()
	if err != nil {
		tb.Fatal(err)
	}
	return out
}
