package extauth

import (
	"net/url"
	"slices"
	"strings"
)

// withQuery is path with parameters of its query set and removed.
func withQuery(path []byte, set []parameter, remove []string) []byte {
	plain, query, _ := strings.Cut(string(path), "?")
	var out []string
	for part := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(part, "=")
		if part == "" || named(set, remove, unescaped(name)) {
			continue
		}
		out = append(out, part)
	}
	for _, p := range set {
		out = append(out, url.QueryEscape(p.name)+"="+url.QueryEscape(p.value))
	}
	if len(out) > 0 {
		plain += "?" + strings.Join(out, "&")
	}
	return []byte(plain)
}

func named(set []parameter, remove []string, name string) bool {
	return slices.Contains(remove, name) || slices.ContainsFunc(set, func(p parameter) bool { return p.name == name })
}

func unescaped(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return s
}
