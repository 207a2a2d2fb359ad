package mixer

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/composure-mesh/composure/mesh/report"
)

// Bounds on what one report may say of metrics that rules ask for.
const (
	maxMetrics       = 256
	maxMetricLabels  = 64
	maxMetricBounds  = 128
	maxReportSeries  = 4000 // proxies keep 2000 of rules, and two of a rate limit
	maxMetricTextLen = 1024 // of a name or a description
)

// custom is what is counted of the metrics that rules ask for, by what defines a metric and then by the labels' values.
type custom map[string]*customMetric

type customMetric struct {
	report.Metric                                // without series
	series        map[string]report.MetricSeries // by their values as they are written
}

// definition is equal for metrics that can be added up.
func definition(m *report.Metric) string {
	b := []byte(m.Name + "\x00" + m.Kind)
	for _, l := range m.Labels {
		b = append(b, "\x00"+l...)
	}
	for _, bound := range m.Bounds {
		b = strconv.AppendFloat(append(b, 0), bound, 'g', -1, 64)
	}
	return string(b)
}

func newCustom(metrics []report.Metric) custom {
	c := custom{}
	for i := range metrics {
		c.add(&metrics[i])
	}
	return c
}

// add counts m, and says how many series are new.
func (c custom) add(m *report.Metric) {
	key := definition(m)
	to := c[key]
	if to == nil {
		to = &customMetric{Metric: *m, series: map[string]report.MetricSeries{}}
		to.Series = nil
		c[key] = to
	}
	for _, s := range m.Series {
		key := labelText(m.Labels, s.Values)
		if sum, ok := to.series[key]; ok {
			s = sumOf(m.Kind, sum, s)
		}
		to.series[key] = s
	}
}

// sumOf is two proxies' word on one series: of a gauge the later, else both together.
func sumOf(kind string, a, b report.MetricSeries) report.MetricSeries {
	if kind == report.Gauge {
		if a.Updated > b.Updated {
			return a
		}
		return b
	}
	b.Value += a.Value
	b.Counts = slices.Clone(b.Counts)
	for i := range b.Counts {
		b.Counts[i] += a.Counts[i]
	}
	return b
}

func (c custom) size() int {
	n := 0
	for _, m := range c {
		n += len(m.series)
	}
	return n
}

// metrics is c as a report would say it.
func (c custom) metrics() []report.Metric {
	var out []report.Metric
	for _, key := range slices.Sorted(maps.Keys(c)) {
		m := c[key].Metric
		m.Series = slices.Collect(maps.Values(c[key].series))
		out = append(out, m)
	}
	return out
}

// fellMetrics reports whether a counter is lower than it was.
func (c custom) fell(now custom) bool {
	for key, m := range now {
		was := c[key]
		if was == nil || m.Kind == report.Gauge {
			continue
		}
		for labels, s := range m.series {
			last, ok := was.series[labels]
			if !ok {
				continue
			}
			if m.Kind == report.Counter && s.Value < last.Value {
				return true
			}
			for i := range s.Counts {
				if s.Counts[i] < last.Counts[i] {
					return true
				}
			}
		}
	}
	return false
}

// writeText writes the metrics that wanted has for Prometheus. Of two that have one name and are different, the first is
// written: a scrape has room for one only.
func (c custom) writeText(w io.Writer, wanted func(name string) bool) error {
	out := bufio.NewWriter(w)
	seen := map[string]bool{}
	for _, key := range slices.Sorted(maps.Keys(c)) {
		m := c[key]
		if seen[m.Name] || !wanted(m.Name) {
			continue
		}
		seen[m.Name] = true
		m.writeText(out)
	}
	return out.Flush()
}

func (m *customMetric) writeText(w *bufio.Writer) {
	kind := map[string]string{report.Counter: "counter", report.Gauge: "gauge", report.Distribution: "histogram"}[m.Kind]
	help := m.Description
	if help == "" {
		help = m.Name
	}
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", m.Name, helpEscaper.Replace(help), m.Name, kind)
	for _, labels := range slices.Sorted(maps.Keys(m.series)) {
		s := m.series[labels]
		if m.Kind != report.Distribution {
			fmt.Fprintf(w, "%s%s %s\n", m.Name, braces(labels), strconv.FormatFloat(s.Value, 'g', -1, 64))
			continue
		}
		var count uint64
		for i, n := range s.Counts {
			count += n
			le := "+Inf"
			if i < len(m.Bounds) {
				le = strconv.FormatFloat(m.Bounds[i], 'g', -1, 64)
			}
			le = `le="` + le + `"`
			if labels != "" {
				le = labels + "," + le
			}
			fmt.Fprintf(w, "%s_bucket{%s} %d\n", m.Name, le, count)
		}
		fmt.Fprintf(w, "%s_sum%s %s\n%s_count%s %d\n", m.Name, braces(labels), strconv.FormatFloat(s.Value, 'g', -1, 64), m.Name, braces(labels), count)
	}
}

func braces(labels string) string {
	if labels == "" {
		return ""
	}
	return "{" + labels + "}"
}

var (
	helpEscaper  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	valueEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
)

// labelText is what stands between the braces of a sample.
func labelText(names, values []string) string {
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(name + `="` + valueEscaper.Replace(values[i]) + `"`)
	}
	return b.String()
}

// validateMetrics holds what a proxy says of metrics against what can be written.
func validateMetrics(metrics []report.Metric) error {
	if len(metrics) > maxMetrics {
		return fmt.Errorf("metrics: %d, want at most %d", len(metrics), maxMetrics)
	}
	series := 0
	for i := range metrics {
		m := &metrics[i]
		if err := validateMetric(m); err != nil {
			return fmt.Errorf("metrics[%d].%w", i, err)
		}
		if series += len(m.Series); series > maxReportSeries {
			return fmt.Errorf("metrics: more than %d series", maxReportSeries)
		}
	}
	return nil
}

func validateMetric(m *report.Metric) error {
	switch {
	case !isName(m.Name) || slices.Contains(report.StandardMetrics, m.Name):
		return fmt.Errorf("name: %.80q, want a name of Prometheus that is none of the standard metrics", m.Name)
	case strings.HasPrefix(m.Name, "composure_") && m.Name != report.RateLimited:
		return fmt.Errorf("name: %.80q, which is mixer's own", m.Name)
	case len(m.Description) > maxMetricTextLen:
		return fmt.Errorf("description: %d bytes, want at most %d", len(m.Description), maxMetricTextLen)
	case m.Kind != report.Counter && m.Kind != report.Gauge && m.Kind != report.Distribution:
		return fmt.Errorf("kind: %.20q, want %s, %s or %s", m.Kind, report.Counter, report.Gauge, report.Distribution)
	case len(m.Labels) > maxMetricLabels:
		return fmt.Errorf("labels: %d, want at most %d", len(m.Labels), maxMetricLabels)
	case len(m.Bounds) > maxMetricBounds || !slices.IsSorted(m.Bounds):
		return fmt.Errorf("bounds: %d, want at most %d in ascending order", len(m.Bounds), maxMetricBounds)
	}
	for i, l := range m.Labels {
		if !isName(l) || strings.Contains(l, ":") || slices.Contains(m.Labels[:i], l) {
			return fmt.Errorf("labels[%d]: %.80q, want a label's name of Prometheus, once", i, l)
		}
	}
	for i := range m.Series {
		s := &m.Series[i]
		buckets := 0
		if m.Kind == report.Distribution {
			buckets = len(m.Bounds) + 1
		}
		switch {
		case len(s.Values) != len(m.Labels):
			return fmt.Errorf("series[%d].values: %d, want %d", i, len(s.Values), len(m.Labels))
		case len(s.Counts) != buckets:
			return fmt.Errorf("series[%d].counts: %d, want %d", i, len(s.Counts), buckets)
		case math.IsNaN(s.Value) || math.IsInf(s.Value, 0):
			return fmt.Errorf("series[%d].value: %g, want a finite number", i, s.Value)
		}
		for _, v := range s.Values {
			if len(v) > maxLabelBytes || !utf8.ValidString(v) {
				return fmt.Errorf("series[%d].values: %d bytes, want at most %d of UTF-8", i, len(v), maxLabelBytes)
			}
		}
	}
	return nil
}

// isName reports whether s is a name of a metric.
func isName(s string) bool {
	if s == "" || len(s) > maxMetricTextLen || s[0] >= '0' && s[0] <= '9' {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && r != ':' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	})
}
