package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"

	"github.com/composure-mesh/composure/internal/testjwt"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// signer is an issuer.
type signer struct {
	key *ecdsa.PrivateKey
	kid string
	set string
}

func newSigner(kid string) *signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: kid}}})
	if err != nil {
		panic(err)
	}
	return &signer{key, kid, string(set)}
}

var (
	alice = sync.OnceValue(func() *signer { return newSigner("alice") })
	bob   = sync.OnceValue(func() *signer { return newSigner("bob") })
)

// token is a token of the issuer, good for an hour, with more claims.
func (s *signer) token(tb testing.TB, issuer, more string) string {
	tb.Helper()
	return s.sign(tb, fmt.Sprintf(`{"iss":%q,"sub":"me","aud":["shop"],"exp":%d%s}`, issuer, now.Add(time.Hour).Unix(), more))
}

func (s *signer) sign(tb testing.TB, payload string) string {
	tb.Helper()
	return testjwt.Sign(tb, jose.ES256, s.key, map[string]any{"kid": s.kid}, payload)
}

var byBearer = []snapshot.TokenHeader{{Name: "authorization", Prefix: "Bearer "}}

func rule(s *signer, issuer string) snapshot.TokenRule {
	return snapshot.TokenRule{Source: "requestauthentication/default/" + issuer, Issuer: issuer, Keys: s.set, Headers: byBearer, Params: []string{"access_token"}}
}

// request is an exchange of a path and header fields, as "Name: value".
func request(path string, fields ...string) *filter.Exchange {
	x := &filter.Exchange{}
	x.Reset(&exchange.Exchange{Start: now}, nil)
	x.Request = filter.Request{Method: []byte("GET"), Path: []byte(path), Authority: []byte("shop"), Scheme: "http"}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		parsed, err := http1.ParseField([]byte(name), []byte(value))
		if err != nil {
			panic(err)
		}
		x.Request.Header = append(x.Request.Header, parsed)
	}
	return x
}

func lines(h http1.Header) (out []string) {
	for _, f := range h {
		out = append(out, string(f.Name)+": "+string(f.Value))
	}
	return out
}

func TestCheck(t *testing.T) {
	a, b := alice(), bob()
	ofA, ofB := a.token(t, "a", ""), b.token(t, "b", "")
	expired := a.sign(t, fmt.Sprintf(`{"iss":"a","sub":"me","aud":"shop","exp":%d}`, now.Add(-time.Hour).Unix()))
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(ofA, ".")[1] + "."
	everywhere := rule(a, "a")
	everywhere.Headers = append([]snapshot.TokenHeader{{Name: "x-jwt"}}, byBearer...)
	everywhere.Cookies = []string{"session"}
	forward := everywhere
	forward.Forward = true
	audience := rule(a, "a")
	audience.Audiences = []string{"bank"}
	noKeys := rule(a, "a")
	noKeys.Keys, noKeys.KeysFrom = "", "https://a/keys"
	broken := rule(a, "a")
	broken.Keys = "<html>"
	one, two := []snapshot.TokenRule{rule(a, "a")}, []snapshot.TokenRule{rule(a, "a"), rule(b, "b")}

	for _, c := range []struct {
		name  string
		rules []snapshot.TokenRule
		x     *filter.Exchange
		want  string // principal, or status and body
		left  []string
		path  string
	}{
		{"no token", one, request("/", "Accept: */*"), "", []string{"Accept: */*"}, "/"},
		{"basic is no token", one, request("/", "Authorization: Basic YTpi"), "", []string{"Authorization: Basic YTpi"}, "/"},
		{"bearer in another case is none", one, request("/", "Authorization: bearer "+ofA), "", []string{"Authorization: bearer " + ofA}, "/"},
		{"in Authorization", one, request("/", "authorization: Bearer "+ofA), "a/me", nil, "/"},
		{"in the query", one, request("/x?a=1&access_token=" + ofA + "&b=2"), "a/me", nil, "/x?a=1&b=2"},
		{"alone in the query", one, request("/x?access_token=" + ofA), "a/me", nil, "/x"},
		{"escaped in the query", one, request("/x?access%5ftoken=" + strings.ReplaceAll(ofA, ".", "%2e")), "a/me", nil, "/x"},
		{"empty in the query", one, request("/x?access_token="), "", nil, "/x?access_token="},
		{"in a header of its own", []snapshot.TokenRule{everywhere}, request("/", "X-JWT: "+ofA, "Authorization: Basic YTpi"), "a/me", []string{"Authorization: Basic YTpi"}, "/"},
		{"in a cookie", []snapshot.TokenRule{everywhere}, request("/", "Cookie: a=1; session="+ofA+"; b=2"), "a/me", []string{"Cookie: a=1; b=2"}, "/"},
		{"alone in a cookie", []snapshot.TokenRule{everywhere}, request("/", "Cookie: a=1", `Cookie: session="`+ofA+`"`), "a/me", []string{"Cookie: a=1"}, "/"},
		{"forwarded", []snapshot.TokenRule{forward}, request("/?access_token="+ofA, "Cookie: session="+ofA), "a/me", []string{"Cookie: session=" + ofA}, "/?access_token=" + ofA},
		{"the second issuer", two, request("/", "Authorization: Bearer "+ofB), "b/me", nil, "/"},
		{"two tokens, both good", []snapshot.TokenRule{everywhere}, request("/?access_token="+ofA, "X-JWT: "+ofA), "a/me", nil, "/"},
		{"two tokens, one bad", []snapshot.TokenRule{everywhere}, request("/?access_token="+ofA, "X-JWT: "+expired), "401 Jwt is expired", nil, ""},
		{"two fields, one bad", one, request("/", "Authorization: Bearer "+ofA, "Authorization: Bearer x"), "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", nil, ""},

		{"expired", one, request("/", "Authorization: Bearer "+expired), "401 Jwt is expired", nil, ""},
		{"not yet", one, request("/", "Authorization: Bearer "+a.token(t, "a", fmt.Sprintf(`,"nbf":%d`, now.Add(time.Hour).Unix()))), "401 Jwt not yet valid", nil, ""},
		{"of another's key", one, request("/", "Authorization: Bearer "+(&signer{key: b.key, kid: "alice"}).token(t, "a", "")), "401 Jwt verification fails", nil, ""},
		{"of an unknown key", one, request("/", "Authorization: Bearer "+b.token(t, "a", "")), "401 Jwks doesn't have key to match kid or alg from Jwt", nil, ""},
		{"of an unknown issuer", one, request("/", "Authorization: Bearer "+a.token(t, "c", "")), "401 Jwt issuer is not configured", nil, ""},
		{"of no issuer's", two, request("/", "Authorization: Bearer "+a.token(t, "b", "")), "401 Jwks doesn't have key to match kid or alg from Jwt", nil, ""},
		{"for another audience", []snapshot.TokenRule{audience}, request("/", "Authorization: Bearer "+ofA), "403 Audiences in Jwt are not allowed", nil, ""},
		{"none", one, request("/", "Authorization: Bearer "+unsigned), "401 Jwt header [alg] is not supported", nil, ""},
		{"garbage", one, request("/", "Authorization: Bearer ."), "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", nil, ""},
		{"keys that were not fetched yet", []snapshot.TokenRule{noKeys}, request("/", "Authorization: Bearer "+ofA), "401 Jwks remote fetch is failed", nil, ""},
		{"keys that are none", []snapshot.TokenRule{broken}, request("/", "Authorization: Bearer "+ofA), "401 Jwks remote fetch is failed", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := New(&snapshot.Authentication{Tokens: c.rules}, nil)
			if err != nil {
				t.Fatal(err)
			}
			answer, got := f.Check(c.x), ""
			switch {
			case answer != nil:
				got = fmt.Sprintf("%d %s", answer.Status, answer.Body)
				if c.x.Record.Auth != nil {
					t.Error("a refused request has a principal")
				}
				if h := string(answer.Header[0].Value); h != `Bearer realm="http://shop/", error="invalid_token"` {
					t.Errorf("WWW-Authenticate: %s", h)
				}
			case c.x.Record.Auth != nil:
				got = c.x.Record.Auth.Principal
			}
			if got != c.want {
				t.Fatalf("%q, want %q", got, c.want)
			}
			if answer == nil {
				if diff := cmp.Diff(c.left, lines(c.x.Request.Header)); diff != "" {
					t.Errorf("header (-want +got):\n%s", diff)
				}
				if string(c.x.Request.Path) != c.path {
					t.Errorf("path %s, want %s", c.x.Request.Path, c.path)
				}
			}
		})
	}
}

func TestRequired(t *testing.T) {
	f, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{rule(alice(), "a")}, TokenRequired: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := f.Check(request("/a?b"))
	if a == nil || a.Status != 401 || a.Body != "Jwt is missing" || string(a.Header[0].Value) != `Bearer realm="http://shop/a"` {
		t.Errorf("%+v", a)
	}
}

// What speaks for a token is nobody's word but the proxy's, whatever its spelling and whether there is a token.
func TestClaims(t *testing.T) {
	r := rule(alice(), "a")
	r.PayloadHeader = "x-payload"
	r.SpaceDelimited = []string{"realm.groups"}
	for name, claim := range map[string]string{
		"x-sub": "sub", "x-age": "age", "x-admin": "admin", "x-role": "realm.role", "x-url": "https://example.com/role", "x-list": "list", "x-evil": "evil", "x-none": "no.such",
	} {
		r.ClaimHeaders = append(r.ClaimHeaders, snapshot.ClaimHeader{Name: name, Claim: claim})
	}
	f, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{r}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	forged := []string{"X-Sub: root", "x_sub: root", "x.role: root", "X-Payload: e30", "x-none: root", "X-Evil: root"}
	x := request("/", forged...)
	if a := f.Check(x); a != nil || len(x.Request.Header) != 0 {
		t.Errorf("without a token, %v stays", lines(x.Request.Header))
	}
	token := alice().token(t, "a", `,"azp":"app","age":42,"admin":true,"realm":{"role":"chef","groups":"a  b"},"https://example.com/role":"r","list":["p",1,"q"],"evil":"a\r\nx-sub: root","scope":"read write","text":"one two"`)
	x = request("/", append([]string{"Authorization: Bearer " + token}, forged...)...)
	if a := f.Check(x); a != nil {
		t.Fatalf("%+v", a)
	}
	got := map[string]string{}
	for _, line := range lines(x.Request.Header) {
		name, value, _ := strings.Cut(line, ": ")
		got[name] += value
	}
	payload := strings.Split(token, ".")[1]
	want := map[string]string{"x-payload": payload, "x-sub": "me", "x-age": "42", "x-admin": "true", "x-role": "chef", "x-url": "r"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	auth := x.Record.Auth
	for path, want := range map[string][]string{
		"sub": {"me"}, "iss": {"a"}, "aud": {"shop"}, "list": {"p", "q"}, "realm/role": {"chef"}, "realm/groups": {"a", "b"}, "scope": {"read", "write"}, "text": {"one two"},
		"realm": nil, "age": nil, "sub/x": nil, "none/x": nil,
	} {
		if diff := cmp.Diff(want, auth.At(strings.Split(path, "/"))); diff != "" {
			t.Errorf("claim %s (-want +got):\n%s", path, diff)
		}
	}
	if auth.Presenter != "app" || len(auth.Audiences) != 1 || auth.Audiences[0] != "shop" || !strings.Contains(auth.Raw, `"azp":"app"`) {
		t.Errorf("%+v", auth)
	}
}

// A token that was verified is known until it expires, and as long as the rule is the same.
func TestCache(t *testing.T) {
	a := &snapshot.Authentication{Tokens: []snapshot.TokenRule{rule(alice(), "a")}}
	f, err := New(a, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := alice().token(t, "a", "")
	check := func(f *Filter, at time.Time) (*exchange.Auth, string) {
		x := request("/", "Authorization: Bearer "+token)
		x.Record.Start = at
		if a := f.Check(x); a != nil {
			return nil, a.Body
		}
		return x.Record.Auth, ""
	}
	first, _ := check(f, now)
	if again, _ := check(f, now); first == nil || again != first {
		t.Error("verified twice")
	}
	if _, refused := check(f, now.Add(2*time.Hour)); refused != "Jwt is expired" {
		t.Errorf("%q once it has expired", refused)
	}
	same, err := New(a, f)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := check(same, now); again != first {
		t.Error("verified again though nothing has changed")
	}
	for name, change := range map[string]func(*snapshot.TokenRule){
		"other keys":     func(r *snapshot.TokenRule) { r.Keys = bob().set },
		"other audience": func(r *snapshot.TokenRule) { r.Audiences = []string{"bank"} },
	} {
		r := rule(alice(), "a")
		change(&r)
		other, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{r}}, f)
		if err != nil {
			t.Fatal(err)
		}
		if got, refused := check(other, now); refused == "" {
			t.Errorf("%s: %v passes still", name, got)
		}
	}
}

func TestMissedKeys(t *testing.T) {
	r := rule(alice(), "a")
	r.KeysFrom = "https://a/keys"
	f, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{r}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.Check(request("/", "Authorization: Bearer "+alice().token(t, "a", "")))
	if got := f.MissedKeys(); got != nil {
		t.Errorf("missed %v after a good token", got)
	}
	f.Check(request("/", "Authorization: Bearer "+bob().token(t, "a", "")))
	if diff := cmp.Diff([]string{"https://a/keys"}, f.MissedKeys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := f.MissedKeys(); got != nil {
		t.Errorf("missed %v, which was told already", got)
	}
}

// A hot token costs nothing that a garbage collector sees.
func TestAllocs(t *testing.T) {
	r := rule(alice(), "a")
	r.ClaimHeaders = []snapshot.ClaimHeader{{Name: "x-sub", Claim: "sub"}}
	f, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{r}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	x := request("/", "Authorization: Bearer "+alice().token(t, "a", ""), "Accept: */*", "X-Sub: forged")
	fields := append(http1.Header{}, x.Request.Header...)
	room := make(http1.Header, 0, 16)
	n := testing.AllocsPerRun(100, func() {
		x.Request.Header = append(room, fields...) //nolint:gocritic // the room is used again
		if f.Check(x) != nil {
			t.Fatal("refused")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkHotToken(b *testing.B) {
	f, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{rule(alice(), "a")}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	x := request("/", "Accept: */*", "User-Agent: curl", "Authorization: Bearer "+alice().token(b, "a", ""))
	fields := append(http1.Header{}, x.Request.Header...)
	b.ReportAllocs()
	for b.Loop() {
		x.Request.Header = append(x.Request.Header[:0], fields...)
		f.Check(x)
	}
}
