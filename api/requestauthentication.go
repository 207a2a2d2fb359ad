package api

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1"
)

// RequestAuthentication is the kind that says whose JSON Web Tokens workloads take, and where they stand
// (https://istio.io/latest/docs/reference/config/security/request_authentication/).
func RequestAuthentication() *Kind {
	return securityKind(Kind{
		Kind: "RequestAuthentication", Plural: "requestauthentications", Singular: "requestauthentication", ShortNames: []string{"ra"},
		Columns: []Column{
			{Name: "Issuers", Description: "Whose tokens are taken", Cell: func(o *Object) any {
				var issuers []string
				for _, r := range o.Spec.(*security.RequestAuthentication).GetJwtRules() {
					issuers = append(issuers, r.GetIssuer())
				}
				return listCell(issuers)
			}},
			{Name: "For", Description: "The workloads it is for", Cell: scopeCell},
		},
		validate: validateRequestAuthentication,
	}, func() proto.Message { return &security.RequestAuthentication{} }, requestAuthenticationFields())
}

func requestAuthenticationFields() fieldSet {
	return targetedFields("RequestAuthentication", "RequestAuthentication.jwt_rules",
		"JWTRule.issuer", "JWTRule.audiences", "JWTRule.jwks_uri", "JWTRule.jwks", "JWTRule.from_headers", "JWTRule.from_params", "JWTRule.from_cookies",
		"JWTRule.output_payload_to_header", "JWTRule.output_claim_to_headers", "JWTRule.forward_original_token", "JWTRule.timeout",
		"JWTRule.space_delimited_claims", "JWTHeader.name", "JWTHeader.prefix", "ClaimToHeader.header", "ClaimToHeader.claim",
	)
}

func validateRequestAuthentication(o *Object) Problems {
	r := o.Spec.(*security.RequestAuthentication)
	var ps Problems
	checkTargets(&ps, o, r)
	for i, rule := range r.JwtRules {
		path := Path{"spec", "jwtRules", i}
		validateJWTRule(&ps, path, rule)
		for j, other := range r.JwtRules[:i] {
			if rule.Issuer == other.Issuer && rule.JwksUri+rule.Jwks != other.JwksUri+other.Jwks {
				ps.invalid(path.At("issuer"), fmt.Sprintf("%q has other keys in jwtRules[%d], want the same for one issuer", rule.Issuer, j))
				break
			}
		}
	}
	return ps
}

// plainHeader are the names of headers that a claim may be put in
// (https://istio.io/latest/docs/reference/config/security/request_authentication/#ClaimToHeader).
var plainHeader = regexp.MustCompile("^[-_A-Za-z0-9]+$")

// Bounds of a JWT rule.
const (
	maxJWKSURI     = 2048
	maxJWKSTimeout = time.Minute
)

func validateJWTRule(ps *Problems, path Path, r *security.JWTRule) {
	if r.Issuer == "" {
		ps.required(path.At("issuer"), "want the iss of the tokens, such as https://accounts.example.com")
	}
	switch {
	case r.JwksUri != "" && r.Jwks != "":
		ps.invalid(path, "want only one of jwks and jwksUri")
	case r.JwksUri != "":
		if msg := checkHTTPURL(r.JwksUri); msg != "" {
			ps.invalid(path.At("jwksUri"), msg)
		}
	case r.Jwks != "":
		if msg := checkKeySet(r.Jwks); msg != "" {
			ps.invalid(path.At("jwks"), msg)
		}
	case r.Issuer != "" && checkHTTPURL(r.Issuer) != "":
		ps.required(path.At("jwksUri"), fmt.Sprintf("want this or jwks: %q is no URL, so there is no OpenID discovery", r.Issuer))
	}
	for _, f := range []struct {
		name string
		list []string
	}{{"audiences", r.Audiences}, {"fromParams", r.FromParams}, {"fromCookies", r.FromCookies}, {"spaceDelimitedClaims", r.SpaceDelimitedClaims}} {
		for i, v := range f.list {
			if v == "" {
				ps.invalid(path.At(f.name, i), "want a text that is not empty")
			}
		}
	}
	for i, h := range r.FromHeaders {
		if msg := checkHeaderName(h.GetName()); msg != "" {
			ps.invalid(path.At("fromHeaders", i, "name"), msg)
		}
	}
	for i, c := range r.FromCookies {
		if strings.ContainsAny(c, "=;, \t\"") {
			ps.invalid(path.At("fromCookies", i), fmt.Sprintf("want a cookie's name, got %q", c))
		}
	}
	if r.OutputPayloadToHeader != "" {
		if msg := checkOwnHeader(r.OutputPayloadToHeader); msg != "" {
			ps.invalid(path.At("outputPayloadToHeader"), msg)
		}
	}
	headers := map[string]bool{strings.ToLower(r.OutputPayloadToHeader): r.OutputPayloadToHeader != ""}
	for i, c := range r.OutputClaimToHeaders {
		at := path.At("outputClaimToHeaders", i)
		if msg := checkOwnHeader(c.GetHeader()); msg != "" {
			ps.invalid(at.At("header"), msg)
		} else if !plainHeader.MatchString(c.Header) {
			ps.invalid(at.At("header"), fmt.Sprintf("want a header's name of letters, digits, - and _, got %q", c.Header))
		} else if name := strings.ToLower(c.Header); headers[name] {
			ps.invalid(at.At("header"), fmt.Sprintf("%q stands there twice", c.Header))
		} else {
			headers[name] = true
		}
		if c.GetClaim() == "" {
			ps.required(at.At("claim"), "want a claim's name, such as sub or realm.role")
		}
	}
	if r.Timeout != nil && (r.Timeout.AsDuration() < time.Millisecond || r.Timeout.AsDuration() > maxJWKSTimeout) {
		ps.invalid(path.At("timeout"), fmt.Sprintf("want between 1ms and %s, got %s", maxJWKSTimeout, r.Timeout.AsDuration()))
	}
}

// checkHTTPURL says what is wrong with a URL to fetch from, or "".
func checkHTTPURL(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || len(text) > maxJWKSURI {
		return fmt.Sprintf("want a URL of http or https with a host, without user and fragment, of at most %d characters, got %q", maxJWKSURI, text)
	}
	return ""
}

// checkOwnHeader allows the names of request headers that can be set without a change of the message's meaning.
func checkOwnHeader(name string) string {
	if msg := checkHeaderName(name); msg != "" {
		return msg
	}
	lower := strings.ToLower(name)
	switch lower {
	case "host", "content-length", "transfer-encoding", "connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "expect", "authorization", "cookie":
		return fmt.Sprintf("want a header of one's own, such as x-jwt-payload, got %q", name)
	}
	if strings.HasPrefix(lower, "x-forwarded-") || strings.HasPrefix(lower, "x-envoy-") || strings.HasPrefix(lower, "x-composure-") {
		return fmt.Sprintf("want a header of one's own: %q is the proxy's", name)
	}
	return ""
}

// checkKeySet says what is wrong with a JWK set (RFC 7517, section 5), or "".
func checkKeySet(text string) string {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return fmt.Sprintf(`want a JWK set, {"keys": [...]}: %v`, err)
	}
	usable := 0
	for i, raw := range set.Keys {
		var kind struct {
			Kty string `json:"kty"`
		}
		switch err := json.Unmarshal(raw, &kind); {
		case err != nil:
			return fmt.Sprintf("keys[%d]: %v", i, err)
		case kind.Kty == "oct":
			return fmt.Sprintf("keys[%d] is symmetric: who can verify a token with it can make one, want public keys alone", i)
		case publicHalf(raw):
			usable++
		}
	}
	if usable == 0 {
		return `want a JWK set, {"keys": [...]}, with at least one valid public key`
	}
	return ""
}

// publicHalf tells whether raw is a JWK that has, or is, a valid public key.
func publicHalf(raw []byte) bool {
	var k jose.JSONWebKey
	if k.UnmarshalJSON(raw) != nil {
		return false
	}
	public := k.Public()
	return public.Valid()
}
