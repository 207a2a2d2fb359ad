package authn

import (
	"encoding/base64"
	"encoding/json"
	"hash/maphash"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/internal/jwt"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// cacheSize is how many verified tokens are kept of one issuer. A token is at most 8 KiB, and only valid ones are kept.
const cacheSize = 1024

// cache knows tokens that were verified, so that a token which comes again costs no signature check. Each has one place, which
// its hash says, and loses it to another of the same place: so it is bounded and needs no lock. The hash is seeded, so that
// nobody can make tokens for one place.
type cache struct {
	seed  maphash.Seed
	slots [cacheSize]atomic.Pointer[verified]
}

func newCache() *cache { return &cache{seed: maphash.MakeSeed()} }

func (c *cache) slot(token []byte) *atomic.Pointer[verified] {
	return &c.slots[maphash.Bytes(c.seed, token)%cacheSize]
}

// verified is what a valid token says, ready for use. Requests share it.
type verified struct {
	token   string
	until   time.Time
	auth    exchange.Auth
	headers http1.Header
}

func newVerified(token string, t *jwt.Token, r *snapshot.TokenRule) *verified {
	v := &verified{token: token, until: t.Expires, auth: *Auth(t.Claims, r.SpaceDelimited...)}
	v.auth.Principal, v.auth.Audiences, v.auth.Raw = t.Issuer+"/"+t.Subject, t.Audiences, string(t.Payload)
	if r.PayloadHeader != "" {
		v.headers = append(v.headers, http1.NewField(r.PayloadHeader, base64.RawURLEncoding.EncodeToString(t.Payload)))
	}
	for _, h := range r.ClaimHeaders {
		// A claim may be any text: what can't be a header's value does not become one.
		if text, ok := claimText(t.Claims, h.Claim); ok {
			if f, err := http1.ParseField([]byte(h.Name), []byte(text)); err == nil && text != "" {
				f.Own = true
				v.headers = append(v.headers, f)
			}
		}
	}
	return v
}

// Auth is what a token says that has these claims; delimited are the names of those that are words with spaces between.
func Auth(claims map[string]any, delimited ...string) *exchange.Auth {
	a := &exchange.Auth{Claims: claim(claims, "", append([]string{"scope", "permission"}, delimited...))}
	text := func(name string) string {
		if v := a.At([]string{name}); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	a.Principal, a.Audiences, a.Presenter = text("iss")+"/"+text("sub"), a.At([]string{"aud"}), text("azp")
	return a
}

// claim is a claim of any type as conditions see it; path is where it stands, names joined by dots.
func claim(value any, path string, delimited []string) *exchange.Claim {
	switch value := value.(type) {
	case string:
		if slices.Contains(delimited, path) {
			return &exchange.Claim{Values: strings.Fields(value)}
		}
		return &exchange.Claim{Values: []string{value}}
	case []any:
		c := &exchange.Claim{}
		for _, v := range value {
			if text, ok := v.(string); ok {
				c.Values = append(c.Values, text)
			}
		}
		return c
	case map[string]any:
		c := &exchange.Claim{Fields: make(map[string]*exchange.Claim, len(value))}
		for name, v := range value {
			at := name
			if path != "" {
				at = path + "." + name
			}
			c.Fields[name] = claim(v, at, delimited)
		}
		return c
	}
	return &exchange.Claim{}
}

// claimText is the text, number or truth value of a claim: of one whose own name it is, or of one that is nested.
func claimText(claims map[string]any, name string) (string, bool) {
	value, ok := claims[name]
	for !ok {
		first, rest, nested := strings.Cut(name, ".")
		if !nested {
			return "", false
		}
		if claims, ok = claims[first].(map[string]any); !ok {
			return "", false
		}
		name = rest
		value, ok = claims[name]
	}
	switch v := value.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		if v {
			return "true", true
		}
		return "false", true
	}
	return "", false
}
