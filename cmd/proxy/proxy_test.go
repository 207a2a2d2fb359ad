package main

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/proxy"
)

func TestEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name, value, want string // want is part of the error; empty for none
	}{
		{"COMPOSURE_ACCESS_LOG", "json", ""},
		{"COMPOSURE_ACCESS_LOG", "xml", "COMPOSURE_ACCESS_LOG: access log format"},
		{"COMPOSURE_DRAIN", "10s", ""},
		{"COMPOSURE_DRAIN", "10", "COMPOSURE_DRAIN"},
		{"COMPOSURE_DRAIN", "-1s", "COMPOSURE_DRAIN"},
		{"COMPOSURE_HEADER_SIZE", "1m", ""},
		{"COMPOSURE_HEADER_SIZE", "1g", `COMPOSURE_HEADER_SIZE: "1g": want a size from 1k to 8m`},
		{"COMPOSURE_GATEWAY_PORTS", "80, 443", ""},
		{"COMPOSURE_GATEWAY_PORTS", "80,http", "COMPOSURE_GATEWAY_PORTS"},
		{"COMPOSURE_GATEWAY_PORTS", "0", "COMPOSURE_GATEWAY_PORTS"},
		{"COMPOSURE_GATEWAY_PORTS", "65536", "COMPOSURE_GATEWAY_PORTS"},
	} {
		t.Run(tc.name+"="+tc.value, func(t *testing.T) {
			t.Setenv(tc.name, tc.value)
			var cfg proxy.Config
			err := environment(&cfg)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("environment = %v, want an error with %q", err, tc.want)
			}
			if tc.value == "80, 443" && (len(cfg.GatewayPorts) != 2 || cfg.GatewayPorts[1] != 443) {
				t.Errorf("ports %v", cfg.GatewayPorts)
			}
		})
	}
}

func TestReady(t *testing.T) {
	code := http.StatusOK
	var asked string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		w.WriteHeader(code)
		if code != http.StatusOK {
			_, _ = w.Write([]byte("certificate: none yet\nsnapshot: none yet\n"))
		}
	}))
	defer srv.Close()
	address := strings.TrimPrefix(srv.URL, "http://")
	if err := ready(t.Context(), nil, []string{"--address", address, "--wait", "25s"}); err != nil {
		t.Errorf("ready = %v", err)
	}
	if !strings.HasPrefix(asked, "/healthz/ready?wait=2") {
		t.Errorf("asked for %s, want a wait of about 25 s", asked)
	}
	code = http.StatusServiceUnavailable
	err := ready(t.Context(), nil, []string{"--address", address})
	if !errors.Is(err, errNotReady) || !strings.Contains(err.Error(), "certificate: none yet; snapshot: none yet") {
		t.Errorf("ready = %v, want both reasons", err)
	}
	if asked != "/healthz/ready" {
		t.Errorf("asked for %s, want no wait", asked)
	}
}

// TestReadyWaitsForAProxyThatStarts: nobody listens at first, and then for good.
func TestReadyWaitsForAProxyThatStarts(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	address := strings.TrimPrefix(srv.URL, "http://")
	srv.Close()
	begun := time.Now()
	if err := ready(t.Context(), nil, []string{"--address", address, "--wait", "300ms"}); err == nil {
		t.Error("ready though nobody listens")
	}
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("gave up after %v, want the whole wait", took)
	}
}

func TestAlone(t *testing.T) {
	for _, args := range [][]string{{"serve"}, {"--snapshot", "/nowhere/snapshot.json"}, {"--outbound", "127.0.0.1:0"}} {
		var cfg proxy.Config
		if err := alone(&cfg, args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	for _, value := range []string{"127.0.0.1:0=web:80", "nowhere"} {
		if _, _, err := listener("inbound", value); err == nil || !strings.Contains(err.Error(), "--inbound") {
			t.Errorf("listener(%q) = %v, want an error that names the flag", value, err)
		}
	}
}
