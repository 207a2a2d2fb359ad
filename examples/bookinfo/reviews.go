package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// bookReviews is the answer of the reviews service.
type bookReviews struct {
	ID          string       `json:"id"`
	PodName     string       `json:"podname"`
	ClusterName string       `json:"clustername"` // "null" where there is none, as in the original
	Reviews     []bookReview `json:"reviews"`
}

type bookReview struct {
	Reviewer string  `json:"reviewer"`
	Text     string  `json:"text"`
	Rating   *rating `json:"rating,omitempty"` // nil in version 1
}

// rating holds stars and their colour, or why there are none.
type rating struct {
	Stars int    `json:"stars,omitempty"`
	Color string `json:"color,omitempty"`
	Error string `json:"error,omitempty"`
}

type reviewsConfig struct {
	EnableRatings bool   // false in version 1
	StarColor     string // black in version 2, red in version 3
	PodName       string
	ClusterName   string
	Ratings       string // base URL of the ratings service
	Client        *http.Client
}

// reviews is the reviews service: GET /reviews/<id>.
type reviews struct {
	reviewsConfig
	timeout time.Duration // of a call to ratings
}

func newReviews(cfg reviewsConfig) http.Handler {
	// One half of the planted bug: version 2 waits for ratings longer than productpage waits for it. Version 3 is the
	// fix.
	s := &reviews{reviewsConfig: cfg, timeout: 2500 * time.Millisecond}
	if cfg.StarColor == "black" {
		s.timeout = 10 * time.Second
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, health{"Reviews is healthy"})
	})
	mux.HandleFunc("GET /reviews/{id}", s.serve)
	return mux
}

func (s *reviews) serve(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		writeJSON(w, http.StatusNotFound, failure{"please provide numeric product id"})
		return
	}
	answer := bookReviews{ID: strconv.Itoa(id), PodName: s.PodName, ClusterName: s.ClusterName, Reviews: []bookReview{
		{Reviewer: "Reviewer1", Text: "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!"},
		{Reviewer: "Reviewer2", Text: "Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare."},
	}}
	if s.EnableRatings {
		stars := s.stars(r, id)
		for i := range answer.Reviews {
			review := &answer.Reviews[i]
			if n, ok := stars[review.Reviewer]; ok {
				review.Rating = &rating{Stars: n, Color: s.StarColor}
			} else {
				review.Rating = &rating{Error: "Ratings service is currently unavailable"}
			}
		}
	}
	writeJSON(w, http.StatusOK, answer)
}

// stars asks ratings for the stars by reviewer; nil if it does not tell.
func (s *reviews) stars(r *http.Request, id int) map[string]int {
	ctx, cancel := context.WithTimeout(r.Context(), s.timeout)
	defer cancel()
	header := forwardHeaders(r)
	if user := r.Header.Values(endUser); len(user) > 0 {
		header[endUser] = user
	}
	body, err := get(ctx, s.Client, s.Ratings+"/ratings/"+strconv.Itoa(id), header)
	var answer bookRatings
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err != nil {
		slog.WarnContext(ctx, "no ratings", "error", err)
		return nil
	}
	return answer.Ratings
}
