package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

func constant(t snapshot.ValueType, s string) snapshot.Expression {
	return snapshot.Expression{Type: t, Constant: &s}
}

func attributeOf(t snapshot.ValueType, name string) snapshot.Expression {
	return snapshot.Expression{Type: t, Attribute: name}
}

func call(t snapshot.ValueType, function string, args ...snapshot.Expression) snapshot.Expression {
	return snapshot.Expression{Type: t, Function: function, Arguments: args}
}

// Rules of Mixer at the destination: a request and a connection are refused, a header is changed both ways, and what was
// refused and what passed is written down.
func TestMixerRules(t *testing.T) {
	m := newMesh(t)
	m.app(webIP, each(func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			body := r.Header.Get("X-App")
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Answer: 42\r\n\r\n%s", len(body), body)
		}
	}))
	m.app(mailIP, each(func(c net.Conn) { fmt.Fprint(c, "220 ready\r\n") }))
	m.start()
	app := call(snapshot.String, "[]", attributeOf(snapshot.StringMap, "source.labels"), constant(snapshot.String, "app"))
	deny := call(snapshot.Bool, "&&",
		call(snapshot.Bool, "==", app, constant(snapshot.String, "client")),
		call(snapshot.Bool, "==", call(snapshot.String, "|", attributeOf(snapshot.String, "request.path"), constant(snapshot.String, "/no")), constant(snapshot.String, "/no")))
	code := call(snapshot.Int64, "|", attributeOf(snapshot.Int64, "response.code"), constant(snapshot.Int64, "0"))
	message := call(snapshot.String, "|", attributeOf(snapshot.String, "check.error_message"), constant(snapshot.String, ""))
	answer := call(snapshot.String, "[]", attributeOf(snapshot.StringMap, "response.headers"), constant(snapshot.String, "x-answer"))
	snap := m.snapshot("server")
	snap.Usage = &snapshot.Usage{Rules: []snapshot.MixerRule{
		{Name: "rule/default/deny", Match: &deny, Checks: []snapshot.MixerCheck{{Handler: "h.denier.default", Deny: &snapshot.MixerDeny{Code: 7, Message: "Not allowed"}}}},
		{
			Name:            "rule/default/headers",
			RequestHeaders:  []snapshot.MixerHeader{{Name: "x-app", Operation: "REPLACE", Values: []snapshot.Expression{app}}},
			ResponseHeaders: []snapshot.MixerHeader{{Name: "x-seen", Operation: "APPEND", Values: []snapshot.Expression{attributeOf(snapshot.String, "request.path")}}},
			Metrics: []snapshot.MixerMetric{{
				Name: "istio_mine", Kind: "COUNTER", Labels: []string{"code", "message", "answer"}, Dimensions: []snapshot.Expression{code, message, answer}, Value: constant(snapshot.Int64, "1"),
			}},
			Entries: []snapshot.MixerEntries{{Handler: "h.stdio.default", Instance: "l.logentry.default", Variables: []snapshot.MixerVariable{{Name: "code", Value: code}}}},
		},
	}}
	if err := m.server.Apply(snap); err != nil {
		t.Fatal(err)
	}

	get := func(path string) (*http.Response, string) {
		t.Helper()
		c := dial(t, m.at(webIP))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: web\r\nX-App: forged\r\nConnection: close\r\n\r\n", path)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	resp, body := get("/yes")
	if resp.StatusCode != http.StatusOK || body != "client" || resp.Header.Get("X-Seen") != "/yes" {
		t.Errorf("what may pass: %s %q, X-Seen %q", resp.Status, body, resp.Header.Get("X-Seen"))
	}
	resp, body = get("/no")
	if resp.StatusCode != http.StatusForbidden || body != "PERMISSION_DENIED:h.denier.default:Not allowed" {
		t.Errorf("what may not pass: %s %q", resp.Status, body)
	}
	m.server.log.await(t, `"GET /no HTTP/1.1" 403 UAEX mixer_denied{PERMISSION_DENIED}`)

	c := dial(t, m.at(mailIP))
	if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
		t.Errorf("a connection that may not pass got %q", line)
	}
	m.server.log.await(t, `"- - -" 0 UAEX`)

	r, _ := m.server.report()
	var got []string
	for _, s := range r.Metrics[0].Series {
		got = append(got, fmt.Sprintf("%s=%v", strings.Join(s.Values, "|"), s.Value))
	}
	for _, want := range []string{"200||42=1", "403|h.denier.default:Not allowed|=1"} {
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("metric lacks %s: %q", want, got)
		}
	}
	lines, n := m.server.collector.Next(t.Context())
	if n < 2 || !strings.Contains(string(lines), `"variables":[{"name":"code","type":"INT64","value":"403"}]`) {
		t.Errorf("%d entries: %s", n, lines)
	}
}
