package authn

import (
	"bytes"
	"net/url"
	"slices"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// finder goes through the tokens at a provider's places in a request: headers, then parameters of the query, then cookies.
type finder struct {
	x *filter.Exchange
	p *provider

	place, at, field int
	rest             []byte // of the query, or of a Cookie field
}

// next is one more token; ok is false where there is none.
func (f *finder) next() (token []byte, ok bool) {
	if f.place == 0 {
		if token, ok = f.header(); ok {
			return token, true
		}
		f.place, f.rest = 1, query(f.x.Request.Path)
		if len(f.p.params) == 0 {
			f.rest = nil
		}
	}
	if f.place == 1 {
		if token, ok = f.param(); ok {
			return token, true
		}
		f.place, f.field, f.rest = 2, 0, nil
	}
	return f.cookie()
}

func (f *finder) header() ([]byte, bool) {
	for h := f.x.Request.Header; f.at < len(f.p.headers); f.at, f.field = f.at+1, 0 {
		for l := &f.p.headers[f.at]; f.field < len(h); {
			field := &h[f.field]
			f.field++
			if token, ok := l.inHeader(field); ok {
				return token, true
			}
		}
	}
	return nil, false
}

// inHeader is the token in a field. One without the prefix has none, as an Authorization that is Basic.
func (l *location) inHeader(f *http1.Field) ([]byte, bool) {
	if !http1.EqualFold(f.Name, l.name) || len(f.Value) <= len(l.prefix) || string(f.Value[:len(l.prefix)]) != l.prefix {
		return nil, false
	}
	return bytes.TrimLeft(f.Value[len(l.prefix):], " "), true
}

func query(path []byte) []byte {
	_, q, _ := bytes.Cut(path, []byte("?"))
	return q
}

func (f *finder) param() ([]byte, bool) {
	for len(f.rest) > 0 {
		var one []byte
		one, f.rest, _ = bytes.Cut(f.rest, []byte("&"))
		if value, ok := named(one, f.p.params); ok {
			return value, true
		}
	}
	return nil, false
}

// named is the value of a parameter, if it has one of the names. The rare one that is escaped is unescaped.
func named(param []byte, names []location) ([]byte, bool) {
	name, value, _ := bytes.Cut(param, []byte("="))
	if bytes.ContainsAny(param, "%+") {
		plain, err := url.QueryUnescape(string(name))
		if err != nil {
			return nil, false
		}
		text, err := url.QueryUnescape(string(value))
		if err != nil {
			text = string(value) // no token, and to be refused as such
		}
		name, value = []byte(plain), []byte(text)
	}
	if len(value) == 0 || !slices.ContainsFunc(names, func(l location) bool { return l.name == string(name) }) {
		return nil, false
	}
	return value, true
}

func (f *finder) cookie() ([]byte, bool) {
	if len(f.p.cookies) == 0 {
		return nil, false
	}
	for h := f.x.Request.Header; ; {
		for len(f.rest) > 0 {
			var one []byte
			one, f.rest, _ = bytes.Cut(f.rest, []byte(";"))
			if value, ok := inCookie(one, f.p.cookies); ok {
				return value, true
			}
		}
		for f.field < len(h) && h[f.field].Kind != http1.Cookie {
			f.field++
		}
		if f.field == len(h) {
			return nil, false
		}
		f.rest = h[f.field].Value
		f.field++
	}
}

// inCookie is the value of a cookie, if it has one of the names (RFC 6265, section 4.2).
func inCookie(pair []byte, names []location) ([]byte, bool) {
	name, value, _ := bytes.Cut(pair, []byte("="))
	name, value = bytes.TrimSpace(name), bytes.Trim(bytes.TrimSpace(value), `"`)
	if len(value) == 0 || !slices.ContainsFunc(names, func(l location) bool { return l.name == string(name) }) {
		return nil, false
	}
	return value, true
}

// strip takes the tokens away: the application needs none, and can't leak what it does not get.
func (p *provider) strip(x *filter.Exchange) {
	q := &x.Request
	if len(p.headers) > 0 {
		kept := q.Header[:0]
		for i := range q.Header {
			if !p.hasToken(&q.Header[i]) {
				kept = append(kept, q.Header[i])
			}
		}
		q.Header = kept
	}
	if len(p.params) > 0 {
		if path, changed := withoutParams(q.Path, p.params); changed {
			q.Path, x.Record.Path = path, path
		}
	}
	if len(p.cookies) > 0 {
		for i := range q.Header {
			if q.Header[i].Kind == http1.Cookie {
				q.Header[i].Value = p.otherCookies(q.Header[i].Value)
			}
		}
		q.Header = slices.DeleteFunc(q.Header, func(f http1.Field) bool { return f.Kind == http1.Cookie && len(f.Value) == 0 })
	}
}

func (p *provider) hasToken(f *http1.Field) bool {
	for i := range p.headers {
		if _, ok := p.headers[i].inHeader(f); ok {
			return true
		}
	}
	return false
}

func withoutParams(path []byte, names []location) ([]byte, bool) {
	rest := query(path)
	if len(rest) == 0 {
		return path, false
	}
	out := append(make([]byte, 0, len(path)), path[:len(path)-len(rest)]...)
	changed, first := false, true
	for len(rest) > 0 {
		var one []byte
		one, rest, _ = bytes.Cut(rest, []byte("&"))
		if _, ok := named(one, names); ok {
			changed = true
			continue
		}
		if !first {
			out = append(out, '&')
		}
		out, first = append(out, one...), false
	}
	if !changed {
		return path, false
	}
	return bytes.TrimSuffix(out, []byte("?")), true
}

// otherCookies are those of a Cookie field that are no tokens.
func (p *provider) otherCookies(value []byte) []byte {
	var out []byte
	for rest := value; len(rest) > 0; {
		var one []byte
		one, rest, _ = bytes.Cut(rest, []byte(";"))
		if _, ok := inCookie(one, p.cookies); ok {
			continue
		}
		if out != nil {
			out = append(out, ';', ' ')
		}
		out = append(out, bytes.TrimSpace(one)...)
	}
	return out
}
