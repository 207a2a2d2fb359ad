package pilot

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/pilot/rollout"
)

// mixerTimeout bounds a question to mixer.
const mixerTimeout = 5 * time.Second

// mixerClient reaches mixer at its socket, with mutual TLS.
func (p *Pilot) mixerClient() (*http.Client, error) {
	id, err := mesh.PlaneID(p.cfg.TrustDomain, mesh.RoleMixer)
	if err != nil {
		return nil, err
	}
	conf := identity.ClientTLS(p.cfg.Identity, identity.AnyOf(id), "http/1.1")
	return &http.Client{Timeout: mixerTimeout, Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			raw, err := (&net.Dialer{}).DialContext(ctx, "unix", p.cfg.MixerSocket)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, conf)
			if err := conn.HandshakeContext(ctx); err != nil {
				_ = raw.Close() // the handshake's error says more
				return nil, err
			}
			return conn, nil
		},
		IdleConnTimeout: time.Minute,
	}}, nil
}

// traffic asks mixer what the given workloads have served.
func (p *Pilot) traffic(ctx context.Context, workloads []string) (report.Traffic, error) {
	var t report.Traffic
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://mixer/v1/traffic?"+url.Values{"workload": workloads}.Encode(), nil)
	if err != nil {
		return t, err
	}
	resp, err := p.mixer.Do(req)
	if err != nil {
		return t, fmt.Errorf("mixer can't be asked how the requests went: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return t, fmt.Errorf("mixer can't be asked how the requests went: %s", resp.Status)
	}
	return t, json.NewDecoder(resp.Body).Decode(&t)
}

// subset is the workloads of a service that are in a subset.
func (p *Pilot) subset(host, subset, namespace string) ([]string, error) {
	x, ok := p.Index()
	if !ok {
		return nil, errors.New("there are no facts of the keeper's yet")
	}
	return x.(index).SubsetWorkloads(host, subset, namespace)
}

func (p *Pilot) commandRollout(w http.ResponseWriter, r *http.Request) {
	err := p.rollouts.Do(r.Context(), rollout.Command(r.PathValue("command")), r.PathValue("namespace"), r.PathValue("name"))
	switch {
	case errors.Is(err, rollout.ErrNotFound):
		httpx.Error(w, http.StatusNotFound, fmt.Errorf("there is no Rollout %s/%s", r.PathValue("namespace"), r.PathValue("name")))
	case err != nil:
		httpx.Error(w, http.StatusConflict, err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
