package api

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
)

// Prometheus is a handler that shows metrics at mixer's /metrics
// (https://istio.io/v1.0/docs/reference/config/policy-and-telemetry/adapters/prometheus/).
type Prometheus struct {
	Metrics []PrometheusMetric `json:"metrics"`
}

// PrometheusMetric is one metric: the observations of one instance.
type PrometheusMetric struct {
	// Namespace begins the metric's name; empty is istio.
	Namespace string `json:"namespace"`
	// Name is the rest of it; empty is the instance's name.
	Name         string             `json:"name"`
	InstanceName string             `json:"instanceName"`
	Description  string             `json:"description"`
	Kind         string             `json:"kind" enum:"UNSPECIFIED,GAUGE,COUNTER,DISTRIBUTION"`
	Buckets      *PrometheusBuckets `json:"buckets"`
	// LabelNames are dimensions of the instance.
	LabelNames []string `json:"labelNames"`
}

// PrometheusBuckets are the upper bounds of a DISTRIBUTION, in one of three ways.
type PrometheusBuckets struct {
	Linear      *LinearBuckets      `json:"linearBuckets"`
	Exponential *ExponentialBuckets `json:"exponentialBuckets"`
	Explicit    *ExplicitBuckets    `json:"explicitBuckets"`
}

// LinearBuckets are offset, offset + width, …
type LinearBuckets struct {
	NumFiniteBuckets int32   `json:"numFiniteBuckets"`
	Width            float64 `json:"width"`
	Offset           float64 `json:"offset"`
}

// ExponentialBuckets are scale, scale × growthFactor, …
type ExponentialBuckets struct {
	NumFiniteBuckets int32   `json:"numFiniteBuckets"`
	GrowthFactor     float64 `json:"growthFactor"`
	Scale            float64 `json:"scale"`
}

// ExplicitBuckets are listed.
type ExplicitBuckets struct {
	Bounds []float64 `json:"bounds"`
}

// Kinds of metrics.
const (
	KindCounter      = "COUNTER"
	KindGauge        = "GAUGE"
	KindDistribution = "DISTRIBUTION"
)

// maxBuckets bounds the lines of one series.
const maxBuckets = 100

// defaultBounds are those of Prometheus' client library.
var defaultBounds = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Bounds are the upper bounds of the buckets, without +Inf.
func (b *PrometheusBuckets) Bounds() []float64 {
	switch {
	case b == nil:
		return defaultBounds
	case b.Linear != nil:
		bounds := make([]float64, b.Linear.NumFiniteBuckets+1)
		for i := range bounds {
			bounds[i] = b.Linear.Offset + float64(i)*b.Linear.Width
		}
		return bounds
	case b.Exponential != nil:
		bounds := make([]float64, b.Exponential.NumFiniteBuckets+1)
		bound := b.Exponential.Scale
		for i := range bounds {
			bounds[i] = bound
			bound *= b.Exponential.GrowthFactor
		}
		return bounds
	case b.Explicit != nil:
		return b.Explicit.Bounds
	}
	return defaultBounds
}

// safeName is a name as Istio's adapter made it fit for Prometheus.
var safeName = strings.NewReplacer("/", "_", ".", "_", " ", "_", "-", "")

// FullName is the metric's name at /metrics.
func (m *PrometheusMetric) FullName() string {
	namespace, name := m.Namespace, m.Name
	if namespace == "" {
		namespace = "istio"
	}
	if name == "" {
		name = m.InstanceName
	}
	return safeName.Replace(strings.TrimPrefix(namespace, "/")) + "_" + safeName.Replace(strings.TrimPrefix(name, "/"))
}

// LabelName is a dimension's name at /metrics.
func LabelName(dimension string) string { return safeName.Replace(strings.TrimPrefix(dimension, "/")) }

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

func prometheus() Adapter {
	return Adapter{
		Name: "prometheus", plural: "prometheuses", Templates: []string{"metric"},
		newParams: func() any { return &Prometheus{} },
		validate:  func(path Path, params any) Problems { return validatePrometheus(path, params.(*Prometheus)) },
	}
}

func validatePrometheus(path Path, p *Prometheus) (ps Problems) {
	seen := map[string]bool{}
	for i := range p.Metrics {
		m, at := &p.Metrics[i], path.At("metrics", i)
		if m.InstanceName == "" {
			ps.required(at.At("instanceName"), "want the instance whose values it shows, such as requestcount.metric.istio-system")
			continue
		}
		checkReference(&ps, at.At("instanceName"), m.InstanceName)
		name := m.FullName()
		switch {
		case !metricName.MatchString(name):
			ps.invalid(at.At("name"), fmt.Sprintf("want a name of Prometheus, got %q", name))
		case seen[name]:
			ps.invalid(at.At("name"), fmt.Sprintf("%q is listed twice", name))
		}
		seen[name] = true
		if m.Kind == "" || m.Kind == "UNSPECIFIED" {
			ps.required(at.At("kind"), "want one of GAUGE, COUNTER, DISTRIBUTION")
		}
		for j, l := range m.LabelNames {
			switch safe := LabelName(l); {
			case !labelName.MatchString(safe), strings.HasPrefix(safe, "__"), safe == "le" && m.Kind == KindDistribution:
				ps.invalid(at.At("labelNames", j), fmt.Sprintf("want a label's name of Prometheus, got %q", l))
			case slices.Contains(m.LabelNames[:j], l):
				ps.invalid(at.At("labelNames", j), fmt.Sprintf("%q is listed twice", l))
			}
		}
		checkBuckets(&ps, at.At("buckets"), m)
	}
	return ps
}

func checkBuckets(ps *Problems, path Path, m *PrometheusMetric) {
	b := m.Buckets
	if b == nil {
		return
	}
	if m.Kind != KindDistribution {
		ps.invalid(path, "want kind DISTRIBUTION with buckets")
		return
	}
	given := 0
	for _, set := range []bool{b.Linear != nil, b.Exponential != nil, b.Explicit != nil} {
		if set {
			given++
		}
	}
	if given != 1 {
		ps.invalid(path, "want one of linearBuckets, exponentialBuckets, explicitBuckets")
		return
	}
	tooMany := fmt.Sprintf("want between 1 and %d", maxBuckets)
	switch {
	case b.Linear != nil && (b.Linear.NumFiniteBuckets < 1 || b.Linear.NumFiniteBuckets > maxBuckets):
		ps.invalid(path.At("linearBuckets", "numFiniteBuckets"), tooMany)
	case b.Linear != nil && b.Linear.Width <= 0:
		ps.invalid(path.At("linearBuckets", "width"), "want more than 0")
	case b.Exponential != nil && (b.Exponential.NumFiniteBuckets < 1 || b.Exponential.NumFiniteBuckets > maxBuckets):
		ps.invalid(path.At("exponentialBuckets", "numFiniteBuckets"), tooMany)
	case b.Exponential != nil && b.Exponential.Scale <= 0:
		ps.invalid(path.At("exponentialBuckets", "scale"), "want more than 0")
	case b.Exponential != nil && b.Exponential.GrowthFactor <= 1:
		ps.invalid(path.At("exponentialBuckets", "growthFactor"), "want more than 1")
	case b.Explicit != nil && (len(b.Explicit.Bounds) < 1 || len(b.Explicit.Bounds) > maxBuckets):
		ps.invalid(path.At("explicitBuckets", "bounds"), tooMany)
	default:
		bounds := b.Bounds()
		for i, bound := range bounds {
			if math.IsInf(bound, 0) || math.IsNaN(bound) || i > 0 && bound <= bounds[i-1] {
				ps.invalid(path, fmt.Sprintf("want finite bounds in ascending order, got %g after %g", bound, bounds[max(i-1, 0)]))
				return
			}
		}
	}
}
