package authn

import (
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http1"
)

// FuzzCheck: whatever stands where a token may stand, nobody is who he says; and what is taken away with a good token is the
// token alone.
func FuzzCheck(f *testing.F) {
	r := rule(alice(), "a")
	r.Headers = append(r.Headers, snapshot.TokenHeader{Name: "x-jwt"})
	r.Cookies = []string{"session"}
	f.Add("/?access_token=a.b.c&x", "session=a.b.c; d=e", "a.b.c")
	f.Add("/?access%5Ftoken=%", `session="`, "")
	f.Add("/?&&=&access_token", ";;=;session", "Bearer ")
	good := alice().token(f, "a", "")
	f.Fuzz(func(t *testing.T, path, cookie, header string) {
		for _, value := range []string{cookie, header} {
			if _, err := http1.ParseField([]byte("Cookie"), []byte(value)); err != nil {
				return // the codec lets none of it in
			}
		}
		if !http1.ValidPath([]byte("GET"), []byte(path)) || strings.Contains(path+cookie+header, good) {
			return
		}
		filter, err := New(&snapshot.Authentication{Tokens: []snapshot.TokenRule{r}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		x := request(path, "Cookie: "+cookie, "X-Jwt: "+header, "Authorization: "+strings.TrimSpace("Bearer "+header))
		if filter.Check(x); x.Record.Auth != nil {
			t.Fatalf("%q is %s", []string{path, cookie, header}, x.Record.Auth.Principal)
		}
		x = request("/"+"?access_token="+good+"&"+strings.TrimPrefix(path, "/"), "Accept: "+header)
		if a := filter.Check(x); a != nil {
			return // there is another token besides
		}
		if got := lines(x.Request.Header); len(got) != 1 || got[0] != "Accept: "+header || strings.Contains(string(x.Request.Path), good) {
			t.Fatalf("%q and %s are left", got, x.Request.Path)
		}
	})
}
