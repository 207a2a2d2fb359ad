package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

func call(t *testing.T, h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec
}

func TestServices(t *testing.T) {
	none := func(string) string { return "" }
	for _, tt := range []struct {
		service, method, path, body string
		code                        int
		want                        string
	}{
		{"details", "GET", "/health", "", 200, `{"status":"Details is healthy"}`},
		{"details", "GET", "/details/7", "", 200, `{"id":7,`},
		{"details", "GET", "/details/x", "", 400, `{"error":"please provide numeric product id"}`},
		{"ratings", "GET", "/health", "", 200, `{"status":"Ratings is healthy"}`},
		{"ratings", "GET", "/ratings/0", "", 200, `{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}`},
		{"ratings", "GET", "/ratings/x", "", 400, `{"error":"please provide numeric product ID"}`},
		{"ratings", "POST", "/ratings/x", "{}", 400, `{"error":"please provide numeric product ID"}`},
		{"ratings", "POST", "/ratings/0", "stars", 400, `{"error":"please provide valid ratings JSON"}`},
		{"ratings", "POST", "/ratings/0", `{"Reviewer1":2}`, 200, `{"id":0,"ratings":{"Reviewer1":2}}`},
		{"reviews", "GET", "/health", "", 200, `{"status":"Reviews is healthy"}`},
		{"reviews", "GET", "/reviews/0", "", 200, `{"id":"0","podname":"","clustername":"null","reviews":[{"reviewer":"Reviewer1","text":`},
		{"reviews", "GET", "/reviews/x", "", 404, `{"error":`},
		{"reviews", "DELETE", "/reviews/0", "", 405, "Method Not Allowed"},
	} {
		rec := call(t, services[tt.service](none), tt.method, tt.path, tt.body)
		if rec.Code != tt.code || !strings.HasPrefix(rec.Body.String(), tt.want) {
			t.Errorf("%s: %s %s: %d %s, want %d %s", tt.service, tt.method, tt.path, rec.Code, rec.Body, tt.code, tt.want)
		}
	}
}

func TestRatingsKeepWhatIsPostedWithinBounds(t *testing.T) {
	h := newRatings()
	for i := range maxRated {
		if rec := call(t, h, "POST", "/ratings/"+strconv.Itoa(i), `{"Reviewer1":1}`); rec.Code != http.StatusOK {
			t.Fatalf("product %d: %d %s", i, rec.Code, rec.Body)
		}
	}
	if rec := call(t, h, "POST", "/ratings/99999", `{"Reviewer1":1}`); rec.Code != http.StatusInsufficientStorage {
		t.Errorf("one too many: %d, want 507", rec.Code)
	}
	if rec := call(t, h, "POST", "/ratings/5", `{"Reviewer1":3}`); rec.Code != http.StatusOK {
		t.Errorf("a known one: %d, want 200", rec.Code)
	}
	if got := call(t, h, "GET", "/ratings/5", "").Body.String(); got != `{"id":5,"ratings":{"Reviewer1":3}}` {
		t.Errorf("ratings of 5: %s", got)
	}
}

func TestLogin(t *testing.T) {
	h := newProductpage(productpageConfig{})
	const form = "application/x-www-form-urlencoded"
	for _, tt := range []struct {
		name, user, referer string
		code                int
		cookie, location    string
	}{
		{"plain", "jason", "http://example.com/productpage", 302, "session=jason;", "/productpage"},
		{"from the map", "jason", "http://example.com/?a=b", 302, "session=jason;", "/?a=b"},
		{"without a referer", "jason", "", 302, "session=jason;", "/productpage"},
		{"from elsewhere", "jason", "http://evil.test/steal", 302, "session=jason;", "/productpage"},
		{"with a path that is a host", "jason", "http://example.com//evil.test", 302, "session=jason;", "/productpage"},
		{"odd but fine", "Jürgen O'Neil", "", 302, "session=J%C3%BCrgen+O%27Neil;", "/productpage"},
		{"none", " ", "", 400, "", ""},
		{"header injection", "a\r\nX-Admin: 1", "", 400, "", ""},
		{"long", strings.Repeat("a", 65), "", 400, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := call(t, h, "POST", "/login", url.Values{"username": {tt.user}, "passwd": {"x"}}.Encode(), "Content-Type", form, "Referer", tt.referer)
			if cookie := rec.Header().Get("Set-Cookie"); rec.Code != tt.code || !strings.HasPrefix(cookie, tt.cookie) || (cookie == "") != (tt.cookie == "") || rec.Header().Get("Location") != tt.location {
				t.Errorf("%d, cookie %q, location %q; want %d, %q, %q", rec.Code, cookie, rec.Header().Get("Location"), tt.code, tt.cookie, tt.location)
			}
			if tt.cookie != "" {
				req := httptest.NewRequest(http.MethodGet, "/", nil)
				req.Header.Set("Cookie", strings.TrimSuffix(tt.cookie, ";"))
				if got := userOf(req); got != tt.user {
					t.Errorf("the cookie means %q, want %q", got, tt.user)
				}
			}
		})
	}
	for _, forged := range []string{"a%0d%0aX-Admin:1", "%zz", strings.Repeat("a", 100)} {
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Header.Set("Cookie", "session="+forged)
		if got := userOf(req); got != "" {
			t.Errorf("cookie %q means %q, want nobody", forged, got)
		}
	}
}

func TestBaseURL(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"http://details:9080":                {},
		"http://books:9080":                  {"DETAILS_HOSTNAME": "books"},
		"http://details.service.consul:9080": {"SERVICES_DOMAIN": "service.consul"},
		"http://books.service.consul:8000":   {"DETAILS_HOSTNAME": "books", "SERVICES_DOMAIN": "service.consul", "DETAILS_SERVICE_PORT": "8000"},
	} {
		if got := baseURL(func(name string) string { return env[name] }, "details"); got != want {
			t.Errorf("with %v: %s, want %s", env, got, want)
		}
	}
}

func TestRunNamesWhatItCanBe(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, args := range [][]string{nil, {"mongodb"}, {"details", "9080"}} {
		err := run(t.Context(), log, args, func(string) string { return "" })
		if err == nil || !strings.Contains(err.Error(), "want one of: check, details, productpage, ratings, reviews") {
			t.Errorf("run %q: %v, want an error that lists the services", args, err)
		}
	}
}

// TestServeFinishesOpenRequests: SIGTERM must not cost a reader the page.
func TestServeFinishesOpenRequests(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	entered, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- serve(ctx, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			close(entered)
			<-leave
			_, _ = io.WriteString(w, "whole")
		}))
	}()
	answered := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answered <- string(body)
	}()
	<-entered
	cancel()
	close(leave)
	if got := <-answered; got != "whole" {
		t.Errorf("open request got %q, want the whole answer", got)
	}
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func TestCheck(t *testing.T) {
	well := httptest.NewServer(newDetails())
	defer well.Close()
	if err := check(t.Context(), well.URL); err != nil {
		t.Errorf("a healthy service: %v", err)
	}
	ill := httptest.NewServer(http.NotFoundHandler())
	defer ill.Close()
	if err := check(t.Context(), ill.URL); err == nil || !strings.Contains(err.Error(), "status 404") {
		t.Errorf("one without /health: %v, want an error with its status", err)
	}
}
