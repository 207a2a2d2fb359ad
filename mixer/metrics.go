package mixer

import (
	"bytes"
	"fmt"
	"io"
	"net/http"

	"github.com/composure-mesh/composure/internal/httpx"
	"github.com/composure-mesh/composure/mesh/report"
)

// serveMetrics answers with everything that the proxies have counted, then what mixer knows of itself.
func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	var body bytes.Buffer // so that an error is still an error, not half an exposition
	if err := writeMetrics(&body, s.totals.collect(), s.wanted(), s.cfg.Version); err != nil {
		httpx.Error(w, http.StatusInternalServerError, err)
		return
	}
	if err := s.handlers.WriteMetrics(&body); err != nil {
		httpx.Error(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", report.TextContentType)
	_, _ = body.WriteTo(w) // the client is gone: nobody to tell
}

func writeMetrics(w io.Writer, s snapshot, wanted func(string) bool, version string) error {
	if err := report.WriteText(w, s.http, s.tcp); err != nil {
		return err
	}
	if err := s.custom.writeText(w, wanted); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, `# HELP composure_mixer_reports_total Reports received, by what became of them: accepted; stale, as a later one was counted before; refused.
# TYPE composure_mixer_reports_total counter
composure_mixer_reports_total{result="accepted"} %d
composure_mixer_reports_total{result="stale"} %d
composure_mixer_reports_total{result="refused"} %d
# HELP composure_mixer_series Series held.
# TYPE composure_mixer_series gauge
composure_mixer_series %d
# HELP composure_mixer_instances Proxy processes whose last report is held.
# TYPE composure_mixer_instances gauge
composure_mixer_instances %d
# HELP composure_mixer_dropped_series_total Series of accepted reports that were left out, as mixer holds as many as it may.
# TYPE composure_mixer_dropped_series_total counter
composure_mixer_dropped_series_total %d
# HELP composure_proxy_dropped_exchanges_total Exchanges that proxies have not counted, as they hold as many series as they may.
# TYPE composure_proxy_dropped_exchanges_total counter
composure_proxy_dropped_exchanges_total %d
# HELP composure_build_info The build that answers; always 1.
# TYPE composure_build_info gauge
composure_build_info{component="mixer",version=%[8]q} 1
# HELP istio_build The build that answers, as Istio names it; always 1.
# TYPE istio_build gauge
istio_build{component="mixer",tag=%[8]q} 1
`, s.stats.accepted, s.stats.stale, s.stats.refused, s.held, s.instances, s.stats.droppedSeries, s.droppedExchanges, version)
	return err
}
