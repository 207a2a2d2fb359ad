// Workload is a small application for tests: "serve" answers every request with its service's name, at the address LISTEN or
// at all, "load NAME=URL…" makes steady requests and counts those that are lost, "get URL [PATIENCE]" makes one and prints the answer. The word "bare" after
// serve or load means nothing to it: it tells processes apart that no mesh protects.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 1 && args[1] == "bare" {
		args = append(args[:1:1], args[2:]...)
	}
	switch {
	case len(args) == 1 && args[0] == "serve":
		return listen(ctx, os.Getenv("LISTEN")+":8000", application(ctx))
	case len(args) > 1 && args[0] == "load":
		return load(ctx, args[1:])
	case len(args) > 1 && args[0] == "get":
		return get(ctx, args[1:])
	}
	return errors.New("usage: workload serve | load NAME=URL… | get URL [PATIENCE]")
}

// application answers with its name. /slow answers a second after the application is told to end, /busy tells how many of
// these there are, /sick and /well set what /health says, and /eat uses all the memory there is.
func application(ctx context.Context) http.Handler {
	var sick atomic.Bool
	var slow atomic.Int32
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Getenv("NAME")) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		slow.Add(1)
		defer slow.Add(-1)
		select {
		case <-ctx.Done():
			time.Sleep(time.Second)
		case <-r.Context().Done():
		}
		fmt.Fprintln(w, os.Getenv("NAME"))
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, slow.Load()) })
	mux.HandleFunc("/sick", func(http.ResponseWriter, *http.Request) { sick.Store(true) })
	mux.HandleFunc("/well", func(http.ResponseWriter, *http.Request) { sick.Store(false) })
	mux.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/eat", func(http.ResponseWriter, *http.Request) {
		for held := []byte{1}; ; {
			held = bytes.Repeat(held, 2)
		}
	})
	return mux
}

// listen serves until ctx is done, and then finishes what has begun.
func listen(ctx context.Context, address string, h http.Handler) error {
	srv := &http.Server{Addr: address, ReadHeaderTimeout: 5 * time.Second, Handler: h}
	stopped := make(chan error, 1)
	go func() { stopped <- srv.ListenAndServe() }()
	select {
	case err := <-stopped:
		return err
	case <-ctx.Done():
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
		defer cancel()
		return srv.Shutdown(ctx)
	}
}

// get makes a request that may take 5 s, or as long as is said.
func get(ctx context.Context, args []string) error {
	most := 5 * time.Second
	if len(args) > 1 {
		var err error
		if most, err = time.ParseDuration(args[1]); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return fetch(ctx, args[0], os.Stdout)
}

func fetch(ctx context.Context, url string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

const (
	period   = 50 * time.Millisecond // between two requests to one target, whatever became of the last
	patience = 15 * time.Second      // a request that takes longer is lost
)

// Count is what became of the requests to one target.
type Count struct {
	Passed, Lost int
	LastLost     time.Time // when it was found lost
	LastError    string
	Oldest       time.Duration // how long the oldest one is under way
}

// target is where requests go.
type target struct {
	url string

	mu      sync.Mutex
	count   Count
	pending map[time.Time]bool // by when they began
}

// load makes requests and tells the counts on a loopback port.
func load(ctx context.Context, args []string) error {
	targets := map[string]*target{}
	for _, arg := range args {
		name, url, ok := strings.Cut(arg, "=")
		if !ok {
			return fmt.Errorf("%q: want NAME=URL", arg)
		}
		targets[name] = &target{url: url, pending: map[time.Time]bool{}}
	}
	for _, t := range targets {
		go t.run(ctx)
	}
	return listen(ctx, "127.0.0.1:9000", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		counts := map[string]Count{}
		for name, t := range targets {
			counts[name] = t.counted()
		}
		_ = json.NewEncoder(w).Encode(counts) // whoever asked has gone
	}))
}

func (t *target) run(ctx context.Context) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			go t.request(ctx)
		}
	}
}

func (t *target) request(ctx context.Context) {
	began := time.Now()
	t.mu.Lock()
	t.pending[began] = true
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := fetch(ctx, t.url, io.Discard)
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pending, began)
	if err == nil {
		t.count.Passed++
		return
	}
	t.count.Lost++
	t.count.LastLost, t.count.LastError = time.Now(), err.Error()
}

func (t *target) counted() Count {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.count
	for began := range t.pending {
		c.Oldest = max(c.Oldest, time.Since(began))
	}
	return c
}
