package filter

import (
	"slices"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http1"
)

// operations are changes of header fields, in the order of snapshot.HeaderOps.
type operations struct {
	remove []string // lower-case
	set    []setField
	add    http1.Header
}

type setField struct {
	name  string // lower-case
	field http1.Field
}

func (b *builder) operations(s *snapshot.HeaderOps) (ops operations, authority []byte) {
	for _, name := range s.Remove {
		ops.remove = append(ops.remove, strings.ToLower(name))
	}
	for _, f := range s.Set {
		if isAuthority(f.Name) {
			authority = []byte(f.Value)
			continue
		}
		ops.set = append(ops.set, setField{strings.ToLower(f.Name), http1.NewField(f.Name, f.Value)})
	}
	for _, f := range s.Add {
		if isAuthority(f.Name) {
			authority = []byte(f.Value)
			continue
		}
		ops.add = append(ops.add, http1.NewField(f.Name, f.Value))
	}
	return ops, authority
}

func isAuthority(name string) bool {
	return strings.EqualFold(name, "host") || strings.EqualFold(name, ":authority")
}

// apply changes h in place, and beyond its length.
func (o *operations) apply(h http1.Header) http1.Header {
	for _, name := range o.remove {
		h = Without(h, name)
	}
	for i := range o.set {
		h = append(Without(h, o.set[i].name), o.set[i].field)
	}
	return append(h, o.add...)
}

// Without is h without the fields of a name in small letters. It changes h in place.
func Without(h http1.Header, lower string) http1.Header {
	return slices.DeleteFunc(h, func(f http1.Field) bool { return http1.EqualFold(f.Name, lower) })
}

// WithoutTwins is Without for fields that a server takes as somebody's word: it takes away those, too, which a server takes
// for the same since it folds what is no letter and no digit, as CGI's names of variables do.
func WithoutTwins(h http1.Header, lower string) http1.Header {
	return slices.DeleteFunc(h, func(f http1.Field) bool { return twins(f.Name, lower) })
}

func twins(name []byte, lower string) bool {
	if len(name) != len(lower) {
		return false
	}
	for i, c := range name {
		if fold(c) != fold(lower[i]) {
			return false
		}
	}
	return true
}

func fold(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c | 0x20
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		return c
	}
	return '-'
}

type requestHeaders struct {
	next      Handler
	ops       operations
	authority []byte // "host" among what is set
}

func (b *builder) requestHeaders(s *snapshot.Headers) filter {
	if s == nil || len(s.Request.Remove)+len(s.Request.Set)+len(s.Request.Add) == 0 {
		return nil
	}
	f := requestHeaders{}
	f.ops, f.authority = b.operations(&s.Request)
	return func(next Handler) Handler { f.next = next; return &f }
}

func (f *requestHeaders) Serve(x *Exchange) {
	x.Request.Header = f.ops.apply(x.Request.Header)
	if f.authority != nil {
		x.Request.Authority = f.authority
	}
	f.next.Serve(x)
}

type responseHeaders struct {
	next Handler
	ops  operations
}

func (b *builder) responseHeaders(s *snapshot.Headers) filter {
	if s == nil || len(s.Response.Remove)+len(s.Response.Set)+len(s.Response.Add) == 0 {
		return nil
	}
	f := responseHeaders{}
	f.ops, _ = b.operations(&s.Response)
	return func(next Handler) Handler { f.next = next; return &f }
}

func (f *responseHeaders) Serve(x *Exchange) {
	f.next.Serve(x)
	x.Response.Header = f.ops.apply(x.Response.Header)
}
