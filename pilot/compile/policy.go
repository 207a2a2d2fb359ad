package compile

import (
	"cmp"
	"maps"
	"math"
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
	header  *networking.TrafficPolicy_ProxyProtocol
}

func blocksOf(p *networking.TrafficPolicy) blocks {
	return blocks{p.GetLoadBalancer(), p.GetConnectionPool(), p.GetOutlierDetection(), p.GetTls(), p.GetRetryBudget(), p.GetProxyProtocol()}
}

// over is b where it says something, and else below.
func (b blocks) over(below blocks) blocks {
	return blocks{
		cmp.Or(b.lb, below.lb), cmp.Or(b.pool, below.pool), cmp.Or(b.outlier, below.outlier), cmp.Or(b.tls, below.tls), cmp.Or(b.budget, below.budget),
		cmp.Or(b.header, below.header),
	}
}

// portBlocks is the policy for one port, false where there is none: it stands instead of the rest of its policy, of which
// it inherits nothing (istio.io/docs/reference/config/networking/destination-rule/#TrafficPolicy-PortTrafficPolicy).
func portBlocks(p *networking.TrafficPolicy, port uint16) (blocks, bool) {
	for _, s := range p.GetPortLevelSettings() {
		if s.GetPort().GetNumber() == uint32(port) {
			// A port can't say anything about the PROXY header, so it has its policy's.
			return blocks{lb: s.LoadBalancer, pool: s.ConnectionPool, outlier: s.OutlierDetection, tls: s.Tls, header: p.GetProxyProtocol()}, true
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
		Connections: connectionsOf(b.pool, b.header), Outlier: outlierOf(b.outlier),
		Locality: localityOf(b.lb.GetLocalityLbSetting()),
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
	switch b.tls.GetMode() {
	case networking.ClientTLSSettings_ISTIO_MUTUAL:
		p.TLS, p.ServerName = snapshot.TLSMutual, strings.ToLower(b.tls.Sni)
	case networking.ClientTLSSettings_SIMPLE, networking.ClientTLSSettings_MUTUAL:
		p.ClientTLS = clientTLSOf(b.tls)
	default:
		if b.tls != nil {
			p.TLS = snapshot.TLSDisable
		}
	}
	return p
}

// clientTLSOf names a Secret without its namespace, which is the proxy's.
func clientTLSOf(t *networking.ClientTLSSettings) *snapshot.ClientTLS {
	out := &snapshot.ClientTLS{ServerName: strings.ToLower(t.Sni), SubjectAltNames: t.SubjectAltNames, Unverified: t.InsecureSkipVerify.GetValue()}
	if t.Mode == networking.ClientTLSSettings_MUTUAL {
		out.Certificate = snapshot.Credential{Secret: t.CredentialName, CertificateFile: t.ClientCertificate, KeyFile: t.PrivateKey}
	}
	if !out.Unverified {
		out.CA = snapshot.Credential{Secret: t.CredentialName, CAFile: t.CaCertificates}
	}
	return out
}

// localityOf is nil for Istio's default, which the proxies know.
func localityOf(l *networking.LocalityLoadBalancerSetting) *snapshot.Locality {
	switch {
	case l.GetEnabled() != nil && !l.Enabled.Value:
		return &snapshot.Locality{Off: true}
	case len(l.GetDistribute())+len(l.GetFailover())+len(l.GetFailoverPriority()) == 0:
		return nil
	}
	out := &snapshot.Locality{Priority: l.FailoverPriority}
	for _, d := range l.Distribute {
		rule := snapshot.Distribute{From: d.From}
		for _, name := range slices.Sorted(maps.Keys(d.To)) {
			rule.To = append(rule.To, snapshot.LocalityShare{Locality: name, Weight: d.To[name]})
		}
		out.Distribute = append(out.Distribute, rule)
	}
	for _, f := range l.Failover {
		out.Failover = append(out.Failover, snapshot.Failover{From: f.From, To: f.To})
	}
	return out
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
		out.MaglevSize = uint32(m.TableSize) //nolint:gosec // api validates the range
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

func connectionsOf(p *networking.ConnectionPoolSettings, header *networking.TrafficPolicy_ProxyProtocol) *snapshot.Connections {
	if p == nil && header == nil {
		return nil
	}
	tcp, http := p.GetTcp(), p.GetHttp()
	out := &snapshot.Connections{ //nolint:gosec // api validates the ranges
		MaxConnections: uint32(tcp.GetMaxConnections()), MaxPending: uint32(http.GetHttp1MaxPendingRequests()),
		MaxRequests: uint32(http.GetHttp2MaxRequests()), MaxRetries: uint32(http.GetMaxRetries()), MaxPerConnection: uint32(http.GetMaxRequestsPerConnection()),
		ConnectTimeout: durationOf(tcp.GetConnectTimeout()), IdleTimeout: durationOf(http.GetIdleTimeout()), MaxAge: durationOf(tcp.GetMaxConnectionDuration()),
		SessionIdle: durationOf(tcp.GetIdleTimeout()),
	}
	if d := tcp.GetIdleTimeout(); d != nil && d.AsDuration() == 0 { // 0s turns it off
		out.SessionIdle = math.MaxInt64
	}
	if header != nil {
		out.ProxyProtocol = 1
		if header.Version == networking.TrafficPolicy_ProxyProtocol_V2 {
			out.ProxyProtocol = 2
		}
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
