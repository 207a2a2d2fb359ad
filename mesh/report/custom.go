package report

import (
	"time"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Metric is a metric that people have asked for, by an instance of the template metric and a prometheus handler, with what
// one proxy has counted. Its series are all that there are: those of an earlier report are replaced.
type Metric struct {
	Name        string         `json:"name"`
	Description string         `json:"description,omitempty"`
	Kind        string         `json:"kind"`
	Labels      []string       `json:"labels,omitempty"`
	Bounds      []float64      `json:"bounds,omitempty"` // of a Distribution, without +Inf
	Series      []MetricSeries `json:"series"`
}

// RateLimited is the metric of requests that a rate limit has refused, or would have if it did more than watch: by the
// labels limit, its name, and verdict, refused or shadowed. It is no rule's.
const RateLimited = "composure_rate_limited_requests_total"

// Kinds of metrics.
const (
	Counter      = "COUNTER"
	Gauge        = "GAUGE"
	Distribution = "DISTRIBUTION"
)

// MetricSeries is what was observed with the same values of the labels.
type MetricSeries struct {
	Values []string `json:"values,omitempty"` // in the order of Labels
	// Value is the sum, and of a Gauge the last one.
	Value float64 `json:"value"`
	// Updated is when a Gauge was set: unix nanoseconds.
	Updated int64 `json:"updated,omitempty"`
	// Counts are those of a Distribution's buckets, the last +Inf, not cumulative.
	Counts []uint64 `json:"counts,omitempty"`
}

// Entry is one log entry for a handler: a line of the body of POST /v1/entries at mixer.
type Entry struct {
	Handler   string     `json:"handler"`
	Instance  string     `json:"instance"`
	Time      time.Time  `json:"time"`
	Severity  string     `json:"severity,omitempty"`
	Variables []Variable `json:"variables"`
}

// Variable is one of a log entry, as text.
type Variable struct {
	Name  string             `json:"name"`
	Type  snapshot.ValueType `json:"type"`
	Value string             `json:"value"`
}
