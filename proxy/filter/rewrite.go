package filter

import (
	"bytes"
	"regexp"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/http1"
)

// rewrite changes the path and the authority. The client's path stays in the record, and goes along as
// X-Envoy-Original-Path.
type rewrite struct {
	next      Handler
	uri       []byte
	regex     *regexp.Regexp
	template  []byte // of regex, in the form of regexp.Expand
	authority []byte
}

func (b *builder) rewrite(s *snapshot.Rewrite) filter {
	if s == nil {
		return nil
	}
	f := rewrite{uri: bytesOf(s.URI), authority: bytesOf(s.Authority)}
	if s.Regex != "" {
		re, err := regexp.Compile(s.Regex)
		if err != nil {
			b.refuse("rewrite.regex: %w", err)
			return nil
		}
		f.regex, f.template = re, []byte(expandable(s.Substitution))
	}
	return func(next Handler) Handler { f.next = next; return &f }
}

func bytesOf(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// expandable turns RE2's \1 into regexp's ${1}, and keeps every $ as it is.
func expandable(re2 string) string {
	var out strings.Builder
	for i := 0; i < len(re2); i++ {
		switch c := re2[i]; {
		case c == '$':
			out.WriteString("$$")
		case c == '\\' && i+1 < len(re2) && '0' <= re2[i+1] && re2[i+1] <= '9':
			i++
			out.WriteString("${" + re2[i:i+1] + "}")
		case c == '\\' && i+1 < len(re2) && re2[i+1] == '\\':
			i++
			out.WriteByte('\\')
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

func (f *rewrite) Serve(x *Exchange) {
	q := &x.Request
	if path := f.path(q); path != nil && !bytes.Equal(path, q.Path) {
		q.Header = append(Without(q.Header, "x-envoy-original-path"), http1.Field{
			Name: []byte("X-Envoy-Original-Path"), Value: q.Path, Kind: http1.EnvoyInternal, Own: true,
		})
		q.Path = path
	}
	if f.authority != nil {
		q.Authority = f.authority
	}
	f.next.Serve(x)
}

// path is the new one with the query, nil where it stays.
func (f *rewrite) path(q *Request) []byte {
	path, query := q.path()
	switch {
	case f.uri != nil:
		return joined(f.uri, path[prefixLen(q, path):], query)
	case f.regex != nil:
		return joined(f.regex.ReplaceAll(path, f.template), query)
	}
	return nil
}

// prefixLen is how much of the path the route has matched: the prefix, or all of it.
func prefixLen(q *Request, path []byte) int {
	if q.Prefix != "" {
		return min(len(q.Prefix), len(path))
	}
	return len(path)
}

// joined is a request target: it begins with a slash, whatever a rule has made of it, and has no byte that could end it.
func joined(parts ...[]byte) []byte {
	target := bytes.Join(parts, nil)
	if len(target) == 0 || target[0] != '/' {
		target = append([]byte{'/'}, target...)
	}
	return target
}
