package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/composure-mesh/composure/mesh/lease"
)

// maxGrants bounds mixer's answer.
const maxGrants = 1 << 20

// Lease asks mixer about global rate limits.
func (c *Client) Lease(ctx context.Context, ask *lease.Request) (*lease.Answer, error) {
	ask.Workload = c.cfg.Identity.Workload()
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://mixer/v1/leases", bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.mixer.Do(req)
	if err != nil {
		return nil, err // names the address
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, answer(resp)
	}
	a := new(lease.Answer)
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxGrants)).Decode(a); err != nil {
		return nil, fmt.Errorf("decode mixer's answer: %w", err)
	}
	return a, nil
}

// Counts hears of the counters of global rate limits, until mixer or ctx ends it.
func (c *Client) Counts(ctx context.Context, hear func(*lease.Count)) error {
	select {
	case <-c.cfg.Identity.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	address := "https://mixer/v1/leases?workload=" + url.QueryEscape(c.cfg.Identity.Workload())
	return lines(ctx, c.mixer, address, func(_ context.Context, line []byte) error {
		if len(line) == 0 {
			return nil // keep-alive
		}
		n := new(lease.Count)
		if err := json.Unmarshal(line, n); err != nil {
			return fmt.Errorf("decode what mixer tells: %w", err)
		}
		hear(n)
		return nil
	})
}
