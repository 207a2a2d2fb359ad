package jwks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/citadel/compile"
)

func set(kid string) string {
	return fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":%q,"x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`, kid)
}

// issuer answers for keys as it is told to.
type issuer struct {
	mu    sync.Mutex
	set   string
	err   error
	hangs bool
	asked int
}

func (i *issuer) get(ctx context.Context, _ string) (string, error) {
	i.mu.Lock()
	i.asked++
	set, err, hangs := i.set, i.err, i.hangs
	i.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return "", ctx.Err()
	}
	return set, err
}

func (i *issuer) tell(set string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.set, i.err = set, err
}

func (i *issuer) asks() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

const uri = "https://issuer.example/keys"

// fetching is a Fetcher of the issuer's keys that runs until the test ends; changed counts.
func fetching(t *testing.T, dir string, i *issuer) (f *Fetcher, changed *int) {
	t.Helper()
	changed = new(int)
	f, err := New(Config{Dir: dir, Changed: func() { *changed++ }, Log: slog.New(slog.DiscardHandler), get: i.get})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	f.Want([]compile.KeySource{{URI: uri, Timeout: 5 * time.Second}})
	return f, changed
}

func want(t *testing.T, f *Fetcher, set, err string) {
	t.Helper()
	synctest.Wait()
	got := f.Keys()[uri]
	if got.Set != set || (err == "") != (got.Err == "") || !strings.Contains(got.Err, err) {
		t.Errorf("keys are %q, error %q; want %q, %q", got.Set, got.Err, set, err)
	}
}

func TestRefreshAndOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, i := t.TempDir(), &issuer{set: set("a")}
		f, changed := fetching(t, dir, i)
		want(t, f, set("a"), "")
		time.Sleep(refresh * 11 / 10)
		want(t, f, set("a"), "")
		if i.asks() != 2 || *changed != 1 {
			t.Errorf("asked %d times and changed %d times after one refresh, want 2 and 1", i.asks(), *changed)
		}
		// What is no key set, and an outage, leave the last one in force.
		for answer, err := range map[string]string{"<html>": "key set", `{"keys":[]}`: "keys is empty", `{"keys":[{"kty":"oct","k":"AA"}]}`: "symmetric"} {
			i.tell(answer, nil)
			time.Sleep(refresh * 11 / 10)
			want(t, f, set("a"), err)
		}
		i.tell("", errors.New("connection refused"))
		time.Sleep(time.Hour)
		want(t, f, set("a"), "connection refused")
		i.tell(set("b"), nil)
		time.Sleep(retryMax * 11 / 10)
		want(t, f, set("b"), "")
	})
}

// Also what another citadel has fetched stands, until this one has fetched it.
func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		f, _ := fetching(t, dir, &issuer{set: set("a")})
		want(t, f, set("a"), "")
		f, _ = fetching(t, dir, &issuer{err: errors.New("no route to host")})
		want(t, f, set("a"), "no route to host")
		if s := f.States(); len(s) != 1 || s[0].Keys != 1 || s[0].Fetched.IsZero() || s[0].Error == "" {
			t.Errorf("%+v", s)
		}
		f.Want(nil)
		if got := f.Keys(); len(got) != 0 {
			t.Errorf("%v is there though nobody wants it", got)
		}
	})
}

// A key that was not there yet is there soon after it is used; one that is made up costs the issuer a request in 10 s.
func TestMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{set: set("a")}
		f, _ := fetching(t, t.TempDir(), i)
		want(t, f, set("a"), "")
		time.Sleep(time.Minute)
		i.tell(set("b"), nil)
		f.Missed(uri)
		want(t, f, set("b"), "")
		before := i.asks()
		for range 100 {
			f.Missed(uri)
			f.Missed("https://attacker.example/keys")
			time.Sleep(time.Second)
		}
		if n := i.asks() - before; n < 9 || n > 11 {
			t.Errorf("asked %d times in 100 s, want once in 10 s", n)
		}
	})
}

// An issuer that never answers holds nobody up.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{hangs: true}
		f, _ := fetching(t, t.TempDir(), i)
		time.Sleep(time.Minute)
		want(t, f, "", "deadline exceeded")
		if n := i.asks(); n < 3 || n > 12 {
			t.Errorf("asked %d times in a minute", n)
		}
	})
}

func TestClient(t *testing.T) {
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	defer server.Close()
	answer := func(path, body string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, body) })
	}
	answer("/keys", `{ "keys": [] }`)
	answer("/html", "<html>")
	mux.HandleFunc("GET /moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/keys", http.StatusFound) })
	mux.HandleFunc("GET /huge", func(w http.ResponseWriter, _ *http.Request) {
		for range 100 << 10 { // 100 MB
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("GET /never", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	answer("/good"+compile.Discovery, fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, server.URL+"/good/", server.URL+"/keys"))
	answer("/other"+compile.Discovery, fmt.Sprintf(`{"issuer":%q,"jwks_uri":%q}`, server.URL+"/good", server.URL+"/keys"))
	answer("/file"+compile.Discovery, fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///etc/passwd"}`, server.URL+"/file"))
	for _, c := range []struct{ path, want, err string }{
		{"/keys", `{"keys":[]}`, ""},
		{"/good" + compile.Discovery, `{"keys":[]}`, ""},
		{"/other" + compile.Discovery, "", "is of issuer"},
		{"/file" + compile.Discovery, "", "jwks_uri"},
		{"/html", "", "no JSON"},
		{"/none", "", "404"},
		{"/moved", "", "302"},
		{"/huge", "", "more than 1048576 bytes"},
		{"/never", "", "deadline exceeded"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if c.path != "/never" {
			ctx = t.Context()
		}
		got, err := newClient(func(netip.Addr) error { return nil }).get(ctx, server.URL+c.path)
		cancel()
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v; want %q, %q", c.path, got, err, c.want, c.err)
		}
	}
	if _, err := newClient(refuseInside).get(t.Context(), server.URL+"/keys"); err == nil || !strings.Contains(err.Error(), "no address of an issuer") {
		t.Errorf("our own host is asked: %v", err)
	}
}

func TestRefuseInside(t *testing.T) {
	for address, refused := range map[string]bool{
		"127.0.0.1": true, "::1": true, "169.254.169.254": true, "fe80::1": true, "0.0.0.0": true, "224.0.0.1": true, "172.20.0.5": false, "192.0.2.1": false, "2001:db8::1": false,
	} {
		if got := refuseInside(netip.MustParseAddr(address)) != nil; got != refused {
			t.Errorf("%s: refused %v, want %v", address, got, refused)
		}
	}
}
