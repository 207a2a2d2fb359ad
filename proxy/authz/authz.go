// Package authz decides who may do what: AuthorizationPolicies, compiled once for a table, asked for each request and each
// connection. Every field is a condition; the rules are found through an index (rules.go), so that those which have nothing
// to do with a request cost it nothing.
package authz

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/filter"
)

// Policies are the AuthorizationPolicies of a workload. They do not change.
type Policies struct {
	http, bytes verdicts
	custom      []*custom // by provider
	tried       bool
	nobody      *Rule               // refuses what no ALLOW policy matches
	counters    map[string]*Counter // by namespace/name
}

// Counter counts what one policy has decided. The counters of a policy live on in the table that follows.
type Counter struct {
	Action snapshot.AccessAction
	// Matched are requests and connections that it has refused, allowed or audited; Tried those that it would have, in a dry
	// run.
	Matched, Tried atomic.Uint64
}

// verdicts are the sets in the order in which they are asked, nil where there is no such policy.
type verdicts struct {
	deny, allow, audit *set
	// Those of a dry run.
	tryDeny, tryAllow *set
}

// Rule is a rule that has decided.
type Rule struct {
	// Policy is what the rule is of; nil for the refusal of what no ALLOW policy matches.
	Policy *snapshot.AccessPolicy
	// Name is ns[<namespace>]-policy[<name>]-rule[<index>].
	Name string
	// Index is the rule's place in the policy.
	Index int
	// Answer is what a refused HTTP request gets; its details name the policy as Envoy does.
	Answer filter.Answer

	counter *Counter
}

// Verdict is what becomes of a request.
type Verdict struct {
	Allowed bool
	// Rule has decided; nil where there is nothing to decide by: no policy refuses and none has to allow.
	Rule *Rule
	// Tried says that there are policies of a dry run; then the request would have been as TryAllowed, by TryRule, with them.
	Tried, TryAllowed bool
	TryRule           *Rule
	// Audit is the rule of an AUDIT policy that matches, nil for none.
	Audit *Rule
}

// refused is the text of Envoy's refusal.
const refused = "RBAC: access denied"

func newRule(p *snapshot.AccessPolicy, i int, c *Counter) *Rule {
	name := "none"
	if p != nil {
		name = fmt.Sprintf("ns[%s]-policy[%s]-rule[%d]", p.Namespace, p.Name, i)
	}
	answer := filter.Answer{Status: 403, Details: "rbac_access_denied_matched_policy[" + name + "]", Body: refused}
	return &Rule{Policy: p, Name: name, Index: i, counter: c, Answer: answer}
}

// Compile compiles policies. From old, those in force so far, it takes over what was counted; old may be nil. The error names
// every field that is wrong.
func Compile(list []snapshot.AccessPolicy, old *Policies) (*Policies, error) {
	sorted := make([]*snapshot.AccessPolicy, len(list))
	for i := range list {
		sorted[i] = &list[i]
	}
	slices.SortFunc(sorted, func(a, b *snapshot.AccessPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	out := &Policies{counters: map[string]*Counter{}}
	out.nobody = newRule(nil, 0, out.counter(old, "", snapshot.AccessAllow))
	var errs []error
	for _, p := range sorted {
		if p.Action == snapshot.AccessCustom {
			if err := out.compileCustom(p, out.counter(old, p.Namespace+"/"+p.Name, p.Action)); err != nil {
				errs = append(errs, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err))
			}
			continue
		}
		for _, v := range []*verdicts{&out.http, &out.bytes} {
			into := v.of(p)
			if into == nil {
				errs = append(errs, fmt.Errorf("policy %s/%s: action %q is not known", p.Namespace, p.Name, p.Action))
				break
			}
			if *into == nil {
				*into = &set{}
			}
			c := compiler{loose: p.Action != snapshot.AccessAllow, bytes: v == &out.bytes, counter: out.counter(old, p.Namespace+"/"+p.Name, p.Action)}
			if err := c.policy(p, *into); err != nil {
				errs = append(errs, fmt.Errorf("policy %s/%s: %w", p.Namespace, p.Name, err))
				break
			}
		}
	}
	for _, v := range []*verdicts{&out.http, &out.bytes} {
		for _, s := range []*set{v.deny, v.allow, v.audit, v.tryDeny, v.tryAllow} {
			s.seal()
		}
	}
	for _, c := range out.custom {
		c.http.seal()
		c.bytes.seal()
	}
	out.tried = out.http.tryAllow != nil || out.http.tryDeny != nil
	return out, errors.Join(errs...)
}

func (p *Policies) counter(old *Policies, policy string, action snapshot.AccessAction) *Counter {
	c := p.counters[policy]
	if c == nil && old != nil {
		c = old.counters[policy]
	}
	if c == nil || c.Action != action {
		c = &Counter{Action: action}
	}
	p.counters[policy] = c
	return c
}

// Stats are what was counted, for /stats: access.refused is what no ALLOW policy has matched, access.<namespace>/<name>.matched
// what a policy has decided, and .dry_run what it would have.
func (p *Policies) Stats() map[string]uint64 {
	out := map[string]uint64{}
	for name, c := range p.counters {
		matched, tried := "access."+name+".matched", "access."+name+".dry_run"
		if name == "" {
			matched, tried = "access.refused", "access.dry_run"
		}
		out[matched], out[tried] = c.Matched.Load(), c.Tried.Load()
	}
	return out
}

// of is where the rules of p belong, nil where its action is not known.
func (v *verdicts) of(p *snapshot.AccessPolicy) **set {
	switch {
	case p.Action == snapshot.AccessAllow && p.DryRun:
		return &v.tryAllow
	case p.Action == snapshot.AccessAllow:
		return &v.allow
	case p.Action == snapshot.AccessDeny && p.DryRun:
		return &v.tryDeny
	case p.Action == snapshot.AccessDeny:
		return &v.deny
	case p.Action == snapshot.AccessAudit:
		return &v.audit
	}
	return nil
}

// Empty reports whether there is nothing for Decide to ask.
func (p *Policies) Empty() bool { return p == nil || p.http == verdicts{} }

// Decide asks the policies about r, in the order of Istio: what a DENY policy matches is refused; where there are ALLOW
// policies, one of them must match
// (https://istio.io/latest/docs/concepts/security/#implicit-enablement).
func (p *Policies) Decide(r *Request) Verdict {
	if p.Empty() {
		return Verdict{Allowed: true}
	}
	r.prepare()
	s := &p.http
	if !r.HTTP {
		s = &p.bytes
	}
	denied, allowed := s.deny.match(r), s.allow.match(r)
	v := Verdict{Audit: s.audit.match(r)}
	v.Allowed, v.Rule = p.judge(denied, allowed, s.allow != nil)
	if p.tried {
		v.Tried = true
		v.TryAllowed, v.TryRule = p.judge(first(denied, s.tryDeny.match(r)), first(allowed, s.tryAllow.match(r)), s.allow != nil || s.tryAllow != nil)
	}
	return v
}

func (p *Policies) judge(denied, allowed *Rule, closed bool) (bool, *Rule) {
	switch {
	case denied != nil:
		return false, denied
	case closed && allowed == nil:
		return false, p.nobody
	}
	return true, allowed
}

// Count notes a verdict.
func (v *Verdict) Count() {
	if v.Rule != nil {
		v.Rule.counter.Matched.Add(1)
	}
	if v.Audit != nil {
		v.Audit.counter.Matched.Add(1)
	}
	if v.TryRule != nil && v.TryRule != v.Rule {
		v.TryRule.counter.Tried.Add(1)
	}
}

func first(a, b *Rule) *Rule {
	if a != nil {
		return a
	}
	return b
}
