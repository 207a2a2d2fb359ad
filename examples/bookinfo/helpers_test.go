package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"sync"
	"testing"
	"time"
)

// bookinfo is the whole application in one process, on a network of pipes, so that it can run on a false clock. Names are
// looked up as a mesh would: which version of reviews answers, and how ratings behaves, is the test's to say.
type bookinfo struct {
	mu    sync.Mutex
	hosts map[string]http.Handler
	// route picks the version of reviews for a request.
	route func(*http.Request) string
	// fault runs before ratings answers.
	fault func(w http.ResponseWriter, r *http.Request) (done bool)
	seen  map[string][]http.Header // requests by service
	dials int
}

func newBookinfo(t *testing.T) *bookinfo {
	t.Helper()
	b := &bookinfo{
		route: func(*http.Request) string { return "v1" },
		fault: func(http.ResponseWriter, *http.Request) bool { return false },
		seen:  map[string][]http.Header{},
	}
	env := map[string]string{"HOSTNAME": "reviews-v1"}
	getenv := func(name string) string { return env[name] }
	service := func(name string) http.Handler {
		// As services[name], but with a client of our network.
		switch name {
		case "productpage":
			return newProductpage(productpageConfig{Details: baseURL(getenv, "details"), Reviews: baseURL(getenv, "reviews"), Ratings: baseURL(getenv, "ratings"), Client: b.client(t)})
		case "reviews":
			return newReviews(reviewsConfig{EnableRatings: env["ENABLE_RATINGS"] == "true", StarColor: env["STAR_COLOR"], PodName: env["HOSTNAME"], ClusterName: "null", Ratings: baseURL(getenv, "ratings"), Client: b.client(t)})
		}
		return services[name](getenv)
	}
	versions := map[string]http.Handler{"v1": service("reviews")}
	env = map[string]string{"ENABLE_RATINGS": "true", "STAR_COLOR": "black", "HOSTNAME": "reviews-v2"}
	versions["v2"] = service("reviews")
	env = map[string]string{"ENABLE_RATINGS": "true", "STAR_COLOR": "red", "HOSTNAME": "reviews-v3"}
	versions["v3"] = service("reviews")
	env = nil
	ratings := service("ratings")
	b.hosts = map[string]http.Handler{
		"productpage:9080": service("productpage"),
		"details:9080":     service("details"),
		"reviews:9080":     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { versions[b.route(r)].ServeHTTP(w, r) }),
		"ratings:9080": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !b.fault(w, r) {
				ratings.ServeHTTP(w, r)
			}
		}),
	}
	return b
}

// client dials into the network.
func (b *bookinfo) client(t *testing.T) *http.Client {
	t.Helper()
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		b.mu.Lock()
		h, ok := b.hosts[address]
		b.dials++
		b.mu.Unlock()
		if !ok {
			return nil, fmt.Errorf("no service at %s", address)
		}
		ours, theirs := net.Pipe()
		ln := &oneConn{conn: make(chan net.Conn, 1), closed: make(chan struct{})}
		ln.conn <- theirs
		srv := &http.Server{Handler: b.record(address, h)}
		done := make(chan struct{})
		go func() {
			_ = srv.Serve(ln)
			close(done)
		}()
		t.Cleanup(func() { _ = srv.Close(); <-done })
		return ours, nil
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func (b *bookinfo) record(address string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.seen[address] = append(b.seen[address], r.Header.Clone())
		b.mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

func (b *bookinfo) requests(service string) []http.Header {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[service+":9080"]
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// reader is somebody with a browser.
type reader struct {
	t *testing.T
	*http.Client
}

func (b *bookinfo) reader(t *testing.T) *reader {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	c := b.client(t)
	c.Jar = jar
	return &reader{t, c}
}

func (r *reader) do(method, path, form string, header ...string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, "http://productpage:9080"+path, strings.NewReader(form))
	if err != nil {
		r.t.Fatal(err)
	}
	if form != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func (r *reader) get(path string, header ...string) (int, string) {
	r.t.Helper()
	return r.do(http.MethodGet, path, "", header...)
}

func (r *reader) signIn(user string) {
	r.t.Helper()
	if code, body := r.do(http.MethodPost, "/login", "username="+user+"&passwd=secret"); code != http.StatusOK || !strings.Contains(body, "Sign out") {
		r.t.Fatalf("sign in as %s: %d\n%s", user, code, body)
	}
}

// jasonTo routes jason to a version of reviews and all others to v1, as the lecture does.
func jasonTo(version string) func(*http.Request) string {
	return func(r *http.Request) string {
		if r.Header.Get("end-user") == "jason" {
			return version
		}
		return "v1"
	}
}

// delay is a fault of the length d.
func delay(d time.Duration) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		return false
	}
}
