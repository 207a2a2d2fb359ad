package authz

import (
	"cmp"
	"slices"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/filter"
)

// custom are the rules by which one extension provider is asked.
type custom struct {
	provider    string
	http, bytes *set
}

// askedBy are the rules of a provider, in the order of providers.
func (p *Policies) askedBy(provider string) *custom {
	i, found := slices.BinarySearchFunc(p.custom, provider, func(c *custom, name string) int { return cmp.Compare(c.provider, name) })
	if !found {
		p.custom = slices.Insert(p.custom, i, &custom{provider: provider, http: &set{}, bytes: &set{}})
	}
	return p.custom[i]
}

// compileCustom adds the rules of a CUSTOM policy. Those for requests match where any reading of one does, as what refuses. A
// rule with fields that only HTTP has matches no connection: so it is in Istio.
func (p *Policies) compileCustom(policy *snapshot.AccessPolicy, counter *Counter) error {
	c := p.askedBy(policy.Provider)
	http := compiler{loose: true, counter: counter}
	if err := http.policy(policy, c.http); err != nil {
		return err
	}
	bytes := compiler{bytes: true, counter: counter}
	return bytes.policy(policy, c.bytes)
}

// Asked is a provider that has to allow a request, and the rule that wants it.
type Asked struct {
	Provider string
	Rule     *Rule
}

// Ask is who has to allow r before Decide, in the order of their names.
func (p *Policies) Ask(r *Request) (asked []Asked) {
	if p == nil || len(p.custom) == 0 {
		return nil
	}
	r.prepare()
	for _, c := range p.custom {
		s := c.http
		if !r.HTTP {
			s = c.bytes
		}
		if rule := s.match(r); rule != nil {
			asked = append(asked, Asked{c.provider, rule})
		}
	}
	return asked
}

// Ask is who has to allow a request before anything else is asked about it.
func (f *Filter) Ask(x *filter.Exchange) []Asked {
	if f == nil || f.Policies == nil || len(f.custom) == 0 {
		return nil
	}
	r := f.request(x)
	defer requests.Put(r)
	return counted(f.Policies.Ask(r))
}

// AskConnection is Ask about a connection that is passed as bytes.
func (f *Filter) AskConnection(c *exchange.Connection) []Asked {
	if f == nil || f.Policies == nil || len(f.custom) == 0 {
		return nil
	}
	r := requests.Get().(*Request)
	defer requests.Put(r)
	r.Reset()
	f.connection(r, c)
	return counted(f.Policies.Ask(r))
}

func counted(asked []Asked) []Asked {
	for _, a := range asked {
		a.Rule.counter.Matched.Add(1)
	}
	return asked
}
