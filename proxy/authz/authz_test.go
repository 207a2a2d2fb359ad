package authz_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/authz"
	"github.com/composure-mesh/composure/proxy/exchange"
	"github.com/composure-mesh/composure/proxy/http1"
)

// request is one in which everything is set: by default productpage's GET of /api/v1/products at reviews:9080.
func request(change func(*authz.Request)) *authz.Request {
	r := &authz.Request{
		Peer:   "spiffe://cluster.local/ns/shop/sa/productpage",
		Source: netip.MustParseAddr("10.1.2.3"), Remote: netip.MustParseAddr("203.0.113.7"), Destination: netip.MustParseAddr("10.9.9.9"),
		Port: 9080, ServerName: "reviews.example", HTTP: true,
		Method: []byte("GET"), Path: []byte("/api/v1/products?q=/admin"), Authority: []byte("Reviews.Example.:9080"),
		Header: http1.Header{http1.NewField("X-Role", "admin"), http1.NewField("Accept", "a/b, c/d")},
		Auth: &exchange.Auth{
			Principal: "issuer.example/jason", Audiences: []string{"web", "app"}, Presenter: "portal",
			Claims: &exchange.Claim{Fields: map[string]*exchange.Claim{
				"group": {Values: []string{"staff", "ops"}},
				"realm": {Fields: map[string]*exchange.Claim{"role": {Values: []string{"editor"}}}},
			}},
		},
	}
	if change != nil {
		change(r)
	}
	return r
}

func absent(r *authz.Request) {
	r.Peer, r.Auth, r.ServerName, r.Header, r.Authority = "", nil, "", nil, nil
	r.Source, r.Remote, r.Destination = netip.Addr{}, netip.Addr{}, netip.Addr{}
}

func from(s snapshot.AccessSource) snapshot.AccessRule {
	return snapshot.AccessRule{From: []snapshot.AccessSource{s}}
}

func when(key, values, notValues string) snapshot.AccessRule {
	attribute, rest, _ := strings.Cut(key, "[")
	c := snapshot.AccessCondition{Attribute: attribute, Values: strings.Fields(values), NotValues: strings.Fields(notValues)}
	if rest != "" {
		c.Names = strings.Split(strings.TrimSuffix(rest, "]"), "][")
	}
	return snapshot.AccessRule{When: []snapshot.AccessCondition{c}}
}

// compile makes a policy of one rule.
func compile(t *testing.T, action snapshot.AccessAction, rules ...snapshot.AccessRule) *authz.Policies {
	t.Helper()
	p, err := authz.Compile([]snapshot.AccessPolicy{{Namespace: "default", Name: "p", Action: action, Rules: rules}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every field with a value that matches, one that does not, and a request that lacks what it is about. A rule that allows and
// a rule that denies agree on plain requests; the negation of a field is the opposite of the field.
func TestFields(t *testing.T) {
	type source = snapshot.AccessSource
	type operation = snapshot.AccessOperation
	list := strings.Fields
	fields := []struct {
		name              string
		make              func(values []string, not bool) snapshot.AccessRule
		match, mismatch   string // values, each of which is tried alone
		always            bool   // no request lacks it
		httpOnly, literal bool   // only HTTP requests have it; its values have no patterns
	}{
		{"principals", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotPrincipals: v})
			}
			return from(source{Principals: v})
		}, "cluster.local/ns/shop/sa/productpage cluster.local/ns/shop/* cluster.local/* */sa/productpage *page *", "cluster.local/ns/shop/sa/product cluster.local/ns/shop/sa/productpage2 spiffe://cluster.local/ns/shop/sa/productpage cluster.local/ns/Shop/* */sa/Productpage", false, false, false},
		{"requestPrincipals", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotRequestPrincipals: v})
			}
			return from(source{RequestPrincipals: v})
		}, "issuer.example/jason issuer.example/* */jason *", "issuer.example issuer.example/jason2 other.example/*", false, true, false},
		{"namespaces", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotNamespaces: v})
			}
			return from(source{Namespaces: v})
		}, "shop sh* *op *", "default shop2 sho productpage", false, false, false},
		{"serviceAccounts", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotServiceAccounts: v})
			}
			return from(source{ServiceAccounts: v})
		}, "shop/productpage", "default/productpage shop/product productpage", false, false, true},
		{"trustDomains", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotTrustDomains: v})
			}
			return from(source{TrustDomains: v})
		}, "cluster.local cluster.* *.local *", "cluster other.local", false, false, false},
		{"ipBlocks", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotIPBlocks: v})
			}
			return from(source{IPBlocks: v})
		}, "10.1.2.3 10.0.0.0/8 10.1.2.0/30 0.0.0.0/0 ::ffff:10.1.2.3 ::ffff:10.0.0.0/104", "10.1.2.4 11.0.0.0/8 203.0.113.7 ::/0 10.1.2.4/30", false, false, true},
		{"remoteIpBlocks", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return from(source{NotRemoteIPBlocks: v})
			}
			return from(source{RemoteIPBlocks: v})
		}, "203.0.113.7 203.0.113.0/24", "10.1.2.3 203.0.114.0/24", false, false, true},
		{"hosts", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return to(operation{NotHosts: v})
			}
			return to(operation{Hosts: v})
		}, "reviews.example REVIEWS.example reviews.example:9080 reviews.example:* *.example *.Example:9080 reviews.* reviews.*:9080 *:9080 * reviews.example.", "reviews reviews.example:80 example *.reviews.example *:80 reviews.example.org", false, true, false},
		{"ports", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return to(operation{NotPorts: v})
			}
			return to(operation{Ports: v})
		}, "9080", "80 90800 908", true, false, true},
		{"methods", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return to(operation{NotMethods: v})
			}
			return to(operation{Methods: v})
		}, "GET G* *T *", "POST GETS get P*", true, true, false},
		{"paths", func(v []string, not bool) snapshot.AccessRule {
			if not {
				return to(operation{NotPaths: v})
			}
			return to(operation{Paths: v})
		}, "/api/v1/products /api/* */products * /api/{*}/products /api/{**} /{**} /{**}/products /{*}/{*}/{*} /api/v1/{**} /%61pi/v1/products",
			"/api/v1 /api/v1/products/ /api/v1/products?q=/admin */admin /api/{*} /api/{*}/products/{*} /{*} /api/v1/products/{**} /{**}/", true, true, false},
		{"request.headers", func(v []string, not bool) snapshot.AccessRule { return conditionOf("request.headers[X-Role]", v, not) }, "admin ad* *min *", "Admin adminx user", false, true, false},
		{"source.ip", func(v []string, not bool) snapshot.AccessRule { return conditionOf("source.ip", v, not) }, "10.1.2.3 10.0.0.0/8", "10.1.2.4", false, false, true},
		{"remote.ip", func(v []string, not bool) snapshot.AccessRule { return conditionOf("remote.ip", v, not) }, "203.0.113.7", "10.1.2.3", false, false, true},
		{"destination.ip", func(v []string, not bool) snapshot.AccessRule { return conditionOf("destination.ip", v, not) }, "10.9.9.9 10.9.0.0/16", "10.1.2.3", false, false, true},
		{"destination.port", func(v []string, not bool) snapshot.AccessRule { return conditionOf("destination.port", v, not) }, "9080", "80", true, false, true},
		{"source.namespace", func(v []string, not bool) snapshot.AccessRule { return conditionOf("source.namespace", v, not) }, "shop s* *", "default", false, false, false},
		{"source.principal", func(v []string, not bool) snapshot.AccessRule { return conditionOf("source.principal", v, not) }, "cluster.local/ns/shop/sa/productpage */productpage *", "cluster.local/ns/shop/sa/x", false, false, false},
		{"source.serviceAccount", func(v []string, not bool) snapshot.AccessRule { return conditionOf("source.serviceAccount", v, not) }, "shop/productpage", "shop/x", false, false, true},
		{"source.trustDomain", func(v []string, not bool) snapshot.AccessRule { return conditionOf("source.trustDomain", v, not) }, "cluster.local *", "x", false, false, false},
		{"connection.sni", func(v []string, not bool) snapshot.AccessRule { return conditionOf("connection.sni", v, not) }, "reviews.example *.example *", "x", false, false, false},
		{"request.auth.principal", func(v []string, not bool) snapshot.AccessRule { return conditionOf("request.auth.principal", v, not) }, "issuer.example/jason *", "x", false, true, false},
		{"request.auth.audiences", func(v []string, not bool) snapshot.AccessRule { return conditionOf("request.auth.audiences", v, not) }, "web app a* *", "x", false, true, false},
		{"request.auth.presenter", func(v []string, not bool) snapshot.AccessRule { return conditionOf("request.auth.presenter", v, not) }, "portal *", "x", false, true, false},
		{"request.auth.claims", func(v []string, not bool) snapshot.AccessRule {
			return conditionOf("request.auth.claims[group]", v, not)
		}, "staff ops o* *", "editor", false, true, false},
		{"nested claims", func(v []string, not bool) snapshot.AccessRule {
			return conditionOf("request.auth.claims[realm][role]", v, not)
		}, "editor *", "staff", false, true, false},
	}
	rows := 0
	for _, f := range fields {
		check := func(values []string, r *authz.Request, want bool, what string) {
			t.Helper()
			for _, not := range []bool{false, true} {
				rule := f.make(values, not)
				for action, matched := range map[snapshot.AccessAction]bool{snapshot.AccessAllow: true, snapshot.AccessDeny: false} {
					rows++
					v := compile(t, action, rule).Decide(r)
					if got := v.Allowed == matched; got != (want != not) {
						t.Errorf("%s %v (not: %v, %s) with a request that %s: matches is %v", f.name, values, not, action, what, got)
					}
				}
			}
		}
		for _, v := range list(f.match) {
			check([]string{v}, request(nil), true, "has it")
			if !f.literal {
				check([]string{"nothing-like-it*", v}, request(nil), true, "has it, among others")
			}
			if !f.always {
				check([]string{v}, request(absent), false, "lacks it")
			}
		}
		for _, v := range list(f.mismatch) {
			check([]string{v}, request(nil), false, "has another")
		}
		// On a connection of bytes, what allows does not match with a field of HTTP's; what denies ignores the field.
		stream := request(func(r *authz.Request) { r.HTTP = false })
		value := list(f.match)[:1]
		if got := compile(t, snapshot.AccessAllow, f.make(value, false)).Decide(stream).Allowed; got == f.httpOnly {
			t.Errorf("%s: a connection is allowed: %v", f.name, got)
		}
		if compile(t, snapshot.AccessDeny, f.make(value, false)).Decide(stream).Allowed {
			t.Errorf("%s: a connection passes what denies", f.name)
		}
		if got := compile(t, snapshot.AccessDeny, f.make(list(f.mismatch)[:1], false)).Decide(stream).Allowed; got == f.httpOnly {
			t.Errorf("%s: a connection that does not match passes what denies: %v", f.name, got)
		}
	}
	if rows < 500 {
		t.Errorf("%d rows, want at least 500", rows)
	}
}

func conditionOf(key string, values []string, not bool) snapshot.AccessRule {
	if not {
		return when(key, "", strings.Join(values, " "))
	}
	return when(key, strings.Join(values, " "), "")
}

func TestActions(t *testing.T) {
	get := to(snapshot.AccessOperation{Methods: []string{"GET"}})
	post := to(snapshot.AccessOperation{Methods: []string{"POST"}})
	everything := snapshot.AccessRule{}
	policy := func(name string, a snapshot.AccessAction, rules ...snapshot.AccessRule) snapshot.AccessPolicy {
		return snapshot.AccessPolicy{Namespace: "default", Name: name, Action: a, Rules: rules}
	}
	try := func(p snapshot.AccessPolicy) snapshot.AccessPolicy { p.DryRun = true; return p }
	const none = "rbac_access_denied_matched_policy[none]"
	for name, c := range map[string]struct {
		policies []snapshot.AccessPolicy
		allowed  bool
		by       string // details of who has decided, or the name of the policy that allowed
		tried    string // "", "allowed" or "denied"
		audit    string
	}{
		"nothing":                         {nil, true, "", "", ""},
		"allow without rules":             {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAllow)}, false, none, "", ""},
		"allow everything":                {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAllow, everything)}, true, "a", "", ""},
		"allow":                           {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAllow, post, get)}, true, "a", "", ""},
		"allow something else":            {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAllow, post)}, false, none, "", ""},
		"allow by one of two":             {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAllow), policy("b", snapshot.AccessAllow, get)}, true, "b", "", ""},
		"deny":                            {[]snapshot.AccessPolicy{policy("a", snapshot.AccessDeny, post, get)}, false, "rbac_access_denied_matched_policy[ns[default]-policy[a]-rule[1]]", "", ""},
		"deny something else":             {[]snapshot.AccessPolicy{policy("a", snapshot.AccessDeny, post)}, true, "", "", ""},
		"deny before allow":               {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAllow, get), policy("b", snapshot.AccessDeny, get)}, false, "rbac_access_denied_matched_policy[ns[default]-policy[b]-rule[0]]", "", ""},
		"the first by name decides":       {[]snapshot.AccessPolicy{policy("b", snapshot.AccessDeny, get), policy("a", snapshot.AccessDeny, everything)}, false, "rbac_access_denied_matched_policy[ns[default]-policy[a]-rule[0]]", "", ""},
		"audit":                           {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAudit, get)}, true, "", "", "a"},
		"audit something else":            {[]snapshot.AccessPolicy{policy("a", snapshot.AccessAudit, post)}, true, "", "", ""},
		"a deny is tried":                 {[]snapshot.AccessPolicy{try(policy("a", snapshot.AccessDeny, get))}, true, "", "denied", ""},
		"a deny is tried in vain":         {[]snapshot.AccessPolicy{try(policy("a", snapshot.AccessDeny, post))}, true, "", "allowed", ""},
		"an allow is tried":               {[]snapshot.AccessPolicy{try(policy("a", snapshot.AccessAllow, post))}, true, "", "denied", ""},
		"an allow is tried beside a real": {[]snapshot.AccessPolicy{try(policy("a", snapshot.AccessAllow, post)), policy("b", snapshot.AccessAllow, get)}, true, "b", "allowed", ""},
		"an allow would help":             {[]snapshot.AccessPolicy{try(policy("a", snapshot.AccessAllow, get)), policy("b", snapshot.AccessAllow, post)}, false, none, "allowed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := authz.Compile(c.policies, nil)
			if err != nil {
				t.Fatal(err)
			}
			v := p.Decide(request(nil))
			by := ""
			switch {
			case v.Rule != nil && v.Allowed:
				by = v.Rule.Policy.Name
			case v.Rule != nil:
				by = v.Rule.Answer.Details
			}
			tried := map[[2]bool]string{{true, true}: "allowed", {true, false}: "denied"}[[2]bool{v.Tried, v.TryAllowed}]
			audit := ""
			if v.Audit != nil {
				audit = v.Audit.Policy.Name
			}
			if v.Allowed != c.allowed || by != c.by || tried != c.tried || audit != c.audit {
				t.Errorf("allowed %v by %q, tried %q, audit %q; want %v by %q, %q, %q", v.Allowed, by, tried, audit, c.allowed, c.by, c.tried, c.audit)
			}
			if v := p.Decide(request(func(r *authz.Request) { r.HTTP = false })); len(c.policies) == 0 && !v.Allowed {
				t.Error("a connection is refused by nobody")
			}
		})
	}
}

// All of a source's and an operation's fields must match, one of the sources and operations, and all conditions.
func TestRule(t *testing.T) {
	rule := snapshot.AccessRule{
		From: []snapshot.AccessSource{{Namespaces: []string{"shop"}, Principals: []string{"*/productpage"}}, {IPBlocks: []string{"192.0.2.0/24"}}},
		To:   []snapshot.AccessOperation{{Methods: []string{"GET"}, Paths: []string{"/api/*"}}, {Ports: []string{"80"}}},
		When: []snapshot.AccessCondition{
			{Attribute: "request.headers", Names: []string{"x-role"}, Values: []string{"admin"}},
			{Attribute: "request.auth.audiences", NotValues: []string{"guests"}},
		},
	}
	p := compile(t, snapshot.AccessAllow, rule)
	for name, c := range map[string]struct {
		change func(*authz.Request)
		want   bool
	}{
		"all":                        {nil, true},
		"another principal":          {func(r *authz.Request) { r.Peer = "spiffe://cluster.local/ns/shop/sa/x" }, false},
		"another namespace":          {func(r *authz.Request) { r.Peer = "spiffe://cluster.local/ns/x/sa/productpage" }, false},
		"the other source":           {func(r *authz.Request) { r.Peer, r.Source = "", netip.MustParseAddr("192.0.2.1") }, true},
		"another method":             {func(r *authz.Request) { r.Method = []byte("PUT") }, false},
		"another path":               {func(r *authz.Request) { r.Path = []byte("/x") }, false},
		"the other operation":        {func(r *authz.Request) { r.Path, r.Port = []byte("/x"), 80 }, true},
		"no header":                  {func(r *authz.Request) { r.Header = nil }, false},
		"an audience that must not":  {func(r *authz.Request) { r.Auth = &exchange.Auth{Audiences: []string{"web", "guests"}} }, false},
		"no token":                   {func(r *authz.Request) { r.Auth = nil }, true},
		"both others, but no header": {func(r *authz.Request) { r.Header, r.Port, r.Source = nil, 80, netip.MustParseAddr("192.0.2.1") }, false},
	} {
		if got := p.Decide(request(c.change)).Allowed; got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// Several fields of a header, and fields whose names an application may take for it: who is denied by one value is denied by
// any of them, and who is allowed by one needs nothing else.
func TestHeaderReadings(t *testing.T) {
	for _, c := range []struct {
		fields      []string // name, value, …
		deny, allow bool     // whether a rule on x-role: admin matches
	}{
		{[]string{"X-Role", "admin"}, true, true},
		{[]string{"x-role", "admin", "X-ROLE", "admin"}, true, true},
		{[]string{"X-Role", "user", "X-Role", "admin"}, true, false},
		{[]string{"X-Role", "admin", "X-Role", "user"}, true, false},
		{[]string{"X-Role", "user, admin"}, true, false},
		{[]string{"X-Role", "admin,user"}, true, false},
		{[]string{"X_Role", "admin"}, true, false},
		{[]string{"X-Role", "admin", "X_Role", "user"}, true, false},
		{[]string{"X-Role", "user", "X_Role", "admin"}, true, false},
		{[]string{"X-Role", "user"}, false, false},
		{[]string{"X-Role", "administrator"}, false, false},
		{[]string{"X-Roles", "admin"}, false, false},
		{nil, false, false},
	} {
		r := request(func(r *authz.Request) {
			r.Header = nil
			for i := 0; i < len(c.fields); i += 2 {
				r.Header = append(r.Header, http1.NewField(c.fields[i], c.fields[i+1]))
			}
		})
		rule := when("request.headers[X-Role]", "admin", "")
		if got := !compile(t, snapshot.AccessDeny, rule).Decide(r).Allowed; got != c.deny {
			t.Errorf("%v: denied is %v, want %v", c.fields, got, c.deny)
		}
		if got := compile(t, snapshot.AccessAllow, rule).Decide(r).Allowed; got != c.allow {
			t.Errorf("%v: allowed is %v, want %v", c.fields, got, c.allow)
		}
	}
	// Elements of a value that is one together.
	r := request(func(r *authz.Request) {
		r.Header = http1.Header{http1.NewField("X-Role", "a"), http1.NewField("X-Role", "b")}
	})
	if compile(t, snapshot.AccessDeny, when("request.headers[X-Role]", "a,b", "")).Decide(r).Allowed {
		t.Error("two fields pass where their list is denied")
	}
	// What does not go on to the application says nothing.
	r = request(func(r *authz.Request) {
		f := http1.NewField("X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/shop/sa/admin")
		f.Kind = http1.ClientCert
		g := http1.NewField("X-Role", "admin")
		g.Hop = true
		r.Header = http1.Header{f, g}
	})
	for _, name := range []string{"x-role", "x-forwarded-client-cert"} {
		if compile(t, snapshot.AccessAllow, when("request.headers["+name+"]", "*", "")).Decide(r).Allowed {
			t.Errorf("%s is allowed, and does not go on", name)
		}
	}
}

// What rules are found by does not change what they say: random rules decide as they do one by one.
func TestIndex(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(from ...string) []string {
		var out []string
		for range random.IntN(3) {
			out = append(out, from[random.IntN(len(from))])
		}
		return out
	}
	rules := make([]snapshot.AccessRule, 400)
	for i := range rules {
		r := &rules[i]
		for range random.IntN(3) {
			r.From = append(r.From, snapshot.AccessSource{
				Principals: pick("td/ns/a/sa/a", "td/ns/a/*", "*/sa/b", "*", "td/ns/b/sa/c"), Namespaces: pick("a", "b", "a*"),
				IPBlocks: pick("10.0.0.0/8", "10.0.0.1", "::1", "0.0.0.0/0"), NotPrincipals: pick("td/ns/a/sa/b"),
			})
		}
		for range random.IntN(3) {
			r.To = append(r.To, snapshot.AccessOperation{
				Hosts: pick("a.b", "*.b", "a.*", "c:80"), Paths: pick("/a", "/a/*", "*.c", "/a/{*}/c", "/A/b/c", "/a%2Fb"), Methods: pick("GET", "P*"),
				Ports: pick("80", "81"), NotPaths: pick("/a/b"),
			})
		}
		if random.IntN(2) == 0 {
			r.When = []snapshot.AccessCondition{{Attribute: "request.headers", Names: []string{"x"}, Values: pick("a", "b*", "*c")}}
		}
	}
	one := func(list ...string) string { return list[random.IntN(len(list))] }
	for _, action := range []snapshot.AccessAction{snapshot.AccessAllow, snapshot.AccessDeny} {
		alone := make([]*authz.Policies, len(rules))
		for i := range rules {
			alone[i] = compile(t, action, rules[i])
		}
		for range 300 {
			r := &authz.Request{
				Peer: one("", "spiffe://td/ns/a/sa/a", "spiffe://td/ns/a/sa/b", "spiffe://td/ns/b/sa/c"), Source: netip.MustParseAddr(one("10.0.0.1", "11.0.0.1", "::1")),
				Port: 80, HTTP: random.IntN(4) > 0, Method: []byte(one("GET", "PUT")), Authority: []byte(one("a.b", "A.B.:80", "c", "d")),
				Path:   []byte(one("/a", "/a/b", "/A/b/c", "/a/b/c", "/x.c", "/a%2fb", "/a%2Fb/c", "//a")),
				Header: http1.Header{http1.NewField("X", one("a", "b1", "a, c", "d"))},
			}
			// A random few of the rules: with all of them nearly everything matches.
			var some []snapshot.AccessRule
			want := -1
			for range 5 {
				i := random.IntN(len(rules))
				if matched := alone[i].Decide(r).Allowed == (action == snapshot.AccessAllow); matched && want < 0 {
					want = len(some)
				}
				some = append(some, rules[i])
			}
			v := compile(t, action, some...).Decide(r)
			got := -1
			if v.Rule != nil && v.Rule.Policy != nil {
				got = v.Rule.Index
			}
			if got != want {
				t.Fatalf("%s of %s %s at %s by %s: rule %d, want %d of %s", action, r.Method, r.Path, r.Authority, r.Peer, got, want, fmt.Sprintf("%+v", some))
			}
		}
	}
}

// What no rule can be made of is refused, by its place.
func TestCompileRefuses(t *testing.T) {
	for want, p := range map[string]snapshot.AccessPolicy{
		`policy a/b: action "X" is not known`:                                          {Namespace: "a", Name: "b", Action: "X"},
		"policy a/b: rules[0].from[0]: source.ip: block \"x\"":                         {Namespace: "a", Name: "b", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{from(snapshot.AccessSource{IPBlocks: []string{"x"}})}},
		`policy a/b: rules[0].when: request.url: attribute "request.url" is not known`: {Namespace: "a", Name: "b", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{when("request.url", "x", "")}},
		"policy a/b: rules[0].when: request.headers: attribute":                        {Namespace: "a", Name: "b", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{when("request.headers", "x", "")}},
		`policy a/b: rules[0].to[0]: request.host: host "a:x"`:                         {Namespace: "a", Name: "b", Action: snapshot.AccessDeny, Rules: []snapshot.AccessRule{to(snapshot.AccessOperation{Hosts: []string{"a:x"}})}},
	} {
		if _, err := authz.Compile([]snapshot.AccessPolicy{p}, nil); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error is %v, want %s", err, want)
		}
	}
}
