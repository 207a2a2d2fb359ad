//go:build suites

package test

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/network"
)

// corpus is a file of Istio 1.0.6's own samples, unchanged.
func corpus(t *testing.T, file string) string {
	t.Helper()
	path := filepath.Join(root, "..", "shared", "corpora", "istio-1.0.6", file)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("the corpus of Istio 1.0.6 is not beside the project: %v", err)
	}
	return path
}

// bookinfo starts the example application in the mesh behind a gateway on a free port, and returns the gateway's
// URL. Nothing is applied yet. Each old text among the replacements gives way to the new one behind it.
func bookinfo(t *testing.T, replacements ...string) (p *project, gateway string) {
	t.Helper()
	file := must(os.ReadFile(filepath.Join(root, "examples", "bookinfo", "docker-compose.yml")))
	text := strings.NewReplacer(replacements...).Replace(string(file))
	p = newProject(t, map[string]string{"docker-compose.yml": text, ".env": "BOOKINFO_PORT=0\n"})
	p.inject("--ingress", "127.0.0.1:0:80")
	p.up()
	return p, "http://" + p.published("istio-ingressgateway", 80)
}

var stars = regexp.MustCompile(`"color":\s*"(black|red)"`)

// reviewsVersion asks productpage's API through the gateway, and tells by the stars which version of reviews
// answered.
func reviewsVersion(t *testing.T, gateway string, header ...string) string {
	t.Helper()
	status, body := get(t, gateway+"/api/v1/products/0/reviews", header...)
	if status != http.StatusOK {
		return fmt.Sprintf("status %d: %s", status, body)
	}
	switch m := stars.FindStringSubmatch(body); {
	case m == nil:
		return "v1"
	case m[1] == "black":
		return "v2"
	default:
		return "v3"
	}
}

// TestBookinfo is the lecture: bookinfo behind the gateway, and the routes of the 1.0.6 samples, unchanged.
func TestBookinfo(t *testing.T) {
	p, gateway := bookinfo(t)

	t.Run("without a Gateway the gateway answers 404 and says so", func(t *testing.T) {
		if status, _ := get(t, gateway+"/productpage"); status != http.StatusNotFound {
			t.Fatalf("status %d, want 404", status)
		}
		eventually(t, "log of the gateway", func() string {
			log := p.compose("logs", "--no-color", "istio-ingressgateway")
			if !strings.Contains(log, "Gateway") {
				return "it does not name the Gateway that is missing:\n" + log
			}
			return ""
		})
	})

	apply := func(file string) {
		t.Helper()
		p.meshctl("apply", "-f", corpus(t, file))
	}
	apply("networking/bookinfo-gateway.yaml")
	eventually(t, "productpage through the gateway", func() string {
		if status, body := get(t, gateway+"/productpage"); status != http.StatusOK || !strings.Contains(body, "The Comedy of Errors") {
			return fmt.Sprintf("status %d: %s", status, body)
		}
		return ""
	})
	if status, _ := get(t, gateway+"/details/0"); status != http.StatusNotFound {
		t.Errorf("a path outside the VirtualService: status %d, want 404", status)
	}

	t.Run("the versions take turns while nothing routes", func(t *testing.T) {
		seen := map[string]int{}
		for range 60 {
			seen[reviewsVersion(t, gateway)]++
		}
		if len(seen) != 3 || seen["v1"] == 0 || seen["v2"] == 0 || seen["v3"] == 0 {
			t.Fatalf("versions seen: %v, want v1, v2 and v3", seen)
		}
	})
	t.Run("no plain HTTP between sandboxes", func(t *testing.T) { noPlainHTTP(t, p, gateway) })
	t.Run("identities in the metrics", func(t *testing.T) { identities(t, p) })

	apply("networking/destination-rule-all.yaml")
	for _, with := range []string{"meshctl", "kubectl"} {
		t.Run("routes applied with "+with, func(t *testing.T) { routes(t, p, gateway, with) })
	}
	t.Run("faults", func(t *testing.T) { faults(t, p, gateway) })
}

// faults has ratings fail for jason alone: with an error, and by being so late that productpage gives up on reviews, which
// waits longer than it does.
func faults(t *testing.T, p *project, gateway string) {
	t.Helper()
	apply := func(file string) {
		t.Helper()
		p.meshctl("apply", "-f", corpus(t, "networking/"+file))
	}
	apply("virtual-service-all-v1.yaml")
	apply("virtual-service-reviews-test-v2.yaml")
	page := func(header ...string) string {
		_, body := get(t, gateway+"/productpage", header...)
		return body
	}
	user := []string{"Cookie", jason(t, gateway)}
	const sorry = "product reviews are currently unavailable"

	apply("virtual-service-ratings-test-abort.yaml")
	eventually(t, "no ratings for jason", func() string {
		if body := page(user...); !strings.Contains(body, "Ratings service is currently unavailable") || strings.Contains(body, sorry) {
			return body
		}
		return ""
	})
	if v := reviewsVersion(t, gateway); v != "v1" {
		t.Errorf("others get reviews %s, want v1", v)
	}

	apply("virtual-service-ratings-test-delay.yaml")
	eventually(t, "no reviews for jason, since ratings is late", func() string {
		if body := page(user...); !strings.Contains(body, sorry) {
			return body
		}
		return ""
	})
	if body := page(); strings.Contains(body, sorry) || !strings.Contains(body, "The Comedy of Errors") {
		t.Errorf("others are told:\n%s", body)
	}
	eventually(t, "the delay in the access log", func() string {
		for line := range strings.Lines(p.compose("logs", "--no-color", "reviews-v2-mesh-proxy")) {
			if strings.Contains(line, "/ratings/0") && strings.Contains(line, "DI") {
				return ""
			}
		}
		return "no line with the flag DI"
	})
	p.meshctl("delete", "-f", corpus(t, "networking/virtual-service-all-v1.yaml"))
}

// noPlainHTTP captures the project's bridge while requests pass.
func noPlainHTTP(t *testing.T, p *project, gateway string) {
	t.Helper()
	bridge := must(engine.NetworkInspect(t.Context(), p.name+"_default", network.InspectOptions{}))
	file := filepath.Join(t.TempDir(), "bridge.pcap")
	dump := exec.CommandContext(t.Context(), "tcpdump", "-i", "br-"+bridge.ID[:12], "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w", file, "tcp and not port 15021")
	started := make(chan struct{})
	dump.Stderr = notify(started, "listening on")
	if err := dump.Start(); err != nil {
		t.Fatalf("tcpdump: %v", err)
	}
	<-started
	for range 20 {
		if v := reviewsVersion(t, gateway); !strings.HasPrefix(v, "v") {
			t.Errorf("request while capturing: %s", v)
		}
	}
	// The gateway's own clients come from outside the mesh, in plain text: what they send last is seen last.
	if status, _ := get(t, gateway+"/the-last-request"); status != http.StatusNotFound {
		t.Errorf("the last request: status %d, want 404", status)
	}
	var captured []byte
	eventually(t, "capture", func() string {
		captured = must(os.ReadFile(file))
		if !bytes.Contains(captured, []byte("/the-last-request")) {
			return "the last request is not in it"
		}
		return ""
	})
	_ = dump.Process.Signal(os.Interrupt)
	_ = dump.Wait()
	if n := bytes.Count(captured, []byte("GET /api/v1/products/0/reviews")); n != 20 {
		t.Errorf("the bridge carried %d of 20 requests to the gateway: the capture misses packets", n)
	}
	for _, plain := range []string{"GET /reviews/", "GET /ratings/", "GET /details/", "Host: reviews", "Host: productpage"} {
		if bytes.Contains(captured, []byte(plain)) {
			t.Errorf("the bridge carried %q in plain text", plain)
		}
	}
}

// notify is a writer that closes c when text passes.
func notify(c chan struct{}, text string) *notifier { return &notifier{c: c, text: text} }

type notifier struct {
	mu   sync.Mutex
	c    chan struct{}
	text string
	seen bytes.Buffer
}

func (n *notifier) Write(p []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen.Write(p)
	if n.c != nil && strings.Contains(n.seen.String(), n.text) {
		close(n.c)
		n.c = nil
	}
	return len(p), nil
}

func identities(t *testing.T, p *project) {
	t.Helper()
	hops := []struct{ from, to string }{
		{"istio-ingressgateway", "productpage-v1"},
		{"productpage-v1", "details-v1"},
		{"productpage-v1", "reviews-v3"},
		{"reviews-v2", "ratings-v1"},
	}
	eventually(t, "metrics", func() string {
		m := p.meshctl("metrics")
		for _, h := range hops {
			found := false
			for line := range strings.Lines(m) {
				found = found || strings.HasPrefix(line, "istio_requests_total{") &&
					strings.Contains(line, `reporter="destination"`) &&
					strings.Contains(line, `connection_security_policy="mutual_tls"`) &&
					strings.Contains(line, `source_workload="`+h.from+`"`) &&
					strings.Contains(line, `source_principal="spiffe://cluster.local/ns/default/sa/`+h.from+`"`) &&
					strings.Contains(line, `destination_workload="`+h.to+`"`) &&
					strings.Contains(line, `destination_principal="spiffe://cluster.local/ns/default/sa/`+h.to+`"`)
			}
			if !found {
				return fmt.Sprintf("no series of %s → %s under mutual TLS in:\n%s", h.from, h.to, m)
			}
		}
		return ""
	})
	check := exec.CommandContext(t.Context(), "promtool", "check", "metrics")
	check.Stdin = strings.NewReader(p.meshctl("metrics"))
	out, _ := check.CombinedOutput() // it exits 3 for advice too; what it says decides
	for line := range strings.Lines(string(out)) {
		// The metric's name, with its unit, is Istio's.
		if !strings.Contains(line, `istio_request_duration_milliseconds use base unit "seconds"`) {
			t.Errorf("promtool check metrics: %s", line)
		}
	}
}

// routes applies the samples in the lecture's order, under load, and checks what each does.
func routes(t *testing.T, p *project, gateway, with string) {
	t.Helper()
	server := ""
	if with == "kubectl" {
		server = apiProxy(t, p)
	}
	apply := func(file string) {
		t.Helper()
		if with == "meshctl" {
			p.meshctl("apply", "-f", corpus(t, file))
			return
		}
		cmd := exec.CommandContext(t.Context(), "kubectl", "--server", server, "apply", "-f", corpus(t, file))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("kubectl apply -f %s: %v\n%s", file, err, out)
		}
	}
	load := startLoad(t, gateway+"/api/v1/products/0/reviews")
	defer load.stop()

	apply("networking/virtual-service-all-v1.yaml")
	within(t, time.Second, "all to v1", func() bool { return share(t, gateway, 20)["v1"] == 20 })
	shares(t, gateway, 100, map[string]float64{"v1": 1})

	apply("networking/virtual-service-reviews-test-v2.yaml")
	within(t, time.Second, "jason to v2", func() bool { return reviewsVersion(t, gateway, "Cookie", jason(t, gateway)) == "v2" })
	for range 20 {
		if v := reviewsVersion(t, gateway, "Cookie", jason(t, gateway)); v != "v2" {
			t.Fatalf("jason got %s, want v2", v)
		}
	}
	shares(t, gateway, 50, map[string]float64{"v1": 1})

	for _, split := range []struct {
		file  string
		probe string
		want  map[string]float64
	}{
		{"networking/virtual-service-reviews-90-10.yaml", "v2", map[string]float64{"v1": .9, "v2": .1}},
		{"networking/virtual-service-reviews-80-20.yaml", "v2", map[string]float64{"v1": .8, "v2": .2}},
		{"networking/virtual-service-reviews-50-v3.yaml", "v3", map[string]float64{"v1": .5, "v3": .5}},
		{"networking/virtual-service-reviews-v3.yaml", "v3", map[string]float64{"v3": 1}},
	} {
		apply(split.file)
		within(t, time.Second, split.file, func() bool {
			seen := share(t, gateway, 60)
			for v := range seen {
				if split.want[v] == 0 {
					return false
				}
			}
			return seen[split.probe] > 0
		})
		shares(t, gateway, 2000, split.want)
	}
	p.meshctl("delete", "-f", corpus(t, "networking/virtual-service-all-v1.yaml"))
	if sent, failed := load.stop(); failed > 0 || sent < 100 {
		t.Errorf("of %d requests while routes changed %d failed, want none: %s", sent, failed, load.first())
	}
}

// jason is the cookie of a reader who signed in at productpage as jason, as a browser does.
func jason(t *testing.T, gateway string) string {
	t.Helper()
	jar := must(cookiejar.New(nil))
	c := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.PostForm(gateway+"/login", url.Values{"username": {"jason"}, "passwd": {"x"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	var all []string
	for _, cookie := range jar.Cookies(must(url.Parse(gateway))) {
		all = append(all, cookie.String())
	}
	if len(all) == 0 {
		t.Fatalf("signing in gave no cookie: %s", resp.Status)
	}
	return strings.Join(all, "; ")
}

func share(t *testing.T, gateway string, n int) map[string]int {
	t.Helper()
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		seen = map[string]int{}
	)
	for range 8 {
		wg.Go(func() {
			for range (n + 7) / 8 {
				v := reviewsVersion(t, gateway)
				mu.Lock()
				if total(seen) < n {
					seen[v]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return seen
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// shares checks that n requests fall on the versions as wanted, within four standard deviations of the binomial
// distribution: a right mesh fails this once in 16 000 runs.
func shares(t *testing.T, gateway string, n int, want map[string]float64) {
	t.Helper()
	seen := share(t, gateway, n)
	for v := range seen {
		if want[v] == 0 {
			t.Errorf("version %s answered %d of %d, want none", v, seen[v], n)
		}
	}
	for v, p := range want {
		bound := 4 * math.Sqrt(float64(n)*p*(1-p))
		if d := math.Abs(float64(seen[v]) - float64(n)*p); d > bound {
			t.Errorf("version %s answered %d of %d, want %.0f±%.0f", v, seen[v], n, float64(n)*p, bound)
		}
	}
}

// within waits for a change that the issue promises within a bound. Asking takes time of its own on a shared
// machine, so the bound is on when the last asking began.
func within(t *testing.T, bound time.Duration, what string, done func() bool) {
	t.Helper()
	start := time.Now()
	for {
		asked := time.Since(start)
		if done() {
			t.Logf("%s: in force after at most %s", what, asked.Round(time.Millisecond))
			return
		}
		if asked > 10*bound {
			t.Fatalf("%s: not in force after %s, want %s", what, asked, bound)
		}
	}
}

// load sends requests steadily and counts those that fail.
type load struct {
	done         chan struct{}
	once         sync.Once
	wg           sync.WaitGroup
	sent, failed atomic.Int64
	mu           sync.Mutex
	problem      string
}

func startLoad(t *testing.T, url string) *load {
	t.Helper()
	l := &load{done: make(chan struct{})}
	for range 4 {
		l.wg.Go(func() {
			for {
				select {
				case <-l.done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				status, body := get(t, url)
				l.sent.Add(1)
				if status != http.StatusOK {
					l.failed.Add(1)
					l.mu.Lock()
					l.problem = or(l.problem, fmt.Sprintf("status %d: %.300s", status, body))
					l.mu.Unlock()
				}
			}
		})
	}
	return l
}

func (l *load) stop() (sent, failed int64) {
	l.once.Do(func() { close(l.done) })
	l.wg.Wait()
	return l.sent.Load(), l.failed.Load()
}

func (l *load) first() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.problem
}

// apiProxy runs `meshctl proxy` on a free port and returns its URL.
func apiProxy(t *testing.T, p *project) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), meshctl, "-p", p.name, "proxy", "--port", "0")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out := must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	line := make([]byte, 200)
	n := must(out.Read(line))
	i := strings.Index(string(line[:n]), "http://")
	if i < 0 {
		t.Fatalf("meshctl proxy said %q", line[:n])
	}
	return strings.TrimSpace(string(line[i:n]))
}
