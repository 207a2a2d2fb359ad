// Audit is an adapter outside of mixer, as small as one can be: it takes the entries that mixer posts, keeps the last
// hundred, and shows them at GET /.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"slices"
	"sync"
	"time"
)

// batch is what mixer posts to a handler's connection.
type batch struct {
	Handler string  `json:"handler"`
	Entries []entry `json:"entries"`
}

type entry struct {
	Instance  string         `json:"instance"`
	Time      time.Time      `json:"time"`
	Severity  string         `json:"severity"`
	Variables map[string]any `json:"variables"`
}

const (
	kept     = 100
	maxBatch = 8 << 20
)

type audit struct {
	mu   sync.Mutex
	last []entry
}

func (a *audit) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", a.take)
	mux.HandleFunc("GET /{$}", a.show)
	return mux
}

// take answers 204: what is not 2xx is tried once more, and then lost and counted by mixer.
func (a *audit) take(w http.ResponseWriter, r *http.Request) {
	var b batch
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBatch)).Decode(&b); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = append(a.last, b.Entries...)
	a.last = slices.Clone(a.last[max(0, len(a.last)-kept):])
	w.WriteHeader(http.StatusNoContent)
}

func (a *audit) show(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a.last) // the client is gone: nobody to tell
}

func main() {
	srv := &http.Server{Addr: ":8080", Handler: (&audit{last: []entry{}}).handler(), ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(srv.ListenAndServe())
}
