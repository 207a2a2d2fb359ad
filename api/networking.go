package api

// NetworkingGroup is the group of the kinds that pilot owns.
const NetworkingGroup = "networking.istio.io"

// networkingPackage is the protobuf package of the group's messages: the types of v1 are aliases of it.
const networkingPackage = "istio.networking.v1alpha3"

func networkingKinds() []*Kind {
	return []*Kind{DestinationRule(), Gateway(), VirtualService()}
}

func networkingKind(k Kind) *Kind {
	k.Group = NetworkingGroup
	k.Versions = []string{"v1", "v1beta1", "v1alpha3"}
	k.Categories = []string{"istio-io", "networking-istio-io"}
	return &k
}
