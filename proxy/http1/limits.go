// Package http1 reads and writes HTTP/1.0 and 1.1 messages (RFC 9112), strictly: a message has one reading or is
// refused. Heads are parsed in place, in a pooled buffer, so names and values are slices of it; in steady state
// a message costs no allocation.
package http1

import "fmt"

// Limits bound what a peer may send. The zero value means the defaults, which are Envoy's.
type Limits struct {
	HeadBytes   int // start line, fields and trailers together; default 60 KiB
	Fields      int // default 100
	TargetBytes int // request target; default 8 KiB
}

// Relayed is what a message may be that another proxy of the mesh has passed on: it has been held to l there, and then
// got some fields more.
func (l Limits) Relayed() Limits {
	l = l.withDefaults()
	l.HeadBytes += 4 << 10
	l.Fields += 10
	return l
}

func (l Limits) withDefaults() Limits {
	if l.HeadBytes == 0 {
		l.HeadBytes = 60 << 10
	}
	if l.Fields == 0 {
		l.Fields = 100
	}
	if l.TargetBytes == 0 {
		l.TargetBytes = 8 << 10
	}
	return l
}

// Error says that a peer broke the protocol. After it the connection must be closed: where the next message
// begins is not known.
type Error struct {
	// Status is the answer for a client; an upstream's fault is answered with 502 whatever it is.
	Status int
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("http1: %s", e.Reason) }

func bad(reason string) *Error { return &Error{Status: 400, Reason: reason} }
