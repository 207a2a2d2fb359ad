// Package filter is what a route does with an exchange besides sending it to its destination: a chain, folded once
// for each destination of a route when the table is built (chain.go says in which order, and why). Filters see an
// exchange, not a codec: what is on the wire is the business of the Router at the chain's end.
package filter

import (
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// Request is the head of a request: what routes look at and filters change.
type Request struct {
	Method []byte
	// Path is with the query, as sent.
	Path []byte
	// Authority is with or without port.
	Authority []byte
	Scheme    string
	Header    http1.Header
	// Port is the one that the client dialled.
	Port uint16
	// Auth is what the request's verified token says; nil without one.
	Auth *exchange.Auth
	// Prefix is what the route's match has matched as a prefix of the path; empty if it was another match.
	Prefix string
}

// path is the path without the query, and the query with its question mark.
func (q *Request) path() (path, query []byte) {
	for i, c := range q.Path {
		if c == '?' {
			return q.Path[:i], q.Path[i:]
		}
	}
	return q.Path, nil
}

// Response is the head of a response: what filters see and change on the way back.
type Response struct {
	Status int
	Header http1.Header
	// Local is the answer of our own that this is; nil where the upstream's.
	Local *Answer
}

// Exchange is one request on its way through the chain, and its response on the way back. A Router fills it in, and
// uses it again for the next.
type Exchange struct {
	Record   *exchange.Exchange
	Request  Request
	Response Response
	Router   Router

	// Timeout is how long the exchange may take from the request's last byte on; 0 is without end.
	Timeout time.Duration
	// PerTry is how long one try may take until its response begins; 0 is without end.
	PerTry time.Duration
	// Replay asks the Router to keep the request's body, so that it can be sent again after it was sent.
	Replay bool
	// SameHost allows a further try at an endpoint that has failed, while there are others.
	SameHost bool
	// Mirrors are copies to be sent.
	Mirrors []*Mirror

	// Later are changes of the response's header, upstream's or local, that were decided before there was one.
	Later []Change
	// Text is room for the values of fields that are made for this exchange.
	Text []byte

	local http1.Header // the fields of local answers, used again
}

// Change is one change of a header: the fields of the name go, unless Add is set, and Field comes if it has a value.
type Change struct {
	Lower string // the name in lower case
	Add   bool
	Field http1.Field
}

// Apply changes h in place, and beyond its length.
func (c *Change) Apply(h http1.Header) http1.Header {
	if !c.Add {
		h = Without(h, c.Lower)
	}
	if c.Field.Value != nil {
		h = append(h, c.Field)
	}
	return h
}

// Amend does what was to be done later.
func (x *Exchange) Amend() {
	for i := range x.Later {
		x.Response.Header = x.Later[i].Apply(x.Response.Header)
	}
}

// Reset readies x for the next exchange, of which nothing is known yet but the record and the Router.
func (x *Exchange) Reset(record *exchange.Exchange, r Router) {
	*x = Exchange{Record: record, Router: r, Mirrors: x.Mirrors[:0], Later: x.Later[:0], Text: x.Text[:0], local: x.local[:0]}
}

// Answer makes the response a local one.
func (x *Exchange) Answer(a *Answer) {
	x.local = append(x.local[:0], a.Header...)
	x.Response = Response{Status: a.Status, Header: x.local, Local: a}
}

// Router is the end of the chain, where a codec begins. Its calls are for the goroutine that serves the chain.
type Router interface {
	// Try sends the request to an endpoint and waits for the head of the response, which it puts into x.Response: the
	// upstream's or a local one.
	Try(x *Exchange)
	// Again throws the response away and readies the exchange for another Try. It reports false where that can't be,
	// and the response stands.
	Again(x *Exchange) bool
	// Awaits reports whether a request that has reached no endpoint is worth another Try, because its destination has only
	// just gone and may be about to come back, and readies for that what Again does not.
	Awaits(x *Exchange) bool
	// Wait passes the time d. It reports false, with an answer in x.Response, where the client leaves meanwhile or
	// x.Timeout is over.
	Wait(x *Exchange, d time.Duration) bool
}

// Handler serves an exchange: when it returns, x.Response is there.
type Handler interface {
	Serve(x *Exchange)
}

// Check looks at a request that has come to its application's proxy, or to a gateway's, before anything is decided about
// it, and may change its head. An answer refuses the request, nil lets it pass.
type Check interface {
	Check(x *Exchange) *Answer
}

// router is the last handler.
type router struct{}

func (router) Serve(x *Exchange) { x.Router.Try(x) }
