package jwt

import (
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/c2sp/wycheproof"
)

// Wycheproof's vectors of signatures and of keys. Stricter than they are: symmetric keys are no issuer's public keys, so
// their valid signatures are refused too, and counted; a key that says what it is for is for nothing else.
func TestWycheproof(t *testing.T) {
	for file, want := range map[string]struct {
		symmetric int
		stricter  map[int]string
	}{
		"json_web_signature_test.json": {10, map[int]string{
			346: "the key is for PS256, the token is PS384", 350: "the key is for PS256, the token is PS384",
			347: "the key is for ES521, which is no algorithm", 351: "the key is for ES521, which is no algorithm",
		}},
		"json_web_key_test.json": {4, nil},
	} {
		t.Run(file, func(t *testing.T) {
			b, err := fs.ReadFile(wycheproof.TestVectors, file)
			if err != nil {
				t.Fatal(err)
			}
			var vectors struct {
				NumberOfTests int
				TestGroups    []struct {
					Public, Private json.RawMessage
					Tests           []struct {
						TcID            int
						Comment, Result string
						JWS             json.RawMessage
					}
				}
			}
			if err := json.Unmarshal(b, &vectors); err != nil {
				t.Fatal(err)
			}
			seen, symmetric := 0, 0
			for _, g := range vectors.TestGroups {
				set, isSymmetric := asSet(t, g.Public, g.Private)
				for _, v := range g.Tests {
					seen++
					var jws string
					if json.Unmarshal(v.JWS, &jws) != nil {
						jws = string(v.JWS) // the JSON form of a JWS, which is no token
					}
					keys, err := ParseKeySet(set)
					if err == nil {
						_, err = keys.signed(jws)
					}
					valid := v.Result == "valid"
					if valid && isSymmetric {
						symmetric++
						valid = false
					}
					if want.stricter[v.TcID] != "" {
						valid = false
					}
					if (err == nil) != valid {
						t.Errorf("%d %s is %s: %v\nkeys %s\ntoken %s", v.TcID, v.Comment, v.Result, err, set, jws)
					}
				}
			}
			if seen != vectors.NumberOfTests || symmetric != want.symmetric {
				t.Errorf("%d of %d vectors, %d valid ones with symmetric keys, want %d", seen, vectors.NumberOfTests, symmetric, want.symmetric)
			}
		})
	}
}

// asSet is a vector's key as a key set.
func asSet(t *testing.T, public, private json.RawMessage) (set []byte, symmetric bool) {
	t.Helper()
	if public == nil {
		public = private
	}
	var k struct {
		Keys []struct{ Kty string }
		Kty  string
	}
	if err := json.Unmarshal(public, &k); err != nil {
		t.Fatal(err)
	}
	if k.Keys != nil {
		return public, len(k.Keys) > 0 && k.Keys[0].Kty == "oct"
	}
	set, err := json.Marshal(map[string]any{"keys": []json.RawMessage{public}})
	if err != nil {
		t.Fatal(err)
	}
	return set, k.Kty == "oct"
}
