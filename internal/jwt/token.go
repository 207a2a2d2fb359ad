package jwt

import (
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
)

// maxToken bounds a token before anything of it is read; it has to fit a request's head beside the rest.
const maxToken = 8 << 10

// skew is what clocks may differ: Envoy's clock_skew_seconds.
const skew = time.Minute

// Token is what a verified token says.
type Token struct {
	// Payload is what was signed.
	Payload []byte
	// Expires is when it is good no more: its exp, and what clocks may differ.
	Expires   time.Time
	Issuer    string
	Subject   string
	Audiences []string
	// Claims are all of them, numbers as json.Number.
	Claims map[string]any
}

// Rule is what a token must be, beside being signed by one of the keys.
type Rule struct {
	// Issuer is the token's iss; empty takes any.
	Issuer string
	// Audiences: one of them must be among the token's aud; empty takes any.
	Audiences []string
}

// header is what of a token's header is looked at (RFC 7515, section 4.1). What names a place to fetch keys from (jku,
// x5u) is not looked at at all.
type header struct {
	Alg  string              `json:"alg"`
	Kid  *string             `json:"kid"`
	Crit josejson.RawMessage `json:"crit"`
	B64  josejson.RawMessage `json:"b64"`
	JWK  josejson.RawMessage `json:"jwk"`
	X5C  josejson.RawMessage `json:"x5c"`
	Cty  string              `json:"cty"`
	Enc  josejson.RawMessage `json:"enc"`
	Zip  josejson.RawMessage `json:"zip"`
}

// Verify checks a token's signature and what it claims. The error says why it is refused.
func (s *KeySet) Verify(token string, r Rule, now time.Time) (*Token, error) {
	payload, err := s.signed(token)
	if err != nil {
		return nil, err
	}
	return claims(payload, r, now)
}

// signed yields the payload of a token in compact form that one of the keys has signed.
func (s *KeySet) signed(token string) ([]byte, error) {
	if len(token) > maxToken {
		return nil, refuse(BadFormat, "token has %d bytes, at most %d are read", len(token), maxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, refuse(BadFormat, "token has %d parts, want three: header.payload.signature", len(parts))
	}
	for i, part := range []struct {
		name   string
		reason Reason
	}{{"header", HeaderBase64}, {"payload", PayloadBase64}, {"signature", SignatureBase64}} {
		if err := checkBase64(parts[i]); err != nil {
			return nil, refuse(part.reason, "token's %s: %w", part.name, err)
		}
	}
	head, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		return nil, refuse(HeaderBase64, "token's header: %w", err)
	}
	h, err := parseHeader(head)
	if err != nil {
		return nil, refuse(HeaderJSON, "token's header: %w", err)
	}
	alg := jose.SignatureAlgorithm(h.Alg)
	candidates, err := s.candidates(h, alg)
	if err != nil {
		return nil, err
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return nil, refuse(BadFormat, "token: %w", err)
	}
	for _, k := range candidates {
		if payload, err := jws.Verify(k.public); err == nil && saltFits(token, alg, k.public) {
			return payload, nil
		}
	}
	return nil, refuse(BadSignature, "signature is of none of the issuer's keys")
}

// saltFits tells whether the salt of an RSASSA-PSS signature is as long as its hash (RFC 7518, section 3.5); go-jose takes
// any length. Other algorithms have none.
func saltFits(token string, alg jose.SignatureAlgorithm, public any) bool {
	hash, ok := map[jose.SignatureAlgorithm]crypto.Hash{jose.PS256: crypto.SHA256, jose.PS384: crypto.SHA384, jose.PS512: crypto.SHA512}[alg]
	if !ok {
		return true
	}
	p, ok := public.(*rsa.PublicKey)
	if !ok {
		return false
	}
	end := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[end+1:])
	if err != nil {
		return false
	}
	h := hash.New()
	h.Write([]byte(token[:end]))
	return rsa.VerifyPSS(p, hash, h.Sum(nil), signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
}

// candidates are the keys that a header may mean: those of its id and those without one, as far as they are for its
// algorithm. It is the key that says what it is for.
func (s *KeySet) candidates(h *header, alg jose.SignatureAlgorithm) ([]key, error) {
	var named, fit []key
	for _, k := range s.keys {
		if h.Kid == nil || k.id == "" || k.id == *h.Kid {
			named = append(named, k)
		}
	}
	if len(named) == 0 {
		return nil, refuse(NoKey, "kid %q is none of the issuer's keys", *h.Kid)
	}
	for _, k := range named {
		if slices.Contains(k.algorithms, alg) {
			fit = append(fit, k)
		}
	}
	if len(fit) == 0 {
		reason := NoKey
		if !slices.Contains(supported, alg) {
			reason = BadAlgorithm
		}
		return nil, refuse(reason, "alg %q is not what the issuer's key is for", h.Alg)
	}
	return fit, nil
}

func parseHeader(b []byte) (*header, error) {
	if err := checkJSON(b); err != nil {
		return nil, err
	}
	var h header
	if err := josejson.Unmarshal(b, &h); err != nil {
		return nil, err
	}
	switch {
	case h.JWK != nil || h.X5C != nil:
		return nil, errors.New("jwk and x5c bring a key along; only the issuer's keys count")
	case h.Crit != nil:
		return nil, fmt.Errorf("crit %s is not understood", h.Crit)
	case h.B64 != nil:
		return nil, errors.New("b64 is not for tokens (RFC 7797, section 7)")
	case h.Enc != nil || h.Zip != nil:
		return nil, errors.New("an encrypted token is not read")
	case strings.EqualFold(h.Cty, "JWT"):
		return nil, errors.New("cty is JWT: a token within a token is not read")
	}
	return &h, nil
}

// checkBase64 takes the one spelling that an encoder makes (RFC 7515, section 2): Go's decoder skips line breaks, and
// without Strict the unused bits of the last character may be anything.
func checkBase64(s string) error {
	if strings.ContainsAny(s, "\r\n") {
		return errors.New("base64url with a line break")
	}
	_, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err
}

func claims(payload []byte, r Rule, now time.Time) (*Token, error) {
	if err := checkJSON(payload); err != nil {
		return nil, refuse(PayloadJSON, "token's claims: %w", err)
	}
	t := &Token{Payload: payload}
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.UseNumber()
	if err := d.Decode(&t.Claims); err != nil {
		return nil, refuse(PayloadJSON, "token's claims: %w", err)
	}
	if t.Claims == nil {
		return nil, refuse(PayloadJSON, "token's claims are null, want an object")
	}
	var err error
	if t.Issuer, err = t.text("iss"); err != nil {
		return nil, err
	}
	if t.Subject, err = t.text("sub"); err != nil {
		return nil, err
	}
	if _, err = t.text("jti"); err != nil {
		return nil, err
	}
	if t.Audiences, err = t.audiences(); err != nil {
		return nil, err
	}
	switch {
	case r.Issuer != "" && t.Issuer != r.Issuer:
		return nil, refuse(UnknownIssuer, "iss is %q, want %q", t.Issuer, r.Issuer)
	case len(r.Audiences) > 0 && !slices.ContainsFunc(t.Audiences, func(a string) bool { return slices.Contains(r.Audiences, a) }):
		return nil, refuse(BadAudience, "aud is %q, want one of %q", t.Audiences, r.Audiences)
	}
	return t, t.inTime(now)
}

// inTime checks exp, nbf and the type of iat (RFC 7519, section 4.1). A token without exp would be good for ever, whoever has
// got hold of it, so exp is required, where Envoy takes it to be optional. When a token was issued refuses nothing.
func (t *Token) inTime(now time.Time) error {
	exp, ok, err := t.date("exp")
	switch {
	case err != nil:
		return err
	case !ok:
		return refuse(Expired, "exp is missing: the token would be good for ever")
	case now.After(exp.Add(skew)):
		return refuse(Expired, "token expired at %s", exp.UTC().Format(time.RFC3339))
	}
	t.Expires = exp.Add(skew)
	nbf, ok, err := t.date("nbf")
	switch {
	case err != nil:
		return err
	case ok && now.Add(skew).Before(nbf):
		return refuse(NotYet, "token is not valid before %s", nbf.UTC().Format(time.RFC3339))
	}
	_, _, err = t.date("iat")
	return err
}

func (t *Token) text(claim string) (string, error) {
	v, ok := t.Claims[claim]
	if !ok {
		return "", nil
	}
	s, ok := v.(string)
	if !ok {
		return "", refuse(PayloadJSON, "%s is %v, want a string", claim, v)
	}
	return s, nil
}

func (t *Token) audiences() ([]string, error) {
	switch v := t.Claims["aud"].(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, a := range v {
			s, ok := a.(string)
			if !ok {
				return nil, refuse(PayloadJSON, "aud has %v, want strings", a)
			}
			out = append(out, s)
		}
		return out, nil
	default:
		return nil, refuse(PayloadJSON, "aud is %v, want a string or a list of strings", v)
	}
}

// maxDate is the end of the year 9999, what later dates count as, so that sums of them are dates too.
const maxDate = 253402300799

// date is a claim that is a number of seconds since 1970, which Envoy reads as 64 bits without sign.
func (t *Token) date(claim string) (time.Time, bool, error) {
	v, ok := t.Claims[claim]
	if !ok {
		return time.Time{}, false, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false, refuse(PayloadJSON, "%s is %v, want a number of seconds", claim, v)
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f > math.MaxUint64 {
		return time.Time{}, false, refuse(PayloadJSON, "%s is %s, want seconds since 1970", claim, n)
	}
	return time.Unix(int64(min(f, maxDate)), 0), true, nil
}
