package expression_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/expression"
	machine "github.com/composure-mesh/composure/proxy/expression"
)

type bag map[string]machine.Value

func (b bag) Attribute(name string) (machine.Value, bool, error) {
	v, ok := b[name]
	return v, ok, nil
}

type entries map[string]string

func (e entries) Get(key string) (string, bool) {
	v, ok := e[key]
	return v, ok
}

func TestCEL(t *testing.T) {
	attributes := bag{
		"request.path":        {Type: snapshot.String, Str: "/api/v1/books"},
		"request.method":      {Type: snapshot.String, Str: "POST"},
		"request.size":        {Type: snapshot.Int64, Int: 1200},
		"source.ip":           {Type: snapshot.IPAddress, IP: netip.MustParseAddr("10.0.0.7")},
		"source.labels":       {Type: snapshot.StringMap, Map: entries{"app": "web"}},
		"request.headers":     {Type: snapshot.StringMap, Map: entries{"x-user": "jason"}},
		"connection.mtls":     {Type: snapshot.Bool, Int: 1},
		"connection.duration": {Type: snapshot.DurationType, Int: 2_000_000_000},
	}
	for source, want := range map[string]string{
		`true`:                                   "true",
		`1 + 2`:                                  "3",
		`request.path`:                           "/api/v1/books",
		`request.path + "?"`:                     "/api/v1/books?",
		`request.headers["x-user"]`:              "jason",
		`request.headers["x-none"]`:              "",
		`source.labels.app`:                      "web",
		`has(source.labels.app)`:                 "true",
		`has(source.labels.version)`:             "false",
		`"x-user" in request.headers`:            "true",
		`"x-none" in request.headers`:            "false",
		`request.method in ["PUT", "POST"]`:      "true",
		`request.method in []`:                   "false",
		`request.method == "GET"`:                "false",
		`!(request.method == "GET")`:             "true",
		`request.size > 1000 && connection.mtls`: "true",
		`request.size < 1000 || connection.mtls`: "true",
		`request.path.startsWith("/api/")`:       "true",
		`request.path.endsWith("books")`:         "true",
		`request.path.contains("/v1/")`:          "true",
		`request.path.contains("v.")`:            "false",
		`request.path.matches("^/api/v[0-9]+/")`: "true",
		`source.ip == "10.0.0.7"`:                "true",
		`source.ip in ["10.0.0.1", "10.0.0.7"]`:  "true",
		`source.ip`:                              "10.0.0.7",
		`connection.mtls ? "in" : "out"`:         "in",
		`connection.duration`:                    "2s",
		`string(request.path)`:                   "/api/v1/books",
	} {
		e, err := expression.CheckCEL(source)
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		p, err := machine.Compile(e)
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if v, err := p.Eval(attributes); err != nil || v.Text() != want {
			t.Errorf("%s = %q, %v, want %q", source, v.Text(), err, want)
		}
	}
}

func TestCELRefuses(t *testing.T) {
	for source, want := range map[string]string{
		`request.paht`:                          `1:8: undeclared reference to 'request.paht'`,
		`request.path == 1`:                     `1:14: found no matching overload for '_==_'`,
		`request.path ==`:                       `1:16: Syntax error`,
		`request.headers.exists(h, h == "x")`:   `without loops`,
		`["a", "b"]`:                            `without loops`,
		`{"a": "b"}`:                            `without loops`,
		`size(request.path) > 3`:                `proxies have no size`,
		`request.path.matches(request.method)`:  `want a constant`,
		`request.path.matches("(")`:             `regular expression of RE2`,
		`request.size - 1`:                      `proxies have no _-_`,
		`connection.duration == duration("1s")`: `proxies have no == of DURATION`,
		`b"bytes"`:                              `want a string, a number or a truth value, got bytes`,
	} {
		if e, err := expression.CheckCEL(source); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want an error with %q", source, e, err, want)
		}
	}
}
