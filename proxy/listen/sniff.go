package listen

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Kind is what a client speaks.
type Kind uint8

// The kinds.
const (
	// Silent is a client that has sent nothing yet.
	Silent Kind = iota
	// TCP is anything that is none of the others.
	TCP
	HTTP1
	HTTP2
	TLS
)

func (k Kind) String() string {
	return [...]string{"silent", "tcp", "http/1", "http/2", "tls"}[k]
}

// Timeouts bound the wait for a client's first bytes. Zero waits for good.
type Timeouts struct {
	// Silence is how long a client may send nothing before it counts as Silent.
	Silence time.Duration
	// Handshake is for the rest of a TLS ClientHello, Header for the rest of what looks like an HTTP request
	// line; both from its first byte.
	Handshake, Header time.Duration
}

// ErrSlow is a client that began a TLS or HTTP preamble and did not end it in time. Calling it TCP would let
// it pass by whatever is decided on HTTP.
var ErrSlow = errors.New("the client did not finish its first message in time")

// Sniff tells what the client of c speaks without reading it away. hello is set for TLS. An error other than
// ErrSlow is the connection's own.
func Sniff(c *Conn, t Timeouts) (kind Kind, hello *Hello, err error) { return sniff(c, t, Classify) }

// SniffTLS is Sniff where nothing but TLS is looked for: all else is TCP from its first byte on.
func SniffTLS(c *Conn, t Timeouts) (kind Kind, hello *Hello, err error) {
	return sniff(c, t, func(b []byte) (Kind, bool) {
		if len(b) > 0 && b[0] != recordHandshake {
			return TCP, false
		}
		return Classify(b)
	})
}

func sniff(c *Conn, t Timeouts, classify func([]byte) (Kind, bool)) (kind Kind, hello *Hello, err error) {
	defer func() {
		if e := c.SetReadDeadline(time.Time{}); err == nil && e != nil {
			err = e
		}
	}()
	if len(c.Buffered()) == 0 {
		if err := c.SetReadDeadline(deadline(t.Silence)); err != nil {
			return Silent, nil, err
		}
		if err := c.Fill(); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return Silent, nil, nil
			}
			return Silent, nil, err
		}
	}
	limit := t.Header
	if c.Buffered()[0] == recordHandshake {
		limit = t.Handshake
	}
	if err := c.SetReadDeadline(deadline(limit)); err != nil {
		return Silent, nil, err
	}
	for {
		kind, more := classify(c.Buffered())
		if !more {
			if kind == TLS {
				hello, _ = ParseHello(c.Buffered())
			}
			return kind, hello, nil
		}
		switch err := c.Fill(); {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return kind, nil, fmt.Errorf("%w: it looked like %s", ErrSlow, kind)
		case errors.Is(err, io.EOF), errors.Is(err, errPeekFull):
			// No more will come, or it is longer than any sane preamble: what it looks like decides. The end of the
			// stream is a line's end to some servers; half a word before it is no HTTP.
			if errors.Is(err, io.EOF) {
				if kind, more = classify(append(bytes.Clone(c.Buffered()), '\n')); more {
					kind = TCP
				}
			}
			return kind, nil, nil
		default:
			return kind, nil, err
		}
	}
}

func deadline(d time.Duration) time.Time {
	if d <= 0 {
		return time.Time{}
	}
	return time.Now().Add(d)
}

// Classify tells what a stream that begins with b is. more asks for further bytes: until then kind is what b
// looks like so far.
func Classify(b []byte) (kind Kind, more bool) {
	if len(b) == 0 {
		return Silent, true
	}
	if b[0] == recordHandshake {
		return classifyTLS(b)
	}
	kind, more = classifyHTTP(b)
	if kind == TCP && !more {
		return classifyLoosely(b)
	}
	return kind, more
}

// commonMethods are those that every server knows.
var commonMethods = []string{"get", "head", "post", "put", "delete", "options", "patch", "trace", "connect"}

// classifyLoosely finds what is no request line and yet one to a lenient server: with another white space, too much or
// none of it, with empty lines before, without a version. Passed on as bytes it would go round whatever is decided on
// HTTP, so it counts as HTTP, whose engine refuses it. An inline command of Redis for a key that begins with "/" looks the
// same: its port is to be declared.
func classifyLoosely(b []byte) (Kind, bool) {
	const space = " \t\v\f\r\n"
	b = bytes.TrimLeft(b, space)
	word := 0
	for word < len(b) && isToken(b[word]) {
		word++
	}
	method, rest := bytes.ToLower(b[:min(word, maxMethod)]), b[word:]
	if len(rest) == 0 {
		for _, m := range commonMethods {
			if bytes.HasPrefix([]byte(m), method) {
				return HTTP1, true
			}
		}
		return TCP, false
	}
	if !slices.Contains(commonMethods, string(method)) || !bytes.ContainsRune([]byte(space), rune(rest[0])) {
		return TCP, false
	}
	line, _, whole := bytes.Cut(rest, []byte("\n"))
	if !whole {
		return HTTP1, true
	}
	line = bytes.ToLower(bytes.TrimLeft(line, space))
	for _, begin := range []string{"/", "*", "\\", "http:", "https:"} {
		if bytes.HasPrefix(line, []byte(begin)) {
			return HTTP1, false
		}
	}
	if bytes.Contains(line, []byte("http/")) {
		return HTTP1, false
	}
	return TCP, false
}

// maxMethod is longer than any registered method (UPDATEREDIRECTREF, 17) and most made-up ones.
const maxMethod = 32

// classifyHTTP reads a request line (RFC 9112 section 3): method SP target SP HTTP-version. The whole line must
// fit, as other text protocols begin with a word and a space, too: "PUB a 1", "SET key value", "EHLO host".
func classifyHTTP(b []byte) (Kind, bool) {
	// A server skips empty lines before the request line (RFC 9112 section 2.2).
	for n := 0; n < 2 && len(b) > 0 && b[0] == '\r'; n++ {
		if len(b) == 1 {
			return HTTP1, true
		}
		if b[1] != '\n' {
			return TCP, false
		}
		b = b[2:]
	}
	method := 0
	for method < len(b) && isToken(b[method]) {
		method++
	}
	switch {
	case method > maxMethod, method == 0 && len(b) > 0:
		return TCP, false
	case method == len(b):
		return HTTP1, true
	case b[method] != ' ':
		return TCP, false
	}
	rest := b[method+1:]
	target := 0
	for target < len(rest) && rest[target] > ' ' && rest[target] != 0x7f {
		target++
	}
	switch {
	case target == len(rest):
		return HTTP1, true
	case target == 0, rest[target] != ' ':
		return TCP, false
	}
	return classifyVersion(b[:method], rest[:target], rest[target+1:])
}

func classifyVersion(method, target, version []byte) (Kind, bool) {
	const h1, h2 = "HTTP/1.", "HTTP/2.0"
	switch {
	case len(version) > len(h1) && bytes.HasPrefix(version, []byte(h1)):
		if d := version[len(h1)]; d < '0' || d > '9' {
			return TCP, false
		}
		return HTTP1, false
	case bytes.HasPrefix([]byte(h1), version):
		return HTTP1, true
	case string(method) == "PRI" && string(target) == "*": // RFC 9113 section 3.4
		if len(version) < len(h2) && bytes.HasPrefix([]byte(h2), version) {
			return HTTP2, true
		}
		if bytes.HasPrefix(version, []byte(h2)) {
			return HTTP2, false
		}
	}
	return TCP, false
}

// isToken is tchar of RFC 9110 section 5.6.2.
func isToken(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return true
	}
	return bytes.IndexByte([]byte("!#$%&'*+-.^_`|~"), c) >= 0
}
