package traffic

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
)

// policy is a DestinationRule for reviews with a traffic policy.
func policy(text string) string {
	return "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  trafficPolicy: " + text + "\n---\n"
}

const noRetries = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http: [{retries: {attempts: 0}, route: [{destination: {host: reviews}}]}]
`

// spread is who answers n requests.
func (c *client) spread(n int, path string, header ...string) map[string]int {
	c.s.t.Helper()
	seen := map[string]int{}
	for range n {
		seen[c.do("GET", "reviews:9080"+path, header...).workload()]++
	}
	return seen
}

func TestBalancers(t *testing.T) {
	t.Run("round robin", func(t *testing.T) {
		got := open(t, "productpage-v1", policy("{loadBalancer: {simple: ROUND_ROBIN}}")).client("reviews").spread(30, "/")
		if want := map[string]int{"reviews-v1": 10, "reviews-v2": 10, "reviews-v3": 10}; !maps.Equal(got, want) {
			t.Errorf("answers came from %v, want %v", got, want)
		}
	})
	t.Run("passthrough", func(t *testing.T) {
		// DNS has given the client the address of v1.
		got := open(t, "productpage-v1", policy("{loadBalancer: {simple: PASSTHROUGH}}")).client("reviews").spread(20, "/")
		if got["reviews-v1"] != 20 {
			t.Errorf("answers came from %v, want the one that was dialled", got)
		}
	})
	t.Run("random", func(t *testing.T) {
		got := open(t, "productpage-v1", policy("{loadBalancer: {simple: RANDOM}}")).client("reviews").spread(90, "/")
		if len(got) != 3 {
			t.Errorf("answers came from %v, want all three", got)
		}
	})
	t.Run("least request", func(t *testing.T) {
		// Two endpoints are busy with requests that last, so the third gets what comes.
		s := open(t, "productpage-v1", policy("{loadBalancer: {simple: LEAST_REQUEST}}"))
		busy := s.hang(8, "reviews:9080/hang")
		defer busy.end()
		if got := s.client("reviews").spread(20, "/"); len(got) == 0 {
			t.Errorf("answers came from %v", got)
		}
		// Of two that are looked at, the busier one is never chosen: so nobody runs away from the second.
		counts := slices.Sorted(slices.Values(s.active()))
		if len(counts) != 3 || counts[2]-counts[1] > 1 {
			t.Errorf("requests that last are spread as %v", counts)
		}
	})
}

func TestConsistentHash(t *testing.T) {
	hash := func(key string) string { return policy("{loadBalancer: {consistentHash: {" + key + "}}}") }
	// sticky holds that each of many keys has one endpoint, and that together they have all of them.
	sticky := func(t *testing.T, c *client, request func(key int) (path string, header []string)) {
		t.Helper()
		all := map[string]bool{}
		for key := range 40 {
			path, header := request(key)
			got := c.spread(3, path, header...)
			if len(got) != 1 {
				t.Errorf("key %d goes to %v, want one", key, got)
			}
			for name := range got {
				all[name] = true
			}
		}
		if len(all) != 3 {
			t.Errorf("all keys go to %v, want all three endpoints", all)
		}
	}
	for _, table := range []string{"", ", ringHash: {minimumRingSize: 64}", ", maglev: {tableSize: 1009}", ", minimumRingSize: 100"} {
		t.Run("header"+table, func(t *testing.T) {
			c := open(t, "productpage-v1", hash("httpHeaderName: X-User"+table)).client("reviews")
			sticky(t, c, func(key int) (string, []string) { return "/", []string{fmt.Sprintf("x-user: %d", key)} })
			if got := c.spread(60, "/"); len(got) != 3 {
				t.Errorf("requests without the header go to %v, want all three", got)
			}
		})
	}
	t.Run("query parameter", func(t *testing.T) {
		c := open(t, "productpage-v1", hash("httpQueryParameterName: user")).client("reviews")
		sticky(t, c, func(key int) (string, []string) { return fmt.Sprintf("/?x=1&user=%d", key), nil })
	})
	t.Run("source address", func(t *testing.T) {
		c := open(t, "productpage-v1", hash("useSourceIp: true")).client("reviews")
		if got := c.spread(30, "/"); len(got) != 1 {
			t.Errorf("requests of one client go to %v, want one", got)
		}
	})
	t.Run("cookie of the client", func(t *testing.T) {
		c := open(t, "productpage-v1", hash("httpCookie: {name: user}")).client("reviews")
		sticky(t, c, func(key int) (string, []string) { return "/", []string{fmt.Sprintf("cookie: a=b; user=%d", key)} })
		if a := c.do("GET", "reviews:9080/"); a.Header.Get("Set-Cookie") != "" {
			t.Errorf("without a ttl a cookie is made: %s", a.Header.Get("Set-Cookie"))
		}
	})
	t.Run("cookie of the proxy", func(t *testing.T) {
		c := open(t, "productpage-v1", hash("httpCookie: {name: user, path: /shop, ttl: 1h, attributes: [{name: SameSite, value: Strict}]}")).client("reviews")
		all := map[string]bool{}
		for range 40 {
			first := c.do("GET", "reviews:9080/")
			set := first.Header.Get("Set-Cookie")
			pair, attributes, _ := strings.Cut(set, "; ")
			if attributes != "Max-Age=3600; Path=/shop; SameSite=Strict; HttpOnly" || !strings.HasPrefix(pair, "user=") {
				t.Fatalf("Set-Cookie is %q", set)
			}
			again := c.do("GET", "reviews:9080/", "cookie: "+pair)
			if again.workload() != first.workload() || again.Header.Get("Set-Cookie") != "" {
				t.Errorf("with its cookie a client went from %s to %s, and got %q", first.workload(), again.workload(), again.Header.Get("Set-Cookie"))
			}
			all[first.workload()] = true
		}
		if len(all) != 3 {
			t.Errorf("new clients go to %v, want all three", all)
		}
	})
	t.Run("cookie of a session", func(t *testing.T) {
		c := open(t, "productpage-v1", hash("httpCookie: {name: user, ttl: 0s}")).client("reviews")
		if set := c.do("GET", "reviews:9080/").Header.Get("Set-Cookie"); strings.Contains(set, "Max-Age") || !strings.HasPrefix(set, "user=") {
			t.Errorf("Set-Cookie is %q, want one without an age", set)
		}
	})
}

func TestOutlierDetection(t *testing.T) {
	t.Run("one that fails gets no more", func(t *testing.T) {
		s := open(t, "productpage-v1", policy("{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3}}")+noRetries)
		c := s.client("reviews")
		c.spread(9, "/status/500@v1")
		if got := c.spread(20, "/"); got["reviews-v1"] != 0 || len(got) != 2 {
			t.Errorf("answers came from %v, want none from v1, which failed three times", got)
		}
		// Another rule is applied: who is out stays out.
		s.apply(policy("{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 3}}") + strings.ReplaceAll(noRetries, "reviews", "ratings"))
		if got := c.spread(20, "/"); got["reviews-v1"] != 0 {
			t.Errorf("after a change of other rules answers came from %v", got)
		}
		// A second that fails stays: a tenth of three is one.
		c.spread(20, "/status/500@v2")
		if got := c.spread(20, "/"); len(got) != 2 {
			t.Errorf("answers came from %v, want two endpoints in", got)
		}
	})
	t.Run("what can't be reached", func(t *testing.T) {
		s := open(t, "productpage-v1", policy("{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 100}}")+noRetries)
		s.down["reviews-v1"], s.down["reviews-v2"], s.down["reviews-v3"] = true, true, true
		c := s.client("reviews")
		for range 6 {
			if a := c.do("GET", "reviews:9080/"); a.StatusCode != http.StatusServiceUnavailable || a.record.Flag != "UF" {
				t.Errorf("status %d, flag %s, want 503 UF", a.StatusCode, a.record.Flag)
			}
		}
		if a := c.do("GET", "reviews:9080/"); a.StatusCode != http.StatusServiceUnavailable || a.record.Flag != "UH" {
			t.Errorf("with all out: status %d, flag %s, want 503 UH", a.StatusCode, a.record.Flag)
		}
	})
	t.Run("gateway errors, by the name of 1.0", func(t *testing.T) {
		c := open(t, "productpage-v1", policy("{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutiveErrors: 2}}")+noRetries).client("reviews")
		c.spread(12, "/status/500@v1")
		if got := c.spread(9, "/"); got["reviews-v1"] != 3 {
			t.Errorf("500 counts: answers came from %v", got)
		}
		c.spread(9, "/status/503@v1")
		if got := c.spread(9, "/"); got["reviews-v1"] != 0 {
			t.Errorf("503 does not count: answers came from %v", got)
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		s := open(t, "productpage-v1", policy("{loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutiveGatewayErrors: 2}}")+noRetries)
		c := s.client("reviews")
		for range 9 {
			c.do("POST", "reviews:9080/grpc/14@v1", "content-type: application/grpc")
		}
		if got := c.spread(9, "/"); got["reviews-v1"] != 0 {
			t.Errorf("UNAVAILABLE does not count: answers came from %v", got)
		}
	})
	t.Run("off without the block", func(t *testing.T) {
		c := open(t, "productpage-v1", policy("{loadBalancer: {simple: ROUND_ROBIN}}")+noRetries).client("reviews")
		c.spread(30, "/status/500@v1")
		if got := c.spread(9, "/"); got["reviews-v1"] != 3 {
			t.Errorf("answers came from %v, want all alike", got)
		}
	})
}

func TestConnectionPool(t *testing.T) {
	overflows := func(t *testing.T, c *client) {
		t.Helper()
		a := c.do("GET", "reviews:9080/")
		if a.StatusCode != http.StatusServiceUnavailable || a.record.Flag != "UO" || a.Header.Get("X-Envoy-Overloaded") != "true" {
			t.Errorf("status %d, flag %s, x-envoy-overloaded %q, want 503 UO true", a.StatusCode, a.record.Flag, a.Header.Get("X-Envoy-Overloaded"))
		}
	}
	t.Run("requests", func(t *testing.T) {
		s := open(t, "productpage-v1", policy("{connectionPool: {http: {http2MaxRequests: 2}}}"))
		busy := s.hang(2, "reviews:9080/hang")
		overflows(t, s.client("reviews"))
		busy.end()
		if a := s.client("reviews").do("GET", "reviews:9080/"); a.StatusCode != http.StatusOK {
			t.Errorf("status %d once there is room", a.StatusCode)
		}
	})
	t.Run("connections and those that wait", func(t *testing.T) {
		s := open(t, "productpage-v1", policy("{connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}"))
		busy := s.hang(1, "reviews:9080/hang")
		// Of two more one waits, and the other is one too many.
		answers := make(chan int, 2)
		s.background("reviews:9080/", answers)
		s.background("reviews:9080/", answers)
		if status := <-answers; status != http.StatusServiceUnavailable {
			t.Errorf("the one too many got status %d", status)
		}
		if r := <-s.done; r.Flag != "UO" {
			t.Errorf("its flag is %s, want UO", r.Flag)
		}
		busy.end()
		if status := <-answers; status != http.StatusOK {
			t.Errorf("the one that waited got status %d", status)
		}
	})
	t.Run("per connection", func(t *testing.T) {
		for text, want := range map[string]int{"maxRequestsPerConnection: 1": 6, "maxRequestsPerConnection: 3": 2, "idleTimeout: 1h": 1} {
			s := open(t, "productpage-v1", policy("{connectionPool: {http: {"+text+"}}}")+strings.Replace(noRetries, "{host: reviews}", "{host: reviews, subset: v1}", 1)+
				"---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: more}\nspec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}\n")
			s.client("reviews").spread(6, "/")
			if got := s.dialled("reviews-v1"); got != want {
				t.Errorf("%s: %d connections for 6 requests, want %d", text, got, want)
			}
		}
	})
	t.Run("retries", func(t *testing.T) {
		rules := policy("{connectionPool: {http: {maxRetries: 1}}}") +
			strings.Replace(noRetries, "attempts: 0", "attempts: 1, retryOn: 5xx, backoff: 1ms", 1)
		s := open(t, "productpage-v1", rules)
		if a := s.client("reviews").do("GET", "reviews:9080/status/503"); a.record.Flag != "URX" {
			t.Errorf("flag %s, want a retry", a.record.Flag)
		}
	})
	t.Run("of a port, which inherits nothing", func(t *testing.T) {
		s := open(t, "productpage-v1", policy("{connectionPool: {http: {http2MaxRequests: 1}}, portLevelSettings: [{port: {number: 9080}, loadBalancer: {simple: ROUND_ROBIN}}]}"))
		busy := s.hang(2, "reviews:9080/hang")
		defer busy.end()
		if a := s.client("reviews").do("GET", "reviews:9080/"); a.StatusCode != http.StatusOK {
			t.Errorf("status %d, want no bound of the level above", a.StatusCode)
		}
	})
}

// hung are requests that get no answer.
type hung struct {
	cancel func()
	wg     sync.WaitGroup
}

func (h *hung) end() { h.cancel(); h.wg.Wait() }
