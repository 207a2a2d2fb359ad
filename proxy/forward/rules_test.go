package forward_test

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/forward"
)

const million = 1_000_000

// ruled is the mesh of tests with one route for service a, to endpoint a-1 alone.
func ruled(r snapshot.Route) *snapshot.Snapshot {
	s := mesh()
	if r.Redirect == nil && r.DirectResponse == nil && r.Destinations == nil {
		r.Destinations = []snapshot.Destination{{Service: "a.default.svc.cluster.local", Subset: "one", Weight: 1}}
	}
	s.VirtualHosts[0].Routes = []snapshot.Route{r}
	return s
}

func grpc(n int) *int { return &n }

// TestRules has one rule after another do its work. The upstream answers with the status that the path begins with, and
// tells in its body what it saw.
func TestRules(t *testing.T) {
	match := func(prefix string) []snapshot.Match {
		return []snapshot.Match{{URI: &snapshot.StringMatch{Prefix: prefix}}}
	}
	rules := func(r snapshot.RouteRules) snapshot.Route { return snapshot.Route{Name: "r", RouteRules: r} }
	matched := func(prefix string, r snapshot.RouteRules) snapshot.Route {
		return snapshot.Route{Name: "r", Matches: match(prefix), RouteRules: r}
	}
	abort := func(a snapshot.Abort) snapshot.Route {
		return rules(snapshot.RouteRules{Fault: &snapshot.Fault{Abort: &a}})
	}
	redirect := func(r snapshot.Redirect) snapshot.Route { return matched("/old", snapshot.RouteRules{Redirect: &r}) }
	rewrite := func(r snapshot.Rewrite) snapshot.Route { return matched("/old", snapshot.RouteRules{Rewrite: &r}) }
	origin := &snapshot.CORS{Origins: []snapshot.StringMatch{{Exact: "http://o"}}, Methods: "GET,PUT", AllowHeaders: "x-a", ExposeHeaders: "x-b", MaxAge: "60", Credentials: true}
	ops := func(set, add, remove string) snapshot.HeaderOps {
		o := snapshot.HeaderOps{Remove: strings.Fields(remove)}
		for _, f := range strings.Fields(set) {
			n, v, _ := strings.Cut(f, "=")
			o.Set = append(o.Set, snapshot.Field{Name: n, Value: v})
		}
		for _, f := range strings.Fields(add) {
			n, v, _ := strings.Cut(f, "=")
			o.Add = append(o.Add, snapshot.Field{Name: n, Value: v})
		}
		return o
	}
	both := rules(snapshot.RouteRules{Headers: &snapshot.Headers{Request: ops("x-both=route x-r=1 Host=other", "x-add=2", "gone"), Response: ops("x-both=route", "x-more=1", "server")}})
	both.Destinations = []snapshot.Destination{{Service: "a.default.svc.cluster.local", Subset: "one", Weight: 1, Headers: &snapshot.Headers{
		Request: ops("x-both=destination", "", ""), Response: ops("x-both=destination", "", ""),
	}}}
	const req = "GET /old/page?q HTTP/1.1\r\nHost: a\r\n"
	tests := []struct {
		name     string
		route    snapshot.Route
		request  string
		status   int
		header   string // "name=value" pairs; "name=" is absent
		saw      string // parts of the body
		flag     exchange.Flag
		upstream int // requests
	}{
		{"nothing", rules(snapshot.RouteRules{}), req, 200, "", "GET /old/page?q a", "", 1},
		{"abort", abort(snapshot.Abort{Share: million, HTTPStatus: 418}), req, 418, "", "fault filter abort", "FI", 0},
		{"abort of none", abort(snapshot.Abort{Share: 0, HTTPStatus: 418}), req, 200, "", "", "", 1},
		{"abort with a grpc status", abort(snapshot.Abort{Share: million, GRPCStatus: grpc(14)}), req, 503, "grpc-status=", "", "FI", 0},
		{"grpc status to a grpc client", abort(snapshot.Abort{Share: million, GRPCStatus: grpc(5)}), req + "Content-Type: application/grpc\r\n", 200, "grpc-status=5 content-type=application/grpc", "", "FI", 0},
		{"http status to a grpc client", abort(snapshot.Abort{Share: million, HTTPStatus: 503}), req + "Content-Type: application/grpc+proto\r\n", 200, "grpc-status=14", "", "FI", 0},
		{"delay then abort", rules(snapshot.RouteRules{Fault: &snapshot.Fault{Delay: &snapshot.Delay{Share: million, Fixed: 1}, Abort: &snapshot.Abort{Share: million, HTTPStatus: 500}}}), req, 500, "", "", "DI,FI", 0},
		{"delay", rules(snapshot.RouteRules{Fault: &snapshot.Fault{Delay: &snapshot.Delay{Share: million, Fixed: 1}}}), req, 200, "", "", "DI", 1},
		{"fault is not retried", rules(snapshot.RouteRules{Fault: &snapshot.Fault{Abort: &snapshot.Abort{Share: million, HTTPStatus: 503}}, Retries: &snapshot.Retries{Attempts: 3, On: []string{"5xx"}}}), req, 503, "", "", "FI", 0},

		{"retry on 5xx", rules(snapshot.RouteRules{Retries: &snapshot.Retries{Attempts: 2, On: []string{"5xx"}, Backoff: 1}}), "POST /503 HTTP/1.1\r\nHost: a\r\n", 503, "", "", "URX", 3},
		{"5xx is not the default", rules(snapshot.RouteRules{}), "GET /503 HTTP/1.1\r\nHost: a\r\n", 503, "", "", "", 1},
		{"retry on a status", rules(snapshot.RouteRules{Retries: &snapshot.Retries{Attempts: 1, Statuses: []int{418}, Backoff: 1}}), "GET /418 HTTP/1.1\r\nHost: a\r\n", 418, "", "", "URX", 2},
		{"gateway errors only", rules(snapshot.RouteRules{Retries: &snapshot.Retries{Attempts: 1, On: []string{"gateway-error"}, Backoff: 1}}), "GET /500 HTTP/1.1\r\nHost: a\r\n", 500, "", "", "", 1},
		{"retries off", rules(snapshot.RouteRules{Retries: &snapshot.Retries{On: []string{"5xx"}}}), "GET /503 HTTP/1.1\r\nHost: a\r\n", 503, "", "", "", 1},

		{"redirect uri", redirect(snapshot.Redirect{Status: 301, URI: "/new"}), req, 301, "location=http://a/new?q", "", "", 0},
		{"redirect uri with a query", redirect(snapshot.Redirect{Status: 302, URI: "/new?x"}), req, 302, "location=http://a/new?x", "", "", 0},
		{"redirect prefix", redirect(snapshot.Redirect{Status: 307, Prefix: "/new"}), req, 307, "location=http://a/new/page?q", "", "", 0},
		{"redirect elsewhere", redirect(snapshot.Redirect{Status: 308, Scheme: "https", Authority: "b.example", Port: 8443}), req, 308, "location=https://b.example:8443/old/page?q", "", "", 0},
		{"redirect to https", redirect(snapshot.Redirect{Status: 301, Scheme: "https"}), "GET /old HTTP/1.1\r\nHost: a:80\r\n", 301, "location=https://a/old", "", "", 0},
		{"redirect port of the scheme", redirect(snapshot.Redirect{Status: 301, Scheme: "https", Port: 443}), req, 301, "location=https://a/old/page?q", "", "", 0},
		{"direct response", rules(snapshot.RouteRules{DirectResponse: &snapshot.DirectResponse{Status: 503, Body: []byte("closed")}, Headers: &snapshot.Headers{Response: ops("x-a=1", "", "")}}), req, 503, "x-a=1", "closed", "", 0},

		{"rewrite prefix", rewrite(snapshot.Rewrite{URI: "/new"}), req, 200, "", "GET /new/page?q a original=/old/page?q", "", 1},
		{"rewrite prefix to the root", rewrite(snapshot.Rewrite{URI: "/"}), req, 200, "", "GET //page?q a ", "", 1},
		{"rewrite all", snapshot.Route{Name: "r", Matches: []snapshot.Match{{URI: &snapshot.StringMatch{Exact: "/old/page"}}}, RouteRules: snapshot.RouteRules{Rewrite: &snapshot.Rewrite{URI: "/new"}}}, req, 200, "", "GET /new?q a ", "", 1},
		{"rewrite by regex", rewrite(snapshot.Rewrite{Regex: "^/(.)ld/(.*)$", Substitution: `/$1\2/\1`}), req, 200, "", "GET /$1page/o?q a ", "", 1},
		{"rewrite authority", rewrite(snapshot.Rewrite{Authority: "b:81"}), req, 200, "", "GET /old/page?q b:81", "", 1},
		{"forged original path goes at no rewrite", rewrite(snapshot.Rewrite{URI: "/new"}), req + "x-envoy-original-path: /forged\r\n", 200, "", "original=/old/page?q", "", 1},

		{"headers", both, req + "gone: 1\r\nX-Both: client\r\n", 200, "x-both=destination x-more=1 server=", "GET /old/page?q other original= both=destination r=1 add=2 gone=", "", 1},

		{"preflight", rules(snapshot.RouteRules{CORS: origin}), "OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: http://o\r\nAccess-Control-Request-Method: PUT\r\n", 200,
			"access-control-allow-origin=http://o access-control-allow-methods=GET,PUT access-control-allow-headers=x-a access-control-max-age=60 access-control-allow-credentials=true access-control-expose-headers=", "", "", 0},
		{"preflight of another", rules(snapshot.RouteRules{CORS: origin}), "OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: http://p\r\nAccess-Control-Request-Method: PUT\r\n", 200, "access-control-allow-origin=", "OPTIONS", "", 1},
		{"preflight of another, ignored", rules(snapshot.RouteRules{CORS: &snapshot.CORS{IgnoreUnmatched: true}}), "OPTIONS / HTTP/1.1\r\nHost: a\r\nOrigin: http://p\r\nAccess-Control-Request-Method: PUT\r\n", 200, "access-control-allow-origin=", "", "", 0},
		{"cross-origin", rules(snapshot.RouteRules{CORS: origin}), req + "Origin: http://o\r\n", 200, "access-control-allow-origin=http://o access-control-expose-headers=x-b access-control-allow-methods=", "", "", 1},
		{"cross-origin of another", rules(snapshot.RouteRules{CORS: origin}), req + "Origin: http://p\r\n", 200, "access-control-allow-origin=", "", "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var (
				mu    sync.Mutex
				calls int
			)
			n := &network{at: map[string]string{"10.0.0.1:9080": served(t, func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				calls++
				mu.Unlock()
				status := http.StatusOK
				_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
				w.Header().Set("Server", "x")
				w.Header().Set("X-Both", "upstream")
				w.WriteHeader(status)
				h := r.Header
				_, _ = fmt.Fprintf(w, "%s %s %s original=%s both=%s r=%s add=%s gone=%s", r.Method, r.RequestURI, r.Host, strings.Join(h.Values("X-Envoy-Original-Path"), "|"),
					strings.Join(h.Values("X-Both"), "|"), h.Get("X-R"), h.Get("X-Add"), h.Get("Gone"))
			})}}
			p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: ruled(tt.route), dial: n.dial})
			c := p.raw()
			for range 2 { // the second on what the first has left
				c.send(tt.request + "\r\n")
				method, _, _ := strings.Cut(tt.request, " ")
				resp, body := c.response(method)
				if resp.StatusCode != tt.status || !strings.Contains(body, tt.saw) {
					t.Errorf("got %d %q, want %d and %q", resp.StatusCode, body, tt.status, tt.saw)
				}
				for _, f := range strings.Fields(tt.header) {
					name, value, _ := strings.Cut(f, "=")
					if got := strings.Join(resp.Header.Values(name), "|"); got != value {
						t.Errorf("%s is %q, want %q", name, got, value)
					}
				}
				r := p.record()
				if r.Flag != tt.flag || r.Status != tt.status || !strings.HasPrefix(tt.request, r.Method+" "+r.Path) {
					t.Errorf("recorded %+v, want status %d, flag %q and the client's own path", r, tt.status, tt.flag)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if calls != 2*tt.upstream {
				t.Errorf("upstream got %d requests for two, want %d", calls, 2*tt.upstream)
			}
		})
	}
}

// TestTimeout has an upstream that never answers, and one that stops in the midst of its answer.
func TestTimeout(t *testing.T) {
	const wait = snapshot.Duration(60 * time.Millisecond)
	tests := []struct {
		name  string
		rules snapshot.RouteRules
		tries int
		want  record
	}{
		{"of the exchange", snapshot.RouteRules{Timeout: wait}, 1, record{Status: 504, Flag: "UT", Details: "response_timeout"}},
		{"of a try, which is no reason by default", snapshot.RouteRules{Retries: &snapshot.Retries{Attempts: 2, PerTry: wait}}, 1, record{Status: 504, Flag: "UT", Details: "upstream_per_try_timeout"}},
		{"of each try", snapshot.RouteRules{Retries: &snapshot.Retries{Attempts: 2, PerTry: wait, On: []string{"5xx"}, Backoff: 1}}, 3, record{Status: 504, Flag: "UT,URX", Details: "upstream_per_try_timeout"}},
		{"of all tries", snapshot.RouteRules{Timeout: wait + wait/2, Retries: &snapshot.Retries{Attempts: 9, PerTry: wait, On: []string{"reset"}, Backoff: 1}}, 2, record{Status: 504, Flag: "UT", Details: "response_timeout"}},
	}
	for _, tt := range tests {
		for _, body := range []string{"", "hi"} {
			t.Run(tt.name+" "+body, func(t *testing.T) {
				o := scripted(t, func(_ int, c *rawConn) { _, _ = io.Copy(io.Discard, c) })
				n := &network{at: map[string]string{"10.0.0.1:9080": o.addr}}
				p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: ruled(snapshot.Route{RouteRules: tt.rules}), dial: n.dial})
				c := p.raw()
				c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", len(body)))
				c.send(body)
				resp, text := c.response("POST")
				r := p.record()
				if resp.StatusCode != http.StatusGatewayTimeout || text != "upstream request timeout" || r.Status != tt.want.Status || r.Flag != tt.want.Flag || r.Details != tt.want.Details {
					t.Errorf("got %d %q, recorded %+v", resp.StatusCode, text, r)
				}
				if got := o.connections(); got != tt.tries {
					t.Errorf("%d tries, want %d", got, tt.tries)
				}
			})
		}
	}
	t.Run("within the response", func(t *testing.T) {
		o := scripted(t, func(_ int, c *rawConn) {
			_, _, _ = c.request()
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
			_, _ = io.Copy(io.Discard, c)
		})
		// Time enough for the head to come on a busy machine.
		n := &network{at: map[string]string{"10.0.0.1:9080": o.addr}}
		p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", snapshot: ruled(snapshot.Route{RouteRules: snapshot.RouteRules{Timeout: snapshot.Duration(2 * time.Second)}}), dial: n.dial})
		c := p.raw()
		c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, err := io.ReadAll(c.r); err != nil {
			t.Error(err)
		}
		if r := p.record(); r.Status != 200 || r.Flag != "UT" || r.Details != "response_timeout" {
			t.Errorf("recorded %+v", r)
		}
	})
}

// TestReplay sends long bodies again: chunked and with a length, up to what is kept.
func TestReplay(t *testing.T) {
	for _, size := range []int{10, 100_000, 900_000, 3_000_000} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprint(size, chunked), func(t *testing.T) {
				var (
					mu   sync.Mutex
					got  []int
					want = strings.Repeat("0123456789", size/10)
				)
				n := &network{at: map[string]string{"10.0.0.1:9080": served(t, func(w http.ResponseWriter, r *http.Request) {
					b, err := io.ReadAll(r.Body)
					mu.Lock()
					defer mu.Unlock()
					got = append(got, len(b))
					if err != nil || string(b) != want {
						t.Errorf("try %d: %d bytes, %v", len(got), len(b), err)
					}
					if len(got) == 1 {
						w.WriteHeader(http.StatusServiceUnavailable)
					}
				})}}
				p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", dial: n.dial,
					snapshot: ruled(snapshot.Route{RouteRules: snapshot.RouteRules{Retries: &snapshot.Retries{Attempts: 1, On: []string{"5xx"}, Backoff: 1}}})})
				var body io.Reader = strings.NewReader(want)
				if chunked {
					body = io.MultiReader(body)
				}
				req, err := http.NewRequest(http.MethodPost, "http://a/", body)
				if err != nil {
					t.Fatal(err)
				}
				resp, _ := do(t, p.client(), req)
				tries, status := 2, http.StatusOK
				if size > 1<<20 {
					tries, status = 1, http.StatusServiceUnavailable
				}
				mu.Lock()
				defer mu.Unlock()
				if resp.StatusCode != status || len(got) != tries {
					t.Errorf("got %d after tries with %v bytes, want %d after %d", resp.StatusCode, got, status, tries)
				}
				if r := p.record(); r.Received != int64(size) {
					t.Errorf("recorded %d bytes received, want %d", r.Received, size)
				}
			})
		}
	}
}

// TestMirror sends copies of requests, short and long, and does not wait for what becomes of them.
func TestMirror(t *testing.T) {
	for _, size := range []int{0, 10, 100_000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			copies := make(chan string, 10)
			hang := make(chan struct{})
			defer close(hang)
			n := &network{at: map[string]string{
				"10.0.0.1:9080": served(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }),
				"10.0.0.3:81": served(t, func(_ http.ResponseWriter, r *http.Request) {
					b, _ := io.ReadAll(r.Body)
					copies <- fmt.Sprintf("%s %s %s %s %d", r.Method, r.RequestURI, r.Host, r.Header.Get("X-Request-Id"), len(b))
					<-hang
				}),
			}}
			p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", dial: n.dial,
				snapshot: ruled(snapshot.Route{RouteRules: snapshot.RouteRules{Mirrors: []snapshot.Mirror{
					{Service: "b.default.svc.cluster.local", Port: 81, Share: million}, {Service: "b.default.svc.cluster.local", Port: 81},
				}}})})
			for range 2 {
				req, err := http.NewRequest(http.MethodPut, "http://a:9080/x?y", strings.NewReader(strings.Repeat("x", size)))
				if err != nil {
					t.Fatal(err)
				}
				if resp, _ := do(t, p.client(), req); resp.StatusCode != http.StatusOK {
					t.Errorf("status %d", resp.StatusCode)
				}
				want := fmt.Sprintf("PUT /x?y a-shadow:9080 %s %d", p.record().RequestID, size)
				if got := <-copies; got != want {
					t.Errorf("the mirror got %q, want %q", got, want)
				}
			}
			if len(copies) > 0 {
				t.Errorf("another copy: %q", <-copies)
			}
		})
	}
}

// TestDelayEndsWithTheClient has a client leave while its request is held back.
func TestDelayEndsWithTheClient(t *testing.T) {
	p := start(t, options{direction: exchange.Outbound, dst: "10.0.0.1:9080", dial: (&network{}).dial, timeouts: forward.Timeouts{},
		snapshot: ruled(snapshot.Route{RouteRules: snapshot.RouteRules{Fault: &snapshot.Fault{Delay: &snapshot.Delay{Share: million, Fixed: snapshot.Duration(time.Hour)}}}})})
	c := p.raw()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	_ = c.Close()
	if r := p.record(); r.Flag != "DI,DC" || r.Status != 0 {
		t.Errorf("recorded %+v", r)
	}
}
