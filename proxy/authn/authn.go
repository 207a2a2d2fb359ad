// Package authn verifies the JSON Web Tokens of requests, by RequestAuthentication's rules: a request without a token passes,
// one with a token that is not valid is refused. What a verified token says goes into the record of the exchange, for
// authorization, and into headers where the rules want it.
package authn

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"

	"github.com/composure-mesh/composure/internal/jwt"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// Filter is the check of a proxy's rules.
type Filter struct {
	providers []*provider
	required  bool
	// forged are the headers that speak for a verified token, lower-case: none from outside is let through.
	forged []string
}

// provider is one issuer.
type provider struct {
	rule snapshot.TokenRule
	want jwt.Rule
	// keys is nil where there are none yet; broken says why those that there are can't be used.
	keys    *jwt.KeySet
	broken  error
	headers []location
	params  []location
	cookies []location
	cache   *cache
	// missed says that a token has named a key that is none of those that were fetched: it may be a new one.
	missed atomic.Bool
}

// location is where a token may stand: a header, a parameter or a cookie.
type location struct{ name, prefix string }

// New makes a filter of rules; nil where there is nothing to do. From old, which may be nil, it takes over what was verified
// by the same rules. Keys that can't be used are no error: they are fetched from outside, and all that depends on them is
// that their issuer's tokens are refused.
func New(a *snapshot.Authentication, old *Filter) (*Filter, error) {
	if len(a.Tokens) == 0 {
		return nil, nil //nolint:nilnil // nothing to do is no error
	}
	f := &Filter{required: a.TokenRequired}
	var errs []error
	for i := range a.Tokens {
		r := a.Tokens[i]
		if r.Issuer == "" {
			errs = append(errs, fmt.Errorf("tokens of %s: the issuer is missing", r.Source))
			continue
		}
		f.providers = append(f.providers, newProvider(r, old))
		if r.PayloadHeader != "" {
			f.forged = append(f.forged, r.PayloadHeader)
		}
		for _, c := range r.ClaimHeaders {
			f.forged = append(f.forged, c.Name)
		}
	}
	return f, errors.Join(errs...)
}

func newProvider(r snapshot.TokenRule, old *Filter) *provider {
	if old != nil {
		for _, p := range old.providers {
			if reflect.DeepEqual(p.rule, r) {
				return p
			}
		}
	}
	p := &provider{rule: r, want: jwt.Rule{Issuer: r.Issuer, Audiences: r.Audiences}, cache: newCache()}
	if r.Keys != "" {
		p.keys, p.broken = jwt.ParseKeySet([]byte(r.Keys))
	}
	for _, h := range r.Headers {
		p.headers = append(p.headers, location{h.Name, h.Prefix})
	}
	for _, name := range r.Params {
		p.params = append(p.params, location{name: name})
	}
	for _, name := range r.Cookies {
		p.cookies = append(p.cookies, location{name: name})
	}
	return p
}

// Problems are what the operator should know of the rules in force.
func (f *Filter) Problems() []string {
	if f == nil {
		return nil
	}
	var out []string
	for _, p := range f.providers {
		if p.broken != nil {
			out = append(out, fmt.Sprintf("%s: the keys of %s can't be used, so its tokens are refused: %v", p.rule.Source, p.rule.Issuer, p.broken))
		}
	}
	return out
}

// MissedKeys are the URIs at which there may be new keys, since tokens have named some since the last call that are unknown.
func (f *Filter) MissedKeys() []string {
	if f == nil {
		return nil
	}
	var out []string
	for _, p := range f.providers {
		if p.missed.Load() && p.missed.Swap(false) {
			out = append(out, p.rule.KeysFrom)
		}
	}
	return out
}

// Check verifies the tokens of a request. Each provider looks at its own places, and all the tokens that it finds there must
// be its own and valid; one provider that is content is enough (so does Istio: requires_any of Envoy's filter).
func (f *Filter) Check(x *filter.Exchange) *filter.Answer {
	for _, name := range f.forged {
		x.Request.Header = filter.WithoutTwins(x.Request.Header, name)
	}
	found, reason := false, jwt.Missing
	for _, p := range f.providers {
		v, err := p.verify(x)
		switch {
		case v != nil:
			p.accept(x, v)
			return nil
		case err == nil:
			continue
		}
		found = true
		r := jwt.ReasonOf(err)
		if (r == jwt.NoKey || r == jwt.NoKeys) && p.rule.KeysFrom != "" {
			p.missed.Store(true)
		}
		if reason == jwt.Missing || reason == jwt.UnknownIssuer {
			reason = r // the issuer's own word says more than that of others
		}
	}
	if !found && !f.required {
		return nil
	}
	return refusal(x, reason)
}

// verify is what the request's tokens at p's places say; nil and no error where there is none.
func (p *provider) verify(x *filter.Exchange) (v *verified, err error) {
	tokens := finder{x: x, p: p}
	for {
		token, ok := tokens.next()
		if !ok {
			return v, nil
		}
		got, err := p.one(token, x)
		if err != nil {
			return nil, err
		}
		if v == nil {
			v = got
		}
	}
}

var errNoKeys = errors.New("the issuer's keys have not been fetched yet")

// one verifies one token, or knows it already.
func (p *provider) one(token []byte, x *filter.Exchange) (*verified, error) {
	now := x.Record.Start
	slot := p.cache.slot(token)
	if v := slot.Load(); v != nil && v.token == string(token) && now.Before(v.until) {
		return v, nil
	}
	if p.keys == nil {
		return nil, jwt.Refuse(jwt.NoKeys, errNoKeys)
	}
	t, err := p.keys.Verify(string(token), p.want, now)
	if err != nil {
		return nil, err
	}
	v := newVerified(string(token), t, &p.rule)
	slot.Store(v)
	return v, nil
}

// accept says what the token says, and takes the token away.
func (p *provider) accept(x *filter.Exchange, v *verified) {
	x.Record.Auth, x.Request.Auth = &v.auth, &v.auth
	if !p.rule.Forward {
		p.strip(x)
	}
	x.Request.Header = append(x.Request.Header, v.headers...)
}

// refusal is Envoy's answer: 401 with a challenge (RFC 6750, section 3), and 403 for a token that is valid elsewhere
// (https://github.com/envoyproxy/envoy/blob/main/source/extensions/filters/http/jwt_authn/filter.cc).
func refusal(x *filter.Exchange, r jwt.Reason) *filter.Answer {
	q := &x.Request
	path, _, _ := strings.Cut(string(q.Path), "?") // the query may hold the token
	challenge := `Bearer realm="` + quoted(q.Scheme+"://"+string(q.Authority)+path) + `"`
	if r != jwt.Missing {
		challenge += `, error="invalid_token"`
	}
	a := &filter.Answer{
		Status: 401, Body: string(r),
		Details: "jwt_authn_access_denied{" + strings.ReplaceAll(string(r), " ", "_") + "}",
		Header:  http1.Header{http1.NewField("WWW-Authenticate", challenge)},
	}
	if r == jwt.BadAudience {
		a.Status = 403
	}
	return a
}

// quoted makes s fit for a quoted string.
func quoted(s string) string {
	return strings.NewReplacer(`"`, "%22", `\`, "%5C").Replace(s)
}
