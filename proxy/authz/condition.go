package authz

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/proxy/normal"
)

// condition is one field of a rule. Where a request can be read in several ways, a condition of what refuses holds if it does
// for any of them, and one of what allows if it does for all: so no spelling walks past a rule. For a negated one it is the
// other way round. loose says which of the two it is.
type condition interface {
	match(r *Request) bool
	// keys are what the rule can be found by in an index, nil for nothing.
	keys() []string
	// anchor puts the rule there.
	anchor(x *index, r *rule)
}

// mode is how a condition is compiled.
type mode struct{ loose, negate bool }

// textCondition is about an attribute that is text.
type textCondition struct {
	attribute
	mode
	texts
	patterns []string
}

func newText(a attribute, patterns []string, m mode) *textCondition {
	c := &textCondition{attribute: a, mode: m, patterns: patterns}
	for _, p := range patterns {
		c.add(p, nil)
	}
	c.seal()
	return c
}

func (c *textCondition) match(r *Request) bool {
	r.values = c.values(r, c.loose, r.values[:0])
	return c.holds(r.values) != c.negate
}

func (c *textCondition) holds(values []string) bool {
	// Of several fields of a header all must be right, where one that is not could be the one that the application looks at.
	every := c.kind == header && !c.loose
	for _, v := range values {
		if c.texts.match(v) != every {
			return !every
		}
	}
	return every && len(values) > 0
}

func (c *textCondition) keys() []string {
	if c.negate || c.any {
		return nil
	}
	return prefixed(c.key(), c.patterns)
}

func prefixed(key string, patterns []string) []string {
	keys := make([]string, len(patterns))
	for i, p := range patterns {
		keys[i] = key + " " + p
	}
	return keys
}

func (c *textCondition) anchor(x *index, r *rule) {
	d := x.dimension(c.attribute, c.loose)
	for _, p := range c.patterns {
		d.add(p, r)
	}
}

// pathCondition is about the path.
type pathCondition struct {
	mode
	literal, folded paths // for the path as it goes on, and for its other readings
	patterns        []string
}

type paths struct {
	texts
	templates []template
}

func (p *paths) match(v string) bool {
	if p.texts.match(v) {
		return true
	}
	for i := range p.templates {
		if p.templates[i].match(v) {
			return true
		}
	}
	return false
}

func newPath(patterns []string, m mode) *pathCondition {
	c := &pathCondition{mode: m, patterns: patterns}
	for _, p := range patterns {
		if strings.Contains(p, "{") {
			c.literal.templates = append(c.literal.templates, newTemplate(c.spell(p)))
			c.folded.templates = append(c.folded.templates, newTemplate(c.fold(p)))
			if strings.Contains(p, "{**}/") { // of nothing, it leaves two slashes that are one in the other readings
				c.folded.templates = append(c.folded.templates, newTemplate(c.fold(strings.Replace(p, "{**}/", "", 1))))
			}
			continue
		}
		c.literal.add(c.spell(p), nil)
		c.folded.add(c.fold(p), nil)
	}
	c.literal.seal()
	c.folded.seal()
	return c
}

// spell is a pattern in the spelling of readings.
func (c *pathCondition) spell(pattern string) string {
	b := normal.Literal(nil, []byte(pattern))
	if c.loose {
		b = normal.Lower(nil, b)
	}
	return string(b)
}

func (c *pathCondition) fold(pattern string) string {
	var b []byte
	if strings.ContainsAny(pattern, "*{") {
		b = normal.FoldPart(nil, []byte(pattern))
	} else {
		b = normal.Fold(nil, []byte(pattern), true)
	}
	if c.loose {
		b = normal.Lower(nil, b)
	}
	return string(b)
}

func (c *pathCondition) match(r *Request) bool { return c.holds(r) != c.negate }

func (c *pathCondition) holds(r *Request) bool {
	readings := &r.readings
	if c.loose {
		// An application that does not tell capitals from small letters serves what is refused here, too.
		readings = &r.lower
	}
	if c.literal.match(readings[0]) == c.loose {
		return c.loose
	}
	for _, v := range readings[1:r.count] {
		if c.folded.match(v) == c.loose {
			return c.loose
		}
	}
	return !c.loose
}

func (c *pathCondition) keys() []string {
	if c.negate || c.literal.any {
		return nil
	}
	return prefixed("path", c.patterns)
}

func (c *pathCondition) anchor(x *index, r *rule) {
	for _, p := range c.patterns {
		if head, _, ok := strings.Cut(p, "{"); ok {
			p = head + "*"
		}
		x.literal.add(c.spell(p), r)
		x.folded.add(c.fold(p), r)
	}
}

// template is a path with {*}, which is one segment, and {**} as the last operator, which is anything
// (https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/path/match/uri_template/v3/uri_template_match.proto).
type template struct {
	parts []string // between the {*}
	open  bool     // {**} is behind the last of the parts, and then tail
	tail  string
}

func newTemplate(pattern string) template {
	head, tail, open := strings.Cut(pattern, "{**}")
	return template{parts: strings.Split(head, "{*}"), open: open, tail: tail}
}

func (t *template) match(v string) bool {
	for i, part := range t.parts {
		if i > 0 {
			end := strings.IndexByte(v, '/')
			if end < 0 {
				end = len(v)
			}
			if end == 0 {
				return false
			}
			v = v[end:]
		}
		if !strings.HasPrefix(v, part) {
			return false
		}
		v = v[len(part):]
	}
	if t.open {
		return strings.HasSuffix(v, t.tail)
	}
	return v == ""
}

// hostCondition is about the host, with or without its port.
type hostCondition struct {
	mode
	names  texts             // at any port
	ports  map[uint16]*texts // at one
	hosts  []string          // the names of all patterns
	anyone bool
}

func newHost(patterns []string, m mode) (*hostCondition, error) {
	c := &hostCondition{mode: m, ports: map[uint16]*texts{}}
	for _, p := range patterns {
		host, number := p, ""
		if i := strings.LastIndexByte(p, ':'); i >= 0 && !strings.Contains(p[i:], "]") {
			host, number = p[:i], p[i+1:]
		}
		name := hostPattern(host)
		c.hosts = append(c.hosts, name)
		c.anyone = c.anyone || name == "*"
		if number == "" || number == "*" {
			c.names.add(name, nil)
			continue
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("host %q: port: %w", p, err)
		}
		at := c.ports[uint16(n)]
		if at == nil {
			at = &texts{}
			c.ports[uint16(n)] = at
		}
		at.add(name, nil)
	}
	c.names.seal()
	for _, at := range c.ports {
		at.seal()
	}
	return c, nil
}

// hostPattern is a pattern in the normal form of hosts; the dots at the edge of a prefix or suffix stay.
func hostPattern(p string) string {
	if strings.Contains(p, "*") {
		return strings.ToLower(p)
	}
	name, _ := normal.Host(nil, []byte(p))
	return string(name)
}

func (c *hostCondition) match(r *Request) bool { return c.holds(r) != c.negate }

func (c *hostCondition) holds(r *Request) bool {
	if r.host == "" {
		return false
	}
	if c.names.match(r.host) {
		return true
	}
	at := c.ports[r.hostPort]
	return at != nil && at.match(r.host)
}

func (c *hostCondition) keys() []string {
	if c.negate || c.anyone {
		return nil
	}
	return prefixed("host", c.hosts)
}

func (c *hostCondition) anchor(x *index, r *rule) {
	for _, h := range c.hosts {
		x.hosts.add(h, r)
	}
}

// address says which of a request's addresses is meant.
type address uint8

const (
	source address = iota
	remote
	destination
	addressCount
)

var addresses = map[string]address{"source.ip": source, "remote.ip": remote, "destination.ip": destination} //nolint:gochecknoglobals // a constant

func (a address) of(r *Request) netip.Addr {
	switch a {
	case source:
		return r.Source
	case remote:
		return r.Remote
	}
	return r.Destination
}

// addressCondition is about an address.
type addressCondition struct {
	mode
	address
	blocks
	list []netip.Prefix
}

func newAddress(a address, values []string, m mode) (*addressCondition, error) {
	c := &addressCondition{mode: m, address: a}
	for _, v := range values {
		p, err := parseBlock(v)
		if err != nil {
			return nil, fmt.Errorf("block %q: %w", v, err)
		}
		c.add(p, nil)
		c.list = append(c.list, p)
	}
	return c, nil
}

func (c *addressCondition) match(r *Request) bool { return c.blocks.match(c.of(r)) != c.negate }

func (c *addressCondition) keys() []string {
	if c.negate {
		return nil
	}
	keys := make([]string, len(c.list))
	for i, p := range c.list {
		keys[i] = fmt.Sprint("address", c.address, p)
	}
	return keys
}

func (c *addressCondition) anchor(x *index, r *rule) {
	for _, p := range c.list {
		x.addresses[c.address].add(p, r)
	}
}
