package citadel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

const (
	bundlePeriod = time.Second            // how often the published bundle is compared with ours
	firstRetry   = 100 * time.Millisecond // doubled up to lastRetry
	lastRetry    = 2 * time.Second
)

// publisher sees to it that the keeper's bundle file holds our roots.
type publisher struct {
	socket string
	file   string
	bundle []byte
	log    *slog.Logger
	done   atomic.Bool // the file holds our roots
}

// run compares and publishes until ctx is done. It looks at the file rather than remembers the call, so a keeper
// that lost its volume gets the roots again.
func (p *publisher) run(ctx context.Context) error {
	failures := 0
	for ctx.Err() == nil {
		err := p.ensure(ctx)
		wait := bundlePeriod
		switch {
		case ctx.Err() != nil:
		case err != nil:
			if failures == 0 {
				p.log.Warn("the trust bundle can't be published; retrying", "error", err)
			}
			p.done.Store(false)
			wait = min(firstRetry<<min(failures, 5), lastRetry)
			wait = wait/2 + rand.N(wait/2)
			failures++
		default:
			if !p.done.Swap(true) {
				p.log.Info("trust bundle published", "file", p.file)
			}
			failures = 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// health is an error while the mesh can't know our roots.
func (p *publisher) health() error {
	if !p.done.Load() {
		return errors.New("the trust bundle is not published yet: the keeper has not taken it")
	}
	return nil
}

func (p *publisher) ensure(ctx context.Context) error {
	if have, err := os.ReadFile(p.file); err == nil && bytes.Equal(have, p.bundle) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://keeper/v1/bundle", bytes.NewReader(p.bundle))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-pem-file")
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.socket)
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // whatever came is in the error
		return fmt.Errorf("the keeper answered %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	return nil
}
