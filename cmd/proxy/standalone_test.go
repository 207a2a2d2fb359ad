package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestStandalone runs the commands of docs/standalone.md: three proxies, and every request that it says to try.
func TestStandalone(t *testing.T) {
	t.Chdir("../..")
	t.Setenv("COMPOSURE_ACCESS_LOG", "off")
	t.Setenv("COMPOSURE_DRAIN", "1s")
	doc, err := os.ReadFile("docs/standalone.md")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.80.3:18000")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "application, of %s", r.Header.Get("X-Forwarded-Client-Cert"))
		}))
	}()
	defer ln.Close()
	ctx, stop := context.WithCancel(t.Context())
	ca := filepath.Join(t.TempDir(), "ca")
	done := make(chan error, 8)
	proxies := 0
	for line := range strings.Lines(string(doc)) {
		if !strings.HasPrefix(line, "proxy --snapshot") {
			continue
		}
		args := strings.Fields(strings.ReplaceAll(line, "/tmp/composure-ca", ca))[1:]
		go func() { done <- run(ctx, nil, args) }()
		proxies++
	}
	if proxies != 3 {
		t.Errorf("%d proxies in the document, want 3", proxies)
	}
	defer func() {
		stop()
		for range proxies {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()
	want := map[string]string{
		"http://127.0.80.1:15001/":                 "application, of By=spiffe://cluster.local/ns/default/sa/web;URI=spiffe://cluster.local/ns/default/sa/client",
		"http://127.0.80.1:15001/status":           "from the proxy",
		"http://127.0.0.1:18080/":                  "application, of By=spiffe://cluster.local/ns/default/sa/web;URI=spiffe://cluster.local/ns/default/sa/gateway",
		"http://127.0.80.2:15006/":                 "application, of ",
		"http://127.0.80.2:15000/certs":            "spiffe://cluster.local/ns/default/sa/web",
		"http://127.0.80.2:15090/stats/prometheus": `connection_security_policy="mutual_tls"`,
	}
	curl := regexp.MustCompile(`(?m)^curl (?:-H 'Host: (\w+)' )?(http://\S+)`)
	for _, m := range curl.FindAllStringSubmatch(string(doc), -1) {
		body := fetch(t, m[2], m[1])
		if w, ok := want[m[2]]; !ok || !strings.Contains(body, w) {
			t.Errorf("%s: %q, want %q in it", m[0], body, w)
		}
		delete(want, m[2])
	}
	if len(want) > 0 {
		t.Errorf("not in the document: %v", want)
	}
}

// fetch makes one request, again until all proxies on its way have started.
func fetch(t *testing.T, url, host string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err == nil && resp.StatusCode == http.StatusOK {
				return string(body)
			}
			if resp.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
				t.Fatalf("%s: %s, %v: %s", url, resp.Status, err, body)
			}
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestCertificateFlags(t *testing.T) {
	const file = "../../examples/standalone/web.json"
	for _, tc := range []struct{ args, want string }{
		{"--ca /tmp/nowhere --cert a --key b --roots c", "--ca DIRECTORY, or"},
		{"--cert a --key b", "--ca DIRECTORY, or"},
		{"--cert a --key b --roots c", "identity: a with b"},
		{"--ca /nowhere/at/all", "certificate authority /nowhere/at/all"},
	} {
		err := run(t.Context(), nil, append([]string{"--snapshot", file, "--outbound="}, strings.Fields(tc.args)...))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want an error with %q", tc.args, err, tc.want)
		}
	}
}
