// Package report is the contract between a proxy and mixer: telemetry as cumulative series. Each report holds
// everything that one proxy process has counted since it started, so a lost report loses nothing, and a
// repeated one counts nothing twice.
package report

// Report is the body of POST /v1/reports at mixer.
type Report struct {
	Workload string `json:"workload"`
	// Instance is random for each proxy process: counters begin anew with it.
	Instance string `json:"instance"`
	// Sequence grows with each report of an instance; an older one that arrives late is dropped.
	Sequence uint64       `json:"sequence"`
	HTTP     []HTTPSeries `json:"http,omitempty"`
	TCP      []TCPSeries  `json:"tcp,omitempty"`
	// Metrics are those that rules ask for.
	Metrics []Metric `json:"metrics,omitempty"`
	// Dropped counts exchanges whose series was not kept since the cap on series was reached.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Reporters.
const (
	ReporterSource      = "source"
	ReporterDestination = "destination"
)

// Unknown stands for a value that is not known, as in Istio's metrics.
const Unknown = "unknown"

// Labels are the standard labels of Istio's metrics
// (https://istio.io/latest/docs/reference/config/metrics/#labels). Empty values are written as "unknown".
type Labels struct {
	Reporter         string `json:"reporter"`
	Source           Peer   `json:"source"`
	Destination      Peer   `json:"destination"`
	Service          string `json:"service,omitempty"`          // destination_service: FQDN
	ServiceName      string `json:"serviceName,omitempty"`      // destination_service_name
	ServiceNamespace string `json:"serviceNamespace,omitempty"` // destination_service_namespace
	SecurityPolicy   string `json:"securityPolicy,omitempty"`   // connection_security_policy: mutual_tls or none at the destination
	ResponseFlags    string `json:"responseFlags,omitempty"`    // "-" if none
	RequestProtocol  string `json:"requestProtocol,omitempty"`  // http, grpc or tcp
	ResponseCode     string `json:"responseCode,omitempty"`     // HTTP only; "0" if the client went away
	GRPCStatus       string `json:"grpcStatus,omitempty"`       // HTTP only
}

// Peer is one side of an exchange.
type Peer struct {
	Workload          string `json:"workload,omitempty"`
	Namespace         string `json:"namespace,omitempty"`
	Principal         string `json:"principal,omitempty"`
	App               string `json:"app,omitempty"`
	Version           string `json:"version,omitempty"`
	Cluster           string `json:"cluster,omitempty"`
	CanonicalService  string `json:"canonicalService,omitempty"`
	CanonicalRevision string `json:"canonicalRevision,omitempty"`
}

// HTTPSeries counts the exchanges that share Labels.
type HTTPSeries struct {
	Labels        Labels    `json:"labels"`
	Requests      uint64    `json:"requests"`
	Duration      Histogram `json:"duration"` // milliseconds
	RequestBytes  Histogram `json:"requestBytes"`
	ResponseBytes Histogram `json:"responseBytes"`
}

// TCPSeries counts the connections that share Labels.
type TCPSeries struct {
	Labels   Labels `json:"labels"`
	Opened   uint64 `json:"opened"`
	Closed   uint64 `json:"closed"`
	Sent     uint64 `json:"sent"`     // bytes, towards the client
	Received uint64 `json:"received"` // bytes, from the client
}

// Buckets are the upper bounds of every histogram, those of Envoy's default; the last bucket is +Inf.
var Buckets = [...]float64{.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// Histogram counts values by Buckets; Counts are not cumulative over buckets.
type Histogram struct {
	Counts [len(Buckets) + 1]uint64 `json:"counts"`
	Sum    float64                  `json:"sum"`
}
