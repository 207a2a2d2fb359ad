package authz

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/proxy/http1"
)

// attribute is something of a request that is a text, or several.
type attribute struct {
	name  string   // such as request.headers
	names []string // in the brackets behind it; a header's in small letters
	kind  attributeKind
	http  bool // that only HTTP requests have
}

type attributeKind uint8

const (
	principal attributeKind = iota
	namespace
	serviceAccount
	trustDomain
	serverName
	port
	method
	requestPrincipal
	audiences
	presenter
	claims
	header
)

// The attributes that are texts, by their names in conditions. Those that fields of sources and operations are about have the
// same.
var attributes = map[string]attribute{ //nolint:gochecknoglobals // a constant
	"source.principal":       {kind: principal},
	"source.namespace":       {kind: namespace},
	"source.serviceAccount":  {kind: serviceAccount},
	"source.trustDomain":     {kind: trustDomain},
	"connection.sni":         {kind: serverName},
	"destination.port":       {kind: port},
	"request.method":         {kind: method, http: true},
	"request.auth.principal": {kind: requestPrincipal, http: true},
	"request.auth.audiences": {kind: audiences, http: true},
	"request.auth.presenter": {kind: presenter, http: true},
	"request.auth.claims":    {kind: claims, http: true},
	"request.headers":        {kind: header, http: true},
}

func newAttribute(name string, names []string) (attribute, error) {
	a, ok := attributes[name]
	switch {
	case !ok:
		return a, fmt.Errorf("attribute %q is not known", name)
	case a.kind == header && len(names) != 1, a.kind == claims && len(names) == 0, a.kind != header && a.kind != claims && len(names) > 0:
		return a, fmt.Errorf("attribute %s[%s] has the wrong number of names", name, strings.Join(names, "]["))
	}
	a.name, a.names = name, names
	if a.kind == header {
		a.names = []string{strings.ToLower(names[0])}
	}
	return a, nil
}

func (a *attribute) key() string { return a.name + "[" + strings.Join(a.names, "][") + "]" }

// values appends what r has of it. loose asks for everything that an application may take it for.
func (a *attribute) values(r *Request, loose bool, into []string) []string {
	var one string
	switch a.kind {
	case principal:
		one = r.principal
	case namespace:
		one = r.namespace
	case serviceAccount:
		if r.serviceAccount != "" {
			r.text = append(append(append(r.text[:0], r.namespace...), '/'), r.serviceAccount...)
			one = view(r.text)
		}
	case trustDomain:
		one = r.trustDomain
	case serverName:
		one = r.ServerName
	case port:
		r.text = strconv.AppendUint(r.text[:0], uint64(r.Port), 10)
		one = view(r.text)
	case method:
		one = view(r.Method)
	case header:
		return a.header(r, loose, into)
	default:
		return a.token(r, into)
	}
	if one == "" {
		return into
	}
	return append(into, one)
}

// token is what the request's token says.
func (a *attribute) token(r *Request, into []string) []string {
	if r.Auth == nil {
		return into
	}
	var one string
	switch a.kind {
	case requestPrincipal:
		one = r.Auth.Principal
	case presenter:
		one = r.Auth.Presenter
	case audiences:
		return append(into, r.Auth.Audiences...)
	default:
		return append(into, r.Auth.At(a.names)...)
	}
	if one == "" {
		return into
	}
	return append(into, one)
}

// header is the values of a header's fields. Servers that make variables of headers take "_" for "-", so a field whose name
// differs in this alone is one, too; but on its own it is only for who looks at it loosely. Several fields are one list (RFC
// 9110 section 5.3): loosely it is its elements, too, and all of it.
func (a *attribute) header(r *Request, loose bool, into []string) []string {
	begin, named := len(into), false
	for i := range r.Header {
		f := &r.Header[i]
		if f.Hop || f.Kind == http1.ClientCert {
			continue // it does not go on
		}
		same, twin := sameName(f.Name, a.names[0])
		if !twin {
			continue
		}
		named = named || same
		into = append(into, view(f.Value))
		if loose && bytes.IndexByte(f.Value, ',') >= 0 {
			for rest := f.Value; len(rest) > 0; {
				var element []byte
				element, rest, _ = bytes.Cut(rest, []byte{','})
				into = append(into, view(bytes.TrimSpace(element)))
			}
		}
	}
	switch {
	case !named && !loose:
		return into[:begin]
	case loose && len(into) > begin+1:
		r.text = r.text[:0]
		for i := range r.Header {
			if _, twin := sameName(r.Header[i].Name, a.names[0]); twin && !r.Header[i].Hop {
				if len(r.text) > 0 {
					r.text = append(r.text, ',')
				}
				r.text = append(r.text, r.Header[i].Value...)
			}
		}
		into = append(into, view(r.text))
	}
	return into
}

// sameName compares a field's name with one in small letters; twin is without regard of "_" and "-".
func sameName(name []byte, lower string) (same, twin bool) {
	if len(name) != len(lower) {
		return false, false
	}
	same = true
	for i, c := range name {
		w := lower[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		switch {
		case c == w:
		case (c == '_' || c == '-') && (w == '_' || w == '-'):
			same = false
		default:
			return false, false
		}
	}
	return same, true
}
