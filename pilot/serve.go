package pilot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/pilot/status"
)

const (
	// writeTimeout is how long a proxy may take to take in what it is sent.
	writeTimeout = 10 * time.Second
	maxAck       = 64 << 10
)

var (
	errNoFacts         = errors.New("there are no facts of the keeper's yet")
	errUnknownWorkload = errors.New("there is no such workload with a proxy")
	errForeign         = errors.New("a proxy gets its own workload's snapshots only")
)

// meshHandler is what proxies call.
func (p *Pilot) meshHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/snapshots", func(w http.ResponseWriter, r *http.Request) {
		workload := r.URL.Query().Get("workload")
		if err := p.authorize(r, workload); err != nil {
			fail(w, err)
			return
		}
		p.stream(w, r, workload)
	})
	mux.HandleFunc("POST /v1/acks", func(w http.ResponseWriter, r *http.Request) {
		var ack snapshot.Ack
		if err := json.NewDecoder(httpx.Body(w, r, maxAck)).Decode(&ack); err != nil {
			writeError(w, http.StatusBadRequest, fmt.Errorf("decode the ack: %w", err))
			return
		}
		if err := p.authorize(r, ack.Workload); err != nil {
			fail(w, err)
			return
		}
		p.hub.acknowledge(ack, time.Now())
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

func (p *Pilot) authorize(r *http.Request, workload string) error {
	id, err := identity.PeerID(r.TLS)
	if err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	return p.hub.authorize(workload, id.String())
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusForbidden
	switch {
	case errors.Is(err, errNoFacts):
		code = http.StatusServiceUnavailable
	case errors.Is(err, errUnknownWorkload):
		code = http.StatusNotFound
	}
	writeError(w, code, err)
}

func writeError(w http.ResponseWriter, code int, err error) {
	writeJSON(w, code, map[string]string{"error": err.Error()})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client went away; there is nobody to tell
}

// stream sends the newest snapshot whenever there is a new one, and an empty line when there is none for a while.
func (p *Pilot) stream(w http.ResponseWriter, r *http.Request, workload string) {
	st := p.hub.join(workload, time.Now())
	defer p.hub.leave(workload, st)
	p.log.Debug("proxy connected", "workload", workload)
	defer p.log.Debug("proxy disconnected", "workload", workload)
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	ticker := time.NewTicker(keepAlive)
	defer ticker.Stop()
	line := []byte{'\n'} // the head goes out at once
	for {
		if len(line) > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // a connection has deadlines
			if _, err := w.Write(line); err != nil {
				return
			}
			if control.Flush() != nil {
				return
			}
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
			line = []byte{'\n'}
		case <-st.wake:
			line = p.hub.next(workload, st, time.Now())
		}
	}
}

// adminHandler is what people reach through the admin socket.
func (p *Pilot) adminHandler(resources *apiserver.Server) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", resources)
	mux.HandleFunc("GET /debug/proxies", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, p.hub.status(p.resources()))
	})
	mux.HandleFunc("GET /debug/analysis", func(w http.ResponseWriter, _ *http.Request) {
		index, _, _ := p.view(nil)
		if index == nil {
			fail(w, errNoFacts)
			return
		}
		writeJSON(w, http.StatusOK, index.CheckAll())
	})
	mux.HandleFunc("GET /debug/version", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"component": "pilot", "version": p.cfg.Version})
	})
	return mux
}

func (p *Pilot) resources() []status.Resource {
	objects, _ := p.intent.load()
	resources := []status.Resource{}
	for _, o := range objects {
		resources = append(resources, status.Resource{Resource: o.String(), ResourceVersion: o.Meta.ResourceVersion})
	}
	return resources
}

// listenUnix binds a unix socket with the given mode, in the place of one that a process before left behind.
func listenUnix(path string, mode os.FileMode) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w: its directory must exist and belong to uid %d", path, err, os.Getuid())
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return l, nil
}

// serve serves until ctx ends. Requests end with it, streams too.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan error, 1)
	go func() {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err := srv.Shutdown(last)
		if err != nil {
			err = srv.Close()
		}
		done <- err
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return <-done
}
