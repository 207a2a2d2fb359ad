// Package stdio writes log entries to mixer's own output, as Istio 1.0's adapter of that name did
// (https://istio.io/v1.0/docs/tasks/telemetry/metrics-logs/): a line each, of JSON or of text.
package stdio

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strconv"
	"strings"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Adapter is one handler.
type Adapter struct {
	cfg *api.Stdio
	out io.Writer
}

// New makes a handler that writes to out or errOut, as cfg says.
func New(cfg *api.Stdio, out, errOut io.Writer) *Adapter {
	a := &Adapter{cfg: cfg, out: out}
	if cfg.LogStream == "STDERR" {
		a.out = errOut
	}
	return a
}

var ranks = map[string]int{"INFO": 0, "WARNING": 1, "ERROR": 2}

// names are those of zap, which Istio wrote with.
var names = map[string]string{"INFO": "info", "WARNING": "warn", "ERROR": "error"}

// Write writes the entries in one piece, so that lines of others don't come between.
func (a *Adapter) Write(_ context.Context, batch []report.Entry) error {
	var b bytes.Buffer
	for i := range batch {
		e := &batch[i]
		level := a.level(e)
		if ranks[level] < ranks[a.cfg.OutputLevel] {
			continue
		}
		a.line(&b, e, names[level])
	}
	_, err := b.WriteTo(a.out)
	return err
}

// level is that of the entry's severity; a metric, which has none, has one of its own.
func (a *Adapter) level(e *report.Entry) string {
	if strings.Contains(e.Instance, ".metric.") {
		return a.cfg.MetricLevel
	}
	if l := a.cfg.SeverityLevels[e.Severity]; l != "" {
		return l
	}
	return "INFO"
}

const timeFormat = "2006-01-02T15:04:05.000000Z"

func (a *Adapter) line(b *bytes.Buffer, e *report.Entry, level string) {
	at := e.Time.UTC().Format(timeFormat)
	if a.cfg.OutputAsJSON {
		b.WriteString(`{"level":"` + level + `","time":"` + at + `","instance":` + quote(e.Instance))
		for i := range e.Variables {
			b.WriteString("," + quote(e.Variables[i].Name) + ":" + value(&e.Variables[i]))
		}
		b.WriteString("}\n")
		return
	}
	b.WriteString(at + "\t" + level + "\t" + strings.NewReplacer("\n", "", "\t", "").Replace(e.Instance) + "\t{")
	for i := range e.Variables {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(quote(e.Variables[i].Name) + ": " + value(&e.Variables[i]))
	}
	b.WriteString("}\n")
}

// value is a variable in JSON: what is a number or a truth value is one.
func value(v *report.Variable) string {
	switch v.Type {
	case snapshot.Int64:
		if n, err := strconv.ParseInt(v.Value, 10, 64); err == nil {
			return strconv.FormatInt(n, 10)
		}
	case snapshot.Double:
		if f, err := strconv.ParseFloat(v.Value, 64); err == nil {
			if raw, err := json.Marshal(f); err == nil {
				return string(raw)
			}
		}
	case snapshot.Bool:
		if v.Value == "true" || v.Value == "false" {
			return v.Value
		}
	}
	return quote(v.Value)
}

func quote(s string) string {
	raw, err := json.Marshal(s)
	if err != nil {
		return `""` // a string has no error
	}
	return string(raw)
}

// Close has nothing to close.
func (a *Adapter) Close() error { return nil }
