package api

// KubernetesEnv is the handler that told Mixer which pod has an address
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/kubernetesenv/). Here the keeper's facts say
// so to every proxy.
type KubernetesEnv struct{}

func kubernetesEnv() Adapter {
	return Adapter{Name: "kubernetesenv", Templates: []string{"kubernetes"}, newParams: func() any { return &KubernetesEnv{} }}
}

// Kubernetes is the instance for it: which attributes to ask by, and which to make of the answer.
type Kubernetes struct {
	SourceUID         string            `json:"sourceUid"`
	SourceIP          string            `json:"sourceIp"`
	DestinationUID    string            `json:"destinationUid"`
	DestinationIP     string            `json:"destinationIp"`
	DestinationPort   string            `json:"destinationPort"`
	AttributeBindings map[string]string `json:"attributeBindings"`
}

func kubernetes() Template {
	return Template{Name: "kubernetes", plural: "kuberneteses", Check: true, Report: true, newParams: func() any { return &Kubernetes{} }}
}
