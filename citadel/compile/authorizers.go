package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	istiomesh "istio.io/api/mesh/v1alpha1"
	security "istio.io/api/security/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// authorizers are the external authorizers of objects, which are by age, by name: of two of one name the older holds.
func authorizers(objects []*api.Object) map[string]snapshot.Authorizer {
	all := map[string]snapshot.Authorizer{}
	for _, o := range objects {
		spec, ok := o.Spec.(*istiomesh.MeshConfig)
		if !ok {
			continue
		}
		for _, p := range spec.GetExtensionProviders() {
			a, _ := api.ExternalAuthorizer(p)
			if _, taken := all[p.GetName()]; a != nil && !taken {
				all[a.Name] = authorizer(a)
			}
		}
	}
	return all
}

// trustedProxies is how many proxies in front of the gateways objects, which are by age, say: the oldest that says so holds.
func trustedProxies(objects []*api.Object) int {
	for _, o := range objects {
		if spec, ok := o.Spec.(*istiomesh.MeshConfig); ok && spec.GetDefaultConfig().GetGatewayTopology() != nil {
			return int(spec.GetDefaultConfig().GetGatewayTopology().GetNumTrustedProxies())
		}
	}
	return 0
}

func authorizer(a *api.Authorizer) snapshot.Authorizer {
	namespace, host := a.Host()
	if !strings.Contains(host, ".") {
		host = mesh.FQDN(host, cmp.Or(namespace, mesh.DefaultNamespace))
	}
	status, _ := a.Status() // was validated
	out := snapshot.Authorizer{
		Name: a.Name, Host: host, Port: uint16(a.Port), GRPC: a.GRPC, //nolint:gosec // was validated
		Timeout: snapshot.Duration(a.Timeout), FailOpen: a.FailOpen, StatusOnError: status, PathPrefix: strings.TrimSuffix(a.PathPrefix, "/"),
		RequestHeaders: lower(a.RequestHeaders), UpstreamHeaders: lower(a.UpstreamHeaders), AllowHeaders: lower(a.AllowHeaders), DenyHeaders: lower(a.DenyHeaders),
	}
	for _, name := range slices.Sorted(maps.Keys(a.AddHeaders)) {
		out.AddHeaders = append(out.AddHeaders, snapshot.Field{Name: strings.ToLower(name), Value: a.AddHeaders[name]})
	}
	if b := a.Body; b != nil {
		out.Body = &snapshot.AuthorizerBody{MaxBytes: b.GetMaxRequestBytes(), Partial: b.GetAllowPartialMessage(), Raw: b.GetPackAsBytes()}
	}
	return out
}

func lower(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, strings.ToLower(n))
	}
	return out
}

// authorizersOf are those that policies ask, by name.
func (x *Index) authorizersOf(policies []snapshot.AccessPolicy) (asked []snapshot.Authorizer) {
	names := map[string]bool{}
	for i := range policies {
		names[policies[i].Provider] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if a, ok := x.authorizers[name]; ok {
			asked = append(asked, a)
		}
	}
	return asked
}

// checkProvider is what is questionable about the provider of a CUSTOM policy.
func (x *Index) checkProvider(o *api.Object, spec *security.AuthorizationPolicy) []analysis.Problem {
	name := spec.GetProvider().GetName()
	if _, ok := x.authorizers[name]; ok || name == "" {
		return nil
	}
	return []analysis.Problem{problem(analysis.ReferencedResourceNotFound, o, "spec.provider.name",
		fmt.Sprintf("no MeshConfig has an extension provider %q: until one does, what the rules match is refused", name))}
}

// checkSettings is what is questionable about a MeshConfig: what an older one says already.
func (x *Index) checkSettings(o *api.Object) (problems []analysis.Problem) {
	spec, ok := o.Spec.(*istiomesh.MeshConfig)
	if !ok {
		return nil
	}
	for _, other := range x.intent {
		older, ok := other.Spec.(*istiomesh.MeshConfig)
		if other.String() == o.String() {
			return problems
		}
		if !ok {
			continue
		}
		for i, p := range spec.GetExtensionProviders() {
			if slices.ContainsFunc(older.GetExtensionProviders(), func(q *istiomesh.MeshConfig_ExtensionProvider) bool { return q.GetName() == p.GetName() }) {
				problems = append(problems, problem(analysis.SchemaValidationError, o, fmt.Sprintf("spec.extensionProviders[%d].name", i),
					fmt.Sprintf("%s has a provider %q, and holds since it is older", other, p.GetName())))
			}
		}
		if spec.GetDefaultConfig().GetGatewayTopology() != nil && older.GetDefaultConfig().GetGatewayTopology() != nil {
			problems = append(problems, problem(analysis.SchemaValidationError, o, "spec.defaultConfig.gatewayTopology", fmt.Sprintf("%s has one, and holds since it is older", other)))
		}
	}
	return problems
}
