package api

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	networking "istio.io/api/networking/v1"
	security "istio.io/api/security/v1"
)

// Every supported field exists, can be reached from its kind's spec, and has a type that the strict walk checks.
func TestSupportedFields(t *testing.T) {
	checked := []protoreflect.Kind{
		protoreflect.MessageKind, protoreflect.StringKind, protoreflect.BoolKind, protoreflect.EnumKind, protoreflect.Int32Kind, protoreflect.Uint32Kind,
		protoreflect.Uint64Kind, protoreflect.DoubleKind, protoreflect.BytesKind,
	}
	plain := []protoreflect.FullName{durationMessage, boolMessage, uint32Message, doubleMessage}
	cases := map[string]struct {
		spec      protoreflect.ProtoMessage
		supported fieldSet
	}{
		"VirtualService":  {&networking.VirtualService{}, virtualServiceFields()},
		"DestinationRule": {&networking.DestinationRule{}, destinationRuleFields()},
		"ServiceEntry":    {&networking.ServiceEntry{}, serviceEntryFields()},
		"WorkloadEntry":   {&networking.WorkloadEntry{}, networkingFields(workloadEntryFields...)},
		"Sidecar":         {&networking.Sidecar{}, sidecarFields()},
		"Gateway":         {&networking.Gateway{}, gatewayFields()},

		"AuthorizationPolicy":   {&security.AuthorizationPolicy{}, authorizationPolicyFields()},
		"PeerAuthentication":    {&security.PeerAuthentication{}, peerAuthenticationFields()},
		"RequestAuthentication": {&security.RequestAuthentication{}, requestAuthenticationFields()},
	}
	for name, c := range cases {
		reached := fieldSet{}
		var walk func(protoreflect.MessageDescriptor)
		walk = func(d protoreflect.MessageDescriptor) {
			for i := range d.Fields().Len() {
				fd := d.Fields().Get(i)
				if !c.supported[fd.FullName()] || reached[fd.FullName()] {
					continue
				}
				reached[fd.FullName()] = true
				value := fd
				if fd.IsMap() {
					value = fd.MapValue()
				}
				if !slices.Contains(checked, value.Kind()) {
					t.Errorf("%s has type %s, which is not checked", fd.FullName(), value.Kind())
				}
				if value.Kind() == protoreflect.MessageKind && !slices.Contains(plain, value.Message().FullName()) {
					walk(value.Message())
				}
			}
		}
		walk(c.spec.ProtoReflect().Descriptor())
		for field := range c.supported {
			if !reached[field] {
				t.Errorf("%s: no field %s", name, field)
			}
		}
	}
}
