package table

import (
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/mixer"
	"github.com/composure-mesh/composure/proxy/quota"
)

// usage takes in mixer's part, whose checks come after citadel's: they ask who the peer and the user are, and what nobody may
// do need not be counted against anybody.
func (b *builder) usage(s *snapshot.Usage) {
	var err error
	if b.t.rules, err = mixer.New(s, lookup{b.t}); err != nil {
		b.refuse("%w", err)
	}
	if b.t.rules != nil {
		b.t.refuses = append(b.t.refuses, b.t.rules)
	}
	var limits []snapshot.RateLimit
	if s != nil {
		limits = s.RateLimits
	}
	if b.t.quotas, err = quota.Build(limits, b.old.quotas); err != nil {
		b.refuse("%w", err)
	} else if b.t.quotas.Len() > 0 {
		// Last, so that what is refused anyway is not counted.
		b.t.refuses = append(b.t.refuses, &quota.Check{Set: b.t.quotas, Lookup: lookup{b.t}})
	}
}

// Quotas are the rate limits, never nil.
func (t *Table) Quotas() *quota.Set { return t.quotas }

// Rules are Mixer's; nil where there are none.
func (t *Table) Rules() *mixer.Rules { return t.rules }

// lookup is the table as the rules ask it.
type lookup struct{ t *Table }

// Ends are those of a request before it is routed. A gateway is itself the source: it stands where the mesh begins.
func (l lookup) Ends(c *exchange.Connection, authority []byte) exchange.Ends {
	var ends exchange.Ends
	if c.Direction != exchange.Inbound {
		ends.Source = l.t.source()
		return ends
	}
	ends.Source, ends.Destination = l.t.Peer(c.Remote.Addr(), c.Peer), l.t.source()
	if s := l.t.Inbound(authority); s != nil {
		ends.Service = s.Service
	}
	return ends
}
