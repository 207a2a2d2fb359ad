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
	"time"

	"github.com/composure-mesh/composure/internal/atomicfile"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// maxSnapshot bounds one line of the stream: 64 MiB, far above a mesh of thousands of services.
const maxSnapshot = 64 << 20

// part is one plane's part of the snapshot.
type part struct {
	*Client
	plane mesh.Role
	http  *http.Client
	file  string // the last good one
	taker
	saved string // version of the document in file
}

// taker takes what a plane sends.
type taker interface {
	// take decodes a line, puts the document in force or says why not, and tells its version and what to keep of it: the
	// whole document. errBase is that the line can't be understood here.
	take(line []byte) (version string, document []byte, err error)
	// have is the query parameter that says what is had; empty where the plane is to send whole documents.
	have() string
}

// taking takes whole documents of type D.
type taking[D any, P interface {
	*D
	Digest() string
}] struct{ apply func(P) error }

func (t taking[D, P]) have() string { return "" }

func (t taking[D, P]) take(line []byte) (version string, document []byte, err error) {
	d := P(new(D))
	if err := json.Unmarshal(line, d); err != nil {
		return d.Digest(), nil, err
	}
	return d.Digest(), line, t.apply(d)
}

// takingChanges takes pilot's part, which comes whole at first and then as what has changed.
type takingChanges struct {
	apply func(*snapshot.Snapshot) error
	last  *snapshot.Snapshot // also one that was refused: the next is told from it
}

// have names the last snapshot if it is all of what its version was given to: one that another build has kept may lack what
// that build did not know.
func (t *takingChanges) have() string {
	version := ""
	if t.last != nil {
		sealed := *t.last
		if err := sealed.Seal(); err == nil && sealed.Version == t.last.Version {
			version = sealed.Version
		} else {
			t.last = nil
		}
	}
	return "&have=" + url.QueryEscape(version)
}

func (t *takingChanges) take(line []byte) (version string, document []byte, err error) {
	var u snapshot.Update
	if err := json.Unmarshal(line, &u); err != nil {
		return "", nil, err
	}
	s, err := u.Apply(t.last)
	if err != nil {
		t.last = nil // the whole is asked for
		return u.Version, nil, fmt.Errorf("%w: %w", errBase, err)
	}
	t.last = s
	if err := t.apply(s); err != nil {
		return s.Version, nil, err
	}
	if u.Base != "" {
		if line, err = json.Marshal(s); err != nil {
			return s.Version, nil, err
		}
	}
	return s.Version, line, nil
}

var errBase = errors.New("a change of something else")

// Load puts what the last run has kept in force. Nothing there is no error: false.
func (c *Client) Load() (bool, error) {
	found := false
	var errs []error
	for _, p := range c.parts {
		data, err := os.ReadFile(p.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		version, _, err := p.take(data)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.file, err))
			continue
		}
		p.saved, found = version, true
	}
	return found, errors.Join(errs...)
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

// follow follows the plane's stream, and begins anew whenever it ends.
func (p *part) follow(ctx context.Context) error {
	state := peerState{log: p.cfg.Log, name: string(p.plane)}
	failures := 0
	for ctx.Err() == nil {
		got, err := p.stream(ctx, &state)
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
func (p *part) stream(ctx context.Context, state *peerState) (got bool, err error) {
	address := "https://" + string(p.plane) + "/v1/snapshots?workload=" + url.QueryEscape(p.cfg.Identity.Workload()) + p.have()
	err = lines(ctx, p.http, address, func(ctx context.Context, line []byte) error {
		state.well()
		if len(line) == 0 {
			return nil // keep-alive
		}
		got = true
		return p.receive(ctx, line)
	})
	return got, err
}

// lines reads a plane's stream to its end, or until take fails.
func lines(ctx context.Context, plane *http.Client, address string, take func(ctx context.Context, line []byte) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(silenceLimit, func() { cancel(fmt.Errorf("silent for %s", silenceLimit)) })
	defer watchdog.Stop()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	resp, err := plane.Do(req)
	if err != nil {
		return withCause(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer(resp)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, 0, 16<<10), maxSnapshot)
	for lines.Scan() {
		watchdog.Reset(silenceLimit)
		if err := take(ctx, bytes.TrimSpace(lines.Bytes())); err != nil {
			return withCause(ctx, err)
		}
	}
	if err := lines.Err(); err != nil {
		return withCause(ctx, err)
	}
	return errors.New("the stream has ended")
}

// receive puts one document in force and answers for it. Its error is that the answer did not reach the plane.
func (p *part) receive(ctx context.Context, line []byte) error {
	version, document, err := p.take(line)
	if errors.Is(err, errBase) {
		return err // the next stream begins with the whole
	}
	ack := snapshot.Ack{Workload: p.cfg.Identity.Workload(), Version: version, Build: p.cfg.Build}
	if err != nil {
		p.refused.Add(1)
		ack.Error = err.Error()
		p.cfg.Log.Warn("snapshot refused; the one before stays in force", "plane", p.plane, "version", version, "error", err)
	} else {
		p.applied.Add(1)
		p.cfg.Log.Info("snapshot in force", "plane", p.plane, "version", version)
		p.save(version, document)
	}
	return p.post(ctx, p.http, "https://"+string(p.plane)+"/v1/acks", ack)
}

func (p *part) save(version string, data []byte) {
	if version == p.saved {
		return
	}
	if err := atomicfile.Write(p.file, data, 0o600); err != nil {
		p.cfg.Log.Warn("the snapshot could not be kept for the next start", "error", err)
		return
	}
	p.saved = version
}

func (c *Client) post(ctx context.Context, to *http.Client, address string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	_, err = c.send(ctx, to, address, "application/json", body)
	return err
}

// send returns the status of the answer, 0 where there was none.
func (c *Client) send(ctx context.Context, to *http.Client, address, kind string, body []byte) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return 0, fmt.Errorf("post: %w", err)
	}
	req.Header.Set("Content-Type", kind)
	resp, err := to.Do(req)
	if err != nil {
		return 0, err // names the address
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return resp.StatusCode, answer(resp)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	return resp.StatusCode, err
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
