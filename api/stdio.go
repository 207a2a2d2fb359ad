package api

// Stdio is a handler that writes log entries and metrics to mixer's own output
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/stdio/).
type Stdio struct {
	LogStream string `json:"logStream" enum:"STDOUT,STDERR,FILE,ROTATED_FILE"`
	// SeverityLevels are the levels of the severities of log entries; those that are not there are INFO.
	SeverityLevels map[string]string `json:"severityLevels" enum:"INFO,WARNING,ERROR"`
	// MetricLevel is that of metrics.
	MetricLevel string `json:"metricLevel" enum:"INFO,WARNING,ERROR"`
	// OutputAsJSON is false for lines of text.
	OutputAsJSON bool `json:"outputAsJson"`
	// OutputLevel is the least level that is written.
	OutputLevel string `json:"outputLevel" enum:"INFO,WARNING,ERROR"`
}

// severityLevels are Istio's defaults.
var severityLevels = map[string]string{
	"INFORMATIONAL": "INFO", "informational": "INFO", "INFO": "INFO", "info": "INFO", "Info": "INFO",
	"WARNING": "WARNING", "warning": "WARNING", "WARN": "WARNING", "warn": "WARNING",
	"ERROR": "ERROR", "error": "ERROR", "ERR": "ERROR", "err": "ERROR", "FATAL": "ERROR", "fatal": "ERROR",
}

func stdio() Adapter {
	return Adapter{
		Name: "stdio", Templates: []string{"logentry", "metric"},
		newParams: func() any {
			return &Stdio{LogStream: "STDOUT", SeverityLevels: severityLevels, MetricLevel: "INFO", OutputAsJSON: true, OutputLevel: "INFO"}
		},
		validate: func(path Path, params any) (ps Problems) {
			if s := params.(*Stdio); s.LogStream != "STDOUT" && s.LogStream != "STDERR" {
				ps.invalid(path.At("logStream"), s.LogStream+": mixer's container keeps no files, want STDOUT or STDERR, which the engine keeps and rotates")
			}
			return ps
		},
	}
}
