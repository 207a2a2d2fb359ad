package forward

import (
	"time"

	"github.com/composure-mesh/composure/proxy/filter"
	"github.com/composure-mesh/composure/proxy/http1"
)

// client is the side of an exchange that asks: a connection of HTTP/1 in the midst of a request, or a stream of HTTP/2. As a
// source it yields the request's body; what goes back to it is gathered until it is flushed.
type client interface {
	source
	SetReadDeadline(t time.Time) error
	// prompt has Read return os.ErrDeadlineExceeded instead of waiting, until it is called with false. It reports whether
	// the client can do so.
	prompt(on bool) bool

	// inform passes on a head that comes before the final one.
	inform(p *http1.Response, h http1.Header) error
	// respond sends or gathers the head of the final response.
	respond(p *http1.Response, h http1.Header) error
	// take reads once from the body of the response.
	take(src source) (n int, err error)
	// gathered reports whether there is something to flush, full that there is no room for more.
	gathered() bool
	full() bool
	flush() error
	// upgrade passes on that the upstream has switched protocols, with the first of what comes then. From there on the
	// exchange is what the two ends say, of which the client's may have said something early.
	upgrade(first []byte) (to end, early []byte, err error)
	// local sends an answer of our own. goesOn says that nothing stands against another exchange after it. The
	// result is whether there can be one.
	local(status int, h http1.Header, body string, goesOn bool) (keep bool)

	// tells reports whether the client's leaving is told of by left and gone, without anyone waiting for it in watch.
	tells() bool
	// left has a token when the client has left.
	left() <-chan struct{}
	// gone is how it left, nil if it has not.
	gone() *filter.Answer
	// watch waits until the client leaves, or sends what belongs to no request that is being served.
	watch() (left bool)
	// abort ends it for good, where an invariant of ours is broken.
	abort()
	// hold has up closed when the client leaves; nil ends that.
	hold(up link)
}

// outcome is how an exchange ended, for the client's connection.
type outcome uint8

const (
	whole outcome = iota // the request was read and the response sent
	early                // the response was sent, and the request not read to its end, or not to be trusted
	cut                  // the response has begun and can't be ended
	gone                 // nobody is there
)
