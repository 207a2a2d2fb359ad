package api

// CheckNothing is an instance that holds nothing: for handlers that need none to decide
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/templates/checknothing/).
type CheckNothing struct{}

func checkNothing() Template {
	return Template{Name: "checknothing", Check: true, newParams: func() any { return &CheckNothing{} }}
}
