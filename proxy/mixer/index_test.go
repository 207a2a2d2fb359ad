package mixer_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/mixer"
)

// generator writes matches. Their values are few, so that many hold, and some of what they ask for is missing or of
// another type than they think.
type generator struct{ *rand.Rand }

func (g generator) text() snapshot.Expression {
	return constant([]string{"reviews", "ratings", "v1", "v3", "/a", "", "none"}[g.IntN(7)])
}

func (g generator) value() snapshot.Expression {
	switch g.IntN(12) {
	case 0:
		return attribute("request.path")
	case 1:
		return attribute("request.auth.principal") // missing
	case 2:
		return attribute("source.ip") // no STRING
	case 3:
		return call("|", snapshot.String, attribute("request.auth.principal"), g.text())
	case 4:
		return call("|", snapshot.String, entry("request.headers", "a"), attribute("source.name"))
	case 5:
		return call("toLower", snapshot.String, entry("source.labels", "app"))
	case 6:
		return entry("request.auth.claims", "group") // missing
	case 7, 8:
		return entry("request.headers", "a")
	case 9:
		return entry("destination.labels", "version")
	}
	return entry("source.labels", "app")
}

func (g generator) match(depth int) snapshot.Expression {
	if depth == 0 {
		switch a, b := g.value(), g.text(); g.IntN(8) {
		case 0:
			return call("!=", snapshot.Bool, a, b)
		case 1:
			return call("match", snapshot.Bool, a, b)
		case 2:
			return equal(a, g.value())
		case 3:
			return equal(b, a)
		default:
			return equal(a, b)
		}
	}
	a, b := g.match(g.IntN(depth)), g.match(g.IntN(depth))
	switch g.IntN(8) {
	case 0:
		return call("conditional", snapshot.Bool, g.match(0), a, b)
	case 1:
		return call("==", snapshot.Bool, a, b)
	case 2, 3, 4:
		return or(a, b)
	}
	return and(a, b)
}

// byOne is e in a form that no index sees through, and with its result: such a rule is asked at every request.
func byOne(e snapshot.Expression) snapshot.Expression {
	yes, no := "true", "false"
	return call("conditional", snapshot.Bool, e, snapshot.Expression{Type: snapshot.Bool, Constant: &yes}, snapshot.Expression{Type: snapshot.Bool, Constant: &no})
}

// all are rules that refuse what matches, set a header of it and write it down.
func all(t *testing.T, matches []snapshot.Expression, code int32) *mixer.Rules {
	t.Helper()
	u := &snapshot.Usage{}
	for i := range matches {
		name := strconv.Itoa(i)
		s := snapshot.MixerRule{
			Name: name, Match: &matches[i],
			Entries: []snapshot.MixerEntries{{Handler: "h", Instance: name, Timestamp: &snapshot.Expression{Type: snapshot.Timestamp, Attribute: "request.time"}}},
		}
		if code != 0 {
			s.Checks = []snapshot.MixerCheck{{Handler: name, Deny: &snapshot.MixerDeny{Code: code + int32(i%2), Message: "no"}}}
		} else {
			s.RequestHeaders = []snapshot.MixerHeader{{Name: "seen", Operation: "APPEND", Values: []snapshot.Expression{constant(name)}}}
		}
		u.Rules = append(u.Rules, s)
	}
	r, err := mixer.New(u, called)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// outcome is everything that rules do with a request.
func outcome(t *testing.T, r *mixer.Rules, header ...http1.Field) []string {
	t.Helper()
	c := mixer.NewCollector()
	c.Apply(r)
	x := request("/a", header...)
	x.Record.Start, x.Record.Ends = time.Unix(0, 0), exchange.Ends(called)
	var out []string
	if a := r.Check(x); a != nil {
		out = append(out, fmt.Sprint(a.Status, a.Body, a.GRPC))
	}
	out = append(out, r.CheckConnection(x.Record.Conn, exchange.Ends(called)))
	for _, f := range x.Request.Header {
		out = append(out, string(f.Name)+": "+string(f.Value))
	}
	r.Exchange(c, x.Record, x)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	lines, _ := c.Next(over)
	for line := range strings.Lines(string(lines)) {
		var e report.Entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, e.Instance)
	}
	return out
}

// Whatever rules ask for, an index changes nothing of what they do.
func TestIndexChangesNothing(t *testing.T) {
	held, requests := 0, 0
	for seed := range uint64(300) {
		g := generator{rand.New(rand.NewPCG(7, seed))}
		matches := make([]snapshot.Expression, 1+g.IntN(150))
		plain := make([]snapshot.Expression, len(matches))
		for i := range matches {
			matches[i] = g.match(g.IntN(4))
			plain[i] = byOne(matches[i])
		}
		code := int32(g.IntN(2) * 7)
		indexed, one := all(t, matches, code), all(t, plain, code)
		for _, header := range [][]http1.Field{nil, {http1.NewField("A", "v1")}, {http1.NewField("a", "")}, {http1.NewField("a", "reviews"), http1.NewField("a", "v1")}} {
			want := outcome(t, one, header...)
			if diff := cmp.Diff(want, outcome(t, indexed, header...)); diff != "" {
				raw, _ := json.Marshal(matches)
				t.Fatalf("seed %d, header %v (-one by one +indexed):\n%s\n%s", seed, http1.Header(header), diff, raw)
			}
			requests++
			if len(want) > 2 {
				held++
			}
		}
	}
	if held*2 < requests {
		t.Errorf("rules hold for %d of %d requests: that tells little", held, requests)
	}
}

// Where rules can't hold without a text, the request that lacks it costs none of them.
func TestIndexLeavesOut(t *testing.T) {
	path := func(p string) snapshot.Expression { return equal(attribute("request.path"), constant(p)) }
	opaque := byOne(path("/a")) // holds
	for name, c := range map[string]struct {
		match snapshot.Expression
		asked int // of 100
	}{
		"equal":                       {path("/b"), 0},
		"equal to what it is":         {path("/a"), 100},
		"the other way":               {equal(constant("/b"), attribute("request.path")), 0},
		"entry":                       {equal(entry("source.labels", "app"), constant("b")), 0},
		"alternative":                 {equal(call("|", snapshot.String, attribute("request.auth.principal"), constant("a")), constant("b")), 0},
		"and":                         {and(opaque, path("/b")), 0},
		"or":                          {or(path("/b"), path("/c")), 0},
		"or of what it is":            {or(path("/b"), path("/a")), 100},
		"or of parts":                 {or(and(opaque, path("/b")), and(path("/c"), opaque)), 0},
		"missing":                     {equal(attribute("request.auth.principal"), constant("b")), 0},
		"of another type":             {equal(attribute("source.ip"), constant("b")), 0},
		"or of different expressions": {or(path("/b"), equal(attribute("source.name"), constant("b"))), 100},
		"not equal":                   {call("!=", snapshot.Bool, attribute("request.path"), constant("/b")), 100},
		"what makes a string":         {equal(call("toLower", snapshot.String, attribute("request.path")), constant("/b")), 100},
		"no text":                     {equal(attribute("request.path"), attribute("source.name")), 100},
	} {
		r := deny(t, many(100, func(int) snapshot.Expression { return c.match })...)
		if n := r.Asked(request("/a")); n != c.asked {
			t.Errorf("%s: %d of 100 rules are asked, want %d", name, n, c.asked)
		}
	}
	for sort, want := range map[string]int{"labels of the callee": 0, "labels of the caller": 0, "paths": 0, "a header each": 0, "prefixes": 1000} {
		if n := deny(t, many(1000, sorts[sort])...).Asked(request("/ratings/0")); n != want {
			t.Errorf("%s: %d of 1000 rules are asked, want %d", sort, n, want)
		}
	}
}

// Rules cost a request no allocation, however many there are.
func TestCheckAllocates(t *testing.T) {
	x := request("/ratings/0", http1.NewField("User-Agent", "curl/8"))
	for sort, match := range sorts {
		r := deny(t, many(1000, match)...)
		if n := testing.AllocsPerRun(100, func() { r.Check(x) }); n != 0 && !raced {
			t.Errorf("%s: %v allocations, want none", sort, n)
		}
	}
}
