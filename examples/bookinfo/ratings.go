package main

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"sync"
)

// maxRated bounds the products whose ratings are kept.
const maxRated = 1000

// bookRatings is the answer of the ratings service: stars by reviewer.
type bookRatings struct {
	ID      int            `json:"id"`
	Ratings map[string]int `json:"ratings"`
}

// ratings is the ratings service: GET /ratings/<id>, and POST with stars by reviewer to replace them.
type ratings struct {
	mu    sync.Mutex
	added map[int]map[string]int // by product; others have the same two ratings
}

func newRatings() http.Handler {
	s := &ratings{added: map[int]map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, health{"Ratings is healthy"})
	})
	mux.HandleFunc("GET /ratings/{id}", s.serveGet)
	mux.HandleFunc("POST /ratings/{id}", s.servePost)
	return mux
}

func (s *ratings) serveGet(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{"please provide numeric product ID"})
		return
	}
	writeJSON(w, http.StatusOK, s.of(id))
}

func (s *ratings) servePost(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{"please provide numeric product ID"})
		return
	}
	var given map[string]int
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxAnswer)).Decode(&given); err != nil {
		writeJSON(w, http.StatusBadRequest, failure{"please provide valid ratings JSON"})
		return
	}
	if !s.put(id, given) {
		writeJSON(w, http.StatusInsufficientStorage, failure{"too many products have ratings"})
		return
	}
	writeJSON(w, http.StatusOK, s.of(id))
}

func (s *ratings) of(id int) bookRatings {
	s.mu.Lock()
	defer s.mu.Unlock()
	if added, ok := s.added[id]; ok {
		return bookRatings{id, maps.Clone(added)}
	}
	return bookRatings{id, map[string]int{"Reviewer1": 5, "Reviewer2": 4}}
}

func (s *ratings) put(id int, given map[string]int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.added[id]; !known && len(s.added) >= maxRated {
		return false
	}
	s.added[id] = given
	return true
}
