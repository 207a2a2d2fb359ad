package api

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// NetworkingGroup is the group of the kinds that pilot owns.
const NetworkingGroup = "networking.istio.io"

// networkingPackage is the protobuf package of the group's messages: the types of v1 are aliases of it.
const networkingPackage = "istio.networking.v1alpha3"

func networkingKinds() []*Kind {
	return []*Kind{DestinationRule(), Gateway(), ServiceEntry(), Sidecar(), VirtualService(), WorkloadEntry()}
}

// networkingKind completes k, whose spec is a message like newSpec's, of which the supported fields may be set.
func networkingKind(k Kind, newSpec func() proto.Message, supported fieldSet) *Kind {
	k.decodeSpec = func(spec map[string]any) (any, Problems) {
		m := newSpec()
		return m, decodeProto(spec, m, supported)
	}
	k.schema = func() map[string]any { return protoSchema(newSpec().ProtoReflect().Descriptor(), supported) }
	k.Group = NetworkingGroup
	k.Versions = []string{"v1", "v1beta1", "v1alpha3"}
	k.Categories = []string{"istio-io", "networking-istio-io"}
	return &k
}

// networkingFields is the set of "<message>.<field>" of the group's messages.
func networkingFields(names ...string) fieldSet { return fieldsOf(networkingPackage, names) }

// fieldsOf are fields of a protobuf package.
func fieldsOf(protoPackage string, names []string) fieldSet {
	set := fieldSet{}
	for _, n := range names {
		set[protoreflect.FullName(protoPackage+"."+n)] = true
	}
	return set
}
