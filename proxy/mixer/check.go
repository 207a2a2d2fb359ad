package mixer

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/expression"
	"github.com/composure-mesh/composure/proxy/filter"
)

// Codes of google.rpc (https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto).
const (
	permissionDenied = 7
	notFound         = 5
	internal         = 13
	unavailable      = 14
)

// status is a code of google.rpc as Istio's proxy told it: by its name, and by a status of HTTP
// (istio/proxy 1.0, src/envoy/http/mixer).
type status struct {
	name string
	http int
}

var statuses = [...]status{
	{"OK", http.StatusOK}, {"CANCELLED", 499}, {"UNKNOWN", 500}, {"INVALID_ARGUMENT", 400}, {"DEADLINE_EXCEEDED", 504}, {"NOT_FOUND", 404},
	{"ALREADY_EXISTS", 409}, {"PERMISSION_DENIED", 403}, {"RESOURCE_EXHAUSTED", 429}, {"FAILED_PRECONDITION", 400}, {"ABORTED", 409},
	{"OUT_OF_RANGE", 400}, {"UNIMPLEMENTED", 501}, {"INTERNAL", 500}, {"UNAVAILABLE", 503}, {"DATA_LOSS", 500}, {"UNAUTHENTICATED", 401},
}

// refusal is what one check, or several, say no with. The zero value is none.
type refusal struct {
	code    int32
	message string // handler:message, and so on
}

// check is one instance for one handler.
type check struct {
	handler string
	deny    *refusal
	list    *list
	value   *expression.Program
}

func newCheck(s *snapshot.MixerCheck) (check, error) {
	c := check{handler: s.Handler}
	switch {
	case s.Deny != nil:
		if s.Deny.Code < 1 || int(s.Deny.Code) >= len(statuses) {
			return c, fmt.Errorf("deny.code: %d is none of google.rpc", s.Deny.Code)
		}
		c.deny = &refusal{s.Deny.Code, s.Handler + ":" + s.Deny.Message}
		return c, nil
	case s.List != nil:
		var err, bad error
		c.value, err = expression.Compile(&s.List.Value)
		c.list, bad = newList(s.List)
		return c, errors.Join(err, bad)
	}
	return c, errors.New("want deny or list")
}

// refuses is the refusal of the request with the attributes a.
func (c *check) refuses(a expression.Attributes) refusal {
	if c.deny != nil {
		return *c.deny
	}
	v, err := c.value.Eval(a)
	if err != nil {
		// The check could not be made: what it protects stays closed.
		return refusal{internal, c.handler + ":" + err.Error()}
	}
	found, err := c.list.has(&v)
	switch l := c.list; {
	case err != nil:
		return refusal{3, c.handler + ":" + err.Error()} // INVALID_ARGUMENT
	case found && l.blacklist:
		return refusal{permissionDenied, c.handler + ":" + v.Text() + " is blacklisted"}
	case found:
	case l.unavailable != "":
		return refusal{unavailable, c.handler + ":" + l.unavailable}
	case !l.blacklist:
		return refusal{notFound, c.handler + ":" + v.Text() + " is not whitelisted"}
	}
	return refusal{}
}

// list is a list made ready.
type list struct {
	kind        string
	blacklist   bool
	unavailable string
	entries     map[string]bool
	addresses   map[netip.Addr]bool
	ranges      []netip.Prefix
	expressions []*regexp.Regexp
}

// Types of a list's entries (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/list/).
const (
	listStrings         = "STRINGS"
	listCaseInsensitive = "CASE_INSENSITIVE_STRINGS"
	listIPAddresses     = "IP_ADDRESSES"
	listRegex           = "REGEX"
)

func newList(s *snapshot.MixerList) (*list, error) {
	l := &list{kind: s.Type, blacklist: s.Blacklist, unavailable: s.Unavailable, entries: map[string]bool{}, addresses: map[netip.Addr]bool{}}
	for _, e := range s.Entries {
		var err error
		switch s.Type {
		case listStrings, listCaseInsensitive:
			l.entries[e] = true
		case listIPAddresses:
			err = l.address(e)
		case listRegex:
			var re *regexp.Regexp
			re, err = regexp.Compile(e)
			l.expressions = append(l.expressions, re)
		default:
			err = fmt.Errorf("list.type: %q is none", s.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("list.entries: %w", err)
		}
	}
	return l, nil
}

func (l *list) address(e string) error {
	if !strings.Contains(e, "/") {
		a, err := netip.ParseAddr(e)
		l.addresses[a.Unmap()] = true
		return err
	}
	p, err := netip.ParsePrefix(e)
	l.ranges = append(l.ranges, p.Masked())
	return err
}

func (l *list) has(v *expression.Value) (bool, error) {
	switch l.kind {
	case listIPAddresses:
		a := v.IP
		if v.Type != snapshot.IPAddress {
			var err error
			if a, err = netip.ParseAddr(v.Text()); err != nil {
				return false, fmt.Errorf("%s is not a valid IP address", v.Text())
			}
		}
		a = a.Unmap()
		if l.addresses[a] {
			return true, nil
		}
		for _, p := range l.ranges {
			if p.Contains(a) {
				return true, nil
			}
		}
		return false, nil
	case listRegex:
		s := v.Text()
		for _, re := range l.expressions {
			if re.MatchString(s) {
				return true, nil
			}
		}
		return false, nil
	case listCaseInsensitive:
		return l.entries[strings.ToLower(v.Text())], nil
	}
	return l.entries[v.Text()], nil
}

// check asks all the rules, since they have no order: the first refusal has the code, and all have a word. It leaves
// the rules that hold in s.matched.
func (r *Rules) check(s *scratch) refusal {
	var out refusal
	r.checks.find(s)
	for _, x := range s.matched {
		for j := range x.checks {
			switch no := x.checks[j].refuses(&s.bag); {
			case no.code == 0:
			case out.code == 0:
				out = no
			default:
				out.message += ", " + no.message
			}
		}
	}
	return out
}

// Check refuses a request that some rule refuses; of one that passes, the rules change the headers, those of the response
// when there is one.
func (r *Rules) Check(x *filter.Exchange) *filter.Answer {
	if len(r.checks.rules) == 0 {
		return nil
	}
	s := r.scratch()
	defer r.release(s)
	s.bag.Exchange(x.Record, x, r.lookup.Ends(x.Record.Conn, x.Request.Authority), false)
	if no := r.check(s); no.code != 0 {
		x.Record.CheckCode, x.Record.CheckMessage = no.code, no.message
		return answer(no)
	}
	r.amend(s, x)
	return nil
}

// answer is the refusal as Istio 1.0's proxies told it.
func answer(no refusal) *filter.Answer {
	st := statuses[no.code]
	return &filter.Answer{
		Status: st.http, Flag: exchange.FlagUnauthorized, Details: "mixer_denied{" + st.name + "}", Body: st.name + ":" + no.message,
		GRPC: int(no.code), GRPCSet: true,
	}
}

// CheckConnection is why a connection that is passed as bytes is refused; empty where it is not.
func (r *Rules) CheckConnection(c *exchange.Connection, ends exchange.Ends) string {
	if r == nil || len(r.checks.rules) == 0 {
		return ""
	}
	s := r.scratch()
	defer r.release(s)
	s.bag.Session(&exchange.Session{Conn: c, Ends: ends, Start: c.Start}, false)
	no := r.check(s)
	if no.code == 0 {
		return ""
	}
	return statuses[no.code].name + ":" + no.message
}
