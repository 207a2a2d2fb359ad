// Package normal has the normal forms of what a request names: its path and its host.
//
// A path has one form that goes on, to routes and to the application: Path, which is Istio's BASE normalization
// (https://istio.io/latest/docs/reference/config/security/normalization/): RFC 3986's equivalences and no more, since an
// application may well tell /a//b from /a/b, or keep a name with %2F in it. But others do not tell them apart, and which
// sort stands behind the proxy is not known. So access rules are asked about every reading: the path as it goes on, and as
// a server sees it that decodes it, however often, drops parameters and merges slashes: Fold.
package normal

import "bytes"

// Path appends target, which may have a query, in its normal form to dst, and returns that; or target itself where it is
// normal already. Escaped unreserved characters are decoded (RFC 3986 section 6.2.2.2), "\" is "/", and dot segments are
// removed (section 5.2.4); a "%" that escapes nothing is escaped itself. ok is false where a character is %00, which ends a text for some and not for others.
func Path(dst, target []byte) (path []byte, ok bool) {
	end, plain := scan(target)
	if plain {
		return target, true
	}
	n := len(dst)
	for i := 0; i < end; i++ {
		c := target[i]
		switch c {
		case '\\':
			c = '/'
		case '%':
			v, valid := escape(target[i:end])
			switch {
			case !valid:
				dst = append(dst, "%25"...) // as who does not refuse it reads it
				continue
			case v == 0:
				return nil, false
			case unreserved(v):
				c = v
				i += 2
			}
		}
		dst = append(dst, c)
	}
	dst = dst[:n+len(removeDots(dst[n:]))]
	return append(dst, target[end:]...)[n:], true
}

// scan finds where the path ends and the query begins, and whether there is nothing to do.
func scan(target []byte) (end int, plain bool) {
	if len(target) == 0 || target[0] != '/' {
		return len(target), true // the * of OPTIONS
	}
	plain = true
	for i, c := range target {
		switch c {
		case '?':
			return i, plain
		case '%', '\\':
			plain = false
		case '.':
			plain = plain && target[i-1] != '/'
		}
	}
	return len(target), plain
}

// removeDots removes dot segments in place. b begins with a slash.
func removeDots(b []byte) []byte {
	w := 0
	for r := 0; r < len(b); {
		end := r + 1
		for end < len(b) && b[end] != '/' {
			end++
		}
		dots := false
		switch string(b[r+1 : end]) {
		case ".":
			dots = true
		case "..":
			dots = true
			for w > 0 {
				if w--; b[w] == '/' {
					break
				}
			}
		default:
			w += copy(b[w:], b[r:end])
		}
		if dots && end == len(b) {
			b[w] = '/'
			w++
		}
		r = end
	}
	if w == 0 {
		b[0], w = '/', 1
	}
	return b[:w]
}

// Ambiguous reports whether a path in its normal form, without query, has other readings.
func Ambiguous(path []byte) bool {
	for i, c := range path {
		if c == '%' || c == ';' || c >= 0x80 || c == '/' && i > 0 && path[i-1] == '/' {
			return true
		}
	}
	return false
}

// Literal appends the one spelling of a path in its normal form, or of a piece of it, to dst: escapes have capitals, and
// what is not ASCII is escaped (RFC 3986 section 6.2.2 and RFC 3987 section 3.1).
func Literal(dst, path []byte) []byte {
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c >= 0x80 {
			dst = append(dst, '%', hex[c>>4], hex[c&15])
			continue
		}
		v, valid := escape(path[i:])
		switch {
		case !valid:
			dst = append(dst, c)
			continue
		case unreserved(v):
			dst = append(dst, v)
		default:
			dst = append(dst, '%', hex[v>>4], hex[v&15])
		}
		i += 2
	}
	return dst
}

const hex = "0123456789ABCDEF"

// maxEscapes is how often escapes of escapes are decoded: more often than by any chain of servers.
const maxEscapes = 8

// Fold appends to dst what a server may see that decodes a path in its normal form until there is nothing left to decode,
// takes "\" for "/", drops the parameters of segments, merges slashes and removes dot segments. mergeFirst says which of
// the last two it does first.
func Fold(dst, path []byte, mergeFirst bool) []byte {
	n := len(dst)
	b := unescape(dst, path)[n:]
	b = dropParameters(b)
	if len(b) > 0 && b[0] == '/' {
		if mergeFirst {
			b = removeDots(mergeSlashes(b))
		} else {
			b = mergeSlashes(removeDots(b))
		}
	}
	return b
}

// unescape appends path to dst, decoded until there is nothing left to decode, and with "/" for "\". It returns dst.
func unescape(dst, path []byte) []byte {
	n := len(dst)
	dst = append(dst, path...)
	for range maxEscapes {
		decoded := decode(dst[n:])
		if decoded == len(dst)-n {
			break
		}
		dst = dst[:n+decoded]
	}
	for i, c := range dst[n:] {
		if c == '\\' {
			dst[n+i] = '/'
		}
	}
	return dst
}

// FoldPart is Fold for the beginning or the end of a path, where whole segments are not known.
func FoldPart(dst, part []byte) []byte {
	return mergeSlashes(unescape(dst, part)[len(dst):])
}

// decode decodes every escape in place, also those of IIS (%u002F), and what is ASCII in UTF-8 that is longer than it
// should be. It returns how much is left.
func decode(b []byte) int {
	w := 0
	for r := 0; r < len(b); {
		c, n := b[r], 1
		if v, valid := escape(b[r:]); valid {
			c, n = v, 3
		} else if v, valid := wideEscape(b[r:]); valid {
			c, n = v, 6
		} else if v, size := overlong(b[r:]); size > 0 {
			c, n = v, size
		}
		b[w] = c
		w++
		r += n
	}
	return w
}

func escape(b []byte) (byte, bool) {
	if len(b) < 3 || b[0] != '%' {
		return 0, false
	}
	hi, lo := digit(b[1]), digit(b[2])
	return hi<<4 | lo, hi < 16 && lo < 16
}

func wideEscape(b []byte) (byte, bool) {
	if len(b) < 6 || b[0] != '%' || b[1]|0x20 != 'u' || b[2] != '0' || b[3] != '0' {
		return 0, false
	}
	hi, lo := digit(b[4]), digit(b[5])
	return hi<<4 | lo, hi < 8 && lo < 16
}

func overlong(b []byte) (c byte, size int) {
	continues := func(i int) bool { return i < len(b) && b[i]&0xc0 == 0x80 }
	switch {
	case b[0]&^1 == 0xc0 && continues(1):
		return b[0]&1<<6 | b[1]&0x3f, 2
	case b[0] == 0xe0 && continues(1) && continues(2) && b[1] <= 0x81:
		return b[1]&1<<6 | b[2]&0x3f, 3
	}
	return 0, 0
}

// digit is 255 for what is none.
func digit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// unreserved are the characters that may stand for themselves (RFC 3986 section 2.3).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || bytes.IndexByte([]byte("-._~"), c) >= 0
}

// dropParameters drops what is behind ";" in each segment, in place.
func dropParameters(b []byte) []byte {
	w, drop := 0, false
	for _, c := range b {
		switch c {
		case '/':
			drop = false
		case ';':
			drop = true
		}
		if !drop {
			b[w] = c
			w++
		}
	}
	return b[:w]
}

// mergeSlashes makes one of several, in place.
func mergeSlashes(b []byte) []byte {
	w := 0
	for i, c := range b {
		if c == '/' && i > 0 && b[w-1] == '/' {
			continue
		}
		b[w] = c
		w++
	}
	return b[:w]
}

// Lower appends b with small letters for capitals to dst: ASCII alone.
func Lower(dst, b []byte) []byte {
	for _, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		dst = append(dst, c)
	}
	return dst
}
