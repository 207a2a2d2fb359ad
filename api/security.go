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

// targetedFields is securityFields for a kind that may have targetRefs in place of a selector.
func targetedFields(kind string, names ...string) fieldSet {
	set := securityFields(append(names, kind+".selector", kind+".targetRef", kind+".targetRefs")...)
	maps.Copy(set, fieldsOf("istio.type.v1beta1", []string{
		"PolicyTargetReference.group", "PolicyTargetReference.kind", "PolicyTargetReference.name", "PolicyTargetReference.namespace",
	}))
	return set
}

// maxTargets is how many targetRefs an object may have, as in Istio's schema.
const maxTargets = 16

// Target is a service whose workloads an object is for, and where the object names it.
type Target struct {
	Path    Path
	Service string
}

// selecting is a spec that chooses workloads by their labels, targeting one that may name services in their place.
type (
	selecting interface {
		GetSelector() *istiotype.WorkloadSelector
	}
	targeting interface {
		selecting
		GetTargetRef() *istiotype.PolicyTargetReference
		GetTargetRefs() []*istiotype.PolicyTargetReference
	}
)

// Targets are the services of an object's targetRefs, which are of its namespace; none where it has none.
func Targets(o *Object) (targets []Target) {
	spec, ok := o.Spec.(targeting)
	if !ok {
		return nil
	}
	if r := spec.GetTargetRef(); r != nil {
		targets = append(targets, Target{Path{"spec", "targetRef"}, r.GetName()})
	}
	for i, r := range spec.GetTargetRefs() {
		targets = append(targets, Target{Path{"spec", "targetRefs", i}, r.GetName()})
	}
	return targets
}

// SelectorLabels are the labels of the workloads that an object is for; none is all.
func SelectorLabels(o *Object) map[string]string {
	spec, ok := o.Spec.(selecting)
	if !ok {
		return nil
	}
	return spec.GetSelector().GetMatchLabels()
}

// checkSelector checks the labels that choose the workloads of an object.
func checkSelector(ps *Problems, s *istiotype.WorkloadSelector) {
	checkSelectorLabels(ps, Path{"spec", "selector", "matchLabels"}, s.GetMatchLabels())
}

// checkTargets checks the selector and the targetRefs of an object, which has one of them at most
// (https://istio.io/latest/docs/reference/config/type/workload-selector/#PolicyTargetReference).
func checkTargets(ps *Problems, o *Object, spec targeting) {
	checkSelector(ps, spec.GetSelector())
	written, _ := o.Content["spec"].(map[string]any)
	ways := 0
	for _, field := range []string{"selector", "targetRef", "targetRefs"} {
		if written[field] != nil {
			ways++
		}
	}
	if ways > 1 {
		ps.invalid(Path{"spec"}, "want one of selector, targetRef and targetRefs at most")
	}
	if r := spec.GetTargetRef(); r != nil {
		checkTarget(ps, Path{"spec", "targetRef"}, r)
	}
	refs, path := spec.GetTargetRefs(), Path{"spec", "targetRefs"}
	switch {
	case written["targetRefs"] != nil && len(refs) == 0:
		ps.invalid(path, "want at least one, or the field left out: an empty list would be every workload of the namespace")
	case len(refs) > maxTargets:
		ps.invalid(path, fmt.Sprintf("want at most %d, got %d", maxTargets, len(refs)))
	}
	for i, r := range refs {
		checkTarget(ps, path.At(i), r)
	}
}

func checkTarget(ps *Problems, path Path, r *istiotype.PolicyTargetReference) {
	if r.GetName() == "" {
		ps.required(path.At("name"), "want the name of a service")
	}
	if r.GetNamespace() != "" {
		ps.invalid(path.At("namespace"), "want none: an object is for services of its own namespace")
	}
	switch core := r.GetGroup() == "" || r.GetGroup() == "core"; {
	case r.GetKind() == "":
		ps.required(path.At("kind"), "want Service")
	case r.GetKind() == "Gateway":
		ps.invalid(path.At("kind"), "want Service, got Gateway: a gateway is a workload, which spec.selector.matchLabels chooses, as istio: ingressgateway")
	case r.GetKind() != "Service":
		ps.invalid(path.At("kind"), fmt.Sprintf("want Service, got %s", r.GetKind()))
	case !core:
		ps.invalid(path.At("group"), fmt.Sprintf("want none for a Service, got %q", r.GetGroup()))
	}
}

// scopeCell says for whom an object is: services, the labels of its selector, its namespace or the mesh.
func scopeCell(o *Object) any {
	labels, targets := SelectorLabels(o), Targets(o)
	switch {
	case len(targets) > 0:
		names := make([]string, len(targets))
		for i := range targets {
			names[i] = targets[i].Service
		}
		return "service " + strings.Join(names, ",")
	case len(labels) > 0:
		return labelText(labels)
	case o.Meta.Namespace == RootNamespace:
		return "mesh"
	}
	return "namespace " + o.Meta.Namespace
}

func labelText(labels map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, key+"="+labels[key])
	}
	return strings.Join(parts, ",")
}
