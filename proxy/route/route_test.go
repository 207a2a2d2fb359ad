package route_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/route"
)

func exact(s string) *snapshot.StringMatch  { return &snapshot.StringMatch{Exact: s} }
func prefix(s string) *snapshot.StringMatch { return &snapshot.StringMatch{Prefix: s} }
func regex(s string) *snapshot.StringMatch  { return &snapshot.StringMatch{Regex: s} }

// request makes a request of "METHOD authority/path" and header lines.
func request(line string, lines ...string) *route.Request {
	method, rest, _ := strings.Cut(line, " ")
	i := strings.IndexByte(rest, '/')
	q := &route.Request{Method: []byte(method), Authority: []byte(rest[:i]), Path: []byte(rest[i:]), Scheme: "http", Port: 9080}
	for _, l := range lines {
		name, value, _ := bytes.Cut([]byte(l), []byte(": "))
		q.Header = append(q.Header, http1.Field{Name: name, Value: value})
	}
	return q
}

func TestMatch(t *testing.T) {
	header := func(name string, v *snapshot.StringMatch, invert bool) snapshot.Match {
		return snapshot.Match{Headers: []snapshot.HeaderMatch{{Name: name, Value: v, Invert: invert}}}
	}
	query := func(name string, v *snapshot.StringMatch) snapshot.Match {
		return snapshot.Match{QueryParams: []snapshot.HeaderMatch{{Name: name, Value: v}}}
	}
	about := func(v *snapshot.StringMatch, invert bool, claim ...string) snapshot.Match {
		return snapshot.Match{Headers: []snapshot.HeaderMatch{{Name: "@request.auth.claims", Claim: claim, Value: v, Invert: invert}}}
	}
	staff := &exchange.Auth{Claims: &exchange.Claim{Fields: map[string]*exchange.Claim{
		"groups": {Values: []string{"staff", "ops"}}, "realm": {Fields: map[string]*exchange.Claim{"role": {Values: []string{"editor"}}}},
	}}}
	whose := func(a *exchange.Auth) *route.Request {
		q := request("GET a/")
		q.Auth = a
		return q
	}
	tests := []struct {
		name  string
		match snapshot.Match
		q     *route.Request
		want  bool
	}{
		{"everything", snapshot.Match{}, request("GET a/"), true},
		{"uri exact", snapshot.Match{URI: exact("/a")}, request("GET a/a"), true},
		{"uri exact leaves the query out", snapshot.Match{URI: exact("/a")}, request("GET a/a?b"), true},
		{"uri exact is not a prefix", snapshot.Match{URI: exact("/a")}, request("GET a/ab"), false},
		{"uri exact minds the case", snapshot.Match{URI: exact("/a")}, request("GET a/A"), false},
		{"uri exact ignores the case", snapshot.Match{URI: exact("/a"), IgnoreURICase: true}, request("GET a/A"), true},
		{"uri prefix is raw", snapshot.Match{URI: prefix("/foo")}, request("GET a/foobar"), true},
		{"uri prefix", snapshot.Match{URI: prefix("/foo")}, request("GET a/fo"), false},
		{"uri prefix ignores the case", snapshot.Match{URI: prefix("/foo"), IgnoreURICase: true}, request("GET a/FOObar"), true},
		{"uri prefix does not reach into the query", snapshot.Match{URI: prefix("/a?b")}, request("GET a/a?b"), false},
		{"uri regex is the whole path", snapshot.Match{URI: regex("/a.")}, request("GET a/abc"), false},
		{"uri regex", snapshot.Match{URI: regex("/a.*")}, request("GET a/abc?d"), true},
		{"uri regex alternatives are the whole path too", snapshot.Match{URI: regex("/a|/b")}, request("GET a/bc"), false},
		{"method", snapshot.Match{Method: exact("POST")}, request("GET a/"), false},
		{"method regex", snapshot.Match{Method: regex("GET|HEAD")}, request("HEAD a/"), true},
		{"authority without port", snapshot.Match{Authority: exact("a")}, request("GET a:80/"), true},
		{"authority ignores the case", snapshot.Match{Authority: exact("a")}, request("GET A/"), true},
		{"authority of IPv6", snapshot.Match{Authority: exact("[::1]")}, request("GET [::1]:80/"), true},
		{"scheme", snapshot.Match{Scheme: exact("https")}, request("GET a/"), false},
		{"port", snapshot.Match{Port: 9080}, request("GET a/"), true},
		{"other port", snapshot.Match{Port: 80}, request("GET a/"), false},
		{"header exact", header("end-user", exact("jason"), false), request("GET a/", "End-User: jason"), true},
		{"header is missing", header("end-user", exact("jason"), false), request("GET a/"), false},
		{"header has another value", header("end-user", exact("jason"), false), request("GET a/", "end-user: jasmin"), false},
		{"header minds the case of its value", header("end-user", exact("jason"), false), request("GET a/", "end-user: Jason"), false},
		{"header present", header("x", nil, false), request("GET a/", "X: "), true},
		{"header not present", header("x", nil, false), request("GET a/", "Y: "), false},
		{"without header, which is missing", header("x", exact("1"), true), request("GET a/"), true},
		{"without header, which differs", header("x", exact("1"), true), request("GET a/", "x: 2"), true},
		{"without header, which is there", header("x", exact("1"), true), request("GET a/", "x: 1"), false},
		{"several fields are one value", header("x", exact("1,2"), false), request("GET a/", "x: 1", "y: 0", "X: 2"), true},
		{"header regex", header("cookie", regex("^(.*?;)?(user=jason)(;.*)?$"), false), request("GET a/", "cookie: a=b;user=jason;c=d"), true},
		{"header regex, other user", header("cookie", regex("^(.*?;)?(user=jason)(;.*)?$"), false), request("GET a/", "cookie: a=b;user=jasonx"), false},
		{"query exact", query("v", exact("2")), request("GET a/?a=1&v=2&v=3"), true},
		{"query first value", query("v", exact("3")), request("GET a/?v=2&v=3"), false},
		{"query decoded", query("v w", exact("2 3")), request("GET a/?v+w=2%203"), true},
		{"query that can't be decoded", query("v", exact("%zz")), request("GET a/?v=%zz"), true},
		{"query present", query("v", nil), request("GET a/?v"), true},
		{"query missing", query("v", nil), request("GET a/?w"), false},
		{"no query", query("v", nil), request("GET a/v"), false},
		{"claim", about(exact("staff"), false, "groups"), whose(staff), true},
		{"another value of a claim", about(exact("admin"), false, "groups"), whose(staff), false},
		{"claim by prefix", about(prefix("op"), false, "groups"), whose(staff), true},
		{"claim within a claim", about(regex("ed.*"), false, "realm", "role"), whose(staff), true},
		{"a claim's name has a case", about(nil, false, "Groups"), whose(staff), false},
		{"claim present", about(nil, false, "groups"), whose(staff), true},
		{"no such claim", about(nil, false, "other"), whose(staff), false},
		{"claim of nobody", about(nil, false, "groups"), request("GET a/"), false},
		{"without a claim", about(exact("staff"), true, "groups"), whose(staff), false},
		{"without a claim, of nobody", about(exact("staff"), true, "groups"), request("GET a/"), true},
		{"a header of a claim's name", about(exact("staff"), false, "groups"), request("GET a/", "@request.auth.claims: staff"), false},
		{"all conditions", snapshot.Match{URI: prefix("/a"), Method: exact("GET"), Headers: []snapshot.HeaderMatch{{Name: "x"}}}, request("GET a/a", "x: 1"), true},
		{"all conditions but one", snapshot.Match{URI: prefix("/a"), Method: exact("GET"), Headers: []snapshot.HeaderMatch{{Name: "x"}}}, request("GET a/a"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rs, err := route.Compile([]snapshot.Route{{Matches: []snapshot.Match{tt.match}, Destinations: []snapshot.Destination{{Service: "s", Weight: 1}}}})
			if err != nil {
				t.Fatal(err)
			}
			if got := rs.Match(tt.q) != nil; got != tt.want {
				t.Errorf("matches: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestFirstMatchWinsAndExplains(t *testing.T) {
	to := []snapshot.Destination{{Service: "s", Weight: 1}}
	rs, err := route.Compile([]snapshot.Route{
		{Name: "jason", Matches: []snapshot.Match{{Headers: []snapshot.HeaderMatch{{Name: "end-user", Value: exact("jason")}}}}, Destinations: to},
		{Name: "api", Matches: []snapshot.Match{{URI: prefix("/api")}, {URI: exact("/health"), Method: exact("GET")}}, Destinations: to},
		{Name: "rest", Destinations: to},
		{Name: "never", Destinations: to},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := rs.Match(request("GET a/api")); r.Name != "api" {
		t.Errorf("got %s", r.Name)
	}
	var got []string
	for _, s := range rs.Explain(request("POST a/health")) {
		got = append(got, s.Route.Name+": "+strings.Join(s.Reasons, "; "))
	}
	want := []string{`jason: header end-user is "jason"`, `api: uri begins with "/api"; method is "GET"`, "rest: "}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPick(t *testing.T) {
	rs, err := route.Compile([]snapshot.Route{{Destinations: []snapshot.Destination{
		{Service: "a", Weight: 80}, {Service: "zero"}, {Service: "b", Weight: 20},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	r := rs.Match(request("GET a/"))
	got := map[string]int{}
	for n := range uint64(1000) {
		got[r.Pick(n).Service]++
	}
	if d := cmp.Diff(map[string]int{"a": 800, "b": 200}, got); d != "" {
		t.Error(d)
	}
}

func TestCompileNamesWhatIsWrong(t *testing.T) {
	to := []snapshot.Destination{{Service: "s", Weight: 1}}
	_, err := route.Compile([]snapshot.Route{
		{Destinations: to},
		{Resource: "virtualservice/default/reviews http[1]", Matches: []snapshot.Match{{}, {URI: regex("(")}}, Destinations: to},
		{Destinations: []snapshot.Destination{{Service: "s"}}},
		{Matches: []snapshot.Match{{Headers: []snapshot.HeaderMatch{{Name: "x", Value: &snapshot.StringMatch{Exact: "a", Prefix: "b"}}}}}, Destinations: to},
	})
	if err == nil {
		t.Fatal("compiled")
	}
	for _, want := range []string{
		`routes[1] (virtualservice/default/reviews http[1]): matches[1].uri: regex "(": `,
		`routes[2]: destinations: no one has a weight above 0`,
		`routes[3]: matches[0].headers[x]: exactly one of exact, prefix and regex may be set`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

// TestMatchIsTheFirstThatExplainFinds compares the index with trying one route after the other, in tables of all kinds of
// matches whose paths overlap.
func TestMatchIsTheFirstThatExplainFinds(t *testing.T) {
	to := []snapshot.Destination{{Service: "s", Weight: 1}}
	paths := []string{"/", "/a", "/a/", "/a/b", "/a/b/c", "/A/b", "/b", "/ab", "/a/b?x=/a"}
	random := rand.New(rand.NewPCG(1, 2))
	match := func() snapshot.Match {
		var m snapshot.Match
		text := paths[random.IntN(len(paths)-1)]
		switch random.IntN(5) {
		case 0:
			m.URI = exact(text)
		case 1, 2:
			m.URI = prefix(text)
		case 3:
			m.URI = regex(text + ".*")
		}
		m.IgnoreURICase = m.URI != nil && random.IntN(4) == 0
		if random.IntN(2) == 0 {
			m.Method = exact([]string{"GET", "PUT"}[random.IntN(2)])
		}
		return m
	}
	matched := 0
	for range 2000 {
		var routes []snapshot.Route
		for range random.IntN(8) {
			r := snapshot.Route{Destinations: to}
			for range min(random.IntN(8), 3) {
				r.Matches = append(r.Matches, match())
			}
			routes = append(routes, r)
		}
		rs, err := route.Compile(routes)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			for _, method := range []string{"GET", "PUT", "POST"} {
				got, want := request(method+" h"+path), request(method+" h"+path)
				var first *route.Route
				if steps := rs.Explain(want); len(steps) > 0 && steps[len(steps)-1].Matched {
					first = steps[len(steps)-1].Route
					matched++
				}
				if r := rs.Match(got); r != first || got.Prefix != want.Prefix {
					t.Fatalf("%s %s: got %p with prefix %q, want %p with %q, of %+v", method, path, r, got.Prefix, first, want.Prefix, routes)
				}
			}
		}
	}
	if matched == 0 {
		t.Error("no request had a route")
	}
}

func BenchmarkMatch(b *testing.B) {
	to := []snapshot.Destination{{Service: "s", Weight: 1}}
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("prefixes=%d", n), func(b *testing.B) {
			routes := []snapshot.Route{
				{Matches: []snapshot.Match{{Headers: []snapshot.HeaderMatch{{Name: "end-user", Value: exact("jason")}}}}, Destinations: to},
			}
			for i := range n {
				routes = append(routes, snapshot.Route{Matches: []snapshot.Match{{URI: prefix(fmt.Sprintf("/api/%03d", i))}}, Destinations: to})
			}
			rs, err := route.Compile(append(routes, snapshot.Route{Destinations: to}))
			if err != nil {
				b.Fatal(err)
			}
			q := request("GET a/index/of/pages", "host: a", "user-agent: x", "accept: y")
			b.ReportAllocs()
			for b.Loop() {
				rs.Match(q)
			}
		})
	}
}
