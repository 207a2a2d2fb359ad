package http1

// ParseField makes a field that came in another form than text, as those of HTTP/2 do, and holds it to the rules of text:
// what it returns can be written with AppendField and read in one way only.
func ParseField(name, value []byte) (Field, error) {
	f := Field{Name: name, Value: value, Kind: kindOf(name)}
	switch {
	case len(name) == 0:
		return f, bad("header name is empty")
	case !all(name, isToken):
		return f, bad("header name has a character that is not allowed")
	case !all(value, isValue):
		return f, bad("header value has a control character")
	case len(trim(value)) != len(value):
		return f, bad("header value has white space around it")
	case f.Kind == Other && twin(name):
		return f, bad("header name imitates a guarded one")
	}
	if f.Kind == ContentLength {
		f.Value = canonicalLength(f.Value)
	}
	f.Hop = f.Kind.connectionSpecific() && (f.Kind != TE || string(value) != "trailers")
	return f, nil
}

// InTrailer reports whether a field of this kind may stand in a trailer section (RFC 9110 section 6.5.1).
func (k Kind) InTrailer() bool { return k.inTrailer() }

// ParseLength reads the value of a Content-Length field.
func ParseLength(b []byte) (int64, bool) { return parseLength(b) }

// ValidMethod reports whether m is a token (RFC 9110 section 9.1).
func ValidMethod(m []byte) bool { return len(m) > 0 && all(m, isToken) }

// ValidPath reports whether p is a path with an optional query, or the "*" of OPTIONS.
func ValidPath(method, p []byte) bool {
	if string(p) == "*" {
		return string(method) == "OPTIONS"
	}
	return len(p) > 0 && p[0] == '/' && all(p, isTarget)
}

// ValidAuthority reports whether a is a host with an optional port, without userinfo.
func ValidAuthority(a []byte) bool { return validAuthority(a) }
