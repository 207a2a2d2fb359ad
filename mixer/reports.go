package mixer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/report"
)

// maxReportBytes bounds one report. A proxy with more series than fit may send them in several reports: each series is
// cumulative by itself.
const maxReportBytes = 16 << 20

func (s *Server) reportsHandler() http.Handler {
	mux := http.NewServeMux()
	s.HandleMesh(mux)
	mux.HandleFunc("GET /v1/leases", s.serveCounts)
	mux.HandleFunc("POST /v1/leases", s.serveLeases)
	mux.HandleFunc("POST /v1/reports", s.serveReport)
	mux.HandleFunc("POST /v1/entries", s.serveEntries)
	mux.HandleFunc("GET /v1/traffic", s.serveTraffic)
	return mux
}

// serveTraffic tells pilot what came of the requests to some workloads: ?workload=NAME, repeated. A rollout is judged by it.
func (s *Server) serveTraffic(w http.ResponseWriter, r *http.Request) {
	id, err := peerID(r, time.Now())
	if err != nil {
		httpx.Error(w, http.StatusUnauthorized, err)
		return
	}
	if pilot, err := mesh.PlaneID(s.cfg.TrustDomain, mesh.RolePilot); err != nil || id != pilot {
		httpx.Error(w, http.StatusForbidden, fmt.Errorf("%s is not pilot: traffic is told to pilot alone", id))
		return
	}
	httpx.JSON(w, s.totals.traffic(r.URL.Query()["workload"]))
}

// serveReport answers 204 when the report is counted, and also when a later one is: either way the proxy has nothing
// left to do. Errors: 400 for a report that is malformed, 401 for a certificate that ran out while the connection
// was open, 403 for a series that is another proxy's to report, 409 for counters that fell, 410 for an instance that
// was given up, 413 for too large a report, 429 when mixer is full.
func (s *Server) serveReport(w http.ResponseWriter, r *http.Request) {
	id, err := peerID(r, time.Now())
	if err != nil {
		s.totals.refuse()
		w.Header().Set("Connection", "close") // the next connection has a handshake, and a new certificate
		httpx.Error(w, http.StatusUnauthorized, err)
		return
	}
	err = s.take(id, httpx.Body(w, r, maxReportBytes))
	s.refusals.note(s.cfg.Log, id, err)
	if err != nil {
		httpx.Error(w, statusOf(err), err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// take reads, checks and counts one report.
func (s *Server) take(id spiffeid.ID, body io.Reader) error {
	r, err := decode(body)
	if err == nil {
		err = validate(id, r)
	}
	if err != nil {
		s.totals.refuse()
		return fmt.Errorf("report: %w", err)
	}
	if err := s.totals.ingest(id, r, time.Now()); err != nil && !errors.Is(err, errStale) {
		return fmt.Errorf("report of workload %s, instance %s: %w", r.Workload, r.Instance, err)
	}
	return nil
}

// decode reads exactly one report, strictly: a field that is not known is a contract that is not kept.
func decode(body io.Reader) (*report.Report, error) {
	dec := json.NewDecoder(body)
	dec.DisallowUnknownFields()
	var r report.Report
	if err := dec.Decode(&r); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more follows after the report, want exactly one JSON object")
	}
	return &r, nil
}

// peerID is who has sent r. The handshake has verified the certificate, but a connection may outlive it.
func peerID(r *http.Request, now time.Time) (spiffeid.ID, error) {
	id, err := identity.PeerID(r.TLS)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if end := r.TLS.PeerCertificates[0].NotAfter; now.After(end) {
		return spiffeid.ID{}, fmt.Errorf("the certificate of %s expired at %s: connect anew with a new one", id, end.UTC().Format(time.RFC3339))
	}
	return id, nil
}

func statusOf(err error) int {
	var foreign *identityError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &foreign):
		return http.StatusForbidden
	case errors.As(err, &large):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, errFell):
		return http.StatusConflict
	case errors.Is(err, errRetired):
		return http.StatusGone
	case errors.Is(err, errFull):
		return http.StatusTooManyRequests
	}
	return http.StatusBadRequest
}

// refusals logs a peer when its reports begin to be refused, when the reason changes, and when they are taken again.
type refusals struct {
	mu   sync.Mutex
	last map[spiffeid.ID]string // why a peer's last report was refused
}

func (f *refusals) note(log *slog.Logger, id spiffeid.ID, err error) {
	reason := ""
	if err != nil {
		reason = err.Error()
	}
	f.mu.Lock()
	was := f.last[id]
	if reason == "" {
		delete(f.last, id)
	} else {
		f.last[id] = reason
	}
	f.mu.Unlock()
	switch reason {
	case was:
	case "":
		log.Info("reports are taken again", "peer", id)
	default:
		log.Warn("report refused", "peer", id, "error", reason)
	}
}
