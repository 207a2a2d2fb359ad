package cli

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// What leaves the machine in a bug report must hold no secret. Three rules together: environment values are left out but for
// the mesh's own (report.go); a value beside a name that tells of a secret is removed, as a JSON field, a header's matcher or a
// word of a log line; and what has the form of a key, a certificate's key, a token or a URL's password or query is removed
// wherever it stands.

const removed = "[removed]"

// secretName matches the names of what is secret: header fields, query parameters, environment variables, JSON fields.
var secretName = regexp.MustCompile(`(?i)(authorization|cookie|passw|passphrase|secret|token|credential|api[-_]?key|private[-_]?key|access[-_]?key|session|signature|x-amz-|jwt)`)

var secretForms = []struct {
	form *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)`), removed},
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}(\.[A-Za-z0-9_-]*)?`), removed}, // a JWT: {" in base64
	{regexp.MustCompile(`(?i)\b(bearer|basic|digest|negotiate)\s+[A-Za-z0-9._~+/=-]{6,}`), "$1 " + removed},
	{regexp.MustCompile(`(://[^/\s:@"']*):[^/\s@"']+@`), "$1:" + removed + "@"}, // user:password@ of a URL
	{regexp.MustCompile(`(/[^\s"'?]*)\?[^\s"']+`), "$1?" + removed},             // a URL's query
	// The secret members of a JSON web key (RFC 7518, section 6), also inside of a string.
	{regexp.MustCompile(`(\\?"(?:k|d|p|q|dp|dq|qi)\\?"\s*:\s*\\?")[A-Za-z0-9_+/=-]{12,}`), "${1}" + removed},
	{regexp.MustCompile(`\b(AKIA|ASIA)[A-Z0-9]{16}\b`), removed},                   // AWS
	{regexp.MustCompile(`\b(gh[pousr]_|glpat-|xox[abprs]-|sk_live_)\S+`), removed}, // GitHub, GitLab, Slack, Stripe
	{regexp.MustCompile(`(?i)(["']?[\w.-]*(?:authorization|cookie|passw|passphrase|secret|token|credential|api[-_]?key|private[-_]?key|access[-_]?key|jwt)[\w.-]*["']?\s*[=:]\s*)("[^"]*"|'[^']*'|[^\s"',;&]+)`), "${1}" + removed},
}

// keyMembers are the secret members of a JSON web key.
var keyMembers = []string{"k", "d", "p", "q", "dp", "dq", "qi"}

// redactText removes secrets from text such as a log.
func redactText(text string) string {
	for _, s := range secretForms {
		text = s.form.ReplaceAllString(text, s.with)
	}
	return text
}

// redactJSON removes secrets from a JSON document; one that is none is treated as text.
func redactJSON(doc []byte) []byte {
	var v any
	if json.Unmarshal(doc, &v) != nil {
		return []byte(redactText(string(doc)))
	}
	b, err := json.MarshalIndent(redactValue(v, false), "", "  ")
	if err != nil {
		return []byte(removed) // what was decoded can be encoded
	}
	return append(b, '\n')
}

// redactValue is v without secrets; in a secret place without any string at all.
func redactValue(v any, secret bool) any {
	switch v := v.(type) {
	case map[string]any:
		beside := secret || secretPair(v)
		_, isKey := v["kty"]
		for k, child := range v {
			if k != "name" || !beside {
				v[k] = redactValue(child, beside || secretName.MatchString(k) || isKey && slices.Contains(keyMembers, k))
			}
		}
		return v
	case []any:
		for i := range v {
			v[i] = redactValue(v[i], secret)
		}
		return v
	case string:
		if secret && v != "" {
			return removed
		}
		return redactText(v)
	}
	return v
}

// secretPair reports whether an object is the name of something secret with its value, such as a header's matcher:
// {"name": "authorization", "value": {"exact": …}}. A workload may well be called session.
func secretPair(v map[string]any) bool {
	name, _ := v["name"].(string)
	_, valued := v["value"]
	return valued && secretName.MatchString(name)
}

// redactEnvironment is an environment, KEY=VALUE, with the values of the mesh's own settings alone.
func redactEnvironment(env []string) map[string]string {
	out := map[string]string{}
	for _, pair := range env {
		k, v, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(k, "COMPOSURE_") {
			v = removed
		}
		out[k] = v
	}
	return out
}
