package mixer

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/mesh/report"
)

// Bounds on what one proxy may send at once.
const (
	maxEntriesBytes = 1 << 20
	maxEntryBytes   = 256 << 10
)

// serveEntries answers 202 when the entries are handed to their handlers' queues. Errors: 400 for what is malformed, 401 for
// a certificate that ran out while the connection was open, 413 for too much, 503 while the handlers are not known yet.
func (s *Server) serveEntries(w http.ResponseWriter, r *http.Request) {
	if _, err := peerID(r, time.Now()); err != nil {
		w.Header().Set("Connection", "close") // the next connection has a handshake, and a new certificate
		httpx.Error(w, http.StatusUnauthorized, err)
		return
	}
	if !s.configured.Load() {
		httpx.Error(w, http.StatusServiceUnavailable, errors.New("mixer has not read its configuration yet"))
		return
	}
	var batch []report.Entry
	lines := bufio.NewScanner(httpx.Body(w, r, maxEntriesBytes))
	lines.Buffer(nil, maxEntryBytes)
	for lines.Scan() {
		var e report.Entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			httpx.Error(w, http.StatusBadRequest, fmt.Errorf("entry %d: %w", len(batch), err))
			return
		}
		batch = append(batch, e)
	}
	if err := lines.Err(); err != nil {
		httpx.Error(w, statusOf(err), fmt.Errorf("entries: %w", err))
		return
	}
	s.handlers.Give(batch)
	w.WriteHeader(http.StatusAccepted)
}
