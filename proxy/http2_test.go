package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http2"
)

// h2app is an application that speaks HTTP/2 without TLS, and HTTP/1.
func (m *testMesh) h2app(ip netip.Addr, h http.HandlerFunc) {
	m.app(ip, func(ln net.Listener) {
		s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		_ = s.Serve(ln)
	})
}

// h2client is httpClient for HTTP/2 with prior knowledge.
func h2client(t *testing.T, addr string) *http.Client {
	t.Helper()
	c := httpClient(t, addr, "")
	tr := c.Transport.(*http.Transport)
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetUnencryptedHTTP2(true)
	return c
}

func TestHTTP2ThroughMutualTLS(t *testing.T) {
	m := newMesh(t)
	m.h2app(webIP, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, r.Header.Get("X-Forwarded-Client-Cert"))
	})
	m.start()
	want := "HTTP/2.0 web By=" + serverID + ";URI=" + clientID
	if status, body := get(t, h2client(t, m.at(webIP)), "http://web/h2"); status != http.StatusOK || body != want {
		t.Errorf("through two sidecars: %d %q, want %q", status, body, want)
	}
	m.client.log.await(t, `"GET /h2 HTTP/2" 200 - via_upstream`)
	m.server.log.await(t, `"GET /h2 HTTP/2" 200 - via_upstream`, "inbound|")
	// A neighbour without a proxy speaks to the same port in plain text.
	if status, body := get(t, h2client(t, m.direct(webIP)), "http://web/plain"); status != http.StatusOK || body != "HTTP/2.0 web " {
		t.Errorf("from outside the mesh: %d %q", status, body)
	}
	if status, body := get(t, httpClient(t, m.at(webIP), ""), "http://web/h1"); status != http.StatusOK || !strings.HasPrefix(body, "HTTP/1.1 web") {
		t.Errorf("HTTP/1 at the same port: %d %q", status, body)
	}
}

// fatal makes panics of what ends a program: interop's clients give up in that way.
type fatal struct{ grpclog.LoggerV2 }

func (fatal) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (fatal) Fatalln(args ...any)               { panic(fmt.Sprintln(args...)) }
func (fatal) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// TestGRPCInterop runs the cases of gRPC's own interoperability suite that need no cloud
// (https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md) through two sidecars.
func TestGRPCInterop(t *testing.T) {
	grpclog.SetLoggerV2(fatal{grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)})
	before := runtime.NumGoroutine()
	t.Cleanup(func() { awaitGoroutines(t, before) })
	m := newMesh(t)
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	t.Cleanup(server.Stop)
	m.app(webIP, func(ln net.Listener) { _ = server.Serve(ln) })
	m.start()
	dial := func() *grpc.ClientConn { return m.grpcClient(webIP) }
	conn := dial()
	t.Cleanup(func() { _ = conn.Close() })
	soak := func(channel func() (*grpc.ClientConn, func())) interop.SoakTestConfig {
		return interop.SoakTestConfig{
			RequestSize: 20_000, ResponseSize: 30_000, PerIterationMaxAcceptableLatency: time.Minute, OverallTimeout: time.Minute,
			NumWorkers: 4, Iterations: 40, ChannelForTest: channel,
		}
	}
	tc := testgrpc.NewTestServiceClient(conn)
	for name, run := range map[string]func(context.Context){
		"empty_unary":                 func(ctx context.Context) { interop.DoEmptyUnaryCall(ctx, tc) },
		"large_unary":                 func(ctx context.Context) { interop.DoLargeUnaryCall(ctx, tc) },
		"client_streaming":            func(ctx context.Context) { interop.DoClientStreaming(ctx, tc) },
		"server_streaming":            func(ctx context.Context) { interop.DoServerStreaming(ctx, tc) },
		"ping_pong":                   func(ctx context.Context) { interop.DoPingPong(ctx, tc) },
		"empty_stream":                func(ctx context.Context) { interop.DoEmptyStream(ctx, tc) },
		"timeout_on_sleeping_server":  func(ctx context.Context) { interop.DoTimeoutOnSleepingServer(ctx, tc) },
		"cancel_after_begin":          func(ctx context.Context) { interop.DoCancelAfterBegin(ctx, tc) },
		"cancel_after_first_response": func(ctx context.Context) { interop.DoCancelAfterFirstResponse(ctx, tc) },
		"status_code_and_message":     func(ctx context.Context) { interop.DoStatusCodeAndMessage(ctx, tc) },
		"special_status_message":      func(ctx context.Context) { interop.DoSpecialStatusMessage(ctx, tc) },
		"custom_metadata":             func(ctx context.Context) { interop.DoCustomMetadata(ctx, tc) },
		"unimplemented_method":        func(ctx context.Context) { interop.DoUnimplementedMethod(ctx, conn) },
		"unimplemented_service": func(ctx context.Context) {
			interop.DoUnimplementedService(ctx, testgrpc.NewUnimplementedServiceClient(conn))
		},
		"rpc_soak": func(ctx context.Context) {
			interop.DoSoakTest(ctx, soak(func() (*grpc.ClientConn, func()) { return conn, func() {} }))
		},
		"channel_soak": func(ctx context.Context) {
			interop.DoSoakTest(ctx, soak(func() (*grpc.ClientConn, func()) { c := dial(); return c, func() { _ = c.Close() } }))
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if r := recover(); r != nil {
					t.Error(r)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			run(ctx)
		})
	}
	// A gRPC status is told by trailers, and counted.
	m.client.log.await(t, `"POST /grpc.testing.TestService/EmptyCall HTTP/2" 200 - via_upstream`)
	r, _ := m.client.recorder.Report()
	seen := map[string]bool{}
	for i := range r.HTTP {
		if l := r.HTTP[i].Labels; l.RequestProtocol == "grpc" {
			seen[l.GRPCStatus] = true
		}
	}
	for _, want := range []string{"0", "2", "12"} { // ok; unknown, of status_code_and_message; unimplemented
		if !seen[want] {
			t.Errorf("no series with the gRPC status %s: %v", want, seen)
		}
	}
}

func (m *testMesh) grpcClient(ip netip.Addr) *grpc.ClientConn {
	m.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+m.at(ip), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("web"))
	if err != nil {
		m.t.Fatal(err)
	}
	return conn
}

// awaitGoroutines fails if there are many more goroutines than before: what a test has left behind has a moment to end.
func awaitGoroutines(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestGRPCWithoutServer gets a status that gRPC understands where nobody is there to answer.
func TestGRPCWithoutServer(t *testing.T) {
	m := newMesh(t).start()
	conn := m.grpcClient(deadIP)
	defer conn.Close()
	_, err := testgrpc.NewTestServiceClient(conn).EmptyCall(t.Context(), &testgrpc.Empty{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "upstream connect error") {
		t.Errorf("got %v, want UNAVAILABLE with the proxy's reason", err)
	}
}

// TestH2spec runs the conformance suite of others against the proxies' listeners, all cases strictly: through an
// application's outbound listener, and straight at an inbound listener that ends mutual TLS.
func TestH2spec(t *testing.T) {
	h2spec, err := exec.LookPath("h2spec")
	if err != nil {
		t.Skip("SKIPPED: h2spec is not on PATH; build/tools.sh h2spec makes it in .cache/tools")
	}
	m := newMesh(t)
	answer := func(s *http2.ServerStream) {
		buf := make([]byte, 4<<10)
		for err := error(nil); err == nil; {
			_, err = s.Read(buf)
		}
		if s.Respond(http.StatusOK, nil, false) == nil {
			_ = s.Write([]byte("composed\n"), true)
		}
	}
	m.app(webIP, func(ln net.Listener) {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _ = http2.NewServerConn(c, http2.Config{}, answer).Serve(t.Context()) }()
		}
	})
	m.start()
	for name, addr := range map[string]string{
		"outbound": m.at(webIP), "inbound": m.direct(webIP), "mutual TLS": m.inMutualTLS(m.direct(webIP), mesh.ALPNHTTP2),
		"outbound, declared": m.at(webIP), "inbound, declared": m.direct(webIP),
	} {
		t.Run(name, func(t *testing.T) {
			m.declare(strings.HasSuffix(name, "declared"))
			host, port, _ := net.SplitHostPort(addr)
			out, err := exec.Command(h2spec, "-S", "-h", host, "-p", port, "-o", "3").CombinedOutput()
			lines := strings.TrimSpace(string(out))
			last := lines[strings.LastIndexByte(lines, '\n')+1:]
			t.Log(last)
			if !strings.Contains(last, " 0 skipped") {
				t.Errorf("cases were skipped: %s", last)
			}
			if err != nil {
				if i := strings.Index(lines, "Failures:"); i >= 0 {
					lines = lines[i:]
				}
				t.Errorf("h2spec: %v\n%s", err, lines)
			}
		})
	}
}

// declare says, or says no more, that the application speaks gRPC.
func (m *testMesh) declare(grpc bool) {
	m.t.Helper()
	app, _ := m.apps.Load(webIP)
	for _, p := range []*running{m.client, m.server} {
		s := m.snapshot(p.snapshot.Load().Proxy.Name)
		if grpc {
			for i := range s.Workloads {
				s.Workloads[i].Ports = []snapshot.Port{{Number: m.port, Protocol: mesh.ProtocolGRPC}, {Number: app.(netip.AddrPort).Port(), Protocol: mesh.ProtocolGRPC}}
			}
			s.Proxy.Ports = s.Workloads[0].Ports
			s.Services[0].Ports = s.Workloads[0].Ports
		}
		if err := errors.Join(s.Seal(), p.Apply(s)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// inMutualTLS is an address at which plain text gets into the client's mutual TLS to addr.
func (m *testMesh) inMutualTLS(addr, alpn string) string {
	m.t.Helper()
	ln := listenTCP(m.t, "127.0.0.1:0")
	conf := identity.ClientTLS(m.ca.Agent("client", clientID), identity.AnyOf(spiffeid.RequireFromString(serverID)), alpn)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := tls.Dial("tcp", addr, conf)
			if err != nil {
				m.t.Error(err)
				_ = c.Close()
				return
			}
			var both sync.WaitGroup
			both.Go(func() { _, _ = io.Copy(up, c); _ = up.CloseWrite() })
			both.Go(func() { _, _ = io.Copy(c, up); _ = c.(*net.TCPConn).CloseWrite() })
			go func() { both.Wait(); _ = errors.Join(c.Close(), up.Close()) }()
		}
	}()
	return ln.Addr().String()
}
