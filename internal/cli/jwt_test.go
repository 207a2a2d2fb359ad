package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJWTVerify(t *testing.T) {
	// RFC 7515, appendix A.3.
	keys := filepath.Join(t.TempDir(), "keys.json")
	set := `{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},{"kty":"RSA","use":"enc","n":"AA","e":"AQAB"}]}`
	if err := os.WriteFile(keys, []byte(set), 0o600); err != nil {
		t.Fatal(err)
	}
	token := "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"
	for _, c := range []struct {
		args      string
		in        string
		code      int
		out, talk string
	}{
		{args: "--jwks " + keys + " --at 2011-03-22T18:43:00Z " + token, out: `"iss": "joe"`, talk: "not used: keys[1]: use is"},
		{args: "--jwks " + keys + " --at 2011-03-22T18:43:00Z --issuer joe -", in: token + "\n", out: `"exp": 1300819380`},
		{args: "--jwks " + keys + " " + token, code: 1, talk: "token expired at 2011-03-22T18:43:00Z"},
		{args: "--jwks " + keys + " --at 2011-03-22T18:43:00Z --issuer jane " + token, code: 1, talk: `iss is "joe", want "jane"`},
		{args: "--jwks " + keys + " --at 2011-03-22T18:43:00Z --audience a,b " + token, code: 1, talk: "aud is"},
		{args: "--jwks " + keys + " " + token[1:], code: 1, talk: "token's header"},
		{args: "--jwks " + keys + " --at yesterday " + token, code: exitUsage, talk: "--at"},
		{args: token, code: exitUsage, talk: "jwks"},
		{args: "--jwks nothing.json " + token, code: 1, talk: "nothing.json"},
	} {
		var out, talk strings.Builder
		env := &Env{In: strings.NewReader(c.in), Out: &out, Err: &talk, Getenv: func(string) string { return "" }}
		code := Run(t.Context(), env, append([]string{"jwt", "verify"}, strings.Fields(c.args)...))
		if code != c.code || !strings.Contains(out.String(), c.out) || !strings.Contains(talk.String(), c.talk) {
			t.Errorf("%s: exit %d\n%s%s\nwant %d, %q, %q", c.args, code, out.String(), talk.String(), c.code, c.out, c.talk)
		}
	}
}
