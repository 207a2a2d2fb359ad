package proxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/listen"
)

// authorizer is one that runs, and does what the test says.
type authorizer struct {
	authv3.UnimplementedAuthorizationServer
	snapshot.Authorizer

	mu     sync.Mutex
	answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)
	asked  *authv3.CheckRequest // the last
}

func (a *authorizer) Check(ctx context.Context, r *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	a.mu.Lock()
	answer := a.answer
	a.asked = r
	a.mu.Unlock()
	return answer(ctx, r)
}

func (a *authorizer) says(answer func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

func (a *authorizer) last() *authv3.CheckRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked
}

// always is an answer whatever was asked.
func always(r *authv3.CheckResponse) func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) { return r, nil }
}

// external runs an authorizer of gRPC; with a handler, one of HTTP.
func (m *testMesh) external(handler http.Handler) *authorizer {
	m.t.Helper()
	ln := listenTCP(m.t, "127.0.0.9:0")
	a := &authorizer{Authorizer: snapshot.Authorizer{
		Name: "ext", Host: mesh.FQDN("authz", "default"), Port: listen.AddrPort(ln.Addr()).Port(), GRPC: handler == nil,
		Timeout: snapshot.Duration(10 * time.Second), StatusOnError: 403,
	}}
	if handler != nil {
		server := &http.Server{Handler: handler}
		m.t.Cleanup(func() { _ = server.Close() })
		go func() { _ = server.Serve(ln) }()
		return a
	}
	a.says(always(&authv3.CheckResponse{}))
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, a)
	m.t.Cleanup(server.Stop)
	go func() { _ = server.Serve(ln) }()
	return a
}

// asks puts a CUSTOM policy in force at the server's proxy.
func (m *testMesh) asks(a *snapshot.Authorizer, rules ...snapshot.AccessRule) {
	m.t.Helper()
	next := m.snapshot("server")
	next.Workloads = append(next.Workloads, snapshot.Workload{Name: "authz", Namespace: "default", Addresses: []string{"127.0.0.9"}, PlainText: true})
	next.Services = append(next.Services, snapshot.Service{Host: mesh.FQDN("authz", "default"), Name: "authz", Namespace: "default", Endpoints: []string{"authz"}})
	if len(rules) == 0 {
		rules = []snapshot.AccessRule{{}}
	}
	next.Security = &snapshot.Security{
		Access:      []snapshot.AccessPolicy{{Namespace: "default", Name: "ask", Action: snapshot.AccessCustom, Provider: "ext", Rules: rules}},
		Authorizers: []snapshot.Authorizer{*a},
	}
	if err := m.server.Apply(next); err != nil {
		m.t.Fatal(err)
	}
}

// echo is an application that answers with the request as it got it.
func (m *testMesh) echo() {
	m.app(webIP, func(ln net.Listener) {
		_ = http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return // the client is gone
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			w.Header().Set("X-App", "app")
			w.Header().Set("X-Both", "app")
			_ = r.Write(w)
		}))
	})
}

func send(t *testing.T, c *http.Client, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range header {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(got)
}

func set3(name, value string, appends *wrapperspb.BoolValue, action corev3.HeaderValueOption_HeaderAppendAction) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value}, Append: appends, AppendAction: action} //nolint:staticcheck // as authorizers write it
}

// An authorizer of gRPC is Envoy's own messages, on the reference implementation.
func TestExternalGRPC(t *testing.T) {
	m := newMesh(t)
	m.echo()
	a := m.external(nil)
	m.start()
	m.asks(&a.Authorizer, snapshot.AccessRule{To: []snapshot.AccessOperation{{Paths: []string{"/ask*"}}}})
	client := httpClient(t, m.at(webIP), "")

	// What is asked.
	resp, body := send(t, client, "POST", "http://web/ask/%61?q=1", "body", "X-Two: a", "X-Two: b", "X-Forwarded-Client-Cert: URI=forged", "Cookie: c=d")
	if resp.StatusCode != http.StatusOK || !strings.HasSuffix(body, "\r\n\r\nbody") {
		t.Fatalf("what is allowed gets %d %s", resp.StatusCode, body)
	}
	asked := a.last().GetAttributes()
	h := asked.GetRequest().GetHttp()
	if h.GetMethod() != "POST" || h.GetPath() != "/ask/a?q=1" || h.GetHost() != "web" || h.GetScheme() != "https" || h.GetProtocol() != "HTTP/1.1" || h.GetSize() != 4 || h.GetId() == "" || h.GetBody() != "" {
		t.Errorf("asked is %v", h)
	}
	for name, want := range map[string]string{
		":method": "POST", ":path": "/ask/a?q=1", ":authority": "web", ":scheme": "https", "x-two": "a,b", "cookie": "c=d", "x-forwarded-client-cert": "", "host": "", "x-request-id": h.GetId(),
	} {
		if got := h.GetHeaders()[name]; got != want {
			t.Errorf("header %s is %q, want %q", name, got, want)
		}
	}
	if s := asked.GetSource(); s.GetPrincipal() != clientID || s.GetAddress().GetSocketAddress().GetAddress() != "127.0.0.1" || s.GetAddress().GetSocketAddress().GetPortValue() == 0 {
		t.Errorf("source is %v", s)
	}
	if d := asked.GetDestination(); d.GetPrincipal() != serverID || d.GetAddress().GetSocketAddress().GetPortValue() == 0 {
		t.Errorf("destination is %v", d)
	}
	if age := time.Since(asked.GetRequest().GetTime().AsTime()); age < 0 || age > time.Minute {
		t.Errorf("time is %v ago", age)
	}

	// What it changes.
	a.says(always(&authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{
			set3("x-user", "jason", nil, 0), set3("X-Two", "c", wrapperspb.Bool(true), 0), set3("x-absent", "c", wrapperspb.Bool(true), 0),
			set3("x-bad", "a\r\nx-smuggled: 1", nil, 0), set3("content-length", "0", nil, 0), set3("transfer-encoding", "chunked", nil, 0), set3(":path", "/other", nil, 0), set3("host", "other", nil, 0),
			{Header: &corev3.HeaderValue{Key: "x-raw", RawValue: []byte("raw")}},
		},
		HeadersToRemove:         []string{"X-Secret", "host", ":method"},
		ResponseHeadersToAdd:    []*corev3.HeaderValueOption{set3("x-app", "more", nil, 0), set3("x-both", "authz", nil, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)},
		QueryParametersToSet:    []*corev3.QueryParameter{{Key: "q", Value: "a b"}},
		QueryParametersToRemove: []string{"token"},
	}}}))
	resp, body = send(t, client, "POST", "http://web/ask?q=1&token=t&r=2", "body", "X-User: admin", "X_User: admin", "X-Two: a", "X-Secret: s")
	for _, want := range []string{"POST /ask?r=2&q=a+b HTTP", "\r\nHost: web\r\n", "X-User: jason\r\n", "X-Two: a\r\n", "X-Two: c\r\n", "X-Raw: raw\r\n", "Content-Length: 4\r\n", "\r\n\r\nbody"} {
		if !strings.Contains(body, want) {
			t.Errorf("the application's request lacks %q: %s", want, body)
		}
	}
	for _, not := range []string{"admin", "X-Secret", "X-Absent", "X-Bad", "Smuggled", "chunked"} {
		if strings.Contains(body, not) {
			t.Errorf("the application's request has %q: %s", not, body)
		}
	}
	if app, both := resp.Header.Values("X-App"), resp.Header.Values("X-Both"); !slices.Equal(app, []string{"app", "more"}) || !slices.Equal(both, []string{"authz"}) {
		t.Errorf("the response has %v and %v", app, both)
	}

	// What it refuses.
	a.says(always(&authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode_Found}, Body: "over there",
		Headers: []*corev3.HeaderValueOption{
			set3("location", "https://login.example/", nil, 0), set3("content-type", "text/html", nil, 0), set3("set-cookie", "a=1", wrapperspb.Bool(true), 0), set3("set-cookie", "b=2", wrapperspb.Bool(true), 0),
		},
	}}}))
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, body = send(t, client, "GET", "http://web/ask", "")
	if resp.StatusCode != http.StatusFound || body != "over there" || resp.Header.Get("Location") != "https://login.example/" || len(resp.Header.Values("Set-Cookie")) != 2 || !slices.Equal(resp.Header.Values("Content-Type"), []string{"text/html"}) {
		t.Errorf("what is refused gets %d %v %s", resp.StatusCode, resp.Header, body)
	}
	m.server.log.await(t, `"GET /ask HTTP/1.1" 302 UAEX ext_authz_denied[ns[default]-policy[ask]-rule[0]]`)
	a.says(always(&authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.Unauthenticated)}}))
	if resp, _ := send(t, client, "GET", "http://web/ask", ""); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a bare refusal gives %d, want 403", resp.StatusCode)
	}
	// No spelling walks past it; another path is not asked about.
	if code, _ := raw(t, m.at(webIP), "GET /x/..%2fASK HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n"); code != 403 {
		t.Errorf("another spelling gives %d, want 403", code)
	}
	if resp, _ := send(t, client, "GET", "http://web/free", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("a path that it is not asked about gives %d", resp.StatusCode)
	}
	if n := m.server.allStats()["access.default/ask.matched"]; n != 5 {
		t.Errorf("counted is %d, want 5", n)
	}
}

// What can't be asked is refused, or passes, as is said.
func TestExternalFailure(t *testing.T) {
	m := newMesh(t)
	m.echo()
	a := m.external(nil)
	m.start()
	client := httpClient(t, m.at(webIP), "")
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	a.says(func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		select {
		case <-ctx.Done():
		case <-never:
		}
		return nil, ctx.Err()
	})
	closed := a.Authorizer
	closed.Timeout, closed.StatusOnError = snapshot.Duration(20*time.Millisecond), 503
	open := closed
	open.FailOpen = true
	gone := closed
	ln := listenTCP(t, "127.0.0.9:0")
	gone.Port = listen.AddrPort(ln.Addr()).Port()
	_ = ln.Close()
	lost := closed
	lost.Host = "nowhere.example"
	unnamed := closed
	unnamed.Name = "another"
	for name, tt := range map[string]struct {
		a    snapshot.Authorizer
		want int
		line string
	}{
		"it does not answer":        {closed, 503, "ext_authz_error["},
		"it fails open":             {open, 200, "via_upstream"},
		"nobody listens":            {gone, 503, "ext_authz_error["},
		"there is no such service":  {lost, 503, "ext_authz_error["},
		"there is no such provider": {unnamed, 403, "ext_authz_error["},
	} {
		m.asks(&tt.a)
		path := "/" + strings.ReplaceAll(name, " ", "-")
		if resp, body := send(t, client, "GET", "http://web"+path, ""); resp.StatusCode != tt.want {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, body, tt.want)
		}
		m.server.log.await(t, "GET "+path+" ", tt.line)
	}
	a.says(func(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		return nil, status.Error(codes.Unavailable, "not today")
	})
	m.asks(&closed)
	if resp, _ := send(t, client, "GET", "http://web/", ""); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a call that fails gives %d, want 503", resp.StatusCode)
	}
}

// A client that leaves is not waited for, whatever it speaks.
func TestExternalClientLeaves(t *testing.T) {
	m := newMesh(t)
	m.echo()
	a := m.external(nil)
	m.start()
	m.asks(&a.Authorizer)
	arrived, ended := make(chan struct{}, 2), make(chan struct{}, 2)
	a.says(func(ctx context.Context, _ *authv3.CheckRequest) (*authv3.CheckResponse, error) {
		arrived <- struct{}{}
		<-ctx.Done()
		ended <- struct{}{}
		return nil, ctx.Err()
	})
	c := dial(t, m.at(webIP))
	if _, err := io.WriteString(c, "GET /leaves HTTP/1.1\r\nHost: web\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-arrived
	_ = c.Close()
	<-ended // the call is broken off, and not by its timeout of ten seconds
	calls := testgrpc.NewTestServiceClient(m.grpcClient(webIP))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, _ = calls.EmptyCall(ctx, &testgrpc.Empty{}) }()
	<-arrived
	cancel()
	<-ended
	m.server.log.await(t, "/leaves", " DC ")
}

// An authorizer of HTTP gets a request like the one in question.
func TestExternalHTTP(t *testing.T) {
	m := newMesh(t)
	m.echo()
	var mu sync.Mutex
	var asked *http.Request
	var told string
	a := m.external(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		asked, told = r, string(b)
		mu.Unlock()
		switch r.Header.Get("X-Ask") {
		case "no":
			w.Header().Set("Www-Authenticate", "Bearer")
			w.Header().Set("X-Why", "no")
			w.Header().Set("X-Not", "no")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, "who are you?")
		case "broken":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.Header().Set("X-User", "jason")
			w.Header().Add("X-Role-A", "1")
			w.Header().Set("X-Both", "authz")
			w.Header().Set("X-Envoy-Auth-Headers-To-Remove", "x-secret, x-other")
		}
	}))
	p := &a.Authorizer
	p.PathPrefix, p.RequestHeaders, p.AddHeaders = "/check", []string{"x-ask", "x-in-*", "*-id"}, []snapshot.Field{{Name: "x-mesh", Value: "yes"}}
	p.UpstreamHeaders, p.AllowHeaders, p.DenyHeaders = []string{"x-user", "x-role-*"}, []string{"x-both"}, []string{"x-why"}
	m.start()
	m.asks(p)
	client := httpClient(t, m.at(webIP), "")

	resp, body := send(t, client, "PUT", "http://web/a?b", "body", "X-Ask: yes", "X-In-1: i", "My-Id: 7", "X-Mesh: forged", "X-User: admin", "X_User: admin", "X-Secret: s", "Authorization: Basic x", "X-Private: p")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Both") != "authz" || len(resp.Header.Values("X-Both")) != 1 {
		t.Fatalf("what is allowed gets %d %v %s", resp.StatusCode, resp.Header, body)
	}
	mu.Lock()
	if asked.Method != http.MethodPut || asked.URL.String() != "/check/a?b" || asked.Host != "web" || asked.ContentLength != 0 {
		t.Errorf("asked is %s %s of %s with %d bytes", asked.Method, asked.URL, asked.Host, asked.ContentLength)
	}
	for name, want := range map[string]string{"X-Ask": "yes", "X-In-1": "i", "My-Id": "7", "X-Mesh": "yes", "Authorization": "Basic x", "X-Private": "", "X-Secret": ""} {
		if got := strings.Join(asked.Header.Values(name), ","); got != want {
			t.Errorf("the authorizer's %s is %q, want %q", name, got, want)
		}
	}
	mu.Unlock()
	for _, want := range []string{"X-User: jason\r\n", "X-Role-A: 1\r\n", "\r\n\r\nbody"} {
		if !strings.Contains(body, want) {
			t.Errorf("the application's request lacks %q: %s", want, body)
		}
	}
	for _, not := range []string{"admin", "X-Secret", "X-Both"} {
		if strings.Contains(body, not) {
			t.Errorf("the application's request has %q: %s", not, body)
		}
	}
	resp, body = send(t, client, "GET", "http://web/a", "", "X-Ask: no")
	if resp.StatusCode != http.StatusUnauthorized || body != "who are you?" || resp.Header.Get("Www-Authenticate") != "Bearer" || resp.Header.Get("X-Why") != "no" || resp.Header.Get("X-Not") != "" {
		t.Errorf("what is refused gets %d %v %s", resp.StatusCode, resp.Header, body)
	}
	if resp, _ := send(t, client, "GET", "http://web/a", "", "X-Ask: broken"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("an authorizer that is broken gives %d, want 403", resp.StatusCode)
	}

	// The body, whole and cut; and it arrives whole in any case.
	p.Body = &snapshot.AuthorizerBody{MaxBytes: 10}
	m.asks(p)
	long := strings.Repeat("0123456789", 30000)
	check := func(body, want, cut string, status int) {
		t.Helper()
		for _, framing := range []string{"Content-Length", "chunked"} {
			var from io.Reader = strings.NewReader(body)
			if framing == "chunked" {
				from = io.MultiReader(from) // of a length that net/http does not know
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web/b", from)
			if err != nil {
				t.Fatal(err)
			}
			if status == 200 {
				req.Header.Set("Expect", "100-continue")
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			echo, err := http.ReadRequest(bufio.NewReader(resp.Body))
			if resp.StatusCode != status || status == 200 && err != nil {
				t.Errorf("%s: %d bytes get %d, %v, want %d", framing, len(body), resp.StatusCode, err, status)
			}
			if status == 200 && err == nil {
				if got, err := io.ReadAll(echo.Body); string(got) != body || err != nil {
					t.Errorf("%s: the application got %d bytes of %d, %v", framing, len(got), len(body), err)
				}
				mu.Lock()
				if told != want || asked.Header.Get("X-Envoy-Auth-Partial-Body") != cut {
					t.Errorf("%s: the authorizer got %q, cut %s; want %q, %s", framing, told, asked.Header.Get("X-Envoy-Auth-Partial-Body"), want, cut)
				}
				mu.Unlock()
			}
			_ = resp.Body.Close()
		}
	}
	check("0123456789", "0123456789", "false", 200)
	check("0123456789a", "", "", 413)
	p.Body = &snapshot.AuthorizerBody{MaxBytes: 10, Partial: true}
	m.asks(p)
	check("0123456789", "0123456789", "false", 200)
	check(long, "0123456789", "true", 200)
}

// Of connections authorizers of gRPC are asked; those of HTTP are not, as in Istio.
func TestExternalBytes(t *testing.T) {
	m := newMesh(t)
	m.app(mailIP, each(func(c net.Conn) {
		_, _ = io.WriteString(c, "220 ready")
		_ = c.Close()
	}))
	a := m.external(nil)
	m.start()
	m.asks(&a.Authorizer)
	if got, err := io.ReadAll(dial(t, m.at(mailIP))); string(got) != "220 ready" {
		t.Errorf("what is allowed gets %q, %v", got, err)
	}
	if asked := a.last().GetAttributes(); asked.GetSource().GetPrincipal() != clientID || asked.GetRequest().GetHttp() != nil {
		t.Errorf("asked is %v", asked)
	}
	a.says(always(&authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}}))
	if got, err := io.ReadAll(dial(t, m.at(mailIP))); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("what is refused gets %q, %v; want a reset", got, err)
	}
	m.server.log.await(t, "ext_authz_denied[")
	m.asks(&a.Authorizer, snapshot.AccessRule{To: []snapshot.AccessOperation{{Paths: []string{"/x"}}}})
	if got, err := io.ReadAll(dial(t, m.at(mailIP))); string(got) != "220 ready" {
		t.Errorf("a rule of paths gives %q, %v to a connection without", got, err)
	}
}

// A client of gRPC gets a status that it understands, and its message arrives although the authorizer has seen it.
func TestExternalOfGRPC(t *testing.T) {
	m := newMesh(t)
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, interop.NewTestServer())
	t.Cleanup(server.Stop)
	m.app(webIP, func(ln net.Listener) { _ = server.Serve(ln) })
	a := m.external(nil)
	a.Body = &snapshot.AuthorizerBody{MaxBytes: 1 << 20, Raw: true}
	m.start()
	m.asks(&a.Authorizer)
	client := testgrpc.NewTestServiceClient(m.grpcClient(webIP))
	got, err := client.UnaryCall(t.Context(), &testgrpc.SimpleRequest{ResponseSize: 100, Payload: &testgrpc.Payload{Body: make([]byte, 100_000)}})
	if err != nil || len(got.GetPayload().GetBody()) != 100 {
		t.Fatalf("a call that is allowed ends with %v", err)
	}
	if n := len(a.last().GetAttributes().GetRequest().GetHttp().GetRawBody()); n < 100_000 {
		t.Errorf("the authorizer has seen %d bytes, want all of them", n)
	}
	a.says(always(&authv3.CheckResponse{Status: &rpcstatus.Status{Code: int32(codes.PermissionDenied)}}))
	if _, err := client.EmptyCall(t.Context(), &testgrpc.Empty{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a call that is refused ends with %v", err)
	}
}
