package identity

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/attest"
)

// maxAnswer bounds what a plane may answer.
const maxAnswer = 256 << 10

// obtain makes a new key and has it attested and signed.
func (a *Agent) obtain(ctx context.Context) (*held, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, stageError{"key", fmt.Errorf("make a key: %w", err)}
	}
	att, err := a.attest(ctx, key)
	if err != nil {
		return nil, stageError{"keeper", fmt.Errorf("attestation by the keeper: %w", err)}
	}
	chain, err := a.sign(ctx, key, att.Signed)
	if err != nil {
		return nil, stageError{"citadel", fmt.Errorf("signing by citadel: %w", err)}
	}
	h, err := a.assemble(key, chain, att.Workload)
	if err != nil {
		return nil, stageError{"citadel", fmt.Errorf("citadel's certificate: %w", err)}
	}
	if h.material.ID.String() != att.Identity {
		return nil, stageError{"citadel", fmt.Errorf("citadel's certificate is for %s, want %s", h.material.ID, att.Identity)}
	}
	return h, nil
}

func (a *Agent) attest(ctx context.Context, key crypto.Signer) (attest.Response, error) {
	var res attest.Response
	hash, err := attest.KeyHash(key.Public())
	if err != nil {
		return res, err
	}
	err = a.call(ctx, "http://keeper/v1/attest", a.cfg.KeeperSocket, nil, attest.Request{KeyHash: hash}, &res)
	if err != nil {
		return res, err
	}
	id, err := spiffeid.FromString(res.Identity)
	if err != nil {
		return res, fmt.Errorf("identity %q: %w", res.Identity, err)
	}
	return res, a.acceptable(id)
}

// acceptable refuses an identity that this process can't have: one of another trust domain, or for a plane
// another than its own.
func (a *Agent) acceptable(id spiffeid.ID) error {
	if err := MemberOf(a.td)(id); err != nil {
		return err
	}
	switch a.cfg.Role {
	case mesh.RolePilot, mesh.RoleCitadel, mesh.RoleMixer, mesh.RoleKeeper:
		want, err := mesh.PlaneID(a.cfg.TrustDomain, a.cfg.Role)
		if err != nil {
			return err
		}
		if id != want {
			return fmt.Errorf("identity is %s, want %s", id, want)
		}
	}
	return nil
}

func (a *Agent) sign(ctx context.Context, key crypto.Signer, st attest.Signed) ([]byte, error) {
	// An empty template: of a request, citadel uses nothing but the key.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a signing request: %w", err)
	}
	// citadel proves itself against the bundle; we have nothing yet to prove ourselves with but the statement.
	conf := ClientTLS(rootsOnly{&Material{Roots: a.roots}}, AnyOf(a.citadel))
	var res attest.SignResponse
	err = a.call(ctx, "https://citadel/v1/sign", a.cfg.CitadelSocket, conf, attest.SignRequest{Statement: st, CSR: csr}, &res)
	return []byte(res.Chain), err
}

// rootsOnly is the Source of a client without a certificate.
type rootsOnly struct{ m *Material }

func (r rootsOnly) Current() *Material { return r.m }

// assemble makes an identity of a key and a PEM chain, and verifies that it is one.
func (a *Agent) assemble(key crypto.Signer, chain []byte, workload string) (*held, error) {
	cert := tls.Certificate{PrivateKey: key}
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			cert.Certificate = append(cert.Certificate, block.Bytes)
		}
	}
	id, err := Verify(cert.Certificate, a.roots, x509.ExtKeyUsageClientAuth)
	if err != nil {
		return nil, err
	}
	if err := a.acceptable(id); err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	if pub, ok := key.Public().(*ecdsa.PublicKey); !ok || !pub.Equal(leaf.PublicKey) {
		return nil, errors.New("it is for another key")
	}
	cert.Leaf = leaf
	return &held{
		material: &Material{ID: id, Certificate: cert, Roots: a.roots, RootsPEM: a.rootsPEM},
		workload: workload, key: key, chain: chain,
	}, nil
}

// call posts in as JSON over one connection of its own and decodes the answer into out.
func (a *Agent) call(ctx context.Context, url, socket string, conf *tls.Config, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	client := http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return a.cfg.Dial(ctx, socket) },
		TLSClientConfig:   conf,
		DisableKeepAlives: true, // calls are hours apart
	}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return refusal(resp.Status, answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("decode the answer: %w", err)
	}
	return nil
}

func refusal(status string, answer []byte) error {
	var e httpx.ErrorBody
	if json.Unmarshal(answer, &e) == nil && e.Error != "" {
		return fmt.Errorf("refused (%s): %s", strings.ToLower(status), e.Error)
	}
	return fmt.Errorf("refused (%s)", strings.ToLower(status))
}
