package api

import (
	"fmt"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	networking "istio.io/api/networking/v1"
)

// trafficPolicy is what a policy and a port's policy have in common.
type trafficPolicy interface {
	GetLoadBalancer() *networking.LoadBalancerSettings
	GetConnectionPool() *networking.ConnectionPoolSettings
	GetOutlierDetection() *networking.OutlierDetection
	GetTls() *networking.ClientTLSSettings
}

func validateTrafficPolicy(ps *Problems, path Path, policy *networking.TrafficPolicy) {
	if policy != nil && proto.Size(policy) == 0 {
		ps.required(path, "want at least one field of a policy: this says nothing")
	}
	validatePolicy(ps, path, policy)
	ports := map[uint32]int{}
	for i, p := range policy.GetPortLevelSettings() {
		at := path.At("portLevelSettings", i)
		number := p.GetPort().GetNumber()
		if p.GetPort() == nil {
			ps.required(at.At("port", "number"), "want a port")
		} else if msg := checkPort(number); msg != "" {
			ps.invalid(at.At("port", "number"), msg)
		}
		if first, taken := ports[number]; taken {
			ps.invalid(at.At("port", "number"), fmt.Sprintf("want a port of its own, %d is that of portLevelSettings[%d]", number, first))
		} else {
			ports[number] = i
		}
		if p.GetLoadBalancer() == nil && p.GetConnectionPool() == nil && p.GetOutlierDetection() == nil && p.GetTls() == nil {
			ps.required(at, "want loadBalancer, connectionPool, outlierDetection or tls: this says nothing of its port")
		}
		validatePolicy(ps, at, p)
	}
	if policy.GetProxyProtocol() != nil && policy.GetLoadBalancer().GetSimple() == networking.LoadBalancerSettings_PASSTHROUGH {
		ps.invalid(path.At("proxyProtocol"), "can't be with loadBalancer.simple PASSTHROUGH, which leaves connections as they are")
	}
	if b := policy.GetRetryBudget(); b != nil {
		if v := b.GetPercent().GetValue(); v < 0 || v > 100 {
			ps.invalid(path.At("retryBudget", "percent"), fmt.Sprintf("want a percentage between 0 and 100, got %v", v))
		}
	}
}

func validatePolicy(ps *Problems, path Path, p trafficPolicy) {
	validateLoadBalancer(ps, path.At("loadBalancer"), p.GetLoadBalancer())
	validateConnectionPool(ps, path.At("connectionPool"), p.GetConnectionPool())
	validateOutlierDetection(ps, path.At("outlierDetection"), p.GetOutlierDetection())
	validateClientTLS(ps, path.At("tls"), p.GetTls())
}

func validateLoadBalancer(ps *Problems, path Path, lb *networking.LoadBalancerSettings) {
	if w := lb.GetWarmup(); w != nil {
		at := path.At("warmup")
		if w.Duration == nil {
			ps.required(at.At("duration"), "want a duration")
		}
		validateDuration(ps, at.At("duration"), w.Duration, time.Millisecond)
		if v := w.GetMinimumPercent().GetValue(); v < 0 || v > 100 {
			ps.invalid(at.At("minimumPercent"), fmt.Sprintf("want a percentage between 0 and 100, got %v", v))
		}
		if a := w.GetAggression(); a != nil && a.Value < 1 {
			ps.invalid(at.At("aggression"), fmt.Sprintf("want 1 or more, got %v", a.Value))
		}
		simple := lb.GetSimple()
		if lb.GetConsistentHash() != nil || simple == networking.LoadBalancerSettings_RANDOM || simple == networking.LoadBalancerSettings_PASSTHROUGH {
			ps.invalid(at, "want it with ROUND_ROBIN or LEAST_REQUEST only: no other load balancer warms endpoints up")
		}
	}
	validateLocalities(ps, path.At("localityLbSetting"), lb.GetLocalityLbSetting())
	if h := lb.GetConsistentHash(); h != nil {
		validateHash(ps, path.At("consistentHash"), h)
	}
}

// Bounds of consistent hashing, Envoy's own.
const (
	maxRingSize   = 8 << 20
	maxMaglevSize = 5_000_010 // Istio's, which leaves out the largest prime of Envoy's
)

func validateHash(ps *Problems, path Path, h *networking.LoadBalancerSettings_ConsistentHashLB) {
	switch {
	case h.HashKey == nil:
		ps.required(path, "want one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName")
	case h.GetHttpCookie() != nil:
		validateHashCookie(ps, path.At("httpCookie"), h.GetHttpCookie())
	case h.GetHttpHeaderName() != "":
		if !headerName.MatchString(h.GetHttpHeaderName()) {
			ps.invalid(path.At("httpHeaderName"), fmt.Sprintf("want a header's name, got %q", h.GetHttpHeaderName()))
		}
	case h.GetHttpQueryParameterName() == "" && !h.GetUseSourceIp():
		ps.required(path, "want a key that is not empty or false: one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName")
	}
	if size := h.GetRingHash().GetMinimumRingSize(); size > maxRingSize {
		ps.invalid(path.At("ringHash", "minimumRingSize"), fmt.Sprintf("want at most %d, got %d", maxRingSize, size))
	}
	if m := h.GetMaglev(); m != nil && (m.TableSize > maxMaglevSize || !isPrime(m.TableSize)) {
		ps.invalid(path.At("maglev", "tableSize"), fmt.Sprintf("want a prime of at most %d, got %d", maxMaglevSize, m.TableSize))
	}
}

func isPrime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func validateHashCookie(ps *Problems, path Path, c *networking.LoadBalancerSettings_ConsistentHashLB_HTTPCookie) {
	if !headerName.MatchString(c.Name) {
		ps.invalid(path.At("name"), fmt.Sprintf("want a cookie's name, got %q", c.Name))
	}
	if msg := checkCookieText(c.Path); msg != "" {
		ps.invalid(path.At("path"), msg)
	}
	if c.Ttl != nil && (c.Ttl.AsDuration() < 0 || c.Ttl.AsDuration()%time.Second != 0) {
		ps.invalid(path.At("ttl"), fmt.Sprintf("want whole seconds, 0 or more, got %s", c.Ttl.AsDuration()))
	}
	for i, a := range c.Attributes {
		if !headerName.MatchString(a.GetName()) {
			ps.invalid(path.At("attributes", i, "name"), fmt.Sprintf("want an attribute's name, got %q", a.GetName()))
		}
		if msg := checkCookieText(a.GetValue()); msg != "" {
			ps.invalid(path.At("attributes", i, "value"), msg)
		}
	}
}

// checkCookieText holds a part of a Set-Cookie field to RFC 6265 section 4.1.1.
func checkCookieText(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' || r == ';' }) {
		return fmt.Sprintf("want visible ASCII without ;, got %q", text)
	}
	return ""
}

func validateConnectionPool(ps *Problems, path Path, p *networking.ConnectionPoolSettings) {
	if p == nil {
		return
	}
	if p.Tcp == nil && p.Http == nil {
		ps.required(path, "want tcp, http or both")
	}
	tcp, http := p.GetTcp(), p.GetHttp()
	for _, f := range []struct {
		path  Path
		value int32
	}{
		{path.At("tcp", "maxConnections"), tcp.GetMaxConnections()},
		{path.At("http", "http1MaxPendingRequests"), http.GetHttp1MaxPendingRequests()},
		{path.At("http", "http2MaxRequests"), http.GetHttp2MaxRequests()},
		{path.At("http", "maxRequestsPerConnection"), http.GetMaxRequestsPerConnection()},
		{path.At("http", "maxRetries"), http.GetMaxRetries()},
		{path.At("http", "maxConcurrentStreams"), http.GetMaxConcurrentStreams()},
	} {
		if f.value < 0 {
			ps.invalid(f.path, fmt.Sprintf("want 0, which is no bound, or more, got %d", f.value))
		}
	}
	validateDuration(ps, path.At("tcp", "connectTimeout"), tcp.GetConnectTimeout(), time.Millisecond)
	validateDuration(ps, path.At("tcp", "maxConnectionDuration"), tcp.GetMaxConnectionDuration(), time.Millisecond)
	validateDuration(ps, path.At("tcp", "idleTimeout"), tcp.GetIdleTimeout(), 0)
	validateDuration(ps, path.At("http", "idleTimeout"), http.GetIdleTimeout(), time.Millisecond)
	if http.GetH2UpgradePolicy() == networking.ConnectionPoolSettings_HTTPSettings_UPGRADE {
		ps.unsupported(path.At("http", "h2UpgradePolicy"), "UPGRADE")
	}
	if http.GetUseClientProtocol() {
		ps.unsupported(path.At("http", "useClientProtocol"), "true")
	}
	if k := http.GetHttp2KeepAlive(); k != nil {
		for _, f := range []struct {
			name string
			d    *durationpb.Duration
		}{{"interval", k.Interval}, {"timeout", k.Timeout}} {
			if f.d == nil {
				ps.required(path.At("http", "http2KeepAlive", f.name), "want a duration")
			}
			validateDuration(ps, path.At("http", "http2KeepAlive", f.name), f.d, time.Millisecond)
		}
	}
	if k := tcp.GetTcpKeepalive(); k != nil {
		at := path.At("tcp", "tcpKeepalive")
		for _, f := range []struct {
			name string
			d    interface{ AsDuration() time.Duration }
			set  bool
		}{{"time", k.Time, k.Time != nil}, {"interval", k.Interval, k.Interval != nil}} {
			if f.set && (f.d.AsDuration() < time.Second || f.d.AsDuration()%time.Second != 0 || f.d.AsDuration() > math.MaxInt16*time.Second) {
				ps.invalid(at.At(f.name), fmt.Sprintf("want whole seconds between 1s and %s, got %s", math.MaxInt16*time.Second, f.d.AsDuration()))
			}
		}
		if k.Probes > 127 {
			ps.invalid(at.At("probes"), fmt.Sprintf("want at most 127, got %d", k.Probes))
		}
	}
}

func validateOutlierDetection(ps *Problems, path Path, o *networking.OutlierDetection) {
	if o == nil {
		return
	}
	validateDuration(ps, path.At("interval"), o.Interval, time.Millisecond)
	validateDuration(ps, path.At("baseEjectionTime"), o.BaseEjectionTime, time.Millisecond)
	for _, f := range []struct {
		name  string
		value int32
	}{{"maxEjectionPercent", o.MaxEjectionPercent}, {"minHealthPercent", o.MinHealthPercent}} {
		if f.value < 0 || f.value > 100 {
			ps.invalid(path.At(f.name), fmt.Sprintf("want a percentage between 0 and 100, got %d", f.value))
		}
	}
	if o.ConsecutiveLocalOriginFailures.GetValue() > 0 && !o.SplitExternalLocalOriginErrors {
		ps.invalid(path.At("consecutiveLocalOriginFailures"), "want splitExternalLocalOriginErrors: true besides: without it such failures count as 5xx")
	}
}
