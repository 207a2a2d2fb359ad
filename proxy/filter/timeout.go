package filter

import (
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// timeout bounds an exchange from the request's last byte to the response's; the Router keeps it.
type timeout struct {
	next  Handler
	after time.Duration
}

func (b *builder) timeout(d snapshot.Duration) filter {
	if d == 0 {
		return nil
	}
	if d < 0 {
		b.refuse("timeout: want more than 0, got %s", time.Duration(d))
	}
	return func(next Handler) Handler { return &timeout{next, time.Duration(d)} }
}

func (t *timeout) Serve(x *Exchange) {
	x.Timeout = t.after
	t.next.Serve(x)
}
