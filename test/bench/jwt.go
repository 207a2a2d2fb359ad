package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/big"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// inboundSide is the proxy of the application alone: what comes in plain text from outside passes it.
func (b *bench) inboundSide(name, backend string, change ...func(*snapshot.Snapshot)) (*side, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	in := fmt.Sprintf("%s:%d", webIP, port)
	s := client(webIP, "", uint16(port)) //nolint:gosec // a port
	s.Proxy = s.Workloads[1]
	for _, c := range change {
		c(s)
	}
	p, admin, err := b.ourProxy(s, in, false, "--outbound=", "--inbound", in+"="+backend)
	if err != nil {
		return nil, err
	}
	return &side{name: name, addr: in, admin: admin, procs: []*process{p}}, nil
}

// besideItself puts load on the application's proxy with a changed snapshot, and on one without, of the given name.
func (b *bench) besideItself(l load, without string, change func(*snapshot.Snapshot)) ([]row, error) {
	app, err := b.smallBackend(false)
	if err != nil {
		return nil, err
	}
	return b.against(l,
		func() (*side, error) { return b.inboundSide("ours", app, change) },
		func() (*side, error) { return b.inboundSide(without, app) })
}

// hotToken is a plaintext hop in which every request brings the same token of RS256, with a claim copied to a header, beside
// the hop that does not look at it.
func hotToken(b *bench) ([]row, error) {
	keys, token, err := rsaToken()
	if err != nil {
		return nil, err
	}
	verify := func(s *snapshot.Snapshot) {
		s.Security = &snapshot.Security{Authentication: snapshot.Authentication{Tokens: []snapshot.TokenRule{{
			Source: "bench", Issuer: "https://issuer.example", Keys: keys, Headers: []snapshot.TokenHeader{{Name: "authorization", Prefix: "Bearer "}},
			Params: []string{"access_token"}, ClaimHeaders: []snapshot.ClaimHeader{{Name: "x-user", Claim: "sub"}}, Forward: true,
		}}}}
	}
	return b.besideItself(b.wrk(64, "Authorization: Bearer "+token), "ours, not verified", verify)
}

// rsaToken is a token that is good for a day, and the set with its key.
func rsaToken() (keys, token string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(`{"alg":"RS256","kid":"a"}`)) + "." +
		b64(fmt.Appendf(nil, `{"iss":"https://issuer.example","sub":"alice","aud":"shop","scope":"read write","exp":%d}`, time.Now().Add(24*time.Hour).Unix()))
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", "", err
	}
	keys = fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":"a","n":%q,"e":%q}]}`, b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes()))
	return keys, signed + "." + b64(signature), nil
}
