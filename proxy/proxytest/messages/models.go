package messages

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// Model is a way to read messages that some server has, or once had.
type Model struct {
	Name string

	bareLF, bareCR bool // end lines
	unfold         bool // joins folded lines
	foldNames      bool // takes every other character in a name for "-", as CGI does with "_"
	trimNames      bool // ignores white space and controls around names
	lastLength     bool // of several lengths the last counts, else the first
	lengthWins     bool // over an encoding
	octal          bool // lengths with a zero in front
	encoding       encodingRule
	looseChunks    bool // reads sizes as strtol does, and takes LF for a line's end
	strict         bool // RFC 9112 to the letter: whatever is not in its grammar is an error
}

type encodingRule uint8

const (
	exactly  encodingRule = iota // "chunked" in any case
	contains                     // wherever "chunked" stands
	cleaned                      // after white space, controls, quotes, commas and parameters are gone
	last                         // of a list
)

// Models are all that what passes is read by.
var Models = []Model{
	{Name: "strict", strict: true},
	{Name: "lenient", bareLF: true, unfold: true, trimNames: true, encoding: cleaned, looseChunks: true},
	{Name: "bare CR", bareLF: true, bareCR: true},
	{Name: "length wins", lengthWins: true, octal: true},
	{Name: "last length", lastLength: true, lengthWins: true},
	{Name: "loose encoding", encoding: contains},
	{Name: "last encoding", encoding: last, unfold: true},
	{Name: "folded names", foldNames: true, trimNames: true},
	{Name: "loose chunks", looseChunks: true, bareLF: true},
	{Name: "no lines joined, names trimmed", trimNames: true, encoding: cleaned},
}

// Read reads a stream of requests, or of responses to GET, and tells where each message ends and how the stream does:
// two models agree on a stream if they tell the same.
func (m *Model) Read(stream []byte, responses bool) string {
	var out strings.Builder
	for at := 0; at < len(stream); {
		n, err := m.message(stream[at:], responses)
		if err != nil {
			fmt.Fprintf(&out, "%v at %d", err, at)
			return out.String()
		}
		at += n
		fmt.Fprintf(&out, "%d ", at)
	}
	return out.String()
}

// Disagreement is empty if all models read a stream alike and without an error, apart from an end in the midst of its last
// message.
func Disagreement(stream []byte, responses bool) string {
	want := Models[0].Read(stream, responses)
	for i := range Models {
		got := Models[i].Read(stream, responses)
		if got != want || strings.Contains(got, "broken") {
			return fmt.Sprintf("%s reads %q, %s reads %q", Models[0].Name, want, Models[i].Name, got)
		}
	}
	return ""
}

type brokenError string

func (e brokenError) Error() string { return "broken: " + string(e) }

type cutError struct{}

func (cutError) Error() string { return "cut" }

// line takes a line off b.
func (m *Model) line(b []byte) (line []byte, n int, err error) {
	for i, c := range b {
		switch {
		case c == '\n' && i > 0 && b[i-1] == '\r':
			return b[:i-1], i + 1, nil
		case c == '\n' && m.bareLF:
			return b[:i], i + 1, nil
		case c == '\n' && m.strict:
			return nil, 0, brokenError("bare LF")
		case c == '\r' && i+1 < len(b) && b[i+1] != '\n' && m.bareCR:
			return b[:i], i + 1, nil
		case c == '\r' && i+1 < len(b) && b[i+1] != '\n' && m.strict:
			return nil, 0, brokenError("bare CR")
		}
	}
	return nil, 0, cutError{}
}

// head is what of a message's head decides where it ends.
type head struct {
	lengths, encodings []string
	status             int
}

func (m *Model) message(b []byte, response bool) (int, error) {
	at := 0
	for !response && bytes.HasPrefix(b[at:], []byte("\r\n")) {
		at += 2
	}
	start, n, err := m.line(b[at:])
	if err != nil {
		return 0, err
	}
	at += n
	var h head
	if response {
		if h.status, err = statusOf(start); err != nil {
			return 0, err
		}
	} else if f := bytes.Split(start, []byte(" ")); m.strict && (len(f) != 3 || string(f[2]) != "HTTP/1.1") {
		return 0, brokenError("request line")
	}
	n, err = m.fields(b[at:], &h)
	if err != nil {
		return 0, err
	}
	at += n
	n, err = m.body(b[at:], &h, response)
	return at + n, err
}

func statusOf(line []byte) (int, error) {
	if len(line) < 12 {
		return 0, brokenError("status line")
	}
	code, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, brokenError("status line")
	}
	return code, nil
}

// fields reads field lines up to the empty one.
func (m *Model) fields(b []byte, h *head) (int, error) {
	at := 0
	var name, value string
	done := func() {
		switch name {
		case "content-length":
			h.lengths = append(h.lengths, value)
		case "transfer-encoding":
			h.encodings = append(h.encodings, value)
		}
		name = ""
	}
	for {
		line, n, err := m.line(b[at:])
		if err != nil {
			return 0, err
		}
		at += n
		if len(line) == 0 {
			done()
			return at, nil
		}
		if line[0] == ' ' || line[0] == '\t' {
			if m.strict {
				return 0, brokenError("folded line")
			}
			if m.unfold {
				value += strings.Trim(string(line), " \t")
				continue
			}
		}
		done()
		if name, value, err = m.field(line); err != nil {
			return 0, err
		}
	}
}

func (m *Model) field(line []byte) (name, value string, err error) {
	n, v, ok := strings.Cut(string(line), ":")
	if m.strict && (!ok || n == "" || strings.ContainsFunc(n, notToken) || strings.ContainsFunc(v, isControl)) {
		return "", "", brokenError("field")
	}
	if m.trimNames {
		n = strings.TrimFunc(n, func(r rune) bool { return r <= ' ' })
	}
	n = strings.ToLower(n)
	if m.foldNames {
		n = strings.Map(func(r rune) rune {
			if notLetter(r) {
				return '-'
			}
			return r
		}, n)
	}
	return n, strings.Trim(v, " \t"), nil
}

func notLetter(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }

func notToken(r rune) bool {
	return notLetter(r|0x20) && notLetter(r) && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

// chunked reports whether the head says so to this model.
func (m *Model) chunked(h *head) bool {
	if len(h.encodings) == 0 {
		return false
	}
	v := strings.ToLower(strings.Join(h.encodings, ","))
	switch m.encoding {
	case contains:
		return strings.Contains(v, "chunked")
	case cleaned:
		v, _, _ = strings.Cut(v, ";")
		return strings.TrimFunc(v, notLetter) == "chunked"
	case last:
		return strings.TrimSpace(v[strings.LastIndexByte(v, ',')+1:]) == "chunked"
	default:
		return v == "chunked"
	}
}

func (m *Model) body(b []byte, h *head, response bool) (int, error) {
	chunked := m.chunked(h)
	if m.strict && (len(h.encodings) > 0 && (!chunked || len(h.lengths) > 0) || len(h.lengths) > 1) {
		return 0, brokenError("framing")
	}
	switch {
	case response && (h.status < 200 || h.status == 204 || h.status == 304):
		return 0, nil
	case chunked && (!m.lengthWins || len(h.lengths) == 0):
		return m.chunks(b)
	case len(h.lengths) > 0:
		v := h.lengths[0]
		if m.lastLength {
			v = h.lengths[len(h.lengths)-1]
		}
		base := 10
		if m.octal && len(v) > 1 && v[0] == '0' {
			base = 8
		}
		n, err := strconv.ParseUint(v, base, 62)
		if err != nil {
			return 0, brokenError("length")
		}
		if n > uint64(len(b)) {
			return 0, cutError{}
		}
		return int(n), nil //nolint:gosec // no more than len(b)
	case response:
		return len(b), nil
	}
	return 0, nil
}

func (m *Model) chunks(b []byte) (int, error) {
	lines := *m
	lines.bareLF = m.bareLF || m.looseChunks
	for at := 0; ; {
		line, n, err := lines.line(b[at:])
		if err != nil {
			return 0, err
		}
		at += n
		size, err := m.size(line)
		if err != nil {
			return 0, err
		}
		if size == 0 {
			n, err := lines.fields(b[at:], &head{})
			return at + n, err
		}
		if size > uint64(len(b)-at) {
			return 0, cutError{}
		}
		at += int(size) //nolint:gosec // no more than len(b)
		line, n, err = lines.line(b[at:])
		if err != nil {
			return 0, err
		}
		if len(line) > 0 {
			return 0, brokenError("chunk end")
		}
		at += n
	}
}

func (m *Model) size(line []byte) (uint64, error) {
	text, extension, _ := strings.Cut(string(line), ";")
	if m.strict && strings.ContainsFunc(extension, isControl) {
		return 0, brokenError("chunk extension")
	}
	if m.looseChunks {
		text = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(text)), "0x")
		end := strings.IndexFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef", r) })
		if end >= 0 {
			text = text[:end]
		}
	}
	n, err := strconv.ParseUint(text, 16, 62)
	if err != nil {
		return 0, brokenError("chunk size")
	}
	return n, nil
}
