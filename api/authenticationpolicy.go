package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	security "istio.io/api/security/v1"
)

// OldAuthenticationGroup is the group of Istio 1.0's authentication policies.
const OldAuthenticationGroup = "authentication.istio.io"

// AuthenticationPolicy is the spec of Policy and MeshPolicy of Istio 1.0 (istio.io/api at 1.0.6, authentication/v1alpha1): what
// today a PeerAuthentication and a RequestAuthentication say. citadel reads it as such.
type AuthenticationPolicy struct {
	// Targets are the services it is for; empty is all.
	Targets []PolicyTarget
	// Peers say that mutual TLS is demanded, MutualTLS, or taken besides plain text, Permissive. Neither is none of the two.
	MutualTLS, Permissive bool
	// Origins are whose tokens are taken. OriginOptional lets a request without one pass.
	Origins        []PolicyJWT
	OriginOptional bool
}

// PolicyTarget is a service, and those of its ports that are meant; none is all.
type PolicyTarget struct {
	Name  string
	Ports []uint16
}

// PolicyJWT is whose tokens are taken, and where they stand.
type PolicyJWT struct {
	Issuer, JWKSURI, JWKS      string
	Audiences, Headers, Params []string
}

// Policy is the kind of Istio 1.0 for the services of a namespace.
func Policy() *Kind {
	return oldAuthenticationKind(Kind{Kind: "Policy", Plural: "policies", Singular: "policy", validate: validateOldPolicy})
}

// MeshPolicy is the kind of Istio 1.0 for the whole mesh.
func MeshPolicy() *Kind {
	return oldAuthenticationKind(Kind{Kind: "MeshPolicy", Plural: "meshpolicies", Singular: "meshpolicy", validate: validateMeshPolicy})
}

func oldAuthenticationKind(k Kind) *Kind {
	k.Group, k.Versions = OldAuthenticationGroup, []string{"v1alpha1"}
	k.Categories = []string{"istio-io", "authentication-istio-io"}
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		d := oldPolicyDecoder{}
		p := d.policy(Path{"spec"}, spec)
		return p, d.problems
	}
	k.schema = func() map[string]any {
		list := map[string]any{"type": "array", "items": map[string]any{"type": "object"}}
		return map[string]any{"type": "object", "properties": map[string]any{
			"targets": list, "peers": list, "origins": list,
			"peerIsOptional": map[string]any{"type": "boolean"}, "originIsOptional": map[string]any{"type": "boolean"},
			"principalBinding": map[string]any{"type": "string", "enum": []any{"USE_PEER", "USE_ORIGIN"}},
		}}
	}
	return &k
}

func validateOldPolicy(o *Object) Problems {
	p := o.Spec.(*AuthenticationPolicy)
	var ps Problems
	if len(p.Targets) == 0 && o.Meta.Name != "default" {
		ps.invalid(Path{"metadata", "name"}, `want "default" for a policy without targets, which is the namespace's own`)
	}
	return ps
}

func validateMeshPolicy(o *Object) Problems {
	p := o.Spec.(*AuthenticationPolicy)
	var ps Problems
	if o.Meta.Name != "default" {
		ps.invalid(Path{"metadata", "name"}, `want "default": a mesh has one`)
	}
	if len(p.Targets) > 0 {
		ps.invalid(Path{"spec", "targets"}, "want none: it is for the whole mesh")
	}
	return ps
}

// oldPolicyDecoder reads a spec strictly: there is no descriptor of these messages any more.
type oldPolicyDecoder struct{ strictWalk }

// fields calls the reader of each field of value, in order; a field without one is unknown.
func (d *oldPolicyDecoder) fields(path Path, value any, readers map[string]func(Path, any)) {
	object, ok := value.(map[string]any)
	if !ok {
		d.problems.invalid(path, "want an object, got "+describe(value))
		return
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		read := readers[key]
		if read == nil {
			d.problems.invalid(path.At(key), "unknown field, want one of "+fmt.Sprint(slices.Sorted(maps.Keys(readers))))
			continue
		}
		read(path.At(key), object[key])
	}
}

func (d *oldPolicyDecoder) list(path Path, value any, each func(Path, any)) {
	list, ok := value.([]any)
	if !ok && value != nil {
		d.problems.invalid(path, "want a list, got "+describe(value))
	}
	for i, v := range list {
		each(path.At(i), v)
	}
}

func (d *oldPolicyDecoder) text(into *string) func(Path, any) {
	return func(path Path, value any) {
		text, ok := value.(string)
		if !ok || text == "" {
			d.problems.invalid(path, "want a text, got "+describe(value)+quoteHint(value))
		}
		*into = text
	}
}

func (d *oldPolicyDecoder) texts(into *[]string) func(Path, any) {
	return func(path Path, value any) {
		d.list(path, value, func(path Path, value any) {
			var s string
			d.text(&s)(path, value)
			*into = append(*into, s)
		})
	}
}

func (d *oldPolicyDecoder) truth(into *bool) func(Path, any) {
	return func(path Path, value any) { *into, _ = d.boolean(path, value).(bool) }
}

func (d *oldPolicyDecoder) policy(path Path, spec map[string]any) *AuthenticationPolicy {
	p := &AuthenticationPolicy{}
	peerOptional, binding := false, ""
	d.fields(path, spec, map[string]func(Path, any){
		"targets": func(path Path, value any) {
			d.list(path, value, func(path Path, value any) { p.Targets = append(p.Targets, d.target(path, value)) })
		},
		"peers":          func(path Path, value any) { d.list(path, value, func(path Path, value any) { d.peer(path, value, p) }) },
		"peerIsOptional": d.truth(&peerOptional),
		"origins": func(path Path, value any) {
			d.list(path, value, func(path Path, value any) { d.origin(path, value, p) })
		},
		"originIsOptional": d.truth(&p.OriginOptional),
		"principalBinding": d.text(&binding),
	})
	if p.MutualTLS && peerOptional {
		p.MutualTLS, p.Permissive = false, true
	}
	switch {
	case binding != "" && binding != "USE_PEER" && binding != "USE_ORIGIN":
		d.problems.invalid(path.At("principalBinding"), fmt.Sprintf("want USE_PEER or USE_ORIGIN, got %q", binding))
	case binding == "USE_ORIGIN" && len(p.Origins) == 0:
		d.problems.invalid(path.At("principalBinding"), "want origins besides: there is no principal of a token without")
	case binding == "USE_PEER" && len(p.Origins) > 0:
		d.problems.invalid(path.At("principalBinding"), "want USE_ORIGIN beside origins: a token's principal is request.auth.principal, a peer's source.principal")
	}
	return p
}

func (d *oldPolicyDecoder) target(path Path, value any) PolicyTarget {
	t := PolicyTarget{}
	d.fields(path, value, map[string]func(Path, any){
		"name": d.text(&t.Name),
		"ports": func(path Path, value any) {
			d.list(path, value, func(path Path, value any) {
				d.fields(path, value, map[string]func(Path, any){
					"number": func(path Path, value any) {
						n, ok := d.integer(path, value, 1, 65535).(int64)
						if ok && n >= 1 && n <= 65535 {
							t.Ports = append(t.Ports, uint16(n)) //nolint:gosec // in range
						}
					},
					"name": func(path Path, _ any) { d.problems.invalid(path, "want a number: ports have no names here") },
				})
			})
		},
	})
	if msg := checkHost(t.Name); msg != "" {
		d.problems.invalid(path.At("name"), "want a service's name: "+msg)
	}
	return t
}

func (d *oldPolicyDecoder) peer(path Path, value any, p *AuthenticationPolicy) {
	if object, ok := value.(map[string]any); !ok || len(object) == 0 {
		d.problems.invalid(path, "want mtls: {}, got "+describe(value))
		return
	}
	d.fields(path, value, map[string]func(Path, any){
		"mtls": func(path Path, value any) {
			allowTLS, mode := false, "STRICT"
			if value != nil { // people write it as "mtls:"
				d.fields(path, value, map[string]func(Path, any){"allowTls": d.truth(&allowTLS), "mode": d.text(&mode)})
			}
			switch {
			case mode != "STRICT" && mode != "PERMISSIVE":
				d.problems.invalid(path.At("mode"), fmt.Sprintf("want STRICT or PERMISSIVE, got %q", mode))
			case allowTLS:
				d.problems.unsupported(path.At("allowTls"), "TLS without a client's certificate")
			}
			p.Permissive = mode == "PERMISSIVE"
			p.MutualTLS = !p.Permissive
		},
		"jwt": func(path Path, _ any) {
			d.problems.invalid(path, "want it in origins: a token says who the user is, not who the peer is")
		},
	})
}

func (d *oldPolicyDecoder) origin(path Path, value any, p *AuthenticationPolicy) {
	if object, ok := value.(map[string]any); ok && len(object) == 0 {
		d.problems.required(path.At("jwt"), "want an issuer's rule")
	}
	d.fields(path, value, map[string]func(Path, any){
		"jwt": func(path Path, value any) {
			j := PolicyJWT{}
			d.fields(path, value, map[string]func(Path, any){
				"issuer": d.text(&j.Issuer), "jwksUri": d.text(&j.JWKSURI), "jwks": d.text(&j.JWKS),
				"audiences": d.texts(&j.Audiences), "jwtHeaders": d.texts(&j.Headers), "jwtParams": d.texts(&j.Params),
				"triggerRules": func(path Path, _ any) {
					d.problems.invalid(path, "want originIsOptional, and an AuthorizationPolicy for the paths that need a token")
				},
			})
			validateJWTRule(&d.problems, path, j.Rule())
			p.Origins = append(p.Origins, j)
		},
	})
}

// Rule is j as today's kind has it. A header's token stands alone there, or behind Bearer in Authorization.
func (j *PolicyJWT) Rule() *security.JWTRule {
	r := &security.JWTRule{Issuer: j.Issuer, JwksUri: j.JWKSURI, Jwks: j.JWKS, Audiences: j.Audiences, FromParams: j.Params}
	for _, name := range j.Headers {
		h := &security.JWTHeader{Name: name}
		if strings.EqualFold(name, "Authorization") {
			h.Prefix = "Bearer "
		}
		r.FromHeaders = append(r.FromHeaders, h)
	}
	return r
}
