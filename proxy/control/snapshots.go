package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/composure-mesh/composure/internal/atomicfile"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// maxSnapshot bounds one line of the stream: 64 MiB, far above a mesh of thousands of services.
const maxSnapshot = 64 << 20

func (c *Client) file() string { return filepath.Join(c.cfg.StateDir, "snapshot.json") }

// Load puts the snapshot of the last run in force. None there is no error: false.
func (c *Client) Load() (bool, error) {
	s, err := ReadFile(c.file())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := c.cfg.Apply(s); err != nil {
		return false, fmt.Errorf("%s: %w", c.file(), err)
	}
	c.saved = s.Version
	return true, nil
}

// ReadFile reads a snapshot from a JSON file.
func ReadFile(path string) (*snapshot.Snapshot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	s := new(snapshot.Snapshot)
	if err := json.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", path, err)
	}
	return s, nil
}

// streamSnapshots follows pilot's stream, and begins anew whenever it ends.
func (c *Client) streamSnapshots(ctx context.Context) error {
	state := peerState{log: c.cfg.Log, name: "pilot"}
	failures := 0
	for ctx.Err() == nil {
		got, err := c.stream(ctx, &state)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if got {
			failures = 0
		}
		failures++
		state.failing(err)
		sleep(ctx, backoff(failures))
	}
	return nil
}

// stream reads one stream to its end; got says that a snapshot came.
func (c *Client) stream(ctx context.Context, state *peerState) (got bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silenceLimit, func() { cancel(fmt.Errorf("silent for %s", silenceLimit)) })
	defer watchdog.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		"https://pilot/v1/snapshots?workload="+url.QueryEscape(c.cfg.Identity.Workload()), http.NoBody)
	if err != nil {
		return false, fmt.Errorf("snapshots: %w", err)
	}
	resp, err := c.pilot.Do(req)
	if err != nil {
		return false, withCause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, answer(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 16<<10), maxSnapshot)
	for lines.Scan() {
		watchdog.Reset(silenceLimit)
		state.well()
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue // keep-alive
		}
		got = true
		if err := c.receive(ctx, lines.Bytes()); err != nil {
			return got, withCause(ctx, err)
		}
	}
	if err := lines.Err(); err != nil {
		return got, withCause(ctx, err)
	}
	return got, errors.New("the stream has ended")
}

// receive puts one snapshot in force and answers for it. Its error is that the answer did not reach pilot.
func (c *Client) receive(ctx context.Context, line []byte) error {
	s := new(snapshot.Snapshot)
	err := json.Unmarshal(line, s)
	if err == nil {
		err = c.cfg.Apply(s)
	}
	ack := snapshot.Ack{Workload: c.cfg.Identity.Workload(), Version: s.Version, Build: c.cfg.Build}
	if err != nil {
		c.refused.Add(1)
		ack.Error = err.Error()
		c.cfg.Log.Warn("snapshot refused; the one before stays in force", "version", s.Version, "error", err)
	} else {
		c.applied.Add(1)
		c.cfg.Log.Info("snapshot in force", "version", s.Version)
		c.save(s.Version, line)
	}
	return c.post(ctx, c.pilot, "https://pilot/v1/acks", ack)
}

func (c *Client) save(version string, data []byte) {
	if version == c.saved {
		return
	}
	if err := atomicfile.Write(c.file(), data, 0o600); err != nil {
		c.cfg.Log.Warn("the snapshot could not be kept for the next start", "error", err)
		return
	}
	c.saved = version
}

func (c *Client) post(ctx context.Context, to *http.Client, address string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("post: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := to.Do(req)
	if err != nil {
		return err // names the address
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return answer(resp)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	return err
}

// answer is the error that a plane answered with.
func answer(resp *http.Response) error {
	var body struct {
		Error string `json:"error"`
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil || json.Unmarshal(data, &body) != nil || body.Error == "" {
		return fmt.Errorf("%s %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status)
	}
	return fmt.Errorf("%s %s: %s: %s", resp.Request.Method, resp.Request.URL.Path, resp.Status, body.Error)
}

// withCause prefers the reason for which ctx was cancelled.
func withCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
