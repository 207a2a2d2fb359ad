package cli

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRedactText(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"listening on 0.0.0.0:80", "listening on 0.0.0.0:80"},
		{`GET /login?user=a&token=hunter2 HTTP/1.1`, "GET /login?[removed] HTTP/1.1"},
		{"Authorization: Bearer abcdef123456", "Authorization: [removed] [removed]"},
		{"proxied with bearer abcdef123456.x", "proxied with bearer [removed]"},
		{"dial postgres://app:hunter2@db:5432/shop", "dial postgres://app:[removed]@db:5432/shop"},
		{"POSTGRES_PASSWORD=hunter2 starting", "POSTGRES_PASSWORD=[removed] starting"},
		{`{"api_key":"hunter2","a":1}`, `{"api_key":[removed],"a":1}`},
		{"jwt eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl end", "jwt [removed] end"},
		{"-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\nnext", "[removed]\nnext"},
		{"-----BEGIN PRIVATE KEY-----\nhunter2, cut", "[removed]"},
		{"-----BEGIN CERTIFICATE-----\nMIIB", "-----BEGIN CERTIFICATE-----\nMIIB"},
		{`jwks: "{\"kty\":\"oct\",\"k\":\"hunter2hunter2\"}"`, `jwks: "{\"kty\":\"oct\",\"k\":\"[removed]\"}"`},
		{"key AKIAABCDEFGHIJKLMNOP and ghp_hunter2hunter2", "key [removed] and [removed]"},
	} {
		if got := redactText(c.in); got != c.want {
			t.Errorf("%q becomes %q, want %q", c.in, got, c.want)
		}
	}
}

func TestRedactJSON(t *testing.T) {
	doc := `{
		"headers": [{"name": "authorization", "value": {"exact": "hunter2"}}, {"name": "end-user", "value": {"exact": "jason"}}],
		"request": {"set": {"x-api-key": "hunter2", "x-version": "v2"}},
		"match": {"Cookie": {"regex": "hunter2"}},
		"password": ["hunter2", {"a": "hunter2", "n": 5}],
		"redirect": "http://app:hunter2@host/a?b=hunter2",
		"keys": [{"kty": "RSA", "n": "modulus", "d": "hunter2"}],
		"jwks": "{\"keys\":[{\"kty\":\"oct\",\"k\":\"hunter2hunter2\"}]}",
		"workloads": [{"name": "session", "addresses": ["172.20.0.2"]}]
	}`
	got := string(redactJSON([]byte(doc)))
	if strings.Contains(got, "hunter2") {
		t.Errorf("a secret is left:\n%s", got)
	}
	for _, kept := range []string{"authorization", "jason", "v2", "session", "172.20.0.2", "5", "modulus"} {
		if !strings.Contains(got, kept) {
			t.Errorf("%s is gone:\n%s", kept, got)
		}
	}
	if !json.Valid([]byte(got)) {
		t.Errorf("it is no JSON any more:\n%s", got)
	}
	if got := string(redactJSON([]byte("no JSON, password=hunter2"))); got != "no JSON, password=[removed]" {
		t.Errorf("text: %q", got)
	}
}

func TestRedactEnvironment(t *testing.T) {
	got := redactEnvironment([]string{"COMPOSURE_MESH=shop", "DATABASE=hunter2", "EMPTY"})
	if len(got) != 3 || got["COMPOSURE_MESH"] != "shop" || got["DATABASE"] != removed || got["EMPTY"] != removed {
		t.Errorf("environment: %v", got)
	}
}
