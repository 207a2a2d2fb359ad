package api

// Metric is an instance that is one observation of a metric
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/templates/metric/).
type Metric struct {
	Value                       string            `json:"value"`
	Dimensions                  map[string]string `json:"dimensions"`
	MonitoredResourceType       string            `json:"monitoredResourceType"`
	MonitoredResourceDimensions map[string]string `json:"monitoredResourceDimensions"`
}

func metric() Template {
	return Template{Name: "metric", Report: true, newParams: func() any { return &Metric{} }}
}
