package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// MaxWait bounds a readiness probe that waits.
const MaxWait = 10 * time.Minute

// Readiness is the set of conditions that keep a proxy from being ready, each with its reason.
type Readiness struct {
	mu      sync.Mutex
	reasons map[string]string
	changed chan struct{} // closed at each change between ready and not
	// probed says that a waiting probe has been told of the present readiness.
	probed bool
}

// NewReadiness starts with the given conditions unmet.
func NewReadiness(conditions map[string]string) *Readiness {
	r := &Readiness{reasons: map[string]string{}, changed: make(chan struct{})}
	for name, reason := range conditions {
		r.reasons[name] = reason
	}
	return r
}

// Set meets a condition where reason is empty, else it says why the proxy is not ready.
func (r *Readiness) Set(condition, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.reasons) == 0
	if reason == "" {
		delete(r.reasons, condition)
	} else {
		r.reasons[condition] = reason
	}
	if after := len(r.reasons) == 0; after != before {
		r.probed = false
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// State says why the proxy is not ready, sorted, or nothing where it is. changed is closed when that is no longer so.
func (r *Readiness) State() (reasons []string, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for condition, reason := range r.reasons {
		reasons = append(reasons, condition+": "+reason)
	}
	slices.Sort(reasons)
	return reasons, r.changed
}

// Wait is a health check that blocks, so that it costs a process every half minute instead of every second. It
// returns no reasons at once when the proxy has become ready and no such check was told of it yet; else when it
// has stayed ready for the whole wait. It returns the reasons when the proxy stops being ready, or does not become
// so within the wait.
//
// A check that is gone before its answer was told nothing, so the next one is answered at once again: the engine
// ends its check when it pauses a container, which is unhealthy to it from then on until a check returns.
func (r *Readiness) Wait(ctx context.Context, wait time.Duration) []string {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	wasReady := false
	for {
		reasons, changed := r.State()
		switch {
		case len(reasons) == 0 && r.firstTold():
			return nil
		case len(reasons) == 0:
			wasReady = true
		case wasReady:
			return reasons
		}
		select {
		case <-changed:
		case <-timer.C:
			return reasons
		case <-ctx.Done():
			r.mu.Lock()
			r.probed = false
			r.mu.Unlock()
			return reasons
		}
	}
}

func (r *Readiness) firstTold() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.probed || len(r.reasons) > 0 {
		return false
	}
	r.probed = true
	return true
}

// ServeHTTP answers GET /healthz/ready: 200, or 503 with the reasons, one a line. With ?wait=25s it answers as Wait,
// but to a peer outside this network namespace at once: its wait would hold a connection, and it would be told in place
// of the health check.
func (r *Readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	reasons, _ := r.State()
	if s := req.URL.Query().Get("wait"); s != "" {
		wait, err := time.ParseDuration(s)
		if err != nil || wait < 0 || wait > MaxWait {
			http.Error(w, fmt.Sprintf("wait %q: want a duration such as 25s, up to %s", s, MaxWait), http.StatusBadRequest)
			return
		}
		if fromLoopback(req.RemoteAddr) {
			reasons = r.Wait(req.Context(), wait)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(reasons) == 0 {
		_, _ = w.Write([]byte("ready\n")) // the client is gone: nobody to tell
		return
	}
	w.WriteHeader(http.StatusServiceUnavailable)
	_, _ = w.Write([]byte(strings.Join(reasons, "\n") + "\n"))
}

func fromLoopback(remote string) bool {
	peer, err := netip.ParseAddrPort(remote)
	return err == nil && peer.Addr().Unmap().IsLoopback()
}
