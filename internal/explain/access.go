package explain

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	access "github.com/composure-mesh/composure/citadel/compile"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/normal"
)

// Question is what is asked of access rules.
type Question struct {
	Request
	// From is a workload, an identity as spiffe://<trust domain>/ns/<namespace>/sa/<service account>, with or without spiffe://,
	// or Nobody.
	From string
	// Workload is who is asked; empty is who answers to the URL's host.
	Workload string
	// Labels are those of a workload that nothing else tells of.
	Labels map[string]string
	// SourceIP is the peer's address, RemoteIP that of the client behind a gateway; both have a default.
	SourceIP, RemoteIP string
	ServerName         string
	// Bytes asks about a connection that is no HTTP.
	Bytes bool
}

// Nobody is a client without a certificate.
const Nobody = "none"

// Access is the answer: of every workload that may get the request.
type Access struct {
	Allowed bool `json:"allowed"`
	// Policy is the object that has decided, and Rule the path of the rule in it; empty where none has.
	Policy string `json:"policy"`
	Rule   string `json:"rule"`
	Action string `json:"action"`
	// Details are those of the access log.
	Details string `json:"details"`
	Reason  string `json:"reason"`
	// DryRun says how the policies of a dry run would have decided, where that is another way.
	DryRun string `json:"dryRun,omitempty"`
	// Asks are the extension providers that have to allow it first, each with the rule that has it asked. What they say is not
	// known here: Allowed holds if they do.
	Asks []string `json:"asks,omitempty"`
	// Principal is who asks, empty for nobody.
	Principal string `json:"principal"`
	// Path is the path in its normal form.
	Path      string    `json:"path"`
	Workloads []Verdict `json:"workloads"`
}

// Verdict is one workload's.
type Verdict struct {
	Workload string `json:"workload"`
	Allowed  bool   `json:"allowed"`
	Policy   string `json:"policy"`
	Rule     string `json:"rule"`
	Action   string `json:"action"`
	Details  string `json:"details"`
	Reason   string `json:"reason"`
	DryRun   string `json:"dryRun,omitempty"`
	// Asks are the extension providers that have to allow it first.
	Asks []string `json:"asks,omitempty"`
}

// Guard is a workload, and citadel's part of its proxy's snapshot.
type Guard struct {
	Workload snapshot.Workload
	Security *snapshot.Security
}

// Serves reports whether the workload answers to a host: its name, one of its services', or its address.
func (g *Guard) Serves(host string) bool {
	short, rest, _ := strings.Cut(host, ".")
	namespace, _, _ := strings.Cut(rest, ".")
	w := &g.Workload
	if namespace != "" && namespace != w.Namespace && !slices.Contains(w.Services, host) {
		return slices.Contains(w.Addresses, host)
	}
	return w.Name == host || w.Name == short || slices.Contains(w.Addresses, host) ||
		slices.ContainsFunc(w.Services, func(s string) bool { return s == host || s == short || s == mesh.FQDN(short, w.Namespace) })
}

// Ask asks the guards that q is about. source is who From names, nil where nobody knows such a workload.
func Ask(guards []Guard, source *snapshot.Workload, q Question) (*Access, error) {
	r, err := q.request(source)
	if err != nil {
		return nil, err
	}
	u, _, err := split(q.URL)
	if err != nil {
		return nil, err
	}
	a := &Access{Allowed: true, Principal: strings.TrimPrefix(r.Peer, "spiffe://"), Path: string(r.Path)}
	for i := range guards {
		g := &guards[i]
		if q.Workload != "" && g.Workload.Name != q.Workload || q.Workload == "" && !g.Serves(u.Hostname()) {
			continue
		}
		v, err := g.verdict(r)
		if err != nil {
			return nil, err
		}
		a.Workloads = append(a.Workloads, v)
	}
	if len(a.Workloads) == 0 {
		return nil, fmt.Errorf("no workload answers to %s", cmp.Or(q.Workload, u.Hostname()))
	}
	shown := a.Workloads[0]
	for _, v := range a.Workloads {
		if a.Allowed && !v.Allowed {
			a.Allowed, shown = false, v
		}
	}
	a.Policy, a.Rule, a.Action, a.Details, a.Reason, a.DryRun, a.Asks = shown.Policy, shown.Rule, shown.Action, shown.Details, shown.Reason, shown.DryRun, shown.Asks
	return a, nil
}

func (q *Question) request(source *snapshot.Workload) (*authz.Request, error) {
	parsed, dst, err := parse(q.Request)
	if err != nil {
		return nil, err
	}
	r := &authz.Request{
		HTTP: !q.Bytes, Method: parsed.Method, Authority: parsed.Authority, Header: parsed.Header, Auth: parsed.Auth, Port: parsed.Port, Destination: dst.Addr().Unmap(), ServerName: q.ServerName,
	}
	path, ok := normal.Path(nil, parsed.Path)
	if !ok {
		return nil, errors.New("the path has a %00: every proxy answers with 400")
	}
	r.Path = path
	switch {
	case source != nil:
		r.Peer = source.Identity
		if len(source.Addresses) > 0 {
			q.SourceIP = cmp.Or(q.SourceIP, source.Addresses[0])
		}
	case q.From != Nobody:
		r.Peer = "spiffe://" + strings.TrimPrefix(q.From, "spiffe://")
	}
	q.RemoteIP = cmp.Or(q.RemoteIP, q.SourceIP)
	for _, ip := range []struct {
		into *netip.Addr
		text string
	}{{&r.Source, q.SourceIP}, {&r.Remote, q.RemoteIP}} {
		if ip.text == "" {
			continue
		}
		if *ip.into, err = netip.ParseAddr(ip.text); err != nil {
			return nil, err
		}
		*ip.into = ip.into.Unmap()
	}
	return r, nil
}

// IsIdentity reports whether From is no workload's name but an identity, or Nobody.
func IsIdentity(from string) bool { return from == Nobody || strings.Contains(from, "/ns/") }

func (g *Guard) verdict(r *authz.Request) (Verdict, error) {
	var list []snapshot.AccessPolicy
	if g.Security != nil {
		list = g.Security.Access
	}
	policies, err := authz.Compile(list, nil)
	if err != nil {
		return Verdict{}, err
	}
	to := *r
	if !to.Destination.IsValid() && len(g.Workload.Addresses) > 0 {
		to.Destination, _ = netip.ParseAddr(g.Workload.Addresses[0])
	}
	v := Verdict{Workload: g.Workload.Name}
	if !g.asks(policies.Ask(&to), !to.HTTP, &v) {
		return v, nil
	}
	d := policies.Decide(&to)
	v.Allowed = d.Allowed
	v.Policy, v.Rule, v.Action = named(d.Rule)
	switch {
	case d.Rule == nil:
		v.Reason = "no policy refuses it, and there is none that has to allow it"
	case d.Allowed:
		v.Reason = strings.TrimPrefix(fmt.Sprintf("%s of %s allows it", v.Rule, v.Policy), " of ")
	case d.Rule.Policy == nil:
		v.Reason, v.Details = "there are ALLOW policies, and none of them matches", d.Rule.Answer.Details
	default:
		v.Reason, v.Details = fmt.Sprintf("%s of %s denies it", v.Rule, v.Policy), d.Rule.Answer.Details
	}
	if d.Tried && d.TryAllowed != d.Allowed {
		policy, rule, _ := named(d.TryRule)
		v.DryRun = strings.TrimSpace(map[bool]string{true: "allowed", false: "denied"}[d.TryAllowed] + " " + strings.TrimSpace(policy+" "+rule))
	}
	return v, nil
}

// asks notes the extension providers that are asked first. It reports false where the request is refused by that: there is no
// provider of the name.
func (g *Guard) asks(asked []authz.Asked, bytes bool, v *Verdict) bool {
	for _, a := range asked {
		i := slices.IndexFunc(g.Security.Authorizers, func(p snapshot.Authorizer) bool { return p.Name == a.Provider })
		policy, rule, action := named(a.Rule)
		switch {
		case i < 0:
			v.Policy, v.Rule, v.Action = policy, rule, action
			v.Reason = fmt.Sprintf("%s of %s asks the extension provider %s, and there is none", rule, policy, a.Provider)
			v.Details = "ext_authz_error[" + a.Rule.Name + "]"
			return false
		case bytes && !g.Security.Authorizers[i].GRPC:
			continue // it knows of requests alone
		}
		v.Asks = append(v.Asks, fmt.Sprintf("%s, by %s of %s", a.Provider, rule, policy))
	}
	return true
}

// named is the object and the path of a rule.
func named(r *authz.Rule) (policy, rule, action string) {
	if r == nil || r.Policy == nil {
		return "", "", ""
	}
	policy = cmp.Or(r.Policy.Kind, "authorizationpolicy") + "/" + r.Policy.Namespace + "/" + r.Policy.Name
	if r.Policy.Kind == "" { // the rules of others are made of several objects
		rule = fmt.Sprintf("spec.rules[%d]", r.Index)
	}
	return policy, rule, string(r.Policy.Action)
}

// Can asks the policies of the files. A workload that the files do not tell of is taken to be there: From, and who answers to
// the URL's host, in the namespace that the host names, with the label app and those of the question.
func (f *Files) Can(q Question) (*Access, error) {
	b := newFacts(f)
	if err := b.services(); err != nil {
		return nil, err
	}
	b.gateways()
	var source *snapshot.Workload
	if !IsIdentity(q.From) {
		w := b.workloads[b.proxy(q.From)]
		source = guarded(w)
	}
	if q.Workload == "" {
		u, _, err := split(q.URL)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(b.guards(), func(g Guard) bool { return g.Serves(u.Hostname()) }) {
			b.answering(u.Hostname(), q.Labels)
		}
	} else if name := b.proxy(q.Workload); len(q.Labels) > 0 {
		q.Workload, b.workloads[name].Labels = name, q.Labels
	}
	guards, err := b.secured()
	if err != nil {
		return nil, err
	}
	return Ask(guards, source, q)
}

// secured are the guards with what citadel makes for each.
func (b *facts) secured() ([]Guard, error) {
	x := b.security()
	guards := b.guards()
	for i := range guards {
		s, _, err := x.Compile(guards[i].Workload.Name)
		if err != nil {
			return nil, err
		}
		guards[i].Security = s
	}
	return guards, nil
}

// Meet asks the guards about a request that was explained: those that it comes to, as what it has become on its way. source is
// whose proxy explained it.
func (e *Explanation) Meet(guards []Guard, source *snapshot.Workload, r Request) error {
	if source == nil || e.Status != nil {
		return nil
	}
	r = grpcRequest(r)
	q := Question{Request: r, From: source.Name}
	if c, ok, err := parseConnection(r.URL); ok {
		if err != nil {
			return err
		}
		q.Bytes, q.URL = true, "http://"+net.JoinHostPort(c.host, strconv.Itoa(int(c.port)))+"/"
		if c.tls {
			q.ServerName = c.host
		}
	}
	if strings.HasPrefix(e.Listener, "gateway") {
		q.From, q.Workload = Nobody, source.Name
		if err := e.meet(guards, nil, q); err != nil || e.Status != nil {
			return err
		}
		q.From = source.Name
	}
	if e.Rewrite != nil {
		u, target, err := split(r.URL)
		if err != nil {
			return err
		}
		q.URL = u.Scheme + "://" + cmp.Or(e.Rewrite.Authority, u.Host) + cmp.Or(e.Rewrite.URI, target)
	}
	if e.Headers != nil {
		q.Headers = e.Headers
	}
	for _, m := range e.members {
		q.Workload = m.Name
		if m.Identity == "" {
			continue // it has no proxy that asks
		}
		if err := e.meet(guards, source, q); err != nil {
			return err
		}
	}
	return nil
}

func (e *Explanation) meet(guards []Guard, source *snapshot.Workload, q Question) error {
	if !slices.ContainsFunc(guards, func(g Guard) bool { return g.Workload.Name == q.Workload }) {
		return nil
	}
	a, err := Ask(guards, source, q)
	if err != nil {
		return err
	}
	if name := strings.TrimSpace(a.Policy + " " + a.Rule); name != "" && !slices.Contains(e.Policies, name) {
		e.Policies = append(e.Policies, name)
	}
	for _, asked := range a.Asks {
		e.Policies = append(e.Policies, "extension provider "+asked)
	}
	switch {
	case a.Allowed:
	case q.Bytes:
		e.Reason = fmt.Sprintf("closed by the proxy of %s: %s", q.Workload, a.Reason)
	default:
		status := 403
		e.Status = &status
		e.Reason = fmt.Sprintf("answered with 403 Forbidden by the proxy of %s: %s", q.Workload, a.Reason)
	}
	return nil
}

// Policies are the access rules of a workload of the files, in the order in which they stand.
func (f *Files) Policies(workload string) ([]snapshot.AccessPolicy, error) {
	b := newFacts(f)
	if err := b.services(); err != nil {
		return nil, err
	}
	name := b.proxy(workload)
	s, _, err := b.security().Compile(name)
	if err != nil {
		return nil, err
	}
	return s.Access, nil
}

// answering makes a workload that answers to a host.
func (b *facts) answering(host string, labels map[string]string) {
	short, rest, _ := strings.Cut(host, ".")
	namespace, domain, _ := strings.Cut(rest, ".")
	_, err := netip.ParseAddr(host)
	switch {
	case err == nil, domain == "" && !b.files.hasNamespace(namespace), domain != "" && domain != "svc" && domain != mesh.DomainSuffix:
		short, namespace = host, "" // no name of a service: example.com
	}
	all := map[string]string{"app": short}
	maps.Copy(all, labels)
	w := b.workload(short, cmp.Or(namespace, mesh.DefaultNamespace), "", all)
	w.Services = append(w.Services, host)
}

func (b *facts) security() *access.Index {
	v := access.View{Intent: b.files.intent, TrustDomain: mesh.DefaultTrustDomain, Namespaces: b.files.namespaces}
	for _, name := range slices.Sorted(maps.Keys(b.workloads)) {
		v.Facts.Workloads = append(v.Facts.Workloads, *b.workloads[name])
	}
	return access.New(v)
}

func (b *facts) guards() []Guard {
	var guards []Guard
	for _, name := range slices.Sorted(maps.Keys(b.workloads)) {
		guards = append(guards, Guard{Workload: *guarded(b.workloads[name])})
	}
	return guards
}

// guarded is w as snapshots have it, as far as access goes.
func guarded(w *mesh.Workload) *snapshot.Workload {
	s := &snapshot.Workload{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount, Identity: w.Identity, Services: w.Services, Labels: w.Labels}
	for _, a := range w.Addresses {
		s.Addresses = append(s.Addresses, cmp.Or(a.IPv4, a.IPv6))
	}
	return s
}
