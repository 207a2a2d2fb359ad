package plane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

const (
	// keepAlive is how often a stream carries a line, if only an empty one. A peer that is silent for three is dead.
	keepAlive = 15 * time.Second
	// maxLine bounds one line of facts.
	maxLine = 64 << 20

	backoffStart = 100 * time.Millisecond
	backoffCap   = 2 * time.Second
)

// factsClient follows the keeper's facts. The last ones stand while the keeper is away.
type factsClient struct {
	http      *http.Client
	log       *slog.Logger
	receive   func(mesh.Facts)
	connected func(bool)
}

func newFactsClient(socket string, log *slog.Logger, receive func(mesh.Facts), connected func(bool)) *factsClient {
	var d net.Dialer
	return &factsClient{
		http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
		}},
		log: log, receive: receive, connected: connected,
	}
}

// run follows the facts until ctx ends.
func (c *factsClient) run(ctx context.Context) error {
	defer c.http.CloseIdleConnections()
	delay, away := backoffStart, false
	for {
		err := c.follow(ctx, func() {
			delay, away = backoffStart, false
			c.log.Info("following the keeper's facts")
			c.connected(true)
		})
		c.connected(false)
		if ctx.Err() != nil {
			return nil
		}
		if !away {
			away = true
			c.log.Warn("the keeper's facts are not to be had, the last ones stand", "error", err)
		}
		jittered := delay/2 + rand.N(delay) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(jittered):
		}
		delay = min(2*delay, backoffCap)
	}
}

func (c *factsClient) follow(ctx context.Context, begun func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(3*keepAlive, func() { cancel(fmt.Errorf("the keeper was silent for %s", 3*keepAlive)) })
	defer silence.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://keeper/v1/facts", nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req) //nolint:bodyclose // below
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // what there is of it helps
		return fmt.Errorf("keeper answered %s: %s", resp.Status, bytes.TrimSpace(body))
	}
	newest := make(chan []byte, 1)
	ended := make(chan error, 1)
	go func() {
		defer close(newest)
		ended <- read(resp.Body, newest, func() { silence.Reset(3 * keepAlive) })
	}()
	first := true
	for line := range newest {
		var facts mesh.Facts
		if err := json.Unmarshal(line, &facts); err != nil {
			cancel(fmt.Errorf("decode facts: %w", err))
			continue
		}
		if first {
			first = false
			begun()
		}
		c.receive(facts)
	}
	return errors.Join(<-ended, context.Cause(ctx))
}

// read puts lines into newest, of which only the last counts: one that was not taken yet is dropped for the next. Its error
// is how the stream has ended.
func read(body io.Reader, newest chan []byte, alive func()) error {
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		alive()
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		select {
		case <-newest:
		default:
		}
		newest <- bytes.Clone(lines.Bytes()) // there is room: nobody else puts any in
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the keeper ended the stream")
}
