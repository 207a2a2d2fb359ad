package api

// ReportNothing is an instance that holds nothing, for reports
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/templates/reportnothing/).
type ReportNothing struct{}

func reportNothing() Template {
	return Template{Name: "reportnothing", Report: true, newParams: func() any { return &ReportNothing{} }}
}
