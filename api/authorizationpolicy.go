package api

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	security "istio.io/api/security/v1"
)

// DryRunAnnotation marks an AuthorizationPolicy whose verdicts are counted and logged, and not carried out.
const DryRunAnnotation = "istio.io/dry-run"

// AuthorizationPolicy is the kind that says who may do what with workloads
// (https://istio.io/latest/docs/reference/config/security/authorization-policy/).
func AuthorizationPolicy() *Kind {
	return securityKind(Kind{
		Kind: "AuthorizationPolicy", Plural: "authorizationpolicies", Singular: "authorizationpolicy", ShortNames: []string{"ap"},
		Columns: []Column{
			{Name: "Action", Description: "What becomes of a request that matches", Cell: func(o *Object) any {
				action := o.Spec.(*security.AuthorizationPolicy).GetAction().String()
				if DryRun(o) {
					action += " (dry run)"
				}
				return action
			}},
			{Name: "For", Description: "The workloads it is for", Cell: scopeCell},
			{Name: "Rules", Description: "How many there are", Cell: func(o *Object) any {
				return len(o.Spec.(*security.AuthorizationPolicy).GetRules())
			}},
		},
		validate: validateAuthorizationPolicy,
	}, func() proto.Message { return &security.AuthorizationPolicy{} }, authorizationPolicyFields())
}

func authorizationPolicyFields() fieldSet {
	return targetedFields("AuthorizationPolicy", "AuthorizationPolicy.rules", "AuthorizationPolicy.action",
		"AuthorizationPolicy.provider", "AuthorizationPolicy.ExtensionProvider.name",
		"Rule.from", "Rule.to", "Rule.when", "Rule.From.source", "Rule.To.operation",
		"Source.principals", "Source.not_principals", "Source.request_principals", "Source.not_request_principals",
		"Source.namespaces", "Source.not_namespaces", "Source.service_accounts", "Source.not_service_accounts",
		"Source.ip_blocks", "Source.not_ip_blocks", "Source.remote_ip_blocks", "Source.not_remote_ip_blocks",
		"Source.trust_domains", "Source.not_trust_domains",
		"Operation.hosts", "Operation.not_hosts", "Operation.ports", "Operation.not_ports",
		"Operation.methods", "Operation.not_methods", "Operation.paths", "Operation.not_paths",
		"Condition.key", "Condition.values", "Condition.not_values",
	)
}

// DryRun reports whether o is only to be tried.
func DryRun(o *Object) bool { return o.Meta.Annotations[DryRunAnnotation] == "true" }

func validateAuthorizationPolicy(o *Object) Problems {
	p := o.Spec.(*security.AuthorizationPolicy)
	var ps Problems
	checkTargets(&ps, o, p)
	if (p.Action == security.AuthorizationPolicy_DENY || p.Action == security.AuthorizationPolicy_CUSTOM) && len(p.Rules) == 0 {
		ps.required(Path{"spec", "rules"}, fmt.Sprintf("want at least one rule: %s without any matches nothing; [{}] is one that matches everything", p.Action))
	}
	switch custom := p.Action == security.AuthorizationPolicy_CUSTOM; {
	case custom && p.GetProvider().GetName() == "":
		ps.required(Path{"spec", "provider", "name"}, "want the name of an extension provider of the MeshConfig: CUSTOM asks one")
	case !custom && p.GetProvider() != nil:
		ps.invalid(Path{"spec", "provider"}, fmt.Sprintf("want it with CUSTOM alone: %s asks nobody", p.Action))
	}
	if v, ok := o.Meta.Annotations[DryRunAnnotation]; ok {
		path := Path{"metadata", "annotations", DryRunAnnotation}
		switch {
		case v != "true" && v != "false":
			ps.invalid(path, fmt.Sprintf(`want "true" or "false", got %q`, v))
		case v == "true" && p.Action != security.AuthorizationPolicy_ALLOW && p.Action != security.AuthorizationPolicy_DENY:
			ps.invalid(path, fmt.Sprintf("want it with ALLOW or DENY alone: %s refuses nothing", p.Action))
		}
	}
	spec, _ := o.Content["spec"].(map[string]any)
	checkEmptyLists(&ps, Path{"spec", "rules"}, spec["rules"])
	for i, r := range p.Rules {
		validateAccessRule(&ps, Path{"spec", "rules", i}, r)
		if p.Action == security.AuthorizationPolicy_CUSTOM {
			checkBeforeToken(&ps, Path{"spec", "rules", i}, r)
		}
	}
	return ps
}

// checkBeforeToken refuses what a CUSTOM rule can't know: its provider is asked before the token is verified, which it may have
// put there itself.
func checkBeforeToken(ps *Problems, path Path, r *security.Rule) {
	const why = "want none with CUSTOM: the provider is asked before the request's token is verified"
	for i, f := range r.From {
		if len(f.GetSource().GetRequestPrincipals()) > 0 {
			ps.invalid(path.At("from", i, "source", "requestPrincipals"), why)
		}
		if len(f.GetSource().GetNotRequestPrincipals()) > 0 {
			ps.invalid(path.At("from", i, "source", "notRequestPrincipals"), why)
		}
	}
	for i, c := range r.When {
		if strings.HasPrefix(c.GetKey(), "request.auth.") {
			ps.invalid(path.At("when", i, "key"), why)
		}
	}
}

// checkEmptyLists refuses lists that are written and empty, at any depth. The message can't tell them from absent ones,
// which match everything: who writes "principals: []" does not mean everyone.
func checkEmptyLists(ps *Problems, path Path, value any) {
	switch v := value.(type) {
	case []any:
		for i, e := range v {
			checkEmptyLists(ps, path.At(i), e)
		}
		if len(v) == 0 && len(path) > 2 { // "rules: []" is as none
			ps.invalid(path, "want at least one, or the field left out: an empty list would match everything")
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			checkEmptyLists(ps, path.At(key), v[key])
		}
	}
}

// valueCheck says what is wrong with one value of a list, or "".
type valueCheck func(string) string

func checkEach(ps *Problems, path Path, values []string, check valueCheck) {
	for i, v := range values {
		if msg := check(v); msg != "" {
			ps.invalid(path.At(i), msg)
		}
	}
}

func validateAccessRule(ps *Problems, path Path, r *security.Rule) {
	for i, f := range r.From {
		at := path.At("from", i, "source")
		if s := f.GetSource(); s == nil || proto.Size(s) == 0 {
			ps.required(at, "want at least one field, or no from: this is everyone")
		} else {
			validateSource(ps, at, s)
		}
	}
	for i, t := range r.To {
		at := path.At("to", i, "operation")
		if op := t.GetOperation(); op == nil || proto.Size(op) == 0 {
			ps.required(at, "want at least one field, or no to: this is everything")
		} else {
			validateOperation(ps, at, op)
		}
	}
	for i, c := range r.When {
		validateCondition(ps, path.At("when", i), c)
	}
}

func validateSource(ps *Problems, path Path, s *security.Source) {
	if len(s.ServiceAccounts)+len(s.NotServiceAccounts) > 0 && len(s.Principals)+len(s.NotPrincipals)+len(s.Namespaces)+len(s.NotNamespaces) > 0 {
		ps.invalid(path.At("serviceAccounts"), "want either service accounts or principals and namespaces: all of them are of one certificate")
	}
	for _, f := range []struct {
		name   string
		values []string
		check  valueCheck
	}{
		{"principals", s.Principals, checkPrincipal}, {"notPrincipals", s.NotPrincipals, checkPrincipal},
		{"requestPrincipals", s.RequestPrincipals, checkPattern}, {"notRequestPrincipals", s.NotRequestPrincipals, checkPattern},
		{"namespaces", s.Namespaces, checkPattern}, {"notNamespaces", s.NotNamespaces, checkPattern},
		{"serviceAccounts", s.ServiceAccounts, checkServiceAccount}, {"notServiceAccounts", s.NotServiceAccounts, checkServiceAccount},
		{"ipBlocks", s.IpBlocks, checkBlock}, {"notIpBlocks", s.NotIpBlocks, checkBlock},
		{"remoteIpBlocks", s.RemoteIpBlocks, checkBlock}, {"notRemoteIpBlocks", s.NotRemoteIpBlocks, checkBlock},
		{"trustDomains", s.TrustDomains, checkPattern}, {"notTrustDomains", s.NotTrustDomains, checkPattern},
	} {
		checkEach(ps, path.At(f.name), f.values, f.check)
	}
}

func validateOperation(ps *Problems, path Path, o *security.Operation) {
	for _, f := range []struct {
		name   string
		values []string
		check  valueCheck
	}{
		{"hosts", o.Hosts, checkHostPattern}, {"notHosts", o.NotHosts, checkHostPattern},
		{"ports", o.Ports, checkPortText}, {"notPorts", o.NotPorts, checkPortText},
		{"methods", o.Methods, checkMethodPattern}, {"notMethods", o.NotMethods, checkMethodPattern},
		{"paths", o.Paths, checkPathPattern}, {"notPaths", o.NotPaths, checkPathPattern},
	} {
		checkEach(ps, path.At(f.name), f.values, f.check)
	}
}

// checkPattern allows the four forms of a value: exact, prefix*, *suffix and *, which is any that is not empty.
func checkPattern(v string) string {
	switch {
	case v == "":
		return `want a text that is not empty; "*" is any`
	case strings.Contains(strings.TrimSuffix(strings.TrimPrefix(v, "*"), "*"), "*"), len(v) > 1 && v[0] == '*' && v[len(v)-1] == '*':
		return fmt.Sprintf(`want a text, "prefix*", "*suffix" or "*", got %q`, v)
	}
	return ""
}

func checkPrincipal(v string) string {
	if rest, ok := strings.CutPrefix(v, "spiffe://"); ok {
		return fmt.Sprintf("want it without spiffe://, got %q: write %q", v, rest)
	}
	return checkPattern(v)
}

// checkServiceAccount allows <name> and <namespace>/<name>.
func checkServiceAccount(v string) string {
	for part := range strings.SplitSeq(v, "/") {
		if part == "" || strings.ContainsAny(part, "*\t ") || strings.Count(v, "/") > 1 {
			return fmt.Sprintf("want <service account> or <namespace>/<service account>, without wildcard, got %q", v)
		}
	}
	return ""
}

func checkBlock(v string) string {
	if _, err := netip.ParseAddr(v); err == nil && !strings.Contains(v, "%") {
		return ""
	}
	if _, err := netip.ParsePrefix(v); err == nil {
		return ""
	}
	return fmt.Sprintf("want an address or a block such as 203.0.113.0/24, got %q", v)
}

func checkPortText(v string) string {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 || v[0] == '0' {
		return fmt.Sprintf("want a port between 1 and 65535, got %q", v)
	}
	return ""
}

// checkMethodPattern refuses what can't be a method, and what looks like one in another case: methods have one
// (RFC 9110, section 9.1).
func checkMethodPattern(v string) string {
	if msg := checkPattern(v); msg != "" {
		return msg
	}
	if strings.ContainsAny(v, " \t/:,;") {
		return fmt.Sprintf("want a method, got %q", v)
	}
	upper := strings.ToUpper(v)
	if v != upper && slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}, upper) {
		return fmt.Sprintf("want %q: methods are told from each other by their case, got %q", upper, v)
	}
	return ""
}

func checkHostPattern(v string) string {
	name, port, _ := cutPort(v)
	if port != "" && port != "*" && checkPortText(port) != "" {
		return fmt.Sprintf("want a host, or a host and a port, got %q", v)
	}
	if msg := checkPattern(name); msg != "" {
		return msg
	}
	if strings.ContainsAny(v, "/ \t@?#") {
		return fmt.Sprintf("want a host, or a host and a port, got %q", v)
	}
	return ""
}

// cutPort splits a host from its port; an IPv6 address stands in brackets.
func cutPort(v string) (name, port string, ok bool) {
	i := strings.LastIndexByte(v, ':')
	if i < 0 || strings.Contains(v[i:], "]") {
		return v, "", false
	}
	return v[:i], v[i+1:], true
}

// checkPathPattern allows the four forms of a value, and templates
// (https://istio.io/latest/docs/reference/config/security/authorization-policy/#Operation).
func checkPathPattern(v string) string {
	if strings.ContainsAny(v, "{}") {
		return checkPathTemplate(v)
	}
	if strings.Contains(strings.TrimSuffix(strings.TrimPrefix(v, "*"), "*"), "*") {
		return fmt.Sprintf("want a * at one end alone, or a template such as /users/{*}/{**}, got %q", v)
	}
	if msg := checkPattern(v); msg != "" {
		return msg
	}
	if v[0] != '/' && v[0] != '*' {
		return fmt.Sprintf(`want a path that begins with "/", or "*suffix", got %q`, v)
	}
	return checkRulePath(v)
}

// checkRulePath refuses what no path has that a rule is asked about.
func checkRulePath(v string) string {
	switch {
	case strings.ContainsAny(v, "?#"):
		return fmt.Sprintf("want a path without query and fragment, got %q: rules see none", v)
	case strings.Contains(v, `\`):
		return fmt.Sprintf(`want "/" for "\", got %q: rules see paths in their normal form`, v)
	case strings.ContainsAny(v, " \t\r\n"):
		return fmt.Sprintf("want no white space, got %q: in a path it is %%20", v)
	}
	for segment := range strings.SplitSeq(v, "/") {
		if plain := strings.ReplaceAll(strings.ReplaceAll(segment, "%2e", "."), "%2E", "."); plain == "." || plain == ".." {
			return fmt.Sprintf("want no segment %q, got %q: rules see paths in their normal form", segment, v)
		}
	}
	return ""
}

func checkPathTemplate(v string) string {
	wrong := func(want string) string {
		return fmt.Sprintf("want a template of whole segments {*}, and {**} as the last operator, %s, got %q", want, v)
	}
	if v[0] != '/' {
		return wrong(`that begins with "/"`)
	}
	last := false
	for segment := range strings.SplitSeq(v[1:], "/") {
		switch {
		case segment == "{*}", segment == "{**}":
			if last {
				return wrong("with no operator after {**}")
			}
			last = segment == "{**}"
		case strings.ContainsAny(segment, "{}*"):
			return wrong("with no *, { or } besides")
		}
	}
	return checkRulePath(v)
}

// Attributes of conditions (https://istio.io/latest/docs/reference/config/security/conditions/).
const (
	AttributeHeader               = "request.headers"
	AttributeSourceIP             = "source.ip"
	AttributeRemoteIP             = "remote.ip"
	AttributeSourceNamespace      = "source.namespace"
	AttributeSourcePrincipal      = "source.principal"
	AttributeSourceServiceAccount = "source.serviceAccount"
	AttributeSourceTrustDomain    = "source.trustDomain"
	AttributeRequestPrincipal     = "request.auth.principal"
	AttributeRequestAudiences     = "request.auth.audiences"
	AttributeRequestPresenter     = "request.auth.presenter"
	AttributeRequestClaims        = "request.auth.claims"
	AttributeDestinationIP        = "destination.ip"
	AttributeDestinationPort      = "destination.port"
	AttributeServerName           = "connection.sni"
)

// conditionChecks are the attributes, and what their values are held to.
var conditionChecks = map[string]valueCheck{ //nolint:gochecknoglobals // a constant
	AttributeHeader: checkPattern, AttributeSourceIP: checkBlock, AttributeRemoteIP: checkBlock, AttributeSourceNamespace: checkPattern,
	AttributeSourcePrincipal: checkPrincipal, AttributeSourceServiceAccount: checkServiceAccount, AttributeSourceTrustDomain: checkPattern,
	AttributeRequestPrincipal: checkPattern, AttributeRequestAudiences: checkPattern, AttributeRequestPresenter: checkPattern,
	AttributeRequestClaims: checkPattern, AttributeDestinationIP: checkBlock, AttributeDestinationPort: checkPortText, AttributeServerName: checkPattern,
}

// ConditionKey splits the key of a condition into the attribute and the names in brackets behind it:
// request.auth.claims[a][b] is request.auth.claims, a and b. ok is false where there is no such attribute.
func ConditionKey(key string) (attribute string, names []string, ok bool) {
	attribute, rest, _ := strings.Cut(key, "[")
	if rest != "" {
		if !strings.HasSuffix(rest, "]") {
			return "", nil, false
		}
		names = strings.Split(strings.TrimSuffix(rest, "]"), "][")
	}
	for _, n := range names {
		if n == "" || strings.ContainsAny(n, "[]") {
			return "", nil, false
		}
	}
	_, known := conditionChecks[attribute]
	switch attribute {
	case AttributeHeader:
		known = len(names) == 1
	case AttributeRequestClaims:
		known = len(names) > 0
	default:
		known = known && rest == "" && !strings.Contains(key, "[")
	}
	return attribute, names, known
}

func validateCondition(ps *Problems, path Path, c *security.Condition) {
	attribute, names, ok := ConditionKey(c.GetKey())
	switch {
	case c.GetKey() == "":
		ps.required(path.At("key"), "want an attribute, such as request.headers[user-agent]")
	case strings.HasPrefix(c.Key, "experimental."):
		ps.invalid(path.At("key"), fmt.Sprintf("want an attribute that is not Envoy's own, got %q", c.Key))
	case !ok:
		known := slices.Sorted(func(yield func(string) bool) {
			for k := range conditionChecks {
				switch k {
				case AttributeHeader:
					k += "[<name>]"
				case AttributeRequestClaims:
					k += "[<name>]…"
				}
				if !yield(k) {
					return
				}
			}
		})
		ps.invalid(path.At("key"), fmt.Sprintf("want one of %s, got %q", strings.Join(known, ", "), c.Key))
	case attribute == AttributeHeader:
		checkRuleHeader(ps, path.At("key"), names[0])
	}
	if len(c.GetValues())+len(c.GetNotValues()) == 0 {
		ps.required(path.At("values"), "want values, notValues or both")
	}
	if check := conditionChecks[attribute]; ok && check != nil {
		checkEach(ps, path.At("values"), c.Values, check)
		checkEach(ps, path.At("notValues"), c.NotValues, check)
	}
}

// checkRuleHeader checks the name of a header that a rule looks at.
func checkRuleHeader(ps *Problems, path Path, name string) {
	lower := strings.ToLower(name)
	switch {
	case strings.HasPrefix(name, ":"):
		ps.invalid(path, fmt.Sprintf("want a header, got the pseudo-header %q: to.operation has hosts, methods and paths", name))
	case !headerName.MatchString(name):
		ps.invalid(path, fmt.Sprintf("want a header's name in the brackets, got %q", name))
	case lower == "x-forwarded-client-cert":
		ps.invalid(path, "want source.principal: a client can write this header itself, so rules do not see it")
	case lower == "host" || slices.Contains(hopHeaders, lower):
		ps.invalid(path, fmt.Sprintf("want a header other than %q, which is for the way and not for rules", name))
	}
}
