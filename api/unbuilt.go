package api

// What to use in place of what Mixer had and this mesh has not.
const (
	useOutside  = "want a handler with a connection, which is an adapter outside of mixer"
	useMetrics  = "want a prometheus handler, or one with a connection for an adapter outside of mixer that passes its metrics on"
	useLogs     = "want a fluentd or stdio handler for logs and a prometheus one for metrics, or one with a connection for an adapter outside of mixer"
	useAccess   = "want an AuthorizationPolicy, or RbacConfig, ServiceRole and ServiceRoleBinding: proxies carry them out without a rule"
	usePath     = "want an expression over request.path and request.method in place of its operations"
	noTraces    = "want none of it: no traces are made of a mesh's requests"
	useInstance = "want an instance of metric or logentry, which an adapter outside of mixer is sent"
)

// unbuilt are the kinds, adapters and templates of Istio's Mixer that are not built, with what to use instead
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/).
var unbuilt = map[string]string{ //nolint:gochecknoglobals // a constant
	// Adapters.
	"bypass": useOutside, "circonus": useMetrics, "cloudwatch": useMetrics, "dogstatsd": useMetrics, "noop": "want none of it: it did nothing",
	"opa":  "want an AuthorizationPolicy with the action CUSTOM, whose provider is Open Policy Agent",
	"rbac": useAccess, "servicecontrol": useLogs, "signalfx": useMetrics, "solarwinds": useLogs, "stackdriver": useLogs, "statsd": useMetrics, "zipkin": noTraces,
	// Templates.
	"apikey": "want a listentry with the value request.api_key for a listchecker of the keys", "authorization": useAccess,
	"edge": "want a metric: the standard ones name both ends of every request", "servicecontrolreport": useInstance, "tracespan": noTraces,
	// Kinds besides.
	"adapter": useOutside, "template": useInstance, "HTTPAPISpec": usePath, "HTTPAPISpecBinding": usePath,
}

// notBuilt says that name is not built and what to use instead; empty where Mixer had no such thing.
func notBuilt(name string) string {
	instead, ok := unbuilt[name]
	if !ok {
		return ""
	}
	return name + " of Mixer is not built: " + instead
}
