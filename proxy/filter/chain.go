package filter

import (
	"errors"
	"fmt"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Chain folds what a route does, and what one of its destinations does besides, into one handler. destination is nil
// for a route that answers by itself. The error names every rule that is wrong.
func Chain(r *snapshot.Route, destination *snapshot.Destination) (Handler, error) {
	b := builder{}
	// The first of the list meets a request first, and its response last.
	b.fold(
		// A fault stands for what happens beyond this proxy, so nothing here may mend it: it is neither retried nor
		// covered by the timeout, and no filter after it sees the request.
		b.fault(r.Fault),
		// Preflights are answered before anything could send them on; an answer of what follows gets the leave to be read.
		b.cors(r.CORS),
		// Changes of the response come after the retries have chosen it. The route's are done first and so is the
		// destination's word the last: each wraps what stands below.
		b.responseHeaders(destinationHeaders(destination)),
		b.responseHeaders(r.Headers),
		// These answer by themselves: nothing below is met.
		b.redirect(r.Redirect),
		b.directResponse(r.DirectResponse),
		// The request is changed once and not for each try. Rewrite first, so that headers that are set win.
		b.rewrite(r.Rewrite),
		b.requestHeaders(r.Headers),
		b.requestHeaders(destinationHeaders(destination)),
		// A copy is of the request as it will be sent, once whatever the tries.
		b.mirrors(r.Mirrors),
		// The timeout covers all tries and the waits between them.
		b.timeout(r.Timeout),
		b.retries(r.Retries, destination),
	)
	if err := errors.Join(b.errs...); err != nil {
		return nil, err
	}
	return b.chain, nil
}

// filter wraps the next handler; nil does nothing.
type filter func(next Handler) Handler

type builder struct {
	chain Handler
	errs  []error
}

func (b *builder) fold(filters ...filter) {
	b.chain = router{}
	for i := len(filters) - 1; i >= 0; i-- {
		if filters[i] != nil {
			b.chain = filters[i](b.chain)
		}
	}
}

func (b *builder) refuse(format string, args ...any) {
	b.errs = append(b.errs, fmt.Errorf(format, args...))
}

func destinationHeaders(d *snapshot.Destination) *snapshot.Headers {
	if d == nil {
		return nil
	}
	return d.Headers
}
