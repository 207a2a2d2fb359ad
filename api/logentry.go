package api

// LogEntry is an instance that is one line of a log
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/templates/logentry/).
type LogEntry struct {
	Variables                   map[string]string `json:"variables"`
	Timestamp                   string            `json:"timestamp"`
	Severity                    string            `json:"severity"`
	MonitoredResourceType       string            `json:"monitoredResourceType"`
	MonitoredResourceDimensions map[string]string `json:"monitoredResourceDimensions"`
}

func logEntry() Template {
	return Template{Name: "logentry", plural: "logentries", Report: true, newParams: func() any { return &LogEntry{} }}
}
