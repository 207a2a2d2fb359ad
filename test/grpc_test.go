//go:build suites

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const grpcCompose = `
x-greeter: &greeter
  image: ` + image + `
  command: [/app/grpcapp, serve]
  init: true
  volumes: [./app:/app:ro]
services:
  client:
    image: ` + image + `
    command: [sleep, infinity]
    init: true
    volumes: [./app:/app:ro]
    depends_on: [one, two, labelled]
  one:
    <<: *greeter
    environment: {NAME: one}
    networks: {default: {aliases: [greeter]}}
  two:
    <<: *greeter
    environment: {NAME: two}
    networks: {default: {aliases: [greeter]}}
  labelled:
    <<: *greeter
    environment: {NAME: labelled}
    labels: {composure.protocol.50051: grpc}
`

// TestGRPC has a gRPC client call a service of two replicas over one connection: each call is balanced by itself, whether
// or not a label says what the port speaks, and its status is counted.
func TestGRPC(t *testing.T) {
	p := newProject(t, map[string]string{"docker-compose.yml": grpcCompose, "app/README": "filled by the test\n"})
	bin := filepath.Join(p.dir, "app", "grpcapp")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./grpcapp")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the application: %v\n%s", err, out)
	}
	p.inject()
	p.up()

	t.Run("each call is balanced", func(t *testing.T) {
		eventually(t, "both replicas", func() string {
			r := p.tryExec("client", "/app/grpcapp", "call", "greeter:50051", "40")
			if r.code != 0 || strings.Count(r.stdout, "one\n") < 5 || strings.Count(r.stdout, "two\n") < 5 {
				return r.stdout + r.stderr
			}
			return ""
		})
	})
	t.Run("a stream goes both ways", func(t *testing.T) {
		if out := p.exec("client", "/app/grpcapp", "stream", "greeter:50051"); !strings.Contains(out, "streamed") {
			t.Error(out)
		}
	})
	t.Run("a declared port", func(t *testing.T) {
		if out := p.exec("client", "/app/grpcapp", "call", "labelled:50051", "3"); strings.Count(out, "labelled\n") != 3 {
			t.Error(out)
		}
		// A client of HTTP/1 is translated: an empty message, and the status in the trailers.
		script := `printf '\0\0\0\0\0' | curl -sS -i --raw --http1.1 -H 'Content-Type: application/grpc' -H 'TE: trailers' ` +
			`--data-binary @- http://labelled:50051/grpc.testing.TestService/EmptyCall`
		if out := p.exec("client", "sh", "-c", script); !strings.Contains(out, "HTTP/1.1 200") || !strings.Contains(strings.ToLower(out), "grpc-status: 0") {
			t.Errorf("HTTP/1.1: %q", out)
		}
	})
	t.Run("the sidecars speak HTTP/2 to each other, and count", func(t *testing.T) {
		for _, side := range []string{"client-mesh-proxy", "labelled-mesh-proxy"} {
			eventually(t, side, func() string {
				log := p.compose("logs", "--no-color", side)
				if !strings.Contains(log, `"POST /grpc.testing.TestService/UnaryCall HTTP/2" 200 - via_upstream`) {
					return "its access log has no line of a call:\n" + log
				}
				return ""
			})
		}
		for _, want := range []string{`request_protocol="grpc"`, `grpc_response_status="0"`, `connection_security_policy="mutual_tls"`} {
			eventually(t, "metrics", func() string {
				if m := p.meshctl("metrics"); !strings.Contains(m, want) {
					return "no series with " + want + " in:\n" + m
				}
				return ""
			})
		}
	})
}
