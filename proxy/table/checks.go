package table

import (
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authn"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/extauth"
	"github.com/composure-mesh/composure/proxy/filter"
)

// checks are what a request must pass that comes to our application, or to a gateway, before it is routed. Who the peer is was
// settled when its connection began.
func (b *builder) checks(s *snapshot.Security) {
	b.t.trustedProxies = s.TrustedProxies
	old := b.old.tokens
	var err error
	if b.t.tokens, err = authn.New(&s.Authentication, old); err != nil {
		b.refuse("%w", err)
	}
	// The first of the list meets a request first.
	if b.t.tokens != nil {
		// What follows asks who the user is.
		b.t.refuses = append(b.t.refuses, b.t.tokens)
	}
	b.access(s.Access)
	for i := range s.Authorizers {
		b.t.authorizers = append(b.t.authorizers, extauth.NewProvider(&s.Authorizers[i]))
	}
	if !b.t.access.Empty() {
		// Before whatever counts requests or spends on them: who may not ask has none of it.
		b.t.refuses = append(b.t.refuses, b.t.access)
	}
}

// access compiles the AuthorizationPolicies.
func (b *builder) access(list []snapshot.AccessPolicy) {
	var old *authz.Policies
	if b.old.access != nil {
		old = b.old.access.Policies
	}
	policies, err := authz.Compile(list, old)
	if err != nil {
		b.refuse("%w", err)
	}
	b.t.access = &authz.Filter{Policies: policies}
}

// Trust is what counts of the X-Forwarded-For that a connection brings: at a gateway, and behind one, which its certificate
// tells.
func (t *Table) Trust(c *exchange.Connection) exchange.Trust {
	switch c.Direction {
	case exchange.Gateway:
		return exchange.Trust{Proxies: t.trustedProxies}
	case exchange.Inbound:
		if c.Peer == "" {
			break
		}
		if w := t.Peer(c.Remote.Addr(), c.Peer); w != nil && w.PlainText {
			return exchange.Trust{Gateway: true, Proxies: t.trustedProxies}
		}
	}
	return exchange.Trust{}
}

// Access decides who may send what.
func (t *Table) Access() *authz.Filter { return t.access }

// Authorizer is the extension provider of a name; nil where there is none.
func (t *Table) Authorizer(name string) *extauth.Provider {
	for _, p := range t.authorizers {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// locate says where the authorizers are, now that the services are known.
func (b *builder) locate() {
	for _, p := range b.t.authorizers {
		s := b.t.services[p.Host]
		if s == nil {
			continue
		}
		protocol := s.Protocol(p.Authorizer.Port)
		p.Cluster, p.Port, p.HTTP2 = s.at("", p.Authorizer.Port), s.Target(p.Authorizer.Port), protocol == mesh.ProtocolHTTP2 || protocol == mesh.ProtocolGRPC
	}
}

// Refuse is the answer to a request that may not pass; nil where it may.
func (t *Table) Refuse(x *filter.Exchange) *filter.Answer {
	for _, c := range t.refuses {
		if a := c.Check(x); a != nil {
			return a
		}
	}
	return nil
}

// Tokens is the check of the requests' tokens; nil where there is none.
func (t *Table) Tokens() *authn.Filter { return t.tokens }
