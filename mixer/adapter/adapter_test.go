package adapter_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/mixer/adapter"
	"github.com/composure-mesh/composure/mixer/adapter/fluentd"
	"github.com/composure-mesh/composure/mixer/adapter/stdio"
	"github.com/composure-mesh/composure/mixer/adapter/webhook"
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)

func entry(handler, severity string) report.Entry {
	return report.Entry{
		Handler: handler, Instance: "newlog.logentry.istio-system", Time: at, Severity: severity,
		Variables: []report.Variable{
			{Name: "latency", Type: snapshot.DurationType, Value: "1.5ms"}, {Name: "code", Type: snapshot.Int64, Value: "200"},
			{Name: "mtls", Type: snapshot.Bool, Value: "true"}, {Name: "ratio", Type: snapshot.Double, Value: "0.5"},
			{Name: "user", Type: snapshot.String, Value: "a\"b\n<c>"},
		},
	}
}

func TestStdio(t *testing.T) {
	levels := map[string]string{"warning": "WARNING", "bad": "ERROR"}
	metric := report.Entry{Instance: "count.metric.default", Time: at, Variables: []report.Variable{{Name: "value", Type: snapshot.Int64, Value: "1"}}}
	const json0 = `{"level":"warn","time":"2026-01-02T03:04:05.678000Z","instance":"newlog.logentry.istio-system","latency":"1.5ms","code":200,"mtls":true,"ratio":0.5,"user":"a\"b\n\u003cc\u003e"}` + "\n"
	cases := []struct {
		name     string
		cfg      api.Stdio
		batch    []report.Entry
		out, err string
	}{
		{"json", api.Stdio{OutputAsJSON: true, SeverityLevels: levels, OutputLevel: "INFO"}, []report.Entry{entry("", "warning")}, json0, ""},
		{"stderr", api.Stdio{OutputAsJSON: true, SeverityLevels: levels, OutputLevel: "INFO", LogStream: "STDERR"}, []report.Entry{entry("", "warning")}, "", json0},
		{"text", api.Stdio{SeverityLevels: levels, OutputLevel: "INFO", MetricLevel: "ERROR"}, []report.Entry{entry("", "else"), metric},
			"2026-01-02T03:04:05.678000Z\tinfo\tnewlog.logentry.istio-system\t{\"latency\": \"1.5ms\", \"code\": 200, \"mtls\": true, \"ratio\": 0.5, \"user\": \"a\\\"b\\n\\u003cc\\u003e\"}\n" +
				"2026-01-02T03:04:05.678000Z\terror\tcount.metric.default\t{\"value\": 1}\n", ""},
		{"least level", api.Stdio{OutputAsJSON: true, SeverityLevels: levels, OutputLevel: "WARNING", MetricLevel: "INFO"}, []report.Entry{entry("", "else"), metric, entry("", "warning")}, json0, ""},
	}
	for _, c := range cases {
		var out, errOut bytes.Buffer
		if err := stdio.New(&c.cfg, &out, &errOut).Write(t.Context(), c.batch); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{c.out, c.err}, []string{out.String(), errOut.String()}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// What is sent to fluentd is read by a decoder that somebody else has written.
func TestFluentd(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	messages := make(chan []any, 10)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			d := msgpack.NewDecoder(c)
			for {
				m, err := d.DecodeSlice()
				if err != nil {
					c.Close()
					break
				}
				messages <- m
			}
		}
	}()
	msgpack.RegisterExtDecoder(0, eventTime{}, decodeEventTime)
	for _, c := range []struct {
		integer bool
		latency any
	}{{false, "1.5ms"}, {true, int64(1)}} {
		a := fluentd.New(&api.Fluentd{Address: ln.Addr().String(), IntegerDuration: c.integer})
		tagged := entry("", "info")
		tagged.Variables = append(tagged.Variables, report.Variable{Name: "tag", Type: snapshot.String, Value: "mine"})
		if err := a.Write(t.Context(), []report.Entry{entry("", "warning"), tagged, entry("", "")}); err != nil {
			t.Fatal(err)
		}
		record := func(severity string, more ...string) map[string]any {
			r := map[string]any{"latency": c.latency, "code": int64(200), "mtls": true, "ratio": 0.5, "user": "a\"b\n<c>", "severity": severity}
			for i := 0; i < len(more); i += 2 {
				r[more[i]] = more[i+1]
			}
			return r
		}
		when := eventTime{uint32(at.Unix()), 678_000_000}
		want := []any{
			[]any{"newlog.logentry.istio-system", []any{[]any{when, record("warning")}, []any{when, record("")}}},
			[]any{"mine", []any{[]any{when, record("info", "name", "newlog.logentry.istio-system")}}},
		}
		got := []any{<-messages, <-messages}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(eventTime{})); diff != "" {
			t.Errorf("integerDuration %v (-want +got):\n%s", c.integer, diff)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
	ln.Close()
	if err := fluentd.New(&api.Fluentd{Address: ln.Addr().String()}).Write(t.Context(), []report.Entry{entry("", "")}); err == nil {
		t.Error("no error where nobody listens")
	}
}

type eventTime struct{ seconds, nanoseconds uint32 }

func decodeEventTime(d *msgpack.Decoder, v reflect.Value, n int) error {
	if n != 8 {
		return fmt.Errorf("an event time of %d bytes", n)
	}
	var b [8]byte
	if err := d.ReadFull(b[:]); err != nil {
		return err
	}
	v.Set(reflect.ValueOf(eventTime{be(b[:4]), be(b[4:])}))
	return nil
}

func be(b []byte) uint32 { return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3]) }

func TestWebhook(t *testing.T) {
	var got webhook.Body
	status := http.StatusNoContent
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&got); err != nil || r.Header.Get("Content-Type") != "application/json" || r.URL.Path != "/entries" {
			t.Errorf("%s, %v", r.URL, err)
		}
		w.WriteHeader(status)
	}))
	defer srv.Close()
	a := webhook.New(srv.URL + "/entries")
	defer a.Close()
	if err := a.Write(t.Context(), []report.Entry{entry("audit.handler.default", "warning")}); err != nil {
		t.Fatal(err)
	}
	want := webhook.Body{Handler: "audit.handler.default", Entries: []webhook.Entry{{
		Instance: "newlog.logentry.istio-system", Time: at, Severity: "warning",
		Variables: map[string]any{"latency": "1.5ms", "code": 200.0, "mtls": true, "ratio": 0.5, "user": "a\"b\n<c>"},
	}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, status = range []int{http.StatusFound, http.StatusServiceUnavailable} {
		if err := a.Write(t.Context(), []report.Entry{entry("", "")}); err == nil {
			t.Errorf("no error for an answer of %d", status)
		}
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *buffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *buffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// Handlers come and go with the configuration; what goes to none, or to one that is too slow, is counted.
func TestHandlers(t *testing.T) {
	var out buffer
	h := adapter.New(&out, io.Discard, slog.New(slog.DiscardHandler))
	release := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer slow.Close()
	defer close(release)
	h.Apply(map[string]*api.Handler{
		"log.stdio.default":    {Adapter: "stdio", Params: &api.Stdio{OutputAsJSON: true, OutputLevel: "INFO"}},
		"slow.handler.default": {Address: slow.URL},
		"prom.prometheus":      {Adapter: "prometheus", Params: &api.Prometheus{}},
	})
	go func() { _ = h.Run(t.Context()) }()
	metrics := func() string {
		var b bytes.Buffer
		if err := h.WriteMetrics(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	await := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !strings.Contains(metrics(), want); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("never %s:\n%s", want, metrics())
			}
		}
	}
	h.Give([]report.Entry{entry("log.stdio.default", ""), entry("prom.prometheus", ""), entry("gone.stdio.default", "")})
	await(`composure_mixer_entries_total{handler="log.stdio.default",result="written"} 1`)
	await(`composure_mixer_entries_total{handler="unknown",result="dropped"} 2`)
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Errorf("%d lines: %s", n, out.String())
	}
	for range 2000 {
		h.Give([]report.Entry{entry("slow.handler.default", "")})
	}
	if text := metrics(); strings.Contains(text, `handler="slow.handler.default",result="dropped"} 0`) {
		t.Errorf("a handler that does not answer drops nothing:\n%s", text)
	}
	h.Give([]report.Entry{entry("log.stdio.default", "")})
	await(`composure_mixer_entries_total{handler="log.stdio.default",result="written"} 2`)
	h.Apply(nil)
	h.Give([]report.Entry{entry("log.stdio.default", "")})
	await(`composure_mixer_entries_total{handler="unknown",result="dropped"} 3`)
}
