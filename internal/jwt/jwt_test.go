package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/composure-mesh/composure/internal/testjwt"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

type issuer struct {
	rsa   *rsa.PrivateKey
	ec    *ecdsa.PrivateKey
	ed    ed25519.PrivateKey
	other *rsa.PrivateKey // of nobody
	set   []byte
}

var makeIssuer = sync.OnceValue(func() *issuer {
	i := &issuer{}
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var err error
	i.rsa, err = rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	i.other, err = rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	i.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	_, i.ed, err = ed25519.GenerateKey(rand.Reader)
	must(err)
	i.set, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
		{Key: i.rsa.Public(), KeyID: "rsa", Use: "sig"}, {Key: i.ec.Public(), KeyID: "ec", Algorithm: "ES256"}, {Key: i.ed.Public(), KeyID: "ed"},
	}})
	must(err)
	return i
})

func payload(more string) string {
	return fmt.Sprintf(`{"iss":"https://issuer.example","sub":"me","aud":["a","b"],"exp":%d%s}`, now.Add(time.Hour).Unix(), more)
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func TestVerify(t *testing.T) {
	i := makeIssuer()
	set, err := ParseKeySet(i.set)
	if err != nil {
		t.Fatal(err)
	}
	good := testjwt.Sign(t, jose.RS256, i.rsa, map[string]any{"kid": "rsa", "typ": "JWT"}, payload(""))
	rule := Rule{Issuer: "https://issuer.example", Audiences: []string{"b", "c"}}
	public, err := x509.MarshalPKIXPublicKey(i.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	parts := strings.Split(good, ".")
	claim := func(more string) string { return testjwt.Sign(t, jose.ES256, i.ec, nil, payload(more)) }
	whole := func(p string) string { return testjwt.Sign(t, jose.ES256, i.ec, nil, p) }
	head := func(h map[string]any) string { return testjwt.Sign(t, jose.RS256, i.rsa, h, payload("")) }
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	for _, c := range []struct {
		name, token, want string // want "" is good, else a part of the reason
	}{
		{"RS256", good, ""},
		{"no kid", testjwt.Sign(t, jose.RS384, i.rsa, nil, payload("")), ""},
		{"PS512", testjwt.Sign(t, jose.PS512, i.rsa, nil, payload("")), ""},
		{"ES256", claim(""), ""},
		{"EdDSA", testjwt.Sign(t, jose.EdDSA, i.ed, map[string]any{"kid": "ed"}, payload("")), ""},
		{"where to fetch keys is not looked at", head(map[string]any{"jku": "https://attacker.example/keys", "x5u": "https://attacker.example/c"}), ""},
		{"nbf within skew", claim(fmt.Sprintf(`,"nbf":%d`, at(50*time.Second))), ""},
		{"exp within skew", whole(fmt.Sprintf(`{"iss":"https://issuer.example","aud":"b","exp":%d}`, at(-50*time.Second))), ""},
		{"exp with a fraction", whole(fmt.Sprintf(`{"iss":"https://issuer.example","aud":"b","exp":%d.5}`, at(time.Hour))), ""},
		{"exp in milliseconds", whole(fmt.Sprintf(`{"iss":"https://issuer.example","aud":"b","exp":%d}`, now.UnixMilli()*1000)), ""},
		{"issued tomorrow", claim(fmt.Sprintf(`,"iat":%d`, at(24*time.Hour))), ""},
		{"names of a header have a case", head(map[string]any{"kid": "rsa", "KID": "ec", "Crit": []string{"x"}}), ""},
		{"escaped names of a header", b64(`{"\u0061lg":"none"}`) + "." + parts[1] + ".", `alg "none"`},

		{"empty", "", "1 parts"},
		{"two parts", parts[0] + "." + parts[1], "2 parts"},
		{"five parts, as an encrypted one", good + "..", "5 parts"},
		{"ten thousand dots", strings.Repeat(".", 8000), "8001 parts"},
		{"huge", good + strings.Repeat("A", maxToken), "at most 8192"},
		{"padded", parts[0] + "." + parts[1] + "." + parts[2] + "==", "signature: illegal base64"},
		{"with a line break", parts[0] + "." + parts[1] + "\n." + parts[2], "line break"},
		{"standard base64", parts[0] + "." + parts[1] + "." + "+/" + parts[2][2:], "illegal base64"},
		{"loose last bits", looseBits(good), "illegal base64"},
		{"signature cut", good[:len(good)-6] + "A", "signature"},
		{"signature of another token", parts[0] + "." + b64(payload(`,"admin":true`)) + "." + parts[2], "none of the issuer's keys"},
		{"no signature", parts[0] + "." + parts[1] + ".", "none of the issuer's keys"},
		{"of another's key", testjwt.Sign(t, jose.RS256, i.other, map[string]any{"kid": "rsa"}, payload("")), "none of the issuer's keys"},
		{"unknown kid", testjwt.Sign(t, jose.RS256, i.rsa, map[string]any{"kid": "../../dev/null"}, payload("")), `kid "../../dev/null" is none`},
		{"kid of another algorithm's key", head(map[string]any{"kid": "ec"}), `alg "RS256" is not what`},

		{"none", b64(`{"alg":"none"}`) + "." + b64(payload("")) + ".", `alg "none"`},
		{"nOnE", b64(`{"alg":"nOnE"}`) + "." + b64(payload("")) + ".", `alg "nOnE"`},
		{"no alg", b64(`{}`) + "." + b64(payload("")) + ".", `alg ""`},
		{"HS256 with the public key", testjwt.Sign(t, jose.HS256, publicPEM, map[string]any{"kid": "rsa"}, payload("")), `alg "HS256"`},
		{"embedded key", testjwt.Sign(t, jose.RS256, i.other, map[string]any{"jwk": jose.JSONWebKey{Key: i.other.Public()}}, payload("")), "jwk and x5c"},
		{"embedded certificate", head(map[string]any{"x5c": []string{"MII"}}), "jwk and x5c"},
		{"alg in another case", b64(`{"ALG":"RS256"}`) + "." + parts[1] + "." + parts[2], `alg ""`},
		{"alg in two cases", b64(`{"alg":"none","ALG":"RS256"}`) + "." + parts[1] + ".", `alg "none"`},
		{"alg that is a list", b64(`{"alg":["RS256"]}`) + "." + parts[1] + "." + parts[2], "cannot unmarshal array"},
		{"kid that is a number", b64(`{"alg":"RS256","kid":1}`) + "." + parts[1] + "." + parts[2], "cannot unmarshal number"},
		{"crit that is null", b64(`{"alg":"RS256","crit":null}`) + "." + parts[1] + "." + parts[2], "crit"},
		{"unencoded payload", b64(`{"alg":"RS256","b64":false}`) + "." + parts[1] + "." + parts[2], "b64"},
		{"a header that is no UTF-8", b64("{\"alg\":\"RS256\",\"a\":\"\xff\"}") + "." + parts[1] + "." + parts[2], "not UTF-8"},
		{"a header and a brace", b64(`{"alg":"RS256"}}`) + "." + parts[1] + "." + parts[2], "more follows"},
		{"crit", head(map[string]any{"crit": []string{"exp"}}), "crit"},
		{"a token within", head(map[string]any{"cty": "jwt"}), "a token within a token"},
		{"compressed", head(map[string]any{"zip": "DEF"}), "encrypted"},
		{"header with alg twice", b64(`{"alg":"none","alg":"RS256"}`) + "." + parts[1] + "." + parts[2], `"alg" stands there twice`},
		{"header with more", b64(`{"alg":"RS256"}{}`) + "." + parts[1] + "." + parts[2], "more follows"},
		{"header that is a list", b64(`[]`) + "." + parts[1] + "." + parts[2], "header"},
		{"header nested", b64(`{"a":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)+"}") + "." + parts[1] + "." + parts[2], "nested"},

		{"expired", whole(fmt.Sprintf(`{"iss":"https://issuer.example","aud":"b","exp":%d}`, at(-2*time.Minute))), "expired"},
		{"without exp", whole(`{"iss":"https://issuer.example","aud":"b"}`), "exp is missing"},
		{"exp as text", whole(`{"iss":"https://issuer.example","aud":"b","exp":"4102444800"}`), "want a number"},
		{"exp huge", whole(`{"iss":"https://issuer.example","aud":"b","exp":1e300}`), "want seconds"},
		{"exp negative", whole(`{"iss":"https://issuer.example","aud":"b","exp":-1}`), "want seconds"},
		{"not yet", claim(fmt.Sprintf(`,"nbf":%d`, at(2*time.Minute))), "not valid before"},
		{"another issuer", whole(fmt.Sprintf(`{"iss":"https://issuer.example/","aud":"b","exp":%d}`, at(time.Hour))), `iss is "https://issuer.example/"`},
		{"no issuer", whole(fmt.Sprintf(`{"aud":"b","exp":%d}`, at(time.Hour))), `iss is ""`},
		{"issuer that is a list", whole(fmt.Sprintf(`{"iss":["https://issuer.example"],"aud":"b","exp":%d}`, at(time.Hour))), "want a string"},
		{"another audience", whole(fmt.Sprintf(`{"iss":"https://issuer.example","aud":"x","exp":%d}`, at(time.Hour))), "aud is"},
		{"no audience", whole(fmt.Sprintf(`{"iss":"https://issuer.example","exp":%d}`, at(time.Hour))), "aud is"},
		{"audience that is a number", whole(fmt.Sprintf(`{"iss":"https://issuer.example","aud":[1],"exp":%d}`, at(time.Hour))), "want strings"},
		{"a claim twice", claim(`,"sub":"admin"`), `"sub" stands there twice`},
		{"a claim of an object twice", claim(`,"a":{"b":1,"b":2}`), `"b" stands there twice`},
		{"claims and a brace", whole(payload("") + "}"), "more follows"},
		{"claims and a bracket", whole(payload("") + "]"), "more follows"},
		{"claims that are no UTF-8", claim(",\"a\":\"\xff\""), "not UTF-8"},
		{"claims behind a byte order mark", whole("\ufeff" + payload("")), "claims"},
		{"iat as text", claim(`,"iat":"now"`), "iat is now, want a number"},
		{"nbf as text", claim(`,"nbf":"0"`), "nbf is 0, want a number"},
		{"jti that is a number", claim(`,"jti":7`), "jti is 7, want a string"},
		{"sub that is a number", whole(fmt.Sprintf(`{"iss":"https://issuer.example","sub":1,"aud":"b","exp":%d}`, at(time.Hour))), "want a string"},
		{"claims that are text", whole(`"hello"`), "claims"},
		{"claims that are null", whole(`null`), "null"},
		{"no JSON", whole(`hello`), "claims"},
	} {
		t.Run(c.name, func(t *testing.T) {
			token, err := set.Verify(c.token, rule, now)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want == "" && token.Issuer != "https://issuer.example":
				t.Errorf("issuer %q", token.Issuer)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// looseBits sets the bits of a token's last character that a decoder may overlook.
func looseBits(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}

func TestParseKeySet(t *testing.T) {
	i := makeIssuer()
	one := func(k jose.JSONWebKey) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{k}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	p224 := `{"keys":[{"kty":"EC","crv":"P-224","x":"AA","y":"AA"}]}`
	for _, c := range []struct{ name, set, want string }{
		{"private keys show their public half", one(jose.JSONWebKey{Key: i.rsa, KeyID: "a"}), ""},
		{"one for encryption beside", strings.Replace(string(i.set), `"keys":[`, `"keys":[{"kty":"RSA","use":"enc","n":"AA","e":"AQAB"},`, 1), ""},
		{"empty", `{"keys":[]}`, "keys is empty"},
		{"HTML", `<html>`, "invalid character"},
		{"huge", strings.Repeat(" ", maxKeySet+1), "at most"},
		{"many", `{"keys":[` + strings.Repeat(`{},`, maxKeys) + `{}]}`, "101 keys"},
		{"symmetric", `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}`, "symmetric"},
		{"for encryption", `{"keys":[{"kty":"RSA","use":"enc","n":"AA","e":"AQAB"}]}`, `use is "enc"`},
		{"for signing", strings.Replace(one(jose.JSONWebKey{Key: i.rsa.Public()}), `"kty"`, `"key_ops":["sign"],"kty"`, 1), "key_ops"},
		{"curve", p224, "keys[0]"},
		{"another algorithm's", one(jose.JSONWebKey{Key: i.ec.Public(), Algorithm: "RS256"}), `alg is "RS256"`},
		{"the same id twice", strings.ReplaceAll(string(i.set), `"kid":"ec"`, `"kid":"rsa"`), ""},
		{"a symmetric one beside", strings.Replace(string(i.set), `"keys":[`, `"keys":[{"kty":"oct","kid":"rsa","k":"c2VjcmV0"},`, 1), ""},
		{"one that can't be read beside", strings.Replace(string(i.set), `"keys":[`, `"keys":[{"kty":"RSA","kid":1},7,`, 1), ""},
		{"names have a case", `{"Keys":[{"kty":"RSA"}]}`, "keys is empty"},
		{"a point that is off its curve", `{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"}]}`, "keys[0]"},
		{"a coordinate that is short", `{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVA","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`, "keys[0]"},
		{"secp256k1", `{"keys":[{"kty":"EC","crv":"secp256k1","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`, "keys[0]"},
		{"Ed448", `{"keys":[{"kty":"OKP","crv":"Ed448","x":"X9dEm1m0Yf0s54fsYWrUah2hNCSFpw4fig6nXYDpZ3jt8SR2m0bHBhvWeD3x5Q9s0foavq_oJWGA"}]}`, "keys[0]"},
		{"X25519", `{"keys":[{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`, "keys[0]"},
		{"Ed25519 that is short", `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcH"}]}`, "keys[0]"},
		{"a small RSA key", `{"keys":[{"kty":"RSA","e":"AQAB","n":"` + b64(strings.Repeat("\xc5", 128)) + `"}]}`, "1024 bits"},
		{"an RSA key whose exponent is 1", `{"keys":[{"kty":"RSA","e":"AQ","n":"` + b64(strings.Repeat("\xc5", 256)) + `"}]}`, "bad e value"},
		{"more behind", string(i.set) + "}", "more follows"},
		{"a name twice", `{"keys":[],"keys":[]}`, "twice"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ParseKeySet([]byte(c.set))
			if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// The examples of the standards: RFC 7515, appendices A.2 and A.3; RFC 8037, appendix A.4, whose payload is no claims.
func TestStandards(t *testing.T) {
	for _, c := range []struct{ name, keys, token, payload string }{
		{
			"RFC 7515 A.2",
			`{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}`,
			"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
		},
		{
			"RFC 7515 A.3",
			`{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`,
			"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
			"{\"iss\":\"joe\",\r\n \"exp\":1300819380,\r\n \"http://example.com/is_root\":true}",
		},
		{
			"RFC 8037 A.4",
			`{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`,
			"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
			"Example of Ed25519 signing",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := ParseKeySet([]byte(`{"keys":[` + c.keys + `]}`))
			if err != nil {
				t.Fatal(err)
			}
			got, err := set.signed(c.token)
			if err != nil || string(got) != c.payload {
				t.Errorf("%q, %v; want %q", got, err, c.payload)
			}
			if c.payload[0] != '{' {
				return
			}
			if _, err := set.Verify(c.token, Rule{Issuer: "joe"}, time.Unix(1300819000, 0)); err != nil {
				t.Errorf("in its time: %v", err)
			}
			if _, err := set.Verify(c.token, Rule{Issuer: "joe"}, now); err == nil {
				t.Error("years after its time it passes")
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	i := makeIssuer()
	set, err := ParseKeySet(i.set)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UifQ.AAAA")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("....")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := set.Verify(token, Rule{}, now); err == nil {
			t.Errorf("%q is signed by nobody and passes", token)
		}
	})
}
