package report

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

func histogram(sum float64, buckets ...int) Histogram {
	h := Histogram{Sum: sum}
	for _, b := range buckets {
		h.Counts[b]++
	}
	return h
}

// sample is a page view as both proxies see it, one that the client gave up, and a database connection.
func sample() ([]HTTPSeries, []TCPSeries) {
	productpage := Peer{
		Workload: "productpage-v1", Namespace: "default", Principal: "spiffe://cluster.local/ns/default/sa/productpage-v1",
		App: "productpage", Version: "v1", Cluster: "shop", CanonicalService: "productpage", CanonicalRevision: "v1",
	}
	reviews := Peer{
		Workload: "reviews-v2", Namespace: "default", Principal: "spiffe://cluster.local/ns/default/sa/reviews-v2",
		App: "reviews", Version: "v2", Cluster: "shop", CanonicalService: "reviews", CanonicalRevision: "v2",
	}
	view := Labels{
		Reporter: ReporterSource, Source: productpage, Destination: reviews,
		Service: "reviews.default.svc.cluster.local", ServiceName: "reviews", ServiceNamespace: "default",
		RequestProtocol: "http", ResponseCode: "200",
	}
	served := view
	served.Reporter, served.SecurityPolicy, served.ResponseFlags = ReporterDestination, "mutual_tls", "-"
	gone := Labels{Reporter: ReporterDestination, ResponseCode: "0", ResponseFlags: "DC", RequestProtocol: "http"}
	http := []HTTPSeries{
		{Labels: view, Requests: 3, Duration: histogram(1234567.25, 0, 3, 19), RequestBytes: histogram(0, 0, 0, 0), ResponseBytes: histogram(900, 8, 8, 8)},
		{Labels: served, Requests: 3, Duration: histogram(31.5, 0, 3, 4), RequestBytes: histogram(0, 0, 0, 0), ResponseBytes: histogram(900, 8, 8, 8)},
		{Labels: gone, Requests: 1, Duration: histogram(7, 3), RequestBytes: histogram(0, 0), ResponseBytes: histogram(0, 0)},
	}
	odd := Labels{Reporter: ReporterSource, Source: Peer{Workload: "a\\b\"c\nd\xffe"}, Service: "db.default.svc.cluster.local"}
	tcp := []TCPSeries{{Labels: odd, Opened: 2, Closed: 1, Sent: 1 << 60, Received: 5}}
	return http, tcp
}

func exposition(t *testing.T, http []HTTPSeries, tcp []TCPSeries) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteText(&b, http, tcp); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWriteTextGolden(t *testing.T) {
	got := exposition(t, first(sample()), second(sample()))
	path := filepath.Join("testdata", "metrics.txt")
	if *rewrite {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("exposition differs (-want +got):\n%s", diff)
	}
}

func first(h []HTTPSeries, _ []TCPSeries) []HTTPSeries { return h }
func second(_ []HTTPSeries, s []TCPSeries) []TCPSeries { return s }

func TestWriteTextIsTheSameInEveryOrder(t *testing.T) {
	http, tcp := sample()
	want := exposition(t, http, tcp)
	slices.Reverse(http)
	slices.Reverse(tcp)
	if got := exposition(t, http, tcp); got != want {
		t.Errorf("order of series changes the exposition:\n%s", cmp.Diff(want, got))
	}
}

// TestWriteTextSumsEqualSeries: labels that are written the same must be one sample, or the whole scrape is
// refused.
func TestWriteTextSumsEqualSeries(t *testing.T) {
	missing := HTTPSeries{Labels: Labels{Reporter: ReporterSource}, Requests: 2, Duration: histogram(3, 0, 1)}
	unknown := HTTPSeries{Labels: Labels{Reporter: ReporterSource, Source: Peer{Workload: Unknown}}, Requests: 5, Duration: histogram(4, 1)}
	got := exposition(t, []HTTPSeries{missing, unknown}, nil)
	if n := strings.Count(got, "\nistio_requests_total{"); n != 1 {
		t.Errorf("%d samples of istio_requests_total, want 1:\n%s", n, got)
	}
	for _, want := range []string{"} 7\n", `,le="0.5"} 1` + "\n", `,le="1"} 3` + "\n", `,le="+Inf"} 3` + "\n", "_sum{reporter", "} 7\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("exposition lacks %q:\n%s", want, got)
		}
	}
	if missing.Requests != 2 || missing.Duration.Sum != 3 {
		t.Errorf("WriteText changed its input: %+v", missing)
	}
}

func TestWriteTextOfNothing(t *testing.T) {
	if got := exposition(t, nil, nil); got != "" {
		t.Errorf("exposition of nothing is %q, want nothing", got)
	}
}

type brokenWriter struct{}

var errBroken = errors.New("pipe broke")

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestWriteTextReportsTheWritersError(t *testing.T) {
	http, tcp := sample()
	if err := WriteText(brokenWriter{}, http, tcp); !errors.Is(err, errBroken) {
		t.Errorf("WriteText to a broken pipe: %v, want %v", err, errBroken)
	}
}

// TestWriteTextPassesPromtool has Prometheus' own parser and linter judge the exposition. Its one complaint that is
// let through is about a unit in a name that is Istio's.
func TestWriteTextPassesPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not on PATH: install Debian's package prometheus to check the exposition with Prometheus' own parser")
	}
	http, tcp := sample()
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(exposition(t, http, tcp))
	out, err := cmd.CombinedOutput()
	var complaints []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && line != `istio_request_duration_milliseconds use base unit "seconds" instead of "milliseconds"` {
			complaints = append(complaints, line)
		}
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) || len(complaints) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, strings.Join(complaints, "\n"))
	}
}
