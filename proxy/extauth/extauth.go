// Package extauth asks external authorizers about requests and connections, for AuthorizationPolicies whose action is CUSTOM: by
// Envoy's protocol of gRPC, or by a request of HTTP like the one in question
// (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/ext_authz_filter).
//
// A question is made of a request (New), sent (Ask) and its answer applied (Finish): the middle one takes as long as it
// takes, and touches nothing of the request.
package extauth

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
	"github.com/composure-mesh/composure/proxy/upstream"
)

// Provider is an authorizer, and where it is reached.
type Provider struct {
	snapshot.Authorizer
	// Cluster is nil where the proxy knows no such service; Port is that of its endpoints.
	Cluster *upstream.Cluster
	Port    uint16
	// HTTP2 says that an authorizer of HTTP is spoken to by HTTP/2.
	HTTP2 bool

	request, up, allow, deny patterns
}

// NewProvider prepares a.
func NewProvider(a *snapshot.Authorizer) *Provider {
	return &Provider{
		Authorizer: *a, request: a.RequestHeaders, up: a.UpstreamHeaders, allow: a.AllowHeaders, deny: a.DenyHeaders,
	}
}

// patterns are names, "prefix*" and "*suffix", in small letters.
type patterns []string

func (p patterns) match(name string) bool {
	for _, pattern := range p {
		prefix, isPrefix := strings.CutSuffix(pattern, "*")
		suffix, isSuffix := strings.CutPrefix(pattern, "*")
		if pattern == name || isPrefix && strings.HasPrefix(name, prefix) || isSuffix && strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// Body is as much of the request's body as the authorizer is to see.
type Body struct {
	Bytes []byte
	// Cut says that there is more.
	Cut bool
}

// Question is what an authorizer is asked, and what became of it.
type Question struct {
	p *Provider
	// Rule is the one that has it asked, for the details.
	rule string
	head http1.Request // of the call
	body []byte

	reply reply
	err   error
}

// New asks p about x, or about the connection c alone where x is nil. self is our own identity, rule the name of the rule
// that has it asked.
func New(p *Provider, rule, self string, c *exchange.Connection, x *filter.Exchange, body Body) *Question {
	q := &Question{p: p, rule: rule}
	if p.GRPC {
		q.body = frame(checkRequest(p, self, c, x, body))
		q.head = grpcHead(p)
	} else {
		q.head, q.body = p.httpHead(x, body), body.Bytes
	}
	return q
}

// Ask sends the question and waits for the answer, until the provider's timeout or ctx ends.
func (q *Question) Ask(ctx context.Context, tr *upstream.Transport) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(q.p.Timeout))
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			q.err = fmt.Errorf("panic: %v", r)
		}
	}()
	q.reply, q.err = q.call(ctx, tr)
}

// verdict is what an authorizer says.
type verdict struct {
	allowed bool
	status  int    // of a refusal
	body    string // of it
	header  http1.Header

	// remove are headers that the request loses, in small letters, before it gets those of set. Those of extend it gets where
	// it has one of the name.
	remove      []string
	set, extend http1.Header
	later       []filter.Change
	setQuery    []parameter
	removeQuery []string
}

type parameter struct{ name, value string }

// Finish applies the answer to x, and is the refusal; nil where the request may go on. The error says what was wrong with the
// authorizer, also where it fails open.
func (q *Question) Finish(x *filter.Exchange) (*filter.Answer, error) {
	v, err := q.verdict()
	switch {
	case err != nil && q.p.FailOpen:
		return nil, err
	case err != nil:
		return &filter.Answer{Status: q.p.StatusOnError, Flag: exchange.FlagUnauthorized, Details: q.details("error")}, err
	case !v.allowed:
		return &filter.Answer{Status: v.status, Flag: exchange.FlagUnauthorized, Details: q.details("denied"), Body: v.body, Header: v.header}, nil
	case x != nil:
		v.apply(x)
	}
	return nil, nil
}

// Refused is Finish for a connection: why it may not be, or empty.
func (q *Question) Refused() (string, error) {
	a, err := q.Finish(nil)
	if a == nil {
		return "", err
	}
	return a.Details, err
}

// details are Envoy's, with the rule.
func (q *Question) details(what string) string { return "ext_authz_" + what + "[" + q.rule + "]" }

func (q *Question) verdict() (*verdict, error) {
	switch {
	case q.err != nil:
		return nil, fmt.Errorf("extension provider %s: %w", q.p.Name, q.err)
	case q.p.GRPC:
		v, err := q.grpcVerdict()
		if err != nil {
			return nil, fmt.Errorf("extension provider %s: %w", q.p.Name, err)
		}
		return v, nil
	case q.reply.status >= 500:
		return nil, fmt.Errorf("extension provider %s: it answers with %d", q.p.Name, q.reply.status)
	}
	return q.httpVerdict(), nil
}

// Unknown is the answer where a policy names a provider that there is none of.
func Unknown(rule string) *filter.Answer {
	return &filter.Answer{Status: 403, Flag: exchange.FlagUnauthorized, Details: "ext_authz_error[" + rule + "]", Body: "RBAC: access denied"}
}

// TooLarge is the answer to a body of which the provider is to see all, and that is longer than is held; also where it fails
// open.
func TooLarge() *filter.Answer {
	return &filter.Answer{Status: 413, Details: "request_payload_too_large", Body: "Payload Too Large", Client: true}
}

// apply changes the request, and what its response will have.
func (v *verdict) apply(x *filter.Exchange) {
	q := &x.Request
	for _, name := range v.remove {
		q.Header = filter.WithoutTwins(q.Header, name) // or a client could say in another spelling what is the authorizer's to say
	}
	q.Header = append(q.Header, v.set...)
	for _, f := range v.extend {
		if has(q.Header, strings.ToLower(string(f.Name))) {
			q.Header = append(q.Header, f)
		}
	}
	if len(v.setQuery)+len(v.removeQuery) > 0 {
		q.Path = withQuery(q.Path, v.setQuery, v.removeQuery)
	}
	x.Later = append(x.Later, v.later...)
}

func has(h http1.Header, lower string) bool {
	for i := range h {
		if http1.EqualFold(h[i].Name, lower) {
			return true
		}
	}
	return false
}

// field is a field that an authorizer has named, if it may be set: none of those that are for the way of a message or frame
// it, and none that is not well-formed.
func field(name, value string) (f http1.Field, ok bool) {
	f, err := http1.ParseField([]byte(name), []byte(value))
	if err != nil || f.Hop {
		return f, false
	}
	switch f.Kind {
	case http1.Host, http1.ContentLength, http1.TransferEncoding, http1.Connection, http1.KeepAlive, http1.ProxyConnection, http1.TE,
		http1.Trailer, http1.Upgrade, http1.HTTP2Settings, http1.Expect, http1.ClientCert, http1.Undelivered:
		return f, false
	}
	f.Own = true
	return f, true
}
