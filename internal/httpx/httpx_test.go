package httpx

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	for range 2 { // the second finds the socket of the first
		ln, err := Listen(path, 0o666)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode() != os.ModeSocket|0o666 {
			t.Errorf("socket: %v, %v", fi.Mode(), err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0o666); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("Listen on a file: %v", err)
	}
	if got, err := os.ReadFile(file); string(got) != "precious" || err != nil {
		t.Errorf("the file: %q, %v", got, err)
	}
}

// Open requests finish; a stream ends with the context that the server hands out.
func TestServe(t *testing.T) {
	ln, err := Listen(filepath.Join(t.TempDir(), "s"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	arrived := make(chan struct{})
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
			_, _ = io.WriteString(w, "finished") // the client's read says whether it came through
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, srv, ln) }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", ln.Addr().String())
	}}}
	go func() { <-arrived; cancel() }()
	resp, err := client.Get("http://x/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); string(body) != "finished" || err != nil {
		t.Errorf("body %q, %v", body, err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := Serve(t.Context(), &http.Server{}, ln); err == nil { //nolint:gosec // it serves nobody
		t.Error("Serve on a closed listener")
	}
}

func TestAnswers(t *testing.T) {
	var sick error
	mux := http.NewServeMux()
	HandleHealth(mux, "pilot", "v1", func() error { return sick })
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		mux.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		if ct := rec.Header().Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s: content type %q", path, ct)
		}
		return rec.Code, rec.Body.String()
	}
	if status, body := get("/version"); status != 200 || body != `{"component":"pilot","version":"v1"}`+"\n" {
		t.Errorf("version: %d %s", status, body)
	}
	if status, body := get("/healthz"); status != 200 || body != `{"status":"ok"}`+"\n" {
		t.Errorf("health: %d %s", status, body)
	}
	sick = errors.New(`a "quoted" reason`)
	if status, body := get("/healthz"); status != 503 || body != `{"error":"a \"quoted\" reason"}`+"\n" {
		t.Errorf("bad health: %d %s", status, body)
	}
	rec := httptest.NewRecorder()
	if JSON(rec, make(chan int)); rec.Code != http.StatusInternalServerError {
		t.Errorf("what can't be encoded: %d", rec.Code)
	}
}
