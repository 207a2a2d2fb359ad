package filter

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// router answers tries from a script, and writes down what it is asked.
type script struct {
	tries []Response // one after the other, the last for ever
	log   []string
	fixed bool // a try can't be repeated
	gone  bool // the client leaves while it waits
	// awaits is how often the destination is expected to come back.
	awaits int
}

func (s *script) Try(x *Exchange) {
	s.log = append(s.log, fmt.Sprintf("try %s %s", x.Request.Path, x.Request.Authority))
	x.Response = s.tries[0]
	if len(s.tries) > 1 {
		s.tries = s.tries[1:]
	}
	if x.Response.Local != nil {
		x.Answer(x.Response.Local)
	}
}

func (s *script) Awaits(*Exchange) bool {
	s.awaits--
	return s.awaits >= 0
}

func (s *script) Again(x *Exchange) bool {
	if s.fixed {
		return false
	}
	x.Response = Response{}
	return true
}

func (s *script) Wait(x *Exchange, d time.Duration) bool {
	s.log = append(s.log, fmt.Sprintf("wait %v", d > 0))
	if s.gone {
		x.Answer(&Answer{Flag: exchange.FlagDownstreamTermination})
	}
	return !s.gone
}

func ok(header ...string) Response { return with(200, header...) }

func with(status int, header ...string) Response {
	r := Response{Status: status}
	for _, h := range header {
		name, value, _ := strings.Cut(h, "=")
		r.Header = append(r.Header, http1.NewField(name, value))
	}
	return r
}

func local(c Cause) Response { return Response{Local: &Answer{Status: 503, Cause: c}} }

// serve sends a request for /a/b?c of host h through the chain of a route's rules.
func serve(t *testing.T, rules snapshot.RouteRules, s *script, header ...string) *Exchange {
	t.Helper()
	route := &snapshot.Route{RouteRules: rules}
	d := &snapshot.Destination{Service: "s", Weight: 1}
	if rules.Redirect != nil || rules.DirectResponse != nil {
		d = nil
	}
	h, err := Chain(route, d)
	if err != nil {
		t.Fatal(err)
	}
	x := &Exchange{}
	x.Reset(&exchange.Exchange{}, s)
	x.Request = Request{Method: []byte("GET"), Path: []byte("/a/b?c"), Authority: []byte("h:81"), Scheme: "http", Port: 9080, Prefix: "/a"}
	x.Request.Header = with(0, header...).Header
	h.Serve(x)
	return x
}

func fields(h http1.Header) string {
	var out []string
	for _, f := range h {
		out = append(out, fmt.Sprintf("%s=%s", f.Name, f.Value))
	}
	return strings.Join(out, " ")
}

func TestRetry(t *testing.T) {
	on := func(attempts uint32, conditions ...string) *snapshot.Retries {
		return &snapshot.Retries{Attempts: attempts, On: conditions, Backoff: 1}
	}
	cases := []struct {
		name    string
		retries *snapshot.Retries
		tries   []Response
		want    int // tries
		status  int
		limit   bool
	}{
		{"well", nil, []Response{ok()}, 1, 200, false},
		{"by default, what was not sent", nil, []Response{local(ConnectFailure), local(ConnectFailure), ok()}, 3, 200, false},
		{"by default, twice", nil, []Response{local(ConnectFailure)}, 3, 503, true},
		{"by default, no reset", nil, []Response{local(Reset), ok()}, 1, 503, false},
		{"by default, no 503", nil, []Response{with(503), ok()}, 1, 503, false},
		{"by default, unavailable", nil, []Response{ok("grpc-status=14"), ok("grpc-status=0")}, 2, 200, false},
		{"by default, cancelled", nil, []Response{ok("grpc-status=1"), ok()}, 2, 200, false},
		{"by default, no internal", nil, []Response{ok("grpc-status=13"), ok()}, 1, 200, false},
		{"none", on(0, "5xx"), []Response{with(503), ok()}, 1, 503, false},
		{"5xx", on(1, "5xx"), []Response{with(500), ok()}, 2, 200, false},
		{"5xx is also a reset", on(1, "5xx"), []Response{local(Reset), ok()}, 2, 200, false},
		{"5xx is also a try that is late", on(1, "5xx"), []Response{local(PerTryTimeout), ok()}, 2, 200, false},
		{"5xx is no 404", on(1, "5xx"), []Response{with(404), ok()}, 1, 404, false},
		{"gateway-error", on(3, "gateway-error"), []Response{with(502), with(503), with(504), with(500)}, 4, 500, false},
		{"retriable-4xx", on(2, "retriable-4xx"), []Response{with(409), with(404)}, 2, 404, false},
		{"reset", on(1, "reset"), []Response{local(Reset), ok()}, 2, 200, false},
		{"reset is no status", on(1, "reset"), []Response{with(503), ok()}, 1, 503, false},
		{"connect-failure is no reset", on(1, "connect-failure"), []Response{local(Reset), ok()}, 1, 503, false},
		{"statuses", &snapshot.Retries{Attempts: 1, Statuses: []int{418}, Backoff: 1}, []Response{with(418), ok()}, 2, 200, false},
		{"statuses alone", &snapshot.Retries{Attempts: 1, Statuses: []int{418}, Backoff: 1}, []Response{local(ConnectFailure), ok()}, 1, 503, false},
		{"envoy-ratelimited", on(1, "envoy-ratelimited"), []Response{with(429, "X-Envoy-RateLimited=true"), ok()}, 2, 200, false},
		{"an answer of our own", on(5, "5xx"), []Response{local(NotUpstream)}, 1, 503, false},
		{"grpc status that is none", on(1, "unavailable"), []Response{ok("grpc-status=x"), ok("grpc-status=99")}, 1, 200, false},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{tries: tt.tries}
			x := serve(t, snapshot.RouteRules{Retries: tt.retries}, s)
			got := strings.Count(strings.Join(s.log, "\n"), "try")
			if got != tt.want || x.Response.Status != tt.status || (x.Record.Flag == exchange.FlagRetryLimit) != tt.limit {
				t.Errorf("%d tries, status %d, flag %q, want %d, %d, limit %v", got, x.Response.Status, x.Record.Flag, tt.want, tt.status, tt.limit)
			}
		})
	}
	for _, tt := range []struct {
		name    string
		retries *snapshot.Retries
		tries   []Response
		awaits  int
		want    int // tries
		status  int
		limit   bool
	}{
		{"that comes back", nil, []Response{local(ConnectFailure), local(ConnectFailure), local(NoEndpoint), local(ConnectFailure), ok()}, 9, 5, 200, false},
		{"that had no endpoint", nil, []Response{local(NoEndpoint), ok()}, 1, 2, 200, false},
		{"that has no endpoint", nil, []Response{local(NoEndpoint)}, 0, 1, 503, false},
		{"in vain", nil, []Response{local(ConnectFailure)}, 2, 5, 503, true},
		{"that has seen the request", nil, []Response{local(Reset)}, 9, 1, 503, false},
		{"without retries", on(0), []Response{local(ConnectFailure)}, 9, 1, 503, false},
		{"with retries for another reason", on(2, "retriable-4xx"), []Response{local(NoEndpoint)}, 9, 1, 503, false},
	} {
		t.Run("a destination "+tt.name, func(t *testing.T) {
			s := &script{tries: tt.tries, awaits: tt.awaits}
			x := serve(t, snapshot.RouteRules{Retries: tt.retries}, s)
			if got := strings.Count(strings.Join(s.log, "\n"), "try"); got != tt.want || x.Response.Status != tt.status || (x.Record.Flag == exchange.FlagRetryLimit) != tt.limit {
				t.Errorf("%d tries, status %d, flag %q, want %d, %d, limit %v", got, x.Response.Status, x.Record.Flag, tt.want, tt.status, tt.limit)
			}
		})
	}
	t.Run("that can't be repeated", func(t *testing.T) {
		s := &script{tries: []Response{with(503)}, fixed: true}
		if x := serve(t, snapshot.RouteRules{Retries: on(3, "5xx")}, s); len(s.log) != 1 || x.Response.Status != 503 {
			t.Errorf("%v, status %d", s.log, x.Response.Status)
		}
	})
	t.Run("whose client leaves", func(t *testing.T) {
		s := &script{tries: []Response{with(503)}, gone: true}
		if x := serve(t, snapshot.RouteRules{Retries: on(3, "5xx")}, s); len(s.log) != 2 || x.Response.Status != 0 {
			t.Errorf("%v, status %d", s.log, x.Response.Status)
		}
	})
}

// A wait is below a bound that doubles, and stays.
func TestBackoff(t *testing.T) {
	r := retry{base: 25 * time.Millisecond}
	for n, ms := range []int{25, 75, 175, 250, 250, 250} {
		bound := time.Duration(ms) * time.Millisecond
		longest := time.Duration(0)
		for range 2000 {
			longest = max(longest, r.backoff(uint32(n))) //nolint:gosec // a small number
		}
		if longest >= bound || longest < bound*9/10 {
			t.Errorf("the longest wait before retry %d is %s, want just below %s", n, longest, bound)
		}
	}
}

func TestFaultOrder(t *testing.T) {
	fault := &snapshot.Fault{Delay: &snapshot.Delay{Share: million, Fixed: 1}, Abort: &snapshot.Abort{Share: million, HTTPStatus: 418}}
	s := &script{tries: []Response{ok()}}
	x := serve(t, snapshot.RouteRules{Fault: fault, Retries: &snapshot.Retries{Attempts: 3, On: []string{"5xx"}}}, s)
	if strings.Join(s.log, ",") != "wait true" || x.Response.Status != 418 || x.Record.Flag != "DI" {
		t.Errorf("%v, status %d, flag %q, want a wait, no try, and the answer", s.log, x.Response.Status, x.Record.Flag)
	}
	s = &script{tries: []Response{ok()}, gone: true}
	if x = serve(t, snapshot.RouteRules{Fault: fault}, s); len(s.log) != 1 || x.Response.Status != 0 {
		t.Errorf("%v, status %d, want no more after the client has left", s.log, x.Response.Status)
	}
	n := 0
	for range 10_000 {
		if chance(250_000) {
			n++
		}
	}
	if n < 2200 || n > 2800 {
		t.Errorf("a quarter came %d times of 10000", n)
	}
}

func TestHeadersInOrder(t *testing.T) {
	ops := func(value string) *snapshot.Headers {
		o := snapshot.HeaderOps{Remove: []string{"Gone"}, Set: []snapshot.Field{{Name: "X-Set", Value: value}}, Add: []snapshot.Field{{Name: "X-Add", Value: value}}}
		return &snapshot.Headers{Request: o, Response: o}
	}
	route := &snapshot.Route{RouteRules: snapshot.RouteRules{Headers: ops("route")}}
	h, err := Chain(route, &snapshot.Destination{Weight: 1, Headers: ops("destination")})
	if err != nil {
		t.Fatal(err)
	}
	s := &script{tries: []Response{with(200, "gone=1", "x-set=upstream", "x-add=upstream")}}
	x := &Exchange{}
	x.Reset(&exchange.Exchange{}, s)
	x.Request.Header = with(0, "x-set=client", "GONE=1", "x-add=client").Header
	h.Serve(x)
	const want = "x-add=%s X-Add=route X-Set=destination X-Add=destination"
	if got := fields(x.Request.Header); got != fmt.Sprintf(want, "client") {
		t.Errorf("request has %s", got)
	}
	if got := fields(x.Response.Header); got != fmt.Sprintf(want, "upstream") {
		t.Errorf("response has %s", got)
	}
}

func TestRewrite(t *testing.T) {
	cases := []struct {
		name string
		rule snapshot.Rewrite
		want string
	}{
		{"prefix", snapshot.Rewrite{URI: "/x"}, "try /x/b?c h:81"},
		{"to what begins with no slash", snapshot.Rewrite{URI: "x"}, "try /x/b?c h:81"},
		{"authority", snapshot.Rewrite{Authority: "other"}, "try /a/b?c other"},
		{"regex, each place", snapshot.Rewrite{Regex: "/(.)", Substitution: `-\1`}, "try /-a-b?c h:81"},
		{"regex, a backslash and a dollar", snapshot.Rewrite{Regex: "^/a", Substitution: `/\\$1`}, `try /\$1/b?c h:81`},
		{"regex that is not there", snapshot.Rewrite{Regex: "z", Substitution: "y"}, "try /a/b?c h:81"},
	}
	for _, tt := range cases {
		s := &script{tries: []Response{ok()}}
		x := serve(t, snapshot.RouteRules{Rewrite: &tt.rule}, s)
		if s.log[0] != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, s.log[0], tt.want)
		}
		original := fields(x.Request.Header)
		if moved := !strings.Contains(tt.want, "/a/b?c"); moved != (original == "X-Envoy-Original-Path=/a/b?c") {
			t.Errorf("%s: the workload is told %q", tt.name, original)
		}
	}
}

func TestRedirectPorts(t *testing.T) {
	cases := map[string]snapshot.Redirect{
		"http://h:81/n?c":          {URI: "/n"},
		"https://h:81/a/b?c":       {Scheme: "https"},
		"https://h/a/b?c":          {Scheme: "https", DerivePort: snapshot.PortOfScheme},
		"http://h/a/b?c":           {DerivePort: snapshot.PortOfScheme},
		"http://h:9080/a/b?c":      {DerivePort: snapshot.PortOfRequest},
		"http://o:9080/a/b?c":      {Authority: "o:1", DerivePort: snapshot.PortOfRequest},
		"http://o:1/a/b?c":         {Authority: "o:1"},
		"https://h:8443/n/b?c":     {Scheme: "https", Port: 8443, Prefix: "/n"},
		"https://h/whole?q":        {Scheme: "https", Port: 443, URI: "/whole?q"},
		"http://[2001:db8::1]/n?c": {Authority: "[2001:db8::1]", URI: "/n"},
	}
	for want, rule := range cases {
		rule.Status = 302
		x := serve(t, snapshot.RouteRules{Redirect: &rule}, &script{})
		if got := fields(x.Response.Header); got != "Location="+want || x.Response.Status != 302 {
			t.Errorf("%d to %s, want %s", x.Response.Status, got, want)
		}
	}
}

// What a snapshot may not ask for is refused, by name.
func TestRefused(t *testing.T) {
	five := 99
	cases := map[string]snapshot.RouteRules{
		"fault.delay.fixed":      {Fault: &snapshot.Fault{Delay: &snapshot.Delay{}}},
		"fault.abort.httpStatus": {Fault: &snapshot.Fault{Abort: &snapshot.Abort{GRPCStatus: &five}}},
		"retries.on":             {Retries: &snapshot.Retries{On: []string{"nonsense"}}},
		"retries: want":          {Retries: &snapshot.Retries{PerTry: -1}},
		"timeout":                {Timeout: -1},
		"rewrite.regex":          {Rewrite: &snapshot.Rewrite{Regex: "("}},
		"cors.origins[0]":        {CORS: &snapshot.CORS{Origins: []snapshot.StringMatch{{Regex: "("}}}},
		"redirect.status":        {Redirect: &snapshot.Redirect{Status: 200}},
		"directResponse.status":  {DirectResponse: &snapshot.DirectResponse{Status: 99}},
	}
	for want, rules := range cases {
		if _, err := Chain(&snapshot.Route{RouteRules: rules}, &snapshot.Destination{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error is %v, want one about %s", err, want)
		}
	}
}

func TestGRPCStatus(t *testing.T) {
	for value, want := range map[string]int{"0": 200, "14": 503, "4": 504, "13": 500, "17": 500, "x": 500, "-1": 500} {
		if got := StatusOfGRPC([]byte(value)); got != want {
			t.Errorf("%s stands for %d, want %d", value, got, want)
		}
	}
	for status, want := range map[int]int{200: 0, 404: 12, 503: 14, 418: 2} {
		if got := GRPCOf(status); got != want {
			t.Errorf("%d stands for %d, want %d", status, got, want)
		}
	}
}
