package report

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// TextContentType is the media type of what WriteText writes, Prometheus' text format 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format).
const TextContentType = "text/plain; version=0.0.4; charset=utf-8"

// StandardMetrics are the names that WriteText writes, and the ones that Mixer's had of which these are the successors.
var StandardMetrics = []string{
	"istio_requests_total", "istio_request_duration_milliseconds", "istio_request_duration_seconds", "istio_request_bytes", "istio_response_bytes",
	"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total", "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total",
}

// WriteText writes series as Istio's standard metrics (https://istio.io/latest/docs/reference/config/metrics/)
// in Prometheus' text format: one block a metric, sorted, so that equal series are equal bytes in whichever
// order they come. Series whose labels are written the same are one series, their sum. A metric without a
// series is left out.
func WriteText(w io.Writer, http []HTTPSeries, tcp []TCPSeries) error {
	out := &textWriter{Writer: bufio.NewWriter(w)}
	if h := merge(http, func(s *HTTPSeries) string { return s.Labels.text(false) }, (*HTTPSeries).Add); len(h) > 0 {
		out.counter("istio_requests_total", "Requests that the proxies have handled.", rows(h, func(s *HTTPSeries) uint64 { return s.Requests }))
		out.histogram("istio_request_duration_milliseconds", "Duration of requests in milliseconds, from the first byte received to the last byte sent.",
			rows(h, func(s *HTTPSeries) *Histogram { return &s.Duration }))
		out.histogram("istio_request_bytes", "Size of request bodies in bytes.", rows(h, func(s *HTTPSeries) *Histogram { return &s.RequestBytes }))
		out.histogram("istio_response_bytes", "Size of response bodies in bytes.", rows(h, func(s *HTTPSeries) *Histogram { return &s.ResponseBytes }))
	}
	if t := merge(tcp, func(s *TCPSeries) string { return s.Labels.text(true) }, (*TCPSeries).Add); len(t) > 0 {
		out.counter("istio_tcp_connections_opened_total", "TCP connections opened.", rows(t, func(s *TCPSeries) uint64 { return s.Opened }))
		out.counter("istio_tcp_connections_closed_total", "TCP connections closed.", rows(t, func(s *TCPSeries) uint64 { return s.Closed }))
		out.counter("istio_tcp_sent_bytes_total", "Bytes sent to clients over TCP connections.", rows(t, func(s *TCPSeries) uint64 { return s.Sent }))
		out.counter("istio_tcp_received_bytes_total", "Bytes received from clients over TCP connections.", rows(t, func(s *TCPSeries) uint64 { return s.Received }))
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// Add counts what o has counted into h.
func (h *Histogram) Add(o *Histogram) {
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
	h.Sum += o.Sum
}

// Add counts what o has counted into s, whose labels stay.
func (s *HTTPSeries) Add(o *HTTPSeries) {
	s.Requests += o.Requests
	s.Duration.Add(&o.Duration)
	s.RequestBytes.Add(&o.RequestBytes)
	s.ResponseBytes.Add(&o.ResponseBytes)
}

// Add counts what o has counted into s, whose labels stay.
func (s *TCPSeries) Add(o *TCPSeries) {
	s.Opened += o.Opened
	s.Closed += o.Closed
	s.Sent += o.Sent
	s.Received += o.Received
}

// merge sums series by their labels as they are written; the input stays as it is.
func merge[S any](series []S, labels func(*S) string, add func(sum, more *S)) map[string]*S {
	merged := make(map[string]*S, len(series))
	for i := range series {
		key := labels(&series[i])
		if sum, ok := merged[key]; ok {
			add(sum, &series[i])
			continue
		}
		first := series[i]
		merged[key] = &first
	}
	return merged
}

// row is one series' value of one metric, with its labels as they are written.
type row[V any] struct {
	labels string
	value  V
}

func rows[S, V any](series map[string]*S, value func(*S) V) []row[V] {
	sorted := make([]row[V], 0, len(series))
	for _, labels := range slices.Sorted(maps.Keys(series)) {
		sorted = append(sorted, row[V]{labels, value(series[labels])})
	}
	return sorted
}

// text is the series' labels as they stand between the braces of a sample, in the order of Istio's
// documentation. A value that is not known is written so; the exceptions are those of Istio's own proxies:
// response_flags is "-" where there is none, and a request that is not gRPC has an empty gRPC status.
func (l *Labels) text(tcp bool) string {
	var b strings.Builder
	b.Grow(1024)
	add := func(name, value, missing string) {
		if value == "" {
			value = missing
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(name)
		b.WriteString(`="`)
		_, _ = labelEscaper.WriteString(&b, strings.ToValidUTF8(value, "\uFFFD"))
		b.WriteByte('"')
	}
	peer := func(side string, p *Peer) {
		add(side+"_workload", p.Workload, Unknown)
		add(side+"_workload_namespace", p.Namespace, Unknown)
		add(side+"_principal", p.Principal, Unknown)
		add(side+"_app", p.App, Unknown)
		add(side+"_version", p.Version, Unknown)
		add(side+"_cluster", p.Cluster, Unknown)
		add(side+"_canonical_service", p.CanonicalService, Unknown)
		add(side+"_canonical_revision", p.CanonicalRevision, Unknown)
	}
	add("reporter", l.Reporter, Unknown)
	peer("source", &l.Source)
	peer("destination", &l.Destination)
	add("destination_service", l.Service, Unknown)
	add("destination_service_name", l.ServiceName, Unknown)
	add("destination_service_namespace", l.ServiceNamespace, Unknown)
	if tcp {
		add("request_protocol", l.RequestProtocol, "tcp")
	} else {
		add("request_protocol", l.RequestProtocol, Unknown)
		add("response_code", l.ResponseCode, Unknown)
		add("grpc_response_status", l.GRPCStatus, "")
	}
	add("response_flags", l.ResponseFlags, "-")
	add("connection_security_policy", l.SecurityPolicy, Unknown)
	return b.String()
}

var labelEscaper = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// textWriter writes samples; bufio keeps the first error for Flush.
type textWriter struct {
	*bufio.Writer
}

func (w *textWriter) head(name, kind, help string) {
	w.line("# HELP ", name, " ", help)
	w.line("# TYPE ", name, " ", kind)
}

func (w *textWriter) counter(name, help string, rows []row[uint64]) {
	w.head(name, "counter", help)
	for _, r := range rows {
		w.line(name, "{", r.labels, "} ", strconv.FormatUint(r.value, 10))
	}
}

func (w *textWriter) histogram(name, help string, rows []row[*Histogram]) {
	w.head(name, "histogram", help)
	for _, r := range rows {
		var count uint64
		for i, n := range r.value.Counts {
			count += n
			w.line(name, "_bucket{", r.labels, `,le="`, bucketBound(i), `"} `, strconv.FormatUint(count, 10))
		}
		w.line(name, "_sum{", r.labels, "} ", strconv.FormatFloat(r.value.Sum, 'g', -1, 64))
		w.line(name, "_count{", r.labels, "} ", strconv.FormatUint(count, 10))
	}
}

func (w *textWriter) line(parts ...string) {
	for _, p := range parts {
		_, _ = w.WriteString(p)
	}
	_ = w.WriteByte('\n')
}

// bucketBound is the upper bound of bucket i as Envoy writes it: 3600000, not 3.6e+06.
func bucketBound(i int) string {
	if i == len(Buckets) {
		return "+Inf"
	}
	return strconv.FormatFloat(Buckets[i], 'f', -1, 64)
}
