package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	istiotype "istio.io/api/type/v1beta1"
)

// SecurityGroup is the group of the kinds that citadel owns.
const SecurityGroup = "security.istio.io"

// RootNamespace is the one whose objects hold for the whole mesh where those of citadel's kinds name no workload
// (https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-root_namespace).
const RootNamespace = "istio-system"

// securityPackage is the protobuf package of the group's messages: the types of v1 are aliases of it.
const securityPackage = "istio.security.v1beta1"

// Security are the kinds that citadel owns.
func Security() []*Kind {
	return []*Kind{AuthorizationPolicy(), ClusterRbacConfig(), MeshConfigKind(), MeshPolicy(), PeerAuthentication(), Policy(), RbacConfig(), RequestAuthentication(), ServiceRole(), ServiceRoleBinding()}
}

// securityKind completes k, whose spec is a message like newSpec's, of which the supported fields may be set.
func securityKind(k Kind, newSpec func() proto.Message, supported fieldSet) *Kind {
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		m := newSpec()
		return m, decodeProto(spec, m, supported)
	}
	k.schema = func() map[string]any { return protoSchema(newSpec().ProtoReflect().Descriptor(), supported) }
	k.Group = SecurityGroup
	k.Versions = []string{"v1", "v1beta1"}
	k.Categories = []string{"istio-io", "security-istio-io"}
	return &k
}

// securityFields is the set of "<message>.<field>" of the group's messages, and the selector's.
func securityFields(names ...string) fieldSet {
	set := fieldsOf(securityPackage, names)
	set[selectorLabels] = true
	return set
}

// selectorLabels is the one field of a selector of workloads.
const selectorLabels protoreflect.FullName = "istio.type.v1beta1.WorkloadSelector.match_labels"

// checkSelector checks the labels that choose the workloads of an object.
func checkSelector(ps *Problems, s *istiotype.WorkloadSelector) {
	checkSelectorLabels(ps, Path{"spec", "selector", "matchLabels"}, s.GetMatchLabels())
}

// scopeCell says for whom an object is: the labels of its selector, its namespace or the mesh.
func scopeCell(o *Object, s *istiotype.WorkloadSelector) any {
	switch {
	case len(s.GetMatchLabels()) > 0:
		return labelText(s.MatchLabels)
	case o.Meta.Namespace == RootNamespace:
		return "mesh"
	}
	return fmt.Sprintf("namespace %s", o.Meta.Namespace)
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, key+"="+labels[key])
	}
	return strings.Join(parts, ",")
}
