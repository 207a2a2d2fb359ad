package api

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	mesh "istio.io/api/mesh/v1alpha1"
)

// MeshGroup is the group of the settings that hold for the whole mesh. Istio keeps them in a file, so it has no group of its own.
const MeshGroup = "mesh.composure.dev"

// meshPackage is the protobuf package of Istio's settings.
const meshPackage = "istio.mesh.v1alpha1"

// MeshConfigKind is the kind of the mesh's settings: its spec is what Istio has under meshConfig
// (https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig).
func MeshConfigKind() *Kind {
	supported := meshFields(
		"MeshConfig.default_config", "ProxyConfig.gateway_topology", "Topology.num_trusted_proxies",
		"MeshConfig.extension_providers",
		"MeshConfig.ExtensionProvider.name",
		"MeshConfig.ExtensionProvider.envoy_ext_authz_http", "MeshConfig.ExtensionProvider.envoy_ext_authz_grpc",
		"MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationRequestBody.max_request_bytes",
		"MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationRequestBody.allow_partial_message",
		"MeshConfig.ExtensionProvider.EnvoyExternalAuthorizationRequestBody.pack_as_bytes",
	)
	for _, field := range []string{
		"service", "port", "timeout", "path_prefix", "fail_open", "clear_route_cache", "status_on_error", "include_headers_in_check",
		"include_request_headers_in_check", "include_additional_headers_in_check", "include_request_body_in_check",
		"headers_to_upstream_on_allow", "headers_to_downstream_on_deny", "headers_to_downstream_on_allow",
	} {
		for _, message := range []string{"EnvoyExternalAuthorizationHttpProvider", "EnvoyExternalAuthorizationGrpcProvider"} {
			supported[protoreflect.FullName(meshPackage+".MeshConfig.ExtensionProvider."+message+"."+field)] = true
		}
	}
	return &Kind{
		Group: MeshGroup, Versions: []string{"v1alpha1"}, Kind: "MeshConfig", Plural: "meshconfigs", Singular: "meshconfig", Categories: []string{"composure"},
		Columns: []Column{{Name: "Providers", Description: "The extension providers", Cell: func(o *Object) any {
			var names []string
			for _, p := range o.Spec.(*mesh.MeshConfig).GetExtensionProviders() {
				names = append(names, p.GetName())
			}
			return listCell(names)
		}}},
		decodeSpec: func(spec map[string]any) (any, Problems) {
			m := &mesh.MeshConfig{}
			return m, decodeProto(spec, m, supported)
		},
		schema:   func() map[string]any { return protoSchema((&mesh.MeshConfig{}).ProtoReflect().Descriptor(), supported) },
		validate: validateMeshConfig,
	}
}

func meshFields(names ...string) fieldSet { return fieldsOf(meshPackage, names) }

func validateMeshConfig(o *Object) (ps Problems) {
	if o.Meta.Namespace != RootNamespace {
		ps.invalid(Path{"metadata", "namespace"}, fmt.Sprintf("want %s: these settings hold for the whole mesh, got %q", RootNamespace, o.Meta.Namespace))
	}
	seen := map[string]bool{}
	for i, p := range o.Spec.(*mesh.MeshConfig).GetExtensionProviders() {
		path := Path{"spec", "extensionProviders", i}
		switch {
		case p.GetName() == "":
			ps.required(path.At("name"), "want the name that policies know it by")
		case seen[p.GetName()]:
			ps.invalid(path.At("name"), fmt.Sprintf("want each name once, got %q twice", p.GetName()))
		}
		seen[p.GetName()] = true
		validateProvider(&ps, path, p)
	}
	if n := o.Spec.(*mesh.MeshConfig).GetDefaultConfig().GetGatewayTopology().GetNumTrustedProxies(); n > maxTrustedProxies {
		ps.invalid(Path{"spec", "defaultConfig", "gatewayTopology", "numTrustedProxies"},
			fmt.Sprintf("want the number of proxies in front of the gateway, between 0 and %d, got %d", maxTrustedProxies, n))
	}
	return ps
}

// maxTrustedProxies is more than anybody has in a row: a greater number is a mistake, by which a client's word would count.
const maxTrustedProxies = 16

func validateProvider(ps *Problems, path Path, p *mesh.MeshConfig_ExtensionProvider) {
	a, field := ExternalAuthorizer(p)
	if a == nil {
		ps.required(path, "want envoyExtAuthzHttp or envoyExtAuthzGrpc")
		return
	}
	path = path.At(field)
	if namespace, host := a.Host(); host == "" || strings.ContainsAny(host, "*/ ") || namespace == "" && strings.HasPrefix(a.Service, "/") {
		ps.invalid(path.At("service"), fmt.Sprintf("want [<namespace>/]<host>, such as ext-authz.default.svc.cluster.local, got %q", a.Service))
	}
	if a.Port == 0 || a.Port > 65535 {
		ps.invalid(path.At("port"), fmt.Sprintf("want a port of the service between 1 and 65535, got %d", a.Port))
	}
	if t := a.Timeout; t < time.Millisecond {
		ps.invalid(path.At("timeout"), fmt.Sprintf("want at least 1ms, got %s", t))
	}
	if _, err := a.Status(); err != nil {
		ps.invalid(path.At("statusOnError"), err.Error())
	}
	if v := a.PathPrefix; v != "" && (v[0] != '/' || strings.ContainsAny(v, "?# \t\r\n")) {
		ps.invalid(path.At("pathPrefix"), fmt.Sprintf("want a path without query, got %q", v))
	}
	for _, list := range []struct {
		field  string
		values []string
	}{
		{"includeRequestHeadersInCheck", a.RequestHeaders}, {"headersToUpstreamOnAllow", a.UpstreamHeaders},
		{"headersToDownstreamOnDeny", a.DenyHeaders}, {"headersToDownstreamOnAllow", a.AllowHeaders},
	} {
		checkEach(ps, path.At(list.field), list.values, checkHeaderPattern)
	}
	for _, name := range slices.Sorted(maps.Keys(a.AddHeaders)) {
		value := a.AddHeaders[name]
		if lower := strings.ToLower(name); !headerName.MatchString(name) || lower == "host" || lower == "content-length" || slices.Contains(hopHeaders, lower) {
			ps.invalid(path.At("includeAdditionalHeadersInCheck", name), "want a header's name, and none that is for the way of a message")
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) || strings.TrimSpace(value) != value {
			ps.invalid(path.At("includeAdditionalHeadersInCheck", name), fmt.Sprintf("want a value without control characters and white space around it, got %q", value))
		}
	}
	if b := a.Body; b != nil && (b.MaxRequestBytes == 0 || b.MaxRequestBytes > maxCheckedBody) {
		ps.invalid(path.At("includeRequestBodyInCheck", "maxRequestBytes"), fmt.Sprintf("want between 1 and %d (16 MiB), which a proxy holds for each request, got %d", maxCheckedBody, b.MaxRequestBytes))
	}
}

// maxCheckedBody bounds the body that an external authorizer is sent.
const maxCheckedBody = 16 << 20

// checkHeaderPattern allows a name, "prefix*" and "*suffix".
func checkHeaderPattern(v string) string {
	if msg := checkPattern(v); msg != "" || v == "*" || !headerName.MatchString(strings.Trim(v, "*")) {
		return fmt.Sprintf(`want a header's name, "prefix*" or "*suffix", got %q`, v)
	}
	return ""
}

// Authorizer is an extension provider that decides about requests, of either protocol.
type Authorizer struct {
	Name, Service string
	Port          uint32
	GRPC          bool
	// Timeout is 10 min by default, as Istio's.
	Timeout       time.Duration
	FailOpen      bool
	StatusOnError string
	PathPrefix    string

	RequestHeaders, UpstreamHeaders, DenyHeaders, AllowHeaders []string

	AddHeaders map[string]string
	Body       *mesh.MeshConfig_ExtensionProvider_EnvoyExternalAuthorizationRequestBody
}

// Host is the service's name, with the namespace where one is said.
func (a *Authorizer) Host() (namespace, host string) {
	if namespace, host, ok := strings.Cut(a.Service, "/"); ok {
		return namespace, host
	}
	return "", a.Service
}

// Status is what a client gets where the provider can't be asked; 403 by default.
func (a *Authorizer) Status() (int, error) {
	if a.StatusOnError == "" {
		return 403, nil
	}
	code, err := strconv.Atoi(a.StatusOnError)
	if err != nil || code < 200 || code > 599 {
		return 0, fmt.Errorf(`want a status of HTTP from "200" to "599", got %q`, a.StatusOnError)
	}
	return code, nil
}

// defaultAuthorizerTimeout is Istio's.
const defaultAuthorizerTimeout = 600 * time.Second

// ExternalAuthorizer is what p says of one, and the field that says it; nil where it is of another kind.
func ExternalAuthorizer(p *mesh.MeshConfig_ExtensionProvider) (a *Authorizer, field string) {
	var timeout *durationpb.Duration
	if g := p.GetEnvoyExtAuthzGrpc(); g != nil {
		a, field = &Authorizer{
			Service: g.Service, Port: g.Port, GRPC: true, FailOpen: g.FailOpen, StatusOnError: g.StatusOnError, Body: g.IncludeRequestBodyInCheck,
		}, "envoyExtAuthzGrpc"
		timeout = g.Timeout
	}
	if h := p.GetEnvoyExtAuthzHttp(); h != nil {
		a, field = &Authorizer{
			Service: h.Service, Port: h.Port, FailOpen: h.FailOpen, StatusOnError: h.StatusOnError, PathPrefix: h.PathPrefix, Body: h.IncludeRequestBodyInCheck,
			RequestHeaders:  append(slices.Clone(h.IncludeHeadersInCheck), h.IncludeRequestHeadersInCheck...), //nolint:staticcheck // files that have the old name apply
			UpstreamHeaders: h.HeadersToUpstreamOnAllow, DenyHeaders: h.HeadersToDownstreamOnDeny, AllowHeaders: h.HeadersToDownstreamOnAllow,
			AddHeaders: h.IncludeAdditionalHeadersInCheck,
		}, "envoyExtAuthzHttp"
		timeout = h.Timeout
	}
	if a == nil {
		return nil, ""
	}
	a.Name, a.Timeout = p.GetName(), defaultAuthorizerTimeout
	if timeout != nil {
		a.Timeout = timeout.AsDuration()
	}
	return a, field
}
