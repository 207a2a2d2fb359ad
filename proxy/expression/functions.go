package expression

import (
	"cmp"
	"errors"
	"fmt"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/net/idna"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// arity is how many arguments each function has, the target of a method included.
var arity = map[string]int{
	"==": 2, "!=": 2, "<": 2, "<=": 2, ">": 2, ">=": 2, "|": 2, "||": 2, "&&": 2, "[]": 2, "+": 2, "conditional": 3, "conditionalString": 3,
	"ip": 1, "timestamp": 1, "dnsName": 1, "email": 1, "uri": 1, "toLower": 1, "reverse": 1, "size": 1,
	"match": 2, "matches": 2, "startsWith": 2, "endsWith": 2, "emptyStringMap": 0,
}

// conversions are the functions of one string.
var conversions = map[string]func(Value) (Value, error){
	"ip": func(v Value) (Value, error) {
		ip, err := parseIP(v.Str)
		return Value{Type: snapshot.IPAddress, IP: ip}, err
	},
	"timestamp": func(v Value) (Value, error) {
		t, err := parseTime(v.Str)
		return Value{Type: snapshot.Timestamp, Time: t}, err
	},
	"dnsName": func(v Value) (Value, error) {
		name, err := unicodeName(v.Str)
		return str(snapshot.DNSName, name), err
	},
	"email":   func(v Value) (Value, error) { return str(snapshot.EmailAddress, v.Str), checkEmail(v.Str) },
	"uri":     func(v Value) (Value, error) { return str(snapshot.URI, v.Str), checkURI(v.Str) },
	"toLower": func(v Value) (Value, error) { return str(snapshot.String, strings.ToLower(v.Str)), nil },
	"reverse": func(v Value) (Value, error) {
		r := []rune(v.Str)
		slices.Reverse(r)
		return str(snapshot.String, string(r)), nil
	},
	"size": func(v Value) (Value, error) { return Value{Type: snapshot.Int64, Int: int64(len(v.Str))}, nil },
}

// operation is a function of two values whose first is of type t.
func operation(name string, t snapshot.ValueType) (func(x, y Value) (Value, error), error) {
	switch name {
	case "==":
		return equality(t, true)
	case "!=":
		return equality(t, false)
	case "<":
		return order(t, func(c int) bool { return c < 0 })
	case "<=":
		return order(t, func(c int) bool { return c <= 0 })
	case ">":
		return order(t, func(c int) bool { return c > 0 })
	case ">=":
		return order(t, func(c int) bool { return c >= 0 })
	case "+":
		return sum(t)
	case "match":
		return condition(match), nil
	case "startsWith":
		return condition(strings.HasPrefix), nil
	default: // endsWith: arity knows no other
		return condition(strings.HasSuffix), nil
	}
}

func condition(holds func(x, y string) bool) func(x, y Value) (Value, error) {
	return func(x, y Value) (Value, error) { return boolean(holds(x.Str, y.Str)), nil }
}

// equality compares two values of type t; the result is want where they are the same.
func equality(t snapshot.ValueType, want bool) (func(x, y Value) (Value, error), error) {
	plain := func(same func(x, y Value) bool) func(x, y Value) (Value, error) {
		return func(x, y Value) (Value, error) { return boolean(same(x, y) == want), nil }
	}
	parsed := func(same func(x, y string) (bool, error)) func(x, y Value) (Value, error) {
		return func(x, y Value) (Value, error) {
			equal, err := same(x.Str, y.Str)
			return boolean(equal == want), err
		}
	}
	switch t {
	case snapshot.String:
		return plain(func(x, y Value) bool { return x.Str == y.Str }), nil
	case snapshot.Bool, snapshot.Int64:
		return plain(func(x, y Value) bool { return x.Int == y.Int }), nil
	case snapshot.Double:
		return plain(func(x, y Value) bool { return x.Float == y.Float }), nil
	case snapshot.IPAddress:
		return plain(func(x, y Value) bool { return x.IP == y.IP }), nil
	case snapshot.Timestamp:
		return plain(func(x, y Value) bool { return x.Time.Equal(y.Time) }), nil
	case snapshot.DNSName:
		return parsed(sameName), nil
	case snapshot.EmailAddress:
		return parsed(sameEmail), nil
	case snapshot.URI:
		return parsed(sameURI), nil
	}
	return nil, fmt.Errorf("values of type %s can't be compared", t)
}

func order(t snapshot.ValueType, holds func(c int) bool) (func(x, y Value) (Value, error), error) {
	switch t {
	case snapshot.String:
		return func(x, y Value) (Value, error) { return boolean(holds(cmp.Compare(x.Str, y.Str))), nil }, nil
	case snapshot.Int64:
		return func(x, y Value) (Value, error) { return boolean(holds(cmp.Compare(x.Int, y.Int))), nil }, nil
	case snapshot.Double:
		return func(x, y Value) (Value, error) { return boolean(holds(cmp.Compare(x.Float, y.Float))), nil }, nil
	case snapshot.Timestamp:
		return func(x, y Value) (Value, error) { return boolean(holds(x.Time.Compare(y.Time))), nil }, nil
	}
	return nil, fmt.Errorf("values of type %s have no order", t)
}

func sum(t snapshot.ValueType) (func(x, y Value) (Value, error), error) {
	switch t {
	case snapshot.String:
		return func(x, y Value) (Value, error) { return str(snapshot.String, x.Str+y.Str), nil }, nil
	case snapshot.Int64:
		return func(x, y Value) (Value, error) { return Value{Type: t, Int: x.Int + y.Int}, nil }, nil
	case snapshot.Double:
		return func(x, y Value) (Value, error) { return Value{Type: t, Float: x.Float + y.Float}, nil }, nil
	}
	return nil, fmt.Errorf("values of type %s have no sum", t)
}

// match compares with a pattern that may end or begin with *; the end is looked at first.
func match(s, pattern string) bool {
	if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(s, prefix)
	}
	if suffix, ok := strings.CutPrefix(pattern, "*"); ok {
		return strings.HasSuffix(s, suffix)
	}
	return s == pattern
}

// matches is pattern.matches(s): the target is the expression, RE2, which is searched in s.
func matches(pattern, s node) (node, error) {
	c, ok := pattern.(*constant)
	if !ok {
		return &binary{pattern, s, func(pattern, s Value) (Value, error) {
			re, err := regexp.Compile(pattern.Str)
			if err != nil {
				return Value{}, err
			}
			return boolean(re.MatchString(s.Str)), nil
		}}, nil
	}
	re, err := regexp.Compile(c.value.Str)
	return settle(&unary{s, func(s Value) (Value, error) {
		if err != nil {
			return Value{}, err
		}
		return boolean(re.MatchString(s.Str)), nil
	}}, s)
}

// validName checks a name and changes nothing; lookupName makes two spellings of a name one.
var (
	validName  = idna.New(idna.StrictDomainName(true), idna.ValidateLabels(true), idna.VerifyDNSLength(true), idna.BidiRule())
	lookupName = idna.New(idna.MapForLookup(), idna.BidiRule())
)

// unicodeName checks a name and writes its labels as people read them.
func unicodeName(s string) (string, error) {
	name, err := validName.ToUnicode(s)
	if err != nil {
		return "", fmt.Errorf("error converting '%s' to dns name: '%w'", s, err)
	}
	return name, nil
}

func sameName(a, b string) (bool, error) {
	a, err := lookupName.ToUnicode(a)
	if err != nil {
		return false, err
	}
	if b, err = lookupName.ToUnicode(b); err != nil {
		return false, err
	}
	return strings.TrimSuffix(a, ".") == strings.TrimSuffix(b, "."), nil
}

func checkEmail(s string) error {
	a, err := mail.ParseAddress(s)
	if err != nil {
		return fmt.Errorf("error converting '%s' to e-mail: '%w'", s, err)
	}
	if a.Name != "" {
		return fmt.Errorf("error converting '%s' to e-mail: display names are not allowed", s)
	}
	_, domain, _ := strings.Cut(a.Address, "@")
	if _, err := unicodeName(domain); err != nil {
		return fmt.Errorf("error converting '%s' to e-mail: '%w'", s, err)
	}
	return nil
}

// sameEmail tells whether two addresses are one: the domain as a name, the rest byte for byte.
func sameEmail(a, b string) (bool, error) {
	x, err := mail.ParseAddress(a)
	if err != nil {
		return false, err
	}
	y, err := mail.ParseAddress(b)
	if err != nil {
		return false, err
	}
	localX, domainX, _ := strings.Cut(x.Address, "@")
	localY, domainY, _ := strings.Cut(y.Address, "@")
	same, err := sameName(domainX, domainY)
	if err != nil {
		return false, fmt.Errorf("error comparing e-mails '%s' and '%s': %w", a, b, err)
	}
	return same && localX == localY, nil
}

func checkURI(s string) error {
	if s == "" {
		return errors.New("error converting string to uri: empty string")
	}
	_, err := parseURI(s)
	return err
}

func parseURI(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, fmt.Errorf("error converting string to uri '%s': '%w'", s, err)
	}
	u.Scheme = strings.ToLower(u.Scheme)
	return u, nil
}

// sameURI compares two URIs: schemes and, for http and https, hosts as names; the rest byte for byte.
func sameURI(a, b string) (bool, error) {
	x, err := parseURI(a)
	if err != nil {
		return false, err
	}
	y, err := parseURI(b)
	if err != nil {
		return false, err
	}
	if x.Scheme == y.Scheme && (x.Scheme == "http" || x.Scheme == "https") {
		same, err := sameName(x.Hostname(), y.Hostname())
		if err != nil || !same || x.Port() != y.Port() {
			return false, err
		}
		x.Host = y.Host
	}
	return x.String() == y.String(), nil
}
