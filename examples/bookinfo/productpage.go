package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// callTimeout is what productpage gives each call to another service.
const callTimeout = 3 * time.Second

// reviewsAttempts is the other half of the planted bug: productpage asks reviews twice and gives up after 6 s in all,
// while version 2 of reviews itself waits 10 s for ratings. A delay of 7 s before ratings, which every service alone
// would bear, so breaks the page.
const reviewsAttempts = 2

const (
	sessionCookie = "session"
	maxUserName   = 64 // bytes
)

type productpageConfig struct {
	Details, Reviews, Ratings string // base URLs
	Client                    *http.Client
}

// productpage is the page and the API in front of the other services.
type productpage struct{ productpageConfig }

// product is an entry of the catalogue.
type product struct {
	ID              int           `json:"id"`
	Title           string        `json:"title"`
	DescriptionHTML template.HTML `json:"descriptionHtml"`
}

// catalogue is all that there is to read.
var catalogue = []product{{
	ID:    0,
	Title: "The Comedy of Errors",
	DescriptionHTML: `<a href="https://en.wikipedia.org/wiki/The_Comedy_of_Errors">Wikipedia Summary</a>: ` +
		`The Comedy of Errors is one of <b>William Shakespeare's</b> early plays. It is his shortest and one of his most ` +
		`farcical comedies, with a major part of the humour coming from slapstick and mistaken identity, in addition to ` +
		`puns and word play.`,
}}

func newProductpage(cfg productpageConfig) http.Handler {
	s := &productpage{cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.serveIndex)
	mux.HandleFunc("GET /index.html", s.serveIndex)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("Product page is healthy"))
	})
	mux.HandleFunc("GET /productpage", s.servePage)
	mux.HandleFunc("POST /login", serveLogin)
	mux.HandleFunc("GET /logout", serveLogout)
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, catalogue) })
	mux.HandleFunc("GET /api/v1/products/{id}", s.api(s.details))
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", s.api(s.reviews))
	mux.HandleFunc("GET /api/v1/products/{id}/ratings", s.api(s.ratings))
	return mux
}

// part is one service's contribution to the page: its JSON with status 200, else a failure in JSON.
type part struct {
	status int
	body   []byte
}

func (s *productpage) api(fetch func(r *http.Request, id string) part) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := fetch(r, r.PathValue("id"))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(p.status)
		_, _ = w.Write(p.body) // the client is gone: nobody to tell
	}
}

func (s *productpage) details(r *http.Request, id string) part {
	return s.fetch(r, s.Details+"/details/"+url.PathEscape(id), 1, "Sorry, product details are currently unavailable for this book.")
}

func (s *productpage) reviews(r *http.Request, id string) part {
	return s.fetch(r, s.Reviews+"/reviews/"+url.PathEscape(id), reviewsAttempts, "Sorry, product reviews are currently unavailable for this book.")
}

func (s *productpage) ratings(r *http.Request, id string) part {
	return s.fetch(r, s.Ratings+"/ratings/"+url.PathEscape(id), 1, "Sorry, product ratings are currently unavailable for this book.")
}

// fetch asks another service for JSON. After the last attempt the status is the one it gave, 500 if it gave none.
func (s *productpage) fetch(r *http.Request, url string, attempts int, sorry string) part {
	header := forwardHeaders(r)
	if user := userOf(r); user != "" {
		header.Set(endUser, user)
	}
	status := http.StatusInternalServerError
	for range attempts {
		body, err := s.attempt(r.Context(), url, header)
		if err == nil {
			return part{http.StatusOK, body}
		}
		status = http.StatusInternalServerError
		var answered *statusError
		if errors.As(err, &answered) {
			status = answered.status
		}
		slog.WarnContext(r.Context(), "call failed", "error", err)
	}
	body, _ := json.Marshal(failure{sorry}) // a string always encodes
	return part{status, body}
}

func (s *productpage) attempt(ctx context.Context, url string, header http.Header) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := get(ctx, s.Client, url, header.Clone())
	if err == nil && !json.Valid(body) {
		err = fmt.Errorf("GET %s: the answer is not JSON", url)
	}
	return body, err
}

// userOf is who is signed in, "" if nobody is.
func userOf(r *http.Request) string {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return ""
	}
	user, err := url.QueryUnescape(c.Value)
	if err != nil || !validUser(user) {
		return ""
	}
	return user
}

// validUser says whether a name can stand in a header.
func validUser(name string) bool {
	return name != "" && len(name) <= maxUserName && httpguts.ValidHeaderFieldValue(name) && name == strings.TrimSpace(name)
}

// serveLogin signs in whoever asks, under any name: there are no passwords, so the session holds the bare name.
func serveLogin(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
	user := strings.TrimSpace(r.FormValue("username"))
	if !validUser(user) {
		http.Error(w, fmt.Sprintf("username: want 1 to %d bytes without control characters", maxUserName), http.StatusBadRequest)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: url.QueryEscape(user), Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	back(w, r)
}

func serveLogout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	back(w, r)
}

// back sends the browser to the page that it came from, if that is ours.
func back(w http.ResponseWriter, r *http.Request) {
	target := "/productpage"
	if from, err := url.Parse(r.Referer()); err == nil && from.Host == r.Host && strings.HasPrefix(from.Path, "/") && !strings.HasPrefix(from.Path, "//") {
		target = (&url.URL{Path: from.Path, RawQuery: from.RawQuery}).String()
	}
	http.Redirect(w, r, target, http.StatusFound)
}

var (
	//go:embed page.html
	pageHTML string
	//go:embed index.html
	indexHTML string
	//go:embed style.css
	styleCSS string

	pageTemplate  = parse(pageHTML)
	indexTemplate = parse(indexHTML)
)

func parse(text string) *template.Template {
	return template.Must(template.New("").Funcs(template.FuncMap{
		"css":   func() template.CSS { return template.CSS(styleCSS) }, //nolint:gosec // our own file
		"stars": fiveStars,
		"initial": func(name string) string {
			for _, r := range name {
				return strings.ToUpper(string(r))
			}
			return "?"
		},
	}).Parse(text))
}

// fiveStars says of each of five stars whether it is full.
func fiveStars(n int) []bool {
	stars := make([]bool, 5)
	for i := range stars {
		stars[i] = i < n
	}
	return stars
}

// pageData is what the page shows. What could not be had is nil, and its error says so.
type pageData struct {
	Product      product
	User         string
	Details      *bookDetails
	DetailsError string
	Reviews      *bookReviews
	ReviewsError string
}

func (s *productpage) servePage(w http.ResponseWriter, r *http.Request) {
	book := catalogue[0]
	data := pageData{Product: book, User: userOf(r)}
	id := strconv.Itoa(book.ID)
	data.Details, data.DetailsError = show[bookDetails](s.details(r, id))
	data.Reviews, data.ReviewsError = show[bookReviews](s.reviews(r, id))
	render(w, pageTemplate, data)
}

// show reads a part for the page.
func show[T any](p part) (*T, string) {
	if p.status != http.StatusOK {
		var why failure
		_ = json.Unmarshal(p.body, &why) // fetch has made it
		return nil, why.Error
	}
	var v T
	if err := json.Unmarshal(p.body, &v); err != nil {
		slog.Warn("an answer has another shape than expected", "error", err)
		return nil, "The answer can't be read."
	}
	return &v, ""
}

// indexData is the map of the application.
type indexData struct {
	User     string
	Services []serviceLink
}

type serviceLink struct{ Name, URL, Purpose string }

func (s *productpage) serveIndex(w http.ResponseWriter, r *http.Request) {
	render(w, indexTemplate, indexData{User: userOf(r), Services: []serviceLink{
		{"details", s.Details, "what kind of book it is"},
		{"reviews", s.Reviews, "what readers say: version 1 without stars, 2 with black ones, 3 with red ones"},
		{"ratings", s.Ratings, "the stars, which reviews asks for"},
	}})
}

func render(w http.ResponseWriter, t *template.Template, data any) {
	var page bytes.Buffer // so that an error is a status, not half a page
	if err := t.Execute(&page, data); err != nil {
		slog.Error("the page can't be made", "error", err)
		http.Error(w, "the page can't be made", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'")
	h.Set("Cache-Control", "no-store") // the next reload may be another version's
	_, _ = page.WriteTo(w)             // the client is gone: nobody to tell
}
