package telemetry

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/composure-mesh/composure/proxy/exchange"
)

// Format is how an access log line looks.
type Format string

// The formats: Istio's default text, or the same fields as JSON, one object a line.
const (
	FormatText Format = "text"
	FormatJSON Format = "json"
	FormatOff  Format = "off"
)

// ParseFormat reads the value of COMPOSURE_ACCESS_LOG; empty is FormatText.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case "":
		return FormatText, nil
	case FormatText, FormatJSON, FormatOff:
		return f, nil
	}
	return "", fmt.Errorf("access log format %q: want text, json or off", s)
}

// Sizes of the queue between exchanges and the writer.
const (
	queueLines = 4096     // lines that may wait; then they are dropped and counted
	batchBytes = 64 << 10 // one write to the output holds at most about so much
	keepLine   = 4 << 10  // a longer line's buffer is not kept
	flushGrace = time.Second
)

// AccessLog writes a line for each exchange and session, from a goroutine of its own: an output that blocks makes
// lines get lost, never exchanges wait.
type AccessLog struct {
	out     io.Writer
	format  func([]byte, *exchange.Exchange) []byte
	lines   chan *[]byte
	buffers sync.Pool
	dropped atomic.Uint64
}

// NewAccessLog returns an access log in a format other than FormatOff; nothing is written before Run.
func NewAccessLog(out io.Writer, f Format) *AccessLog {
	l := &AccessLog{out: out, format: appendText, lines: make(chan *[]byte, queueLines)}
	if f == FormatJSON {
		l.format = appendJSON
	}
	l.buffers.New = func() any { b := make([]byte, 0, 512); return &b }
	return l
}

// Dropped is how many lines were not written since the output was too slow or failed.
func (l *AccessLog) Dropped() uint64 { return l.dropped.Load() }

func (l *AccessLog) exchange(x *exchange.Exchange) {
	b := l.buffers.Get().(*[]byte)
	*b = append(l.format((*b)[:0], x), '\n')
	select {
	case l.lines <- b:
	default:
		l.dropped.Add(1)
		l.release(b)
	}
}

// session logs a session as Envoy does: the fields of a request are absent.
func (l *AccessLog) session(s *exchange.Session) {
	l.exchange(&exchange.Exchange{
		Conn: s.Conn, Upstream: s.Upstream, Ends: s.Ends, Start: s.Start, Duration: s.Duration, Flag: s.Flag, Details: s.Details,
		BytesReceived: s.BytesReceived, BytesSent: s.BytesSent, GRPCStatus: -1,
	})
}

func (l *AccessLog) release(b *[]byte) {
	if cap(*b) <= keepLine {
		l.buffers.Put(b)
	}
}

// Run writes until ctx ends, then what is left. An output that blocks then is given up after a second.
func (l *AccessLog) Run(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.write(ctx)
	}()
	<-ctx.Done()
	select {
	case <-done:
	case <-time.After(flushGrace):
	}
	return nil
}

func (l *AccessLog) write(ctx context.Context) {
	batch := make([]byte, 0, batchBytes)
	for {
		var b *[]byte
		select {
		case b = <-l.lines:
		default:
			select {
			case b = <-l.lines:
			case <-ctx.Done():
				return // nothing is left
			}
		}
		batch = append(batch[:0], *b...)
		lines := uint64(1)
		l.release(b)
	fill:
		for len(batch) < batchBytes {
			select {
			case b := <-l.lines:
				batch = append(batch, *b...)
				lines++
				l.release(b)
			default:
				break fill
			}
		}
		if _, err := l.out.Write(batch); err != nil {
			l.dropped.Add(lines)
		}
	}
}
