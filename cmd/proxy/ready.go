package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh"
)

// ready asks the proxy in this namespace whether it is ready. With --wait it is Docker's health check: it returns
// when the proxy becomes ready, or has stayed so for the whole wait; it fails when the proxy stops being ready or does
// not become so. One process every half minute costs what one a second can't.
func ready(ctx context.Context, _ *slog.Logger, args []string) error {
	fs := flag.NewFlagSet("ready", flag.ContinueOnError)
	wait := fs.Duration("wait", 0, "how long to wait; 0 asks once")
	addr := fs.String("address", fmt.Sprintf("127.0.0.1:%d", mesh.PortReady), "`ADDRESS` of the readiness port")
	if err := fs.Parse(args); err != nil {
		return err
	}
	deadline := time.Now().Add(*wait)
	for {
		left := max(time.Until(deadline), 0)
		answer, err := ask(ctx, *addr, left)
		switch {
		case err == nil:
			fmt.Fprint(os.Stdout, answer)
			return nil
		case errors.Is(err, errNotReady), left == 0, ctx.Err() != nil:
			return err
		}
		select { // the proxy may be starting
		case <-time.After(min(200*time.Millisecond, left)):
		case <-ctx.Done():
		}
	}
}

var errNotReady = errors.New("not ready")

// ask makes one request, which the proxy answers within wait.
func ask(ctx context.Context, addr string, wait time.Duration) (string, error) {
	url := "http://" + addr + "/healthz/ready"
	if wait > 0 {
		url += "?wait=" + wait.String()
	}
	ctx, cancel := context.WithTimeout(ctx, wait+3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%w: %s", errNotReady, strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", "; "))
	}
	return string(body), nil
}
