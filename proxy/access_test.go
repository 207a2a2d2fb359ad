package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// guarded puts policies in force at the server's proxy.
func (m *testMesh) guarded(policies ...snapshot.AccessPolicy) {
	m.t.Helper()
	next := m.snapshot("server")
	for i := range policies {
		policies[i].Namespace = "default"
	}
	next.Security = &snapshot.Security{Access: policies}
	if err := m.server.Apply(next); err != nil {
		m.t.Fatal(err)
	}
}

// only is an ALLOW policy for the client's proxy.
var only = snapshot.AccessPolicy{Name: "only-client", Action: snapshot.AccessAllow, Rules: []snapshot.AccessRule{
	{From: []snapshot.AccessSource{{Principals: []string{strings.TrimPrefix(clientID, "spiffe://")}}}},
}}

// noAdmin is a DENY policy for a path.
var noAdmin = snapshot.AccessPolicy{Name: "no-admin", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{
	{To: []snapshot.AccessOperation{{Hosts: []string{"nowhere"}}}},
	{To: []snapshot.AccessOperation{{Paths: []string{"/admin", "/admin/*"}}}},
}}

// raw sends a request as it is written, and is the status of the answer and its body.
func raw(t *testing.T, addr, request string) (int, string) {
	t.Helper()
	c := dial(t, addr)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// Who may is told by the certificate, and by nothing that a client can write.
func TestAccess(t *testing.T) {
	m := newMesh(t)
	m.web()
	m.start()
	m.guarded(only, noAdmin)
	if code, body := get(t, httpClient(t, m.at(webIP), ""), "http://web/a"); code != 200 {
		t.Errorf("who may gets %d %s", code, body)
	}
	forged := "X-Forwarded-Client-Cert: By=" + serverID + ";URI=" + clientID + "\r\nX-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1\r\n" +
		"X-Envoy-Peer-Metadata-Id: sidecar~127.0.0.1~client.default\r\nX-Composure-Peer: " + clientID + "\r\n"
	code, body := raw(t, m.direct(webIP), "GET /a HTTP/1.1\r\nHost: web\r\n"+forged+"Connection: close\r\n\r\n")
	if code != 403 || body != "RBAC: access denied" {
		t.Errorf("who may not, and says it is another, gets %d %s", code, body)
	}
	m.server.log.await(t, `"GET /a HTTP/1.1" 403 - rbac_access_denied_matched_policy[none] - "-"`)

	// Every spelling, as it is on the wire.
	for _, path := range []string{
		"/admin", "/admin?x", "//admin", "/x/../admin", "/x/%2e%2e/admin", "/%61dmin", "/ADMIN", `/\admin`, "/admin;x", "/x/..;/admin", "/%2fadmin", "/x/..%2fadmin", "/x%5c..%5cadmin",
		"/admin/", "/./admin/x", "http://web/admin", "http://nothing/x/..//admin",
	} {
		for name, addr := range map[string]string{"a peer": m.at(webIP), "anybody": m.direct(webIP)} {
			if code, body := raw(t, addr, "GET "+path+" HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"); code != 403 {
				t.Errorf("%s: %s is answered %d %s", name, path, code, body)
			}
		}
	}
	m.server.log.await(t, `403 - rbac_access_denied_matched_policy[ns[default]-policy[no-admin]-rule[1]]`)
	if code, _ := raw(t, m.at(webIP), "GET /admin%00 HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"); code != 400 {
		t.Errorf("a path that ends in two places is answered %d", code)
	}
	for _, host := range []string{"nowhere", "NOWHERE", "nowhere.", "nowhere:80", "Nowhere.:0080", "no%77here"} {
		if code, body := raw(t, m.at(webIP), "GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"); code != 403 {
			t.Errorf("host %s is answered %d %s", host, code, body)
		}
	}
	// What goes on is the path in its normal form.
	if _, body := raw(t, m.at(webIP), "GET /%61/./b/..//c%2fd HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(body, "GET web /a//c/d ") {
		t.Errorf("the application got %s, want /a//c%%2fd", body)
	}
	stats := m.server.allStats()
	if stats["access.refused"] == 0 || stats["access.default/no-admin.matched"] == 0 {
		t.Errorf("counted is %v", stats)
	}

	// Policies of a dry run refuse nothing, and tell what they would have done.
	try := noAdmin
	try.DryRun = true
	m.guarded(try)
	if code, _ := get(t, httpClient(t, m.at(webIP), ""), "http://web/admin"); code != 200 {
		t.Errorf("a dry run answers %d", code)
	}
	if n := m.server.allStats()["access.default/no-admin.dry_run"]; n != 1 {
		t.Errorf("a dry run counts %d, want 1", n)
	}
}

// What is no HTTP is judged as it begins, and reset.
func TestAccessOfBytes(t *testing.T) {
	m := newMesh(t)
	m.app(mailIP, each(func(c net.Conn) {
		_, _ = io.WriteString(c, "220 ready")
		_ = c.Close()
	}))
	m.start()
	m.guarded(only)
	if got, err := io.ReadAll(dial(t, m.at(mailIP))); string(got) != "220 ready" {
		t.Errorf("who may gets %q, %v", got, err)
	}
	if got, err := io.ReadAll(dial(t, m.direct(mailIP))); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("who may not gets %q, %v; want a reset", got, err)
	}
	m.server.log.await(t, "rbac_access_denied_matched_policy[none]")
	// Fields of HTTP are ignored by what denies.
	deny := noAdmin
	m.guarded(deny)
	if got, err := io.ReadAll(dial(t, m.at(mailIP))); len(got) > 0 || err == nil {
		t.Errorf("a path that is denied gives %q, %v to a connection without paths; want a reset", got, err)
	}
}

func TestAccessOfGRPC(t *testing.T) {
	m := newMesh(t)
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	t.Cleanup(server.Stop)
	m.app(webIP, func(ln net.Listener) { _ = server.Serve(ln) })
	m.start()
	m.guarded(snapshot.AccessPolicy{Name: "no-empty", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{
		{To: []snapshot.AccessOperation{{Paths: []string{"/grpc.testing.TestService/EmptyCall"}}}},
	}})
	client := testgrpc.NewTestServiceClient(m.grpcClient(webIP))
	_, err := client.EmptyCall(t.Context(), &testgrpc.Empty{})
	if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "RBAC: access denied" {
		t.Errorf("a call that is denied ends with %v", err)
	}
	if _, err := client.UnaryCall(t.Context(), &testgrpc.SimpleRequest{}); err != nil {
		t.Errorf("another ends with %v", err)
	}
	m.server.log.await(t, `"POST /grpc.testing.TestService/EmptyCall HTTP/2" 200 - rbac_access_denied_matched_policy[ns[default]-policy[no-empty]-rule[0]]`)
}
