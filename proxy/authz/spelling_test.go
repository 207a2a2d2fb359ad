package authz_test

import (
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/normal"
)

// No spelling walks past what denies /admin, and none that could be it is let through by what allows something else.
func TestSpellings(t *testing.T) {
	deny := compile(t, snapshot.AccessDeny, to(snapshot.AccessOperation{Paths: []string{"/admin", "/admin/*"}}))
	but := compile(t, snapshot.AccessDeny, to(snapshot.AccessOperation{NotPaths: []string{"/public/*", "*.css"}}))
	allow := compile(t, snapshot.AccessAllow, to(snapshot.AccessOperation{Paths: []string{"/public/*", "*.css", "/public/{**}"}}))
	ask := func(p *authz.Policies, sent string) bool {
		path, ok := normal.Path(nil, []byte(sent))
		return ok && p.Decide(&authz.Request{HTTP: true, Method: get, Path: path, Authority: authority}).Allowed
	}
	for _, sent := range []string{
		"/admin", "/admin/", "/admin/x", "/ADMIN", "/Admin/x", "/admin?a=/public/", "//admin", "/./admin", "/x/../admin", "/%61dmin", "/%41DMIN", "/%2fadmin", "/%5cadmin",
		`/\admin`, "/admin;", "/admin;.css", "/admin%3b.css", "/admin/;x", "/;/admin", "/x/..;/admin", "/x/%2e%2e/admin", "/x/%2e%2e%2fadmin", "/x/..%5Cadmin", "/x/%252e%252e/admin",
		"/public/../admin", "/public/..;/admin", "/public/%2e%2e/admin", "/public/..%2fadmin", "/public/%2e%2e%5cadmin", "/public/%252e%252e%252fadmin", `/public/..\admin`,
		"/public/%c0%ae%c0%ae/admin", "/public/x%2f..%2f..%2fadmin", "/public//..%2f..%2fadmin", "/public/..%c0%afadmin", "/public/..%u002fadmin", "/admin%00", "/admin%00.css",
	} {
		for name, p := range map[string]*authz.Policies{"denied": deny, "denied but for others": but, "not allowed": allow} {
			if ask(p, sent) {
				t.Errorf("%s: %s walks past", name, sent)
			}
		}
	}
	for _, sent := range []string{"/public/a", "/public/a%20b", "/public/a//b", "/public/a;v=1/b", "/public/a%2Fb", "/x/../public/a", "/style.css", "/a//b.css", "/public/caf%C3%A9"} {
		for name, p := range map[string]*authz.Policies{"denied": deny, "denied but for others": but, "not allowed": allow} {
			if !ask(p, sent) {
				t.Errorf("%s: %s is held up", name, sent)
			}
		}
	}
	// Who writes such a path means it, in any spelling of it.
	for _, c := range []struct {
		pattern, sent string
		want          bool
	}{
		{"/a%2Fb", "/a%2Fb", true}, {"/a%2Fb", "/a%2fb", true}, {"/a%2fb", "/a%2Fb", true}, {"/a%2Fb", "/a/b", false}, {"/a/b", "/a%2Fb", false},
		{"/a//b", "/a//b", true}, {"/a//b", "/a/b", false}, {"/a/b", "/a//b", false}, {"/café", "/caf%c3%A9", true}, {"/caf%C3%A9", "/café", true},
		{"/a;v=1", "/a;v=1", true}, {"/a%20b*", "/a%20bc", true}, {"*%20b", "/a%20b", true}, {"/a%2Fb/{*}", "/a%2fb/c", true}, {"/%7Ea", "/~a", true},
		{"/a/{**}/", "/a/b/", true}, {"/a/{**}/", "/a//", true}, {"/a/{**}/", "/a/", false}, {"/a/{**}/", "/a/b", false},
		{"/{*}/{**}/c", "/a//c", true}, {"/{*}/{**}/c", "/a/c", false}, {"/{*}/{**}/c", "/a/b//c", true},
	} {
		if got := ask(compile(t, snapshot.AccessAllow, to(snapshot.AccessOperation{Paths: []string{c.pattern}})), c.sent); got != c.want {
			t.Errorf("%s allows %s: %v, want %v", c.pattern, c.sent, got, c.want)
		}
	}
}
