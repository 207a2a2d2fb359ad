// Package fluentd sends log entries to a fluentd or a fluent-bit, as Istio 1.0's adapter of that name did, by the forward
// protocol (https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1), in Forward Mode.
package fluentd

import (
	"context"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// timeout is how long a connection, or a batch, may take.
const timeout = 5 * time.Second

// Adapter is one handler. Its connection is opened when there is something to send.
type Adapter struct {
	cfg  *api.Fluentd
	conn net.Conn
}

// New makes a handler.
func New(cfg *api.Fluentd) *Adapter { return &Adapter{cfg: cfg} }

// Write sends the batch: the entries of each tag in one message.
func (a *Adapter) Write(ctx context.Context, batch []report.Entry) error {
	if a.conn == nil {
		d := net.Dialer{Timeout: timeout}
		conn, err := d.DialContext(ctx, "tcp", a.cfg.Address)
		if err != nil {
			return err
		}
		a.conn = conn
	}
	if err := a.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return a.lost(err)
	}
	if _, err := a.conn.Write(a.encode(batch)); err != nil {
		return a.lost(err)
	}
	return nil
}

// lost closes a connection that is of no use any more.
func (a *Adapter) lost(err error) error {
	_ = a.Close() // the error that matters is err
	return err
}

// Close closes the connection, if there is one.
func (a *Adapter) Close() error {
	if a.conn == nil {
		return nil
	}
	err := a.conn.Close()
	a.conn = nil
	return err
}

// encode makes a message for each tag: [tag, [[time, record], …]].
func (a *Adapter) encode(batch []report.Entry) []byte {
	byTag := map[string][]*report.Entry{}
	var tags []string
	for i := range batch {
		tag := tagOf(&batch[i])
		if byTag[tag] == nil {
			tags = append(tags, tag)
		}
		byTag[tag] = append(byTag[tag], &batch[i])
	}
	var b []byte
	for _, tag := range tags {
		b = text(array(b, 2), tag)
		b = array(b, len(byTag[tag]))
		for _, e := range byTag[tag] {
			b = a.record(eventTime(array(b, 2), e.Time), e)
		}
	}
	return b
}

// tagOf is the variable of that name, else the instance's name.
func tagOf(e *report.Entry) string {
	if i := slices.IndexFunc(e.Variables, func(v report.Variable) bool { return v.Name == "tag" }); i >= 0 {
		return e.Variables[i].Value
	}
	return e.Instance
}

// record is the variables, with the severity, and the instance's name where the tag is another.
func (a *Adapter) record(b []byte, e *report.Entry) []byte {
	extra := []report.Variable{{Name: "severity", Type: snapshot.String, Value: e.Severity}}
	if tagOf(e) != e.Instance {
		extra = append(extra, report.Variable{Name: "name", Type: snapshot.String, Value: e.Instance})
	}
	all := slices.DeleteFunc(slices.Concat(e.Variables, extra), func(v report.Variable) bool { return v.Name == "tag" })
	b = object(b, len(all))
	for i := range all {
		b = a.value(text(b, all[i].Name), &all[i])
	}
	return b
}

func (a *Adapter) value(b []byte, v *report.Variable) []byte {
	switch v.Type {
	case snapshot.Int64:
		if n, err := strconv.ParseInt(v.Value, 10, 64); err == nil {
			return integer(b, n)
		}
	case snapshot.Double:
		if f, err := strconv.ParseFloat(v.Value, 64); err == nil {
			return double(b, f)
		}
	case snapshot.Bool:
		return boolean(b, v.Value == "true")
	case snapshot.DurationType:
		if d, err := time.ParseDuration(v.Value); err == nil && a.cfg.IntegerDuration {
			return integer(b, d.Milliseconds())
		}
	}
	return text(b, v.Value)
}
