// Package httpx is what the mesh's HTTP servers on unix sockets share.
package httpx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"
)

// Listen binds the unix socket at path with the given mode. A socket that an earlier process has left there is
// removed first; the caller owns the directory, so nobody else can be listening.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("listen on %s: there is a file of that name that is not a socket: remove it", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove the stale socket: %w", err)
		}
	}
	ln, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err // names the socket
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

// shutdownGrace is what a server's open requests get to finish; a stream never does, and is cut.
const shutdownGrace = 2 * time.Second

// Serve serves until ctx is done, then lets open requests finish for a moment.
func Serve(ctx context.Context, srv *http.Server, ln net.Listener) error {
	stopped := make(chan error, 1)
	go func() { stopped <- srv.Serve(ln) }()
	select {
	case err := <-stopped:
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := srv.Shutdown(grace); err != nil {
		_ = srv.Close() // what is still open after the grace is cut on purpose
	}
	if err := <-stopped; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// JSON answers 200 with v.
func JSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		Error(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n')) // the client is gone: nobody to tell
}

// Error answers {"error": "…"} with the given status.
func Error(w http.ResponseWriter, status int, err error) {
	body, _ := json.Marshal(ErrorBody{Error: err.Error()}) // a string always encodes
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// ErrorBody is the body of every answer that is an error.
type ErrorBody struct {
	Error string `json:"error"`
}

// HandleHealth adds GET /version and GET /healthz. Healthy tells why the component can't do its work, or nil.
func HandleHealth(mux *http.ServeMux, name, version string, healthy func() error) {
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		JSON(w, map[string]string{"component": name, "version": version})
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := healthy(); err != nil {
			Error(w, http.StatusServiceUnavailable, err)
			return
		}
		JSON(w, map[string]string{"status": "ok"})
	})
}

// bodyTime is what a client gets to send a request's body: peers are on this machine, and bodies are small.
const bodyTime = 10 * time.Second

// Body is the body of a request, of at most limit bytes, that must come within 10 s: a slow or endless one costs
// neither memory nor a goroutine for long.
func Body(w http.ResponseWriter, r *http.Request, limit int64) io.ReadCloser {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // a recorder in a test has none
	return http.MaxBytesReader(w, r.Body, limit)
}
