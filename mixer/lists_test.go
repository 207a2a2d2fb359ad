package mixer

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mixer/compile"
)

func TestFetchList(t *testing.T) {
	var answer func(http.ResponseWriter)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	defer srv.Close()
	l := newLists(slog.New(slog.DiscardHandler), func() {})
	cases := []struct {
		name   string
		answer func(http.ResponseWriter)
		want   []string
		err    string
	}{
		{"lines", func(w http.ResponseWriter) { fmt.Fprint(w, "b\r\n\n a \nb") }, []string{"a", "b"}, ""},
		{"an error", func(w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, nil, "502 Bad Gateway"},
		{"elsewhere", func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusFound)
		}, nil, "302 Found"},
		{"too long", func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat("x", maxListBytes+1)) }, nil, "more than 1048576 bytes"},
		{"too many", func(w http.ResponseWriter) {
			for i := range maxListEntries + 1 {
				fmt.Fprintln(w, i)
			}
		}, nil, "more than 10000 entries"},
	}
	for _, c := range cases {
		answer = c.answer
		got, err := l.fetch(t.Context(), srv.URL)
		if !slices.Equal(got, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v, want %v, %s", c.name, got, err, c.want, c.err)
		}
	}
}

// A list stays through an outage that is shorter than its ttl, is gone after, and is back soon after the provider is.
func TestListOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const url = "http://lists/a"
		var changes atomic.Int64
		l := newLists(slog.New(slog.DiscardHandler), func() { changes.Add(1) })
		var down atomic.Bool
		entries := atomic.Pointer[string]{}
		text := "a"
		entries.Store(&text)
		l.client.Transport = roundTripper(func(*http.Request) (*http.Response, error) {
			if down.Load() {
				return nil, fmt.Errorf("connection refused")
			}
			w := httptest.NewRecorder()
			fmt.Fprint(w, *entries.Load())
			return w.Result(), nil
		})
		l.apply([]*api.Object{{Spec: &api.Handler{Params: &api.ListChecker{ProviderURL: url, RefreshInterval: time.Minute, TTL: 5 * time.Minute}}}})
		done := make(chan struct{})
		ctx := t.Context()
		go func() { defer close(done); _ = l.run(ctx) }()
		check := func(when string, want compile.List) {
			t.Helper()
			synctest.Wait()
			if got := l.view()[url]; !slices.Equal(got.Entries, want.Entries) || got.Problem != want.Problem {
				t.Errorf("%s: %+v, want %+v", when, got, want)
			}
		}
		check("at first", compile.List{Entries: []string{"a"}})
		other := "b\na"
		entries.Store(&other)
		time.Sleep(61 * time.Second)
		check("refreshed", compile.List{Entries: []string{"a", "b"}})
		down.Store(true)
		time.Sleep(4 * time.Minute)
		check("in an outage", compile.List{Entries: []string{"a", "b"}})
		time.Sleep(3 * time.Minute)
		check("after the ttl", compile.List{Problem: "the list of http://lists/a can't be had: connection refused"})
		down.Store(false)
		time.Sleep(61 * time.Second)
		check("back", compile.List{Entries: []string{"a", "b"}})
		if n := changes.Load(); n != 4 {
			t.Errorf("told of %d changes, want 4", n)
		}
		l.apply(nil)
		if len(l.view()) != 0 {
			t.Error("the list of no handler is kept")
		}
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
