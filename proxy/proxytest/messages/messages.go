// Package messages has HTTP/1 messages that servers read in different ways, with what must become of each, and models of
// such servers: what a proxy lets through must look the same to all of them.
package messages

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

//go:embed requests.txt
var requests string

//go:embed responses.txt
var responses string

// Case is one input and its outcome.
type Case struct {
	Name   string
	Status int
	Input  string
	// Passed are the messages that must have passed, as the files' heads describe them.
	Passed []string
}

// Requests are the cases of requests.txt.
func Requests(tb testing.TB) []Case { tb.Helper(); return parse(tb, requests) }

// Responses are the cases of responses.txt.
func Responses(tb testing.TB) []Case { tb.Helper(); return parse(tb, responses) }

func parse(tb testing.TB, text string) []Case {
	tb.Helper()
	var cases []Case
	for n, line := range strings.Split(text, "\n") {
		fail := func(err error) { tb.Fatalf("line %d: %v", n+1, err) }
		switch {
		case line == "", line[0] == '#':
		case line[0] == '[':
			name, status, ok := strings.Cut(line[1:], "] ")
			code, err := strconv.Atoi(status)
			if !ok || err != nil {
				fail(fmt.Errorf("%q is not [name] status", line))
			}
			cases = append(cases, Case{Name: name, Status: code})
		default:
			if err := cases[len(cases)-1].add(line); err != nil {
				fail(err)
			}
		}
	}
	return cases
}

func (c *Case) add(line string) error {
	if passed, ok := strings.CutPrefix(line, "> "); ok {
		c.Passed = append(c.Passed, passed)
		return nil
	}
	times := 1
	if rest, ok := strings.CutPrefix(line, "*"); ok {
		count, text, _ := strings.Cut(rest, " ")
		var err error
		if times, err = strconv.Atoi(count); err != nil {
			return err
		}
		line = text
	}
	text, err := strconv.Unquote(`"` + strings.ReplaceAll(line, `"`, `\"`) + `"`)
	if err != nil {
		return fmt.Errorf("%q: %w", line, err)
	}
	c.Input += strings.Repeat(text, times)
	return nil
}
