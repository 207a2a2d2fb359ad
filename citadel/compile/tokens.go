package compile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	security "istio.io/api/security/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/internal/jwt"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Discovery ends the URI of an issuer's OpenID configuration, which says where its keys are
// (https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderConfig).
const Discovery = "/.well-known/openid-configuration"

// DefaultTimeout is how long fetching keys may take, as Istio's.
const DefaultTimeout = 5 * time.Second

// Keys are a JWK set that was fetched; Set is empty where it never was. Err says why the last try failed.
type Keys struct{ Set, Err string }

// KeySource is where keys are to be fetched from.
type KeySource struct {
	URI     string
	Timeout time.Duration
}

// tokenRule is a rule of a RequestAuthentication, or of a policy of Istio 1.0.
type tokenRule struct {
	object   *api.Object
	path     string
	of       func(*mesh.Workload) bool
	rule     *security.JWTRule
	required bool
}

// tokenRules are those of objects, which are by age.
func tokenRules(objects []*api.Object) (rules []tokenRule) {
	for _, o := range objects {
		switch spec := o.Spec.(type) {
		case *security.RequestAuthentication:
			of := Concerning(o)
			for i, r := range spec.JwtRules {
				rules = append(rules, tokenRule{object: o, path: fmt.Sprintf("spec.jwtRules[%d]", i), of: of, rule: r})
			}
		case *api.AuthenticationPolicy:
			for i := range spec.Origins {
				rules = append(rules, tokenRule{
					object: o, path: fmt.Sprintf("spec.origins[%d].jwt", i), of: oldTargets(o, spec), rule: spec.Origins[i].Rule(), required: !spec.OriginOptional,
				})
			}
		}
	}
	return rules
}

func oldTargets(o *api.Object, spec *api.AuthenticationPolicy) func(*mesh.Workload) bool {
	return func(w *mesh.Workload) bool {
		if o.Kind.Kind == "MeshPolicy" {
			return true
		}
		return w.Namespace == o.Meta.Namespace &&
			(len(spec.Targets) == 0 || slices.ContainsFunc(spec.Targets, func(t api.PolicyTarget) bool { return w.Serves(t.Name) }))
	}
}

// keysFrom is where the rule's keys are to be fetched from; empty where they stand in it.
func (r *tokenRule) keysFrom() string {
	switch {
	case r.rule.Jwks != "":
		return ""
	case r.rule.JwksUri != "":
		return r.rule.JwksUri
	}
	return strings.TrimSuffix(r.rule.Issuer, "/") + Discovery
}

// KeySources are where keys are to be fetched from, by URI.
func (x *Index) KeySources() (sources []KeySource) {
	for i := range x.tokens {
		r := &x.tokens[i]
		uri := r.keysFrom()
		if uri == "" {
			continue
		}
		timeout := DefaultTimeout
		if t := r.rule.Timeout; t != nil {
			timeout = t.AsDuration()
		}
		if i := slices.IndexFunc(sources, func(s KeySource) bool { return s.URI == uri }); i >= 0 {
			sources[i].Timeout = max(sources[i].Timeout, timeout)
			continue
		}
		sources = append(sources, KeySource{uri, timeout})
	}
	slices.SortFunc(sources, func(a, b KeySource) int { return cmp.Compare(a.URI, b.URI) })
	return sources
}

// tokensOf are the issuers whose tokens w takes.
func (x *Index) tokensOf(w *mesh.Workload) (rules []snapshot.TokenRule, required bool) {
	for i := range x.tokens {
		r := &x.tokens[i]
		if !r.of(w) {
			continue
		}
		rules = append(rules, r.compile(x.keys))
		required = required || r.required
	}
	return rules, required
}

func (r *tokenRule) compile(keys map[string]Keys) snapshot.TokenRule {
	out := snapshot.TokenRule{
		Source: r.object.String() + " " + r.path, Issuer: r.rule.Issuer, Audiences: r.rule.Audiences,
		Keys: r.rule.Jwks, KeysFrom: r.keysFrom(),
		Params: r.rule.FromParams, Cookies: r.rule.FromCookies,
		PayloadHeader: strings.ToLower(r.rule.OutputPayloadToHeader), Forward: r.rule.ForwardOriginalToken, SpaceDelimited: r.rule.SpaceDelimitedClaims,
	}
	if out.KeysFrom != "" {
		out.Keys = keys[out.KeysFrom].Set
	}
	for _, h := range r.rule.FromHeaders {
		out.Headers = append(out.Headers, snapshot.TokenHeader{Name: strings.ToLower(h.GetName()), Prefix: h.GetPrefix()})
	}
	if len(out.Headers)+len(out.Params)+len(out.Cookies) == 0 {
		// https://istio.io/latest/docs/reference/config/security/request_authentication/#JWTRule-from_headers
		out.Headers, out.Params = []snapshot.TokenHeader{{Name: "authorization", Prefix: "Bearer "}}, []string{"access_token"}
	}
	for _, c := range r.rule.OutputClaimToHeaders {
		out.ClaimHeaders = append(out.ClaimHeaders, snapshot.ClaimHeader{Name: strings.ToLower(c.GetHeader()), Claim: c.GetClaim()})
	}
	return out
}

// checkTokens is what is questionable about the rules of o: for whom they are, and their keys.
func (x *Index) checkTokens(o *api.Object) (problems []analysis.Problem) {
	if spec, ok := o.Spec.(*security.RequestAuthentication); ok {
		problems = append(checkSelector(o, spec), x.checkScope(o)...)
		if len(spec.GetJwtRules()) == 0 {
			problems = append(problems, problem(analysis.SchemaWarning, o, "spec.jwtRules", "there are none, so tokens are not looked at"))
		}
	}
	_, old := o.Spec.(*api.AuthenticationPolicy)
	told := !old
	for i := range x.tokens {
		r := &x.tokens[i]
		if r.object.String() != o.String() {
			continue
		}
		if !told && !slices.ContainsFunc(x.sorted, r.of) {
			told = true
			problems = append(problems, problem(analysis.NoMatchingWorkloads, o, selectorPath(o), "no workload that runs is meant by this"))
		}
		if p, ok := x.keyProblem(r); ok {
			problems = append(problems, p)
		}
	}
	return problems
}

// keyProblem is what is wrong with a rule's keys.
func (x *Index) keyProblem(r *tokenRule) (analysis.Problem, bool) {
	uri := r.keysFrom()
	keys, path := x.keys[uri], r.path+".jwksUri"
	if uri == "" {
		keys, path = Keys{Set: r.rule.Jwks}, r.path+".jwks"
		if _, err := jwt.ParseKeySet([]byte(keys.Set)); err != nil {
			return problem(analysis.SchemaWarning, r.object, path, fmt.Sprintf("every token of %s is refused: %v", r.rule.Issuer, err)), true
		}
		return analysis.Problem{}, false
	}
	switch {
	case keys.Err == "":
		return analysis.Problem{}, false
	case keys.Set == "":
		return problem(analysis.KeysNotFetched, r.object, path, fmt.Sprintf("every token of %s is refused until its keys are there: %s", r.rule.Issuer, keys.Err)), true
	}
	return problem(analysis.KeysNotFetched, r.object, path, "the keys that were fetched before stay in force: "+keys.Err), true
}

// CountKeys checks a JWK set that was fetched, as the proxies will, and counts the keys that verify tokens.
func CountKeys(set string) (int, error) {
	parsed, err := jwt.ParseKeySet([]byte(set))
	if err != nil {
		return 0, err
	}
	return parsed.Len(), nil
}
