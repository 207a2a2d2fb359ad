package api

// AttributeManifestSpec lists attributes and their types
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/istio.policy.v1beta1/#AttributeManifest).
type AttributeManifestSpec struct {
	Revision   string                   `json:"revision"`
	Name       string                   `json:"name"`
	Attributes map[string]AttributeInfo `json:"attributes"`
}

// AttributeInfo is one attribute.
type AttributeInfo struct {
	Description string `json:"description"`
	ValueType   string `json:"valueType" enum:"STRING,INT64,DOUBLE,BOOL,TIMESTAMP,IP_ADDRESS,EMAIL_ADDRESS,URI,DNS_NAME,DURATION,STRING_MAP"`
}

// AttributeManifest is the kind that names attributes. What proxies know of an exchange is fixed, so that it can only say
// what is so already.
func AttributeManifest() *Kind {
	k := structKind(Kind{Kind: "attributemanifest"}, func() any { return &AttributeManifestSpec{} })
	k.validate = func(o *Object) (ps Problems) {
		for _, name := range sortedKeys(o.Spec.(*AttributeManifestSpec).Attributes) {
			if o.Spec.(*AttributeManifestSpec).Attributes[name].ValueType == "" {
				ps.required(Path{"spec", "attributes", name, "valueType"}, "want a type, such as STRING")
			}
		}
		return ps
	}
	return k
}
