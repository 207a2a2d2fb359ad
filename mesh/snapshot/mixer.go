package snapshot

// MixerRule is a rule of config.istio.io that concerns a proxy: where its match is true, the rest of it is done.
type MixerRule struct {
	// Name is that of the object, such as rule/default/denyreviewsv3.
	Name string `json:"name"`
	// Match is a BOOL; nil is true. An attribute that is missing in it is false.
	Match           *Expression    `json:"match,omitempty"`
	Checks          []MixerCheck   `json:"checks,omitempty"`
	RequestHeaders  []MixerHeader  `json:"requestHeaders,omitempty"`
	ResponseHeaders []MixerHeader  `json:"responseHeaders,omitempty"`
	Metrics         []MixerMetric  `json:"metrics,omitempty"`
	Entries         []MixerEntries `json:"entries,omitempty"`
}

// MixerCheck is an instance that is given to a handler which may refuse. Exactly one of Deny and List is set.
type MixerCheck struct {
	// Handler is named in the refusal: handler.denier.istio-system.
	Handler string     `json:"handler"`
	Deny    *MixerDeny `json:"deny,omitempty"`
	List    *MixerList `json:"list,omitempty"`
}

// MixerDeny refuses always.
type MixerDeny struct {
	Code    int32  `json:"code"` // of google.rpc
	Message string `json:"message,omitempty"`
}

// MixerList refuses what is in the list, or what is not.
type MixerList struct {
	// Value is what is looked for, a STRING or an IP_ADDRESS.
	Value Expression `json:"value"`
	// Type is that of the entries: STRINGS, CASE_INSENSITIVE_STRINGS, IP_ADDRESSES or REGEX.
	Type      string   `json:"type"`
	Blacklist bool     `json:"blacklist,omitempty"`
	Entries   []string `json:"entries,omitempty"` // sorted
	// Unavailable says why there are no entries but those that the handler has itself. What is not among these is refused.
	Unavailable string `json:"unavailable,omitempty"`
}

// MixerHeader changes a header field.
type MixerHeader struct {
	Name      string       `json:"name"`
	Operation string       `json:"operation"` // REPLACE, APPEND or REMOVE
	Values    []Expression `json:"values,omitempty"`
}

// MixerMetric is a metric of a prometheus handler. The proxy counts it, and reports what it has counted.
type MixerMetric struct {
	Name        string    `json:"name"` // at /metrics
	Description string    `json:"description,omitempty"`
	Kind        string    `json:"kind"` // COUNTER, GAUGE or DISTRIBUTION
	Bounds      []float64 `json:"bounds,omitempty"`
	// Labels are names at /metrics; Dimensions are their values, in the same order.
	Labels     []string     `json:"labels,omitempty"`
	Dimensions []Expression `json:"dimensions,omitempty"`
	// Value is an INT64, a DOUBLE, a DURATION, counted in seconds, or a STRING with a number in it.
	Value Expression `json:"value"`
}

// MixerEntries are log entries, or metrics as such, for a handler that mixer has or reaches. The proxy evaluates them and
// sends them in batches.
type MixerEntries struct {
	// Handler and Instance are names, as handler.stdio.istio-system and accesslog.logentry.istio-system.
	Handler  string `json:"handler"`
	Instance string `json:"instance"`
	// Severity and Timestamp are those of a log entry; nil is none, and the time of the report.
	Severity  *Expression `json:"severity,omitempty"`
	Timestamp *Expression `json:"timestamp,omitempty"`
	// Variables are sorted by Name. Those of a metric are its dimensions and its value.
	Variables []MixerVariable `json:"variables,omitempty"`
}

// MixerVariable is one of an entry.
type MixerVariable struct {
	Name  string     `json:"name"`
	Value Expression `json:"value"`
}
