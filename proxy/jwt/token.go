package jwt

import (
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// maxToken bounds a token before anything of it is read; it has to fit a request's head beside the rest.
const maxToken = 8 << 10

// skew is what clocks may differ: Envoy's clock_skew_seconds.
const skew = time.Minute

// Token is what a verified token says.
type Token struct {
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
	Alg  string           `json:"alg"`
	Kid  *string          `json:"kid"`
	Crit json.RawMessage  `json:"crit"`
	B64  *bool            `json:"b64"`
	JWK  json.RawMessage  `json:"jwk"`
	X5C  json.RawMessage  `json:"x5c"`
	Cty  string           `json:"cty"`
	Enc  *json.RawMessage `json:"enc"`
	Zip  *json.RawMessage `json:"zip"`
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
		return nil, fmt.Errorf("token has %d bytes, at most %d are read", len(token), maxToken)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("token has %d parts, want three: header.payload.signature", len(parts))
	}
	for i, name := range []string{"header", "payload", "signature"} {
		if err := checkBase64(parts[i]); err != nil {
			return nil, fmt.Errorf("token's %s: %w", name, err)
		}
	}
	head, err := base64.RawURLEncoding.DecodeString(parts[0])
	if err != nil {
		return nil, fmt.Errorf("token's header: %w", err)
	}
	h, err := parseHeader(head)
	if err != nil {
		return nil, fmt.Errorf("token's header: %w", err)
	}
	alg := jose.SignatureAlgorithm(h.Alg)
	candidates, err := s.candidates(h, alg)
	if err != nil {
		return nil, err
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{alg})
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	for _, k := range candidates {
		if payload, err := jws.Verify(k.public); err == nil && saltFits(token, alg, k.public) {
			return payload, nil
		}
	}
	return nil, errors.New("signature is of none of the issuer's keys")
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
		return nil, fmt.Errorf("kid %q is none of the issuer's keys", *h.Kid)
	}
	for _, k := range named {
		if slices.Contains(k.algorithms, alg) {
			fit = append(fit, k)
		}
	}
	if len(fit) == 0 {
		return nil, fmt.Errorf("alg %q is not what the issuer's key is for", h.Alg)
	}
	return fit, nil
}

func parseHeader(b []byte) (*header, error) {
	if err := checkJSON(b); err != nil {
		return nil, err
	}
	var h header
	if err := json.Unmarshal(b, &h); err != nil {
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
		return nil, fmt.Errorf("token's claims: %w", err)
	}
	t := &Token{}
	d := json.NewDecoder(strings.NewReader(string(payload)))
	d.UseNumber()
	if err := d.Decode(&t.Claims); err != nil {
		return nil, fmt.Errorf("token's claims: %w", err)
	}
	if t.Claims == nil {
		return nil, errors.New("token's claims are null, want an object")
	}
	var err error
	if t.Issuer, err = t.text("iss"); err != nil {
		return nil, err
	}
	if t.Subject, err = t.text("sub"); err != nil {
		return nil, err
	}
	if t.Audiences, err = t.audiences(); err != nil {
		return nil, err
	}
	switch {
	case r.Issuer != "" && t.Issuer != r.Issuer:
		return nil, fmt.Errorf("iss is %q, want %q", t.Issuer, r.Issuer)
	case len(r.Audiences) > 0 && !slices.ContainsFunc(t.Audiences, func(a string) bool { return slices.Contains(r.Audiences, a) }):
		return nil, fmt.Errorf("aud is %q, want one of %q", t.Audiences, r.Audiences)
	}
	return t, t.inTime(now)
}

// inTime checks exp and nbf (RFC 7519, section 4.1). A token without exp would be good for ever, whoever has got hold
// of it, so exp is required.
func (t *Token) inTime(now time.Time) error {
	exp, ok, err := t.date("exp")
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New("exp is missing: the token would be good for ever")
	case now.After(exp.Add(skew)):
		return fmt.Errorf("token expired at %s", exp.UTC().Format(time.RFC3339))
	}
	nbf, ok, err := t.date("nbf")
	if err == nil && ok && now.Add(skew).Before(nbf) {
		err = fmt.Errorf("token is not valid before %s", nbf.UTC().Format(time.RFC3339))
	}
	return err
}

func (t *Token) text(claim string) (string, error) {
	v, ok := t.Claims[claim]
	if !ok {
		return "", nil
	}
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("%s is %v, want a string", claim, v)
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
				return nil, fmt.Errorf("aud has %v, want strings", a)
			}
			out = append(out, s)
		}
		return out, nil
	default:
		return nil, fmt.Errorf("aud is %v, want a string or a list of strings", v)
	}
}

// maxDate keeps arithmetic on dates exact: the year 9999.
const maxDate = 253402300799

func (t *Token) date(claim string) (time.Time, bool, error) {
	v, ok := t.Claims[claim]
	if !ok {
		return time.Time{}, false, nil
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}, false, fmt.Errorf("%s is %v, want a number of seconds", claim, v)
	}
	f, err := n.Float64()
	if err != nil || f < 0 || f > maxDate {
		return time.Time{}, false, fmt.Errorf("%s is %s, want seconds since 1970", claim, n)
	}
	return time.Unix(int64(f), 0), true, nil
}
