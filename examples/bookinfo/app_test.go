package main

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

const (
	noReviews = "Sorry, product reviews are currently unavailable for this book."
	noRatings = "Ratings service is currently unavailable"
)

// stars counts the full and the empty stars of the page and tells their colours.
func stars(t *testing.T, page string) (full, empty int, colors []string) {
	t.Helper()
	doc := parseHTML(t, page)
	for n := range doc.Descendants() {
		switch attribute(n, "class") {
		case "star":
			full++
		case "star empty":
			empty++
		case "stars":
			colors = append(colors, strings.TrimPrefix(attribute(n, "style"), "color: "))
		}
	}
	return full, empty, colors
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func parseHTML(t *testing.T, page string) *html.Node {
	t.Helper()
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestPageShowsWhatTheChosenVersionSays(t *testing.T) {
	for _, tt := range []struct {
		version     string
		full, empty int
		colors      []string
	}{
		{"v1", 0, 0, nil},
		{"v2", 9, 1, []string{"black", "black"}},
		{"v3", 9, 1, []string{"red", "red"}},
	} {
		t.Run(tt.version, func(t *testing.T) {
			b := newBookinfo(t)
			b.route = func(*http.Request) string { return tt.version }
			code, page := b.reader(t).get("/productpage")
			if code != http.StatusOK {
				t.Fatalf("status %d\n%s", code, page)
			}
			full, empty, colors := stars(t, page)
			if full != tt.full || empty != tt.empty || !cmp.Equal(colors, tt.colors) {
				t.Errorf("%d full stars, %d empty, colours %v; want %d, %d, %v", full, empty, colors, tt.full, tt.empty, tt.colors)
			}
			for _, want := range []string{"<title>Simple Bookstore App</title>", "The Comedy of Errors", "Wikipedia Summary", "PublisherA", "1234567890",
				"slapstick humour is refreshing!", "Reviewer2", "Reviews served by: <code>reviews-" + tt.version + "</code>", "Sign in"} {
				if !strings.Contains(page, want) {
					t.Errorf("page lacks %q", want)
				}
			}
		})
	}
}

func TestOnlyJasonSeesBlackStars(t *testing.T) {
	b := newBookinfo(t)
	b.route = jasonTo("v2")
	r := b.reader(t)
	count := func() int {
		_, page := r.get("/productpage")
		full, _, _ := stars(t, page)
		return full
	}
	if n := count(); n != 0 {
		t.Errorf("%d stars before sign-in, want none", n)
	}
	r.signIn("jason")
	if n := count(); n != 9 {
		t.Errorf("%d stars for jason, want 9", n)
	}
	if code, page := r.get("/logout"); code != http.StatusOK || !strings.Contains(page, "Sign in") {
		t.Errorf("sign out: %d\n%s", code, page)
	}
	if n := count(); n != 0 {
		t.Errorf("%d stars after sign-out, want none", n)
	}
	r.signIn("mary")
	if n := count(); n != 0 {
		t.Errorf("%d stars for mary, want none", n)
	}
	// A reader can't name another user by a header of the browser's.
	if _, body := b.reader(t).get("/api/v1/products/0/reviews", "end-user", "jason"); strings.Contains(body, "color") {
		t.Errorf("an end-user header from outside passed productpage: %s", body)
	}
}

func TestHeadersAreForwardedAlongTheChain(t *testing.T) {
	b := newBookinfo(t)
	b.route = jasonTo("v3")
	r := b.reader(t)
	r.signIn("jason")
	sent := map[string]string{
		"x-request-id": "r1", "x-b3-traceid": "t1", "x-b3-spanid": "s1", "x-b3-parentspanid": "p1", "x-b3-sampled": "1", "x-b3-flags": "0", "b3": "t1-s1-1",
		"traceparent": "00-t1-s1-01", "tracestate": "a=b", "baggage": "k=v", "x-ot-span-context": "ot", "x-cloud-trace-context": "c", "user-agent": "curl/8", "authorization": "Bearer x",
	}
	header := []string{"x-secret", "stays"}
	for name, value := range sent {
		header = append(header, name, value)
	}
	if code, body := r.get("/productpage", header...); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	for _, service := range []string{"details", "reviews", "ratings"} {
		requests := b.requests(service)
		if len(requests) == 0 {
			t.Fatalf("no request reached %s", service)
		}
		got := requests[len(requests)-1]
		for name, value := range sent {
			if got.Get(name) != value {
				t.Errorf("%s got %s %q, want %q", service, name, got.Get(name), value)
			}
		}
		if got.Get("end-user") != "jason" || got.Get("x-secret") != "" || !strings.Contains(got.Get("cookie"), "session=jason") {
			t.Errorf("%s got end-user %q, x-secret %q, cookie %q", service, got.Get("end-user"), got.Get("x-secret"), got.Get("cookie"))
		}
	}
}

// TestThePlantedBug is the lecture's: a delay that no service alone minds breaks the page, after two times 3 s.
func TestThePlantedBug(t *testing.T) {
	for _, tt := range []struct {
		name    string
		version string
		delay   time.Duration
		took    time.Duration
		shows   string
		ratings int // requests that reached ratings
	}{
		{"7 s break the page of version 2", "v2", 7 * time.Second, 6 * time.Second, noReviews, 2},
		{"2 s do not", "v2", 2 * time.Second, 2 * time.Second, "reviews-v2", 1},
		{"version 3 is fixed", "v3", 7 * time.Second, 2500 * time.Millisecond, noRatings, 1},
		{"version 1 does not mind", "v1", 7 * time.Second, 0, "reviews-v1", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBookinfo(t)
				b.route, b.fault = jasonTo(tt.version), delay(tt.delay)
				start := time.Now()
				code, page := b.signedIn(t, "jason")
				if took := time.Since(start); took != tt.took {
					t.Errorf("the page took %s, want %s", took, tt.took)
				}
				if code != http.StatusOK || !strings.Contains(page, tt.shows) {
					t.Errorf("status %d, page lacks %q:\n%s", code, tt.shows, page)
				}
				if got := strings.Contains(page, "Error fetching product reviews!"); got != (tt.shows == noReviews) {
					t.Errorf("the page names the error: %t", got)
				}
				if got := len(b.requests("ratings")); got != tt.ratings {
					t.Errorf("%d requests reached ratings, want %d", got, tt.ratings)
				}
			})
		})
	}
}

// signedIn fetches the page once, as a user whose session cookie is there already.
func (b *bookinfo) signedIn(t *testing.T, user string) (int, string) {
	t.Helper()
	return b.reader(t).get("/productpage", "Cookie", sessionCookie+"="+user)
}

func TestAbortedRatings(t *testing.T) {
	b := newBookinfo(t)
	b.route = jasonTo("v2")
	b.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("end-user") != "jason" {
			return false
		}
		http.Error(w, "fault filter abort", http.StatusInternalServerError)
		return true
	}
	code, page := b.signedIn(t, "jason")
	if code != http.StatusOK || strings.Count(page, noRatings) != 2 || !strings.Contains(page, "slapstick") {
		t.Errorf("status %d, want the reviews, each with %q:\n%s", code, noRatings, page)
	}
	if full, _, _ := stars(t, page); full != 0 {
		t.Errorf("%d stars, want none", full)
	}
}

func TestPageWithoutDetailsOrReviews(t *testing.T) {
	b := newBookinfo(t)
	delete(b.hosts, "details:9080")
	b.hosts["reviews:9080"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) })
	r := b.reader(t)
	code, page := r.get("/productpage")
	for _, want := range []string{"Error fetching product details!", "Sorry, product details are currently unavailable for this book.", "Error fetching product reviews!", noReviews} {
		if code != http.StatusOK || !strings.Contains(page, want) {
			t.Errorf("status %d, page lacks %q", code, want)
		}
	}
	if got := len(b.requests("reviews")); got != 2 {
		t.Errorf("%d requests reached reviews, want 2", got)
	}
	if code, body := r.get("/api/v1/products/0"); code != 500 || body != `{"error":"Sorry, product details are currently unavailable for this book."}` {
		t.Errorf("no details: %d %s", code, body)
	}
	if code, body := r.get("/api/v1/products/0/reviews"); code != 429 || body != `{"error":"`+noReviews+`"}` {
		t.Errorf("no reviews: %d %s", code, body)
	}
}

func TestAnAnswerThatIsNotJSONIsAFailure(t *testing.T) {
	b := newBookinfo(t)
	b.hosts["details:9080"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") })
	if code, body := b.reader(t).get("/api/v1/products/0"); code != http.StatusInternalServerError || !strings.Contains(body, "unavailable") {
		t.Errorf("%d %s, want 500 and the excuse", code, body)
	}
	b.hosts["reviews:9080"] = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"reviews":"none"}`) })
	if code, page := b.reader(t).get("/productpage"); code != http.StatusOK || !strings.Contains(page, "Error fetching product reviews!") {
		t.Errorf("%d, want the page with the error in place of reviews of another shape:\n%s", code, page)
	}
}

func TestAPI(t *testing.T) {
	b := newBookinfo(t)
	b.route = func(*http.Request) string { return "v3" }
	r := b.reader(t)
	for path, want := range map[string]string{
		"/health":                    "Product page is healthy",
		"/api/v1/products/0":         `{"id":0,"author":"William Shakespeare","year":1595,"type":"paperback","pages":200,"publisher":"PublisherA","language":"English","ISBN-10":"1234567890","ISBN-13":"123-1234567890"}`,
		"/api/v1/products/0/ratings": `{"id":0,"ratings":{"Reviewer1":5,"Reviewer2":4}}`,
		"/api/v1/products/0/reviews": `{"id":"0","podname":"reviews-v3","clustername":"null","reviews":[` +
			`{"reviewer":"Reviewer1","text":"An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!","rating":{"stars":5,"color":"red"}},` +
			`{"reviewer":"Reviewer2","text":"Absolutely fun and entertaining. The play lacks thematic depth when compared to other plays by Shakespeare.","rating":{"stars":4,"color":"red"}}]}`,
	} {
		if code, body := r.get(path); code != http.StatusOK || body != want {
			t.Errorf("%s: %d %s\nwant %s", path, code, body, want)
		}
	}
	code, body := r.get("/api/v1/products")
	if code != http.StatusOK || !strings.HasPrefix(body, `[{"id":0,"title":"The Comedy of Errors","descriptionHtml":"`) {
		t.Errorf("products: %d %s", code, body)
	}
	if code, body := r.get("/api/v1/products/x"); code != http.StatusBadRequest || !strings.Contains(body, "unavailable") {
		t.Errorf("no number: %d %s", code, body)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	b := newBookinfo(t)
	b.route = func(*http.Request) string { return "v2" }
	r := b.reader(t)
	for range 20 {
		if code, _ := r.get("/productpage"); code != http.StatusOK {
			t.Fatalf("status %d", code)
		}
	}
	if b.dials != 4 { // reader → productpage → details, reviews → ratings
		t.Errorf("%d connections for 20 pages, want 4", b.dials)
	}
}

func TestPagesAreWellFormed(t *testing.T) {
	b := newBookinfo(t)
	b.route = func(*http.Request) string { return "v2" }
	for name, fetch := range map[string]func() (int, string){
		"page":      func() (int, string) { return b.reader(t).get("/productpage") },
		"signed in": func() (int, string) { return b.signedIn(t, "jason") },
		"odd user":  func() (int, string) { return b.signedIn(t, "%3Cscript%3Ealert%281%29%3C%2Fscript%3E") },
		"map":       func() (int, string) { return b.reader(t).get("/") },
	} {
		t.Run(name, func(t *testing.T) {
			code, page := fetch()
			if code != http.StatusOK {
				t.Fatalf("status %d", code)
			}
			wellFormed(t, page)
			for n := range parseHTML(t, page).Descendants() {
				for _, a := range n.Attr {
					if (a.Key == "src" || a.Key == "href" && n.DataAtom == atom.Link) && !strings.HasPrefix(a.Val, "data:") {
						t.Errorf("<%s %s=%q> is fetched from elsewhere", n.Data, a.Key, a.Val)
					}
				}
				if n.DataAtom == atom.Script {
					t.Error("page has a script")
				}
			}
		})
	}
}

// wellFormed fails for a page with a tag that is not closed in its order. html.Parse forgives, so this reads the tokens.
func wellFormed(t *testing.T, page string) {
	t.Helper()
	void := map[string]bool{"meta": true, "link": true, "input": true, "br": true, "img": true}
	var open []string
	z := html.NewTokenizer(strings.NewReader(page))
	for {
		switch kind := z.Next(); kind {
		case html.ErrorToken:
			if !errors.Is(z.Err(), io.EOF) || len(open) > 0 {
				t.Errorf("page ends with %v, open: %v", z.Err(), open)
			}
			return
		case html.StartTagToken:
			if name, _ := z.TagName(); !void[string(name)] {
				open = append(open, string(name))
			}
		case html.EndTagToken:
			name, _ := z.TagName()
			if len(open) == 0 || open[len(open)-1] != string(name) {
				t.Fatalf("</%s> closes %v", name, open)
			}
			open = open[:len(open)-1]
		case html.TextToken, html.CommentToken, html.DoctypeToken, html.SelfClosingTagToken:
		}
	}
}

// TestReviewsWaitForRatingsAsTheirVersionDoes pins both timeouts: the bug is their distance to productpage's.
func TestReviewsWaitForRatingsAsTheirVersionDoes(t *testing.T) {
	for version, want := range map[string]time.Duration{"v2": 10 * time.Second, "v3": 2500 * time.Millisecond} {
		t.Run(version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBookinfo(t)
				b.route, b.fault = func(*http.Request) string { return version }, delay(time.Minute)
				start := time.Now()
				resp, err := b.client(t).Get("http://reviews:9080/reviews/0")
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if took := time.Since(start); err != nil || resp.Body.Close() != nil || took != want || strings.Count(string(body), noRatings) != 2 {
					t.Errorf("%v after %s, want %s and twice %q: %s", err, took, want, noRatings, body)
				}
			})
		})
	}
}
