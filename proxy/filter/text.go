package filter

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Text is a test on a string.
type Text interface {
	Match([]byte) bool
	String() string
}

// CompileText makes the test that s asks for.
func CompileText(s *snapshot.StringMatch, ignoreCase bool) (Text, error) {
	switch set := count(s.Exact != "", s.Prefix != "", s.Regex != ""); {
	case set > 1:
		return nil, errors.New("exactly one of exact, prefix and regex may be set")
	case s.Prefix != "":
		return prefix{s.Prefix, ignoreCase}, nil
	case s.Regex != "":
		re, err := regexp.Compile(`\A(?:` + s.Regex + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("regex %q: %w", s.Regex, err)
		}
		return regex{re, s.Regex}, nil
	}
	return exact{s.Exact, ignoreCase}, nil
}

func count(bs ...bool) (n int) {
	for _, b := range bs {
		if b {
			n++
		}
	}
	return n
}

type exact struct {
	want       string
	ignoreCase bool
}

func (e exact) Match(b []byte) bool {
	return string(b) == e.want || e.ignoreCase && strings.EqualFold(string(b), e.want)
}
func (e exact) String() string { return fmt.Sprintf("is %q", e.want) }

type prefix struct {
	want       string
	ignoreCase bool
}

func (p prefix) Match(b []byte) bool {
	if len(b) < len(p.want) {
		return false
	}
	b = b[:len(p.want)]
	return string(b) == p.want || p.ignoreCase && strings.EqualFold(string(b), p.want)
}
func (p prefix) String() string { return fmt.Sprintf("begins with %q", p.want) }

type regex struct {
	re     *regexp.Regexp
	source string
}

func (r regex) Match(b []byte) bool { return r.re.Match(b) }
func (r regex) String() string      { return fmt.Sprintf("matches %q", r.source) }
