package identity

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/composure-mesh/composure/internal/atomicfile"
)

// stateFile holds key, chain and workload in one file, so that they always fit each other.
const stateFile = "identity.json"

type state struct {
	Workload string `json:"workload,omitempty"`
	Identity string `json:"identity"`
	Key      string `json:"key"`   // PEM, PKCS #8
	Chain    string `json:"chain"` // PEM, leaf first
}

func (a *Agent) save(h *held) error {
	if a.cfg.StateDir == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(h.key)
	if err != nil {
		return err
	}
	data, err := json.Marshal(state{
		Workload: h.workload,
		Identity: h.material.ID.String(),
		Key:      string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		Chain:    string(h.chain),
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(a.cfg.StateDir, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(a.cfg.StateDir, stateFile), data, 0o600)
}

// load is the identity that an earlier process of this container has kept, nil if there is none that is still
// good: then a new one is obtained, so nothing is lost but time.
func (a *Agent) load() *held {
	if a.cfg.StateDir == "" {
		return nil
	}
	h, err := a.readState(filepath.Join(a.cfg.StateDir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		a.cfg.Log.Info("the kept certificate is of no use; getting a new one", "error", err)
		return nil
	}
	return h
}

func (a *Agent) readState(path string) (*held, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	block, _ := pem.Decode([]byte(s.Key))
	if block == nil {
		return nil, fmt.Errorf("%s: key: no PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: key: %w", path, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: key: %T can't sign", path, parsed)
	}
	h, err := a.assemble(key, []byte(s.Chain), s.Workload)
	if err != nil {
		return nil, fmt.Errorf("%s: chain: %w", path, err)
	}
	return h, nil
}
