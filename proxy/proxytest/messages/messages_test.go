package messages_test

import (
	"testing"

	"github.com/composure-mesh/composure/proxy/proxytest/messages"
)

// TestModelsDiffer: the models are of use only if they tell apart what servers do.
func TestModelsDiffer(t *testing.T) {
	const h = "POST / HTTP/1.1\r\nHost: x\r\n"
	const next = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, stream := range map[string]string{
		"both lengths":       h + "Content-Length: 44\r\nTransfer-Encoding: chunked\r\n\r\n" + next,
		"two lengths":        h + "Content-Length: 0\r\nContent-Length: 44\r\n\r\n" + next,
		"encoding list":      h + "Transfer-Encoding: identity, chunked\r\n\r\n" + next,
		"encoding in quotes": h + "Transfer-Encoding: \"chunked\"\r\n\r\n" + next,
		"bare LF":            h + "A: b\nTransfer-Encoding: chunked\r\n\r\n" + next,
		"bare CR":            h + "A: b\rTransfer-Encoding: chunked\r\n\r\n" + next,
		"folded name":        h + "Transfer_Encoding: chunked\r\n\r\n" + next,
		"folded line":        h + "A: b\r\n c\r\n\r\n" + next,
		"space before colon": h + "Transfer-Encoding : chunked\r\n\r\n" + next,
		"chunk size":         h + "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n" + next,
		"octal length":       h + "Content-Length: 010\r\n\r\nhellohello",
	} {
		if messages.Disagreement([]byte(stream), false) == "" {
			t.Errorf("%s: the models agree", name)
		}
	}
	const sound = h + "Content-Length: 5\r\n\r\nhello" + h + "Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n" + h + "Content-Length: 9\r\n\r\ncut"
	if d := messages.Disagreement([]byte(sound), false); d != "" {
		t.Errorf("sound messages: %s", d)
	}
}

// TestFamilies: there are as many cases as the tables promise, with names of their own.
func TestFamilies(t *testing.T) {
	for name, cases := range map[string][]messages.Case{"requests": messages.Requests(t), "responses": messages.Responses(t)} {
		seen := map[string]bool{}
		for _, c := range cases {
			if seen[c.Name] || c.Input == "" {
				t.Errorf("%s: %s stands there twice, or is empty", name, c.Name)
			}
			seen[c.Name] = true
		}
	}
	if n := len(messages.Requests(t)); n < 300 {
		t.Errorf("%d requests, want 300", n)
	}
}
