package plane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/apiserver"
	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/plane/status"
	"github.com/composure-mesh/composure/mesh/snapshot"
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

// HandleMesh adds what proxies call: GET /v1/snapshots and POST /v1/acks. A proxy that says which version it has (have,
// which may be empty) may be sent changes rather than whole documents (snapshot.Update). The server's TLS has verified the certificate of
// a caller that showed one.
func (p *Plane) HandleMesh(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/snapshots", func(w http.ResponseWriter, r *http.Request) {
		workload := r.URL.Query().Get("workload")
		if err := p.Authorize(r, workload); err != nil {
			Fail(w, err)
			return
		}
		p.stream(w, r, workload)
	})
	mux.HandleFunc("POST /v1/acks", func(w http.ResponseWriter, r *http.Request) {
		var ack snapshot.Ack
		if err := json.NewDecoder(httpx.Body(w, r, maxAck)).Decode(&ack); err != nil {
			httpx.Error(w, http.StatusBadRequest, fmt.Errorf("decode the ack: %w", err))
			return
		}
		if err := p.Authorize(r, ack.Workload); err != nil {
			Fail(w, err)
			return
		}
		p.hub.acknowledge(ack, time.Now())
		w.WriteHeader(http.StatusNoContent)
	})
}

// Authorize checks that a request comes from the proxy of the workload.
func (p *Plane) Authorize(r *http.Request, workload string) error {
	id, err := identity.PeerID(r.TLS)
	if err != nil {
		return fmt.Errorf("%w: %w", errForeign, err)
	}
	return p.hub.authorize(workload, id.String())
}

// Fail answers with the status that an error of Authorize asks for.
func Fail(w http.ResponseWriter, err error) {
	code := http.StatusForbidden
	switch {
	case errors.Is(err, errNoFacts):
		code = http.StatusServiceUnavailable
	case errors.Is(err, errUnknownWorkload):
		code = http.StatusNotFound
	}
	httpx.Error(w, code, err)
}

// stream sends the newest snapshot whenever there is a new one, and an empty line when there is none for a while.
func (p *Plane) stream(w http.ResponseWriter, r *http.Request, workload string) {
	var have *string
	if query := r.URL.Query(); query.Has("have") {
		version := query.Get("have")
		have = &version
	}
	st := p.hub.join(workload, have, time.Now())
	defer p.hub.leave(workload, st)
	p.log.Debug("proxy connected", "workload", workload)
	defer p.log.Debug("proxy disconnected", "workload", workload)
	Stream(w, r, st.wake, func() ([][]byte, error) {
		document, base := p.hub.next(workload, st, time.Now())
		if document == nil {
			return nil, nil
		}
		line, err := encode(document, base)
		if err != nil {
			p.log.Error("encode snapshot", "workload", workload, "error", err)
		}
		return line, err
	})
}

// Stream sends what next has each time that wake says so, and an empty line at the start and when there is nothing for a
// while, until the peer has gone, or next fails.
func Stream(w http.ResponseWriter, r *http.Request, wake <-chan struct{}, next func() ([][]byte, error)) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // there is nothing more to read: a server's limit for requests is not the stream's
	ticker := time.NewTicker(keepAlive)
	defer ticker.Stop()
	line := [][]byte{{'\n'}} // the head goes out at once
	for {
		if err := send(w, control, line); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
			line = [][]byte{{'\n'}}
		case <-wake:
			var err error
			if line, err = next(); err != nil {
				return
			}
		}
	}
}

func send(w io.Writer, control *http.ResponseController, line [][]byte) error {
	if line == nil {
		return nil
	}
	_ = control.SetWriteDeadline(time.Now().Add(writeTimeout)) // a connection has deadlines
	for _, part := range line {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return control.Flush()
}

// encode is document as a line, told from base where it can be.
func encode(document, base Document) ([][]byte, error) {
	if d, ok := document.(Incremental); ok {
		return d.Line(base)
	}
	line, err := json.Marshal(document)
	return [][]byte{line, {'\n'}}, err
}

// HandleAdmin adds what people reach through the admin socket: the resource API, GET /debug/proxies, GET and POST
// /debug/analysis.
func (p *Plane) HandleAdmin(mux *http.ServeMux) {
	mux.Handle("/", apiserver.New(apiserver.Config{
		Kinds: p.cfg.Kinds, Store: p.store, Views: p.cfg.Views, ViewStore: p.cfg.ViewStore, Warn: p.warnings, Version: p.cfg.Version, Log: p.log,
		Validate: p.cfg.Validate, Protected: protected(p.cfg.Defaults),
	}))
	mux.HandleFunc("GET /debug/proxies", func(w http.ResponseWriter, _ *http.Request) {
		httpx.JSON(w, p.hub.status(p.resources()))
	})
	mux.HandleFunc("POST /debug/analysis", p.analyze)
	mux.HandleFunc("GET /debug/analysis", func(w http.ResponseWriter, _ *http.Request) {
		index, _, _ := p.view()
		if index == nil {
			Fail(w, errNoFacts)
			return
		}
		httpx.JSON(w, index.CheckAll())
	})
}

// maxAnalyzed is how much configuration POST /debug/analysis takes at once.
const maxAnalyzed = 64 << 20

// analyze answers with what would be questionable about the configuration if a list of objects, the request's body, were
// applied: those of this plane's kinds. Nothing is applied.
func (p *Plane) analyze(w http.ResponseWriter, r *http.Request) {
	var contents []json.RawMessage
	if err := json.NewDecoder(httpx.Body(w, r, maxAnalyzed)).Decode(&contents); err != nil {
		httpx.Error(w, http.StatusBadRequest, fmt.Errorf("decode the objects: %w", err))
		return
	}
	var objects []*api.Object
	for _, content := range contents {
		o, err := api.DecodeJSON(p.cfg.Kinds, content)
		if err != nil {
			httpx.Error(w, http.StatusUnprocessableEntity, err)
			return
		}
		objects = append(objects, o)
	}
	index, _, _ := p.view(objects...)
	if index == nil {
		Fail(w, errNoFacts)
		return
	}
	httpx.JSON(w, index.CheckAll())
}

func (p *Plane) resources() []status.Resource {
	objects, _ := p.intent.load()
	resources := []status.Resource{}
	for _, o := range objects {
		resources = append(resources, status.Resource{Resource: o.String(), ResourceVersion: o.Meta.ResourceVersion})
	}
	return resources
}
