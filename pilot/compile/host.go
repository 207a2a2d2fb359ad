package compile

import "strings"

// covers reports whether pattern, a host, "*.suffix" or "*", covers every name that host does. "*.foo.com" does not
// cover foo.com.
func covers(pattern, host string) bool {
	switch {
	case pattern == "*" || pattern == host:
		return true
	case strings.HasPrefix(pattern, "*."):
		return strings.HasSuffix(host, pattern[1:])
	}
	return false
}

// intersect is the narrower of two patterns of which one covers the other.
func intersect(a, b string) (string, bool) {
	switch {
	case covers(a, b):
		return b, true
	case covers(b, a):
		return a, true
	}
	return "", false
}

// moreSpecific reports whether a goes before b: an exact name before a wildcard, a longer suffix before a shorter.
func moreSpecific(a, b string) bool {
	aw, bw := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	if aw != bw {
		return bw
	}
	return len(a) > len(b)
}
