// Package admin is what a proxy tells about itself: the admin port on loopback, readiness, and metrics.
//
// The admin port answers these, and changes nothing by GET:
//
//	GET  /               this list
//	GET  /server_info    version, mode, workload, uptime; JSON
//	GET  /config_dump    the snapshot in force, without keys; JSON
//	GET  /clusters       each cluster's endpoints, with their requests under way; JSON
//	GET  /certs          the identity, its certificate's life and the state of its renewal, never a key; JSON
//	GET  /namespace      the interfaces of its network namespace, and where the application listens; JSON
//	GET  /stats          counters, one "name: value" a line
//	GET  /ready          as the readiness port's /healthz/ready
//	GET  /logging        the log level
//	POST /logging?level= debug, info, warn or error
//	GET  /debug/pprof/   profiles, as net/http/pprof has them: /debug/pprof/profile?seconds=5, /debug/pprof/heap
package admin

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/pprof"
	"slices"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/mesh/report"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// Config is what the admin port shows.
type Config struct {
	Info      func() Info
	Snapshot  func() *snapshot.Snapshot // nil before there is one
	Clusters  func() []Cluster
	Certs     func() any
	Stats     func() map[string]uint64
	Level     *slog.LevelVar
	Readiness *Readiness
}

// Info is the answer of /server_info.
type Info struct {
	Version  string  `json:"version"`
	Mode     string  `json:"mode"` // sidecar, gateway or standalone
	Workload string  `json:"workload,omitempty"`
	Instance string  `json:"instance"`
	Snapshot string  `json:"snapshot,omitempty"` // its version
	Uptime   float64 `json:"uptimeSeconds"`
	Draining bool    `json:"draining,omitempty"`
}

// Cluster is one entry of /clusters.
type Cluster struct {
	Service   string     `json:"service"`
	Subset    string     `json:"subset,omitempty"`
	Port      uint16     `json:"port,omitempty"` // of a policy of its own; 0 for all other ports
	Endpoints []Endpoint `json:"endpoints"`
}

// Endpoint is one endpoint of a Cluster.
type Endpoint struct {
	Workload string `json:"workload,omitempty"`
	Address  string `json:"address"`
	Identity string `json:"identity,omitempty"` // empty: plain text
	Active   int64  `json:"active"`             // requests under way
}

// Handler serves the admin port. A browser must not be talked into using it from some other page: requests
// that name a host other than a loopback one are refused.
func Handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { text(w, index) })
	mux.HandleFunc("GET /server_info", func(w http.ResponseWriter, _ *http.Request) { httpx.JSON(w, cfg.Info()) })
	mux.HandleFunc("GET /config_dump", func(w http.ResponseWriter, _ *http.Request) {
		s := cfg.Snapshot()
		if s == nil {
			httpx.Error(w, http.StatusNotFound, errors.New("no snapshot yet: pilot has not sent one"))
			return
		}
		httpx.JSON(w, s.WithoutKeys())
	})
	mux.HandleFunc("GET /clusters", func(w http.ResponseWriter, _ *http.Request) { httpx.JSON(w, cfg.Clusters()) })
	mux.HandleFunc("GET /certs", func(w http.ResponseWriter, _ *http.Request) { httpx.JSON(w, cfg.Certs()) })
	mux.HandleFunc("GET /namespace", namespace)
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		stats := cfg.Stats()
		for _, name := range slices.Sorted(maps.Keys(stats)) {
			fmt.Fprintf(&b, "%s: %d\n", name, stats[name])
		}
		text(w, b.String())
	})
	mux.Handle("GET /ready", cfg.Readiness)
	mux.HandleFunc("GET /logging", func(w http.ResponseWriter, _ *http.Request) { text(w, level(cfg.Level)) })
	mux.HandleFunc("POST /logging", func(w http.ResponseWriter, r *http.Request) {
		if err := cfg.Level.UnmarshalText([]byte(r.URL.Query().Get("level"))); err != nil {
			httpx.Error(w, http.StatusBadRequest, fmt.Errorf("level %q: want debug, info, warn or error", r.URL.Query().Get("level")))
			return
		}
		text(w, level(cfg.Level))
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	return localOnly(mux)
}

const index = `GET  /server_info   version, mode, workload
GET  /config_dump   the snapshot in force
GET  /clusters      endpoints with their requests under way
GET  /certs         identity and certificate
GET  /namespace     interfaces, and where the application listens
GET  /stats         counters
GET  /ready         readiness with reasons
GET  /logging       log level
POST /logging?level=debug|info|warn|error
GET  /debug/pprof/  profiles: profile?seconds=5, heap, goroutine
`

func level(l *slog.LevelVar) string { return l.Level().String() + "\n" }

func text(w http.ResponseWriter, s string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, s) // the client is gone: nobody to tell
}

// Metrics serves Prometheus text of what report yields, at GET /metrics and at Istio's GET /stats/prometheus.
func Metrics(current func() *report.Report) http.Handler {
	mux := http.NewServeMux()
	serve := func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		r := current()
		if err := report.WriteText(&b, r.HTTP, r.TCP); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(b.Bytes()) // the client is gone: nobody to tell
	}
	mux.HandleFunc("GET /metrics", serve)
	mux.HandleFunc("GET /stats/prometheus", serve)
	return mux
}
