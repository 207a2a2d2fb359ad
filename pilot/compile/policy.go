package compile

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// blocks are the parts of a traffic policy: each is overlaid as a whole.
type blocks struct {
	lb      *networking.LoadBalancerSettings
	pool    *networking.ConnectionPoolSettings
	outlier *networking.OutlierDetection
	tls     *networking.ClientTLSSettings
	budget  *networking.TrafficPolicy_RetryBudget
}

func blocksOf(p *networking.TrafficPolicy) blocks {
	return blocks{p.GetLoadBalancer(), p.GetConnectionPool(), p.GetOutlierDetection(), p.GetTls(), p.GetRetryBudget()}
}

// over is b where it says something, and else below.
func (b blocks) over(below blocks) blocks {
	return blocks{cmp.Or(b.lb, below.lb), cmp.Or(b.pool, below.pool), cmp.Or(b.outlier, below.outlier), cmp.Or(b.tls, below.tls), cmp.Or(b.budget, below.budget)}
}

// portBlocks is the policy for one port, false where there is none: it stands instead of the rest of its policy, of which
// it inherits nothing (istio.io/docs/reference/config/networking/destination-rule/#TrafficPolicy-PortTrafficPolicy).
func portBlocks(p *networking.TrafficPolicy, port uint16) (blocks, bool) {
	for _, s := range p.GetPortLevelSettings() {
		if s.GetPort().GetNumber() == uint32(port) {
			return blocks{lb: s.LoadBalancer, pool: s.ConnectionPool, outlier: s.OutlierDetection, tls: s.Tls}, true
		}
	}
	return blocks{}, false
}

// policies are the policy of a service, where subset is nil, or of its subset, with those of single ports.
func policies(service, subset *networking.TrafficPolicy) (snapshot.Policy, []snapshot.PortPolicy) {
	ports := map[uint16]bool{}
	for _, p := range []*networking.TrafficPolicy{service, subset} {
		for _, s := range p.GetPortLevelSettings() {
			ports[uint16(s.GetPort().GetNumber())] = true //nolint:gosec // api validates the range
		}
	}
	var of []snapshot.PortPolicy
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		b, ok := portBlocks(subset, port)
		if !ok {
			if b, ok = portBlocks(service, port); !ok {
				b = blocksOf(service)
			}
			b = blocksOf(subset).over(b)
		}
		of = append(of, snapshot.PortPolicy{Port: port, Policy: b.policy()})
	}
	return blocksOf(subset).over(blocksOf(service)).policy(), of
}

func (b blocks) policy() snapshot.Policy {
	p := snapshot.Policy{
		LoadBalancer: balancerOf(b.lb), Hash: hashOf(b.lb.GetConsistentHash()), Warmup: warmupOf(b.lb.GetWarmup()),
		Connections: connectionsOf(b.pool), Outlier: outlierOf(b.outlier),
	}
	if b.budget != nil {
		p.RetryBudget = &snapshot.RetryBudget{Percent: 20, MinConcurrency: 3} // the API's defaults
		if b.budget.Percent != nil {
			p.RetryBudget.Percent = b.budget.Percent.Value
		}
		if b.budget.MinRetryConcurrency != 0 {
			p.RetryBudget.MinConcurrency = b.budget.MinRetryConcurrency
		}
	}
	if b.tls != nil {
		p.TLS = snapshot.TLSDisable
		if b.tls.Mode == networking.ClientTLSSettings_ISTIO_MUTUAL {
			p.TLS = snapshot.TLSMutual
		}
	}
	return p
}

func balancerOf(lb *networking.LoadBalancerSettings) snapshot.LoadBalancer {
	switch lb.GetSimple() {
	case networking.LoadBalancerSettings_ROUND_ROBIN:
		return snapshot.RoundRobin
	case networking.LoadBalancerSettings_RANDOM:
		return snapshot.Random
	case networking.LoadBalancerSettings_PASSTHROUGH:
		return snapshot.Passthrough
	case networking.LoadBalancerSettings_LEAST_CONN, networking.LoadBalancerSettings_LEAST_REQUEST:
		return snapshot.LeastRequest
	}
	return ""
}

func hashOf(h *networking.LoadBalancerSettings_ConsistentHashLB) *snapshot.Hash {
	if h == nil {
		return nil
	}
	out := &snapshot.Hash{
		Header: strings.ToLower(h.GetHttpHeaderName()), SourceIP: h.GetUseSourceIp(), QueryParam: h.GetHttpQueryParameterName(),
		RingSize: uint32(h.GetRingHash().GetMinimumRingSize()), //nolint:gosec // api validates the range
	}
	if m := h.GetMaglev(); m != nil {
		out.MaglevSize = uint32(cmp.Or(m.TableSize, 65537)) //nolint:gosec // api validates the range
	}
	if c := h.GetHttpCookie(); c != nil {
		out.Cookie = &snapshot.Cookie{Name: c.Name, Path: c.Path}
		if c.Ttl != nil {
			ttl := durationOf(c.Ttl)
			out.Cookie.TTL = &ttl
		}
		for _, a := range c.Attributes {
			text := a.Name
			if a.Value != "" {
				text += "=" + a.Value
			}
			out.Cookie.Attributes = append(out.Cookie.Attributes, text)
		}
	}
	return out
}

func warmupOf(w *networking.WarmupConfiguration) *snapshot.Warmup {
	if w == nil {
		return nil
	}
	return &snapshot.Warmup{Duration: durationOf(w.Duration), MinimumPercent: w.MinimumPercent.GetValue(), Aggression: w.Aggression.GetValue()}
}

func connectionsOf(p *networking.ConnectionPoolSettings) *snapshot.Connections {
	if p == nil {
		return nil
	}
	tcp, http := p.GetTcp(), p.GetHttp()
	out := &snapshot.Connections{ //nolint:gosec // api validates the ranges
		MaxConnections: uint32(tcp.GetMaxConnections()), MaxPending: uint32(http.GetHttp1MaxPendingRequests()),
		MaxRequests: uint32(http.GetHttp2MaxRequests()), MaxRetries: uint32(http.GetMaxRetries()), MaxPerConnection: uint32(http.GetMaxRequestsPerConnection()),
		ConnectTimeout: durationOf(tcp.GetConnectTimeout()), IdleTimeout: durationOf(http.GetIdleTimeout()), MaxAge: durationOf(tcp.GetMaxConnectionDuration()),
	}
	if k := tcp.GetTcpKeepalive(); k != nil {
		out.KeepAlive = &snapshot.KeepAlive{Probes: k.Probes, Idle: durationOf(k.Time), Interval: durationOf(k.Interval)}
	}
	return out
}

// outlierOf fills in the defaults that hold once there is a block at all
// (istio.io/docs/reference/config/networking/destination-rule/#OutlierDetection).
func outlierOf(o *networking.OutlierDetection) *snapshot.Outlier {
	if o == nil {
		return nil
	}
	out := &snapshot.Outlier{
		Consecutive5xx: 5, ConsecutiveGateway: o.ConsecutiveGatewayErrors.GetValue(), SplitLocal: o.SplitExternalLocalOriginErrors,
		Interval: cmp.Or(durationOf(o.Interval), snapshot.Duration(10*time.Second)), BaseTime: cmp.Or(durationOf(o.BaseEjectionTime), snapshot.Duration(30*time.Second)),
		MaxPercent: uint32(cmp.Or(o.MaxEjectionPercent, 10)), MinHealthPercent: uint32(o.MinHealthPercent), //nolint:gosec // api validates the ranges
	}
	if o.Consecutive_5XxErrors != nil {
		out.Consecutive5xx = o.Consecutive_5XxErrors.Value
	}
	if out.SplitLocal {
		out.ConsecutiveLocalFailure = 5
		if o.ConsecutiveLocalOriginFailures != nil {
			out.ConsecutiveLocalFailure = o.ConsecutiveLocalOriginFailures.Value
		}
	}
	return out
}
