package snapshot

// Policy is how to send to a service or subset. What is nil or zero is as without a policy.
type Policy struct {
	LoadBalancer LoadBalancer `json:"loadBalancer,omitempty"`
	// Hash chooses the endpoint by something in the request; LoadBalancer is empty then.
	Hash        *Hash        `json:"hash,omitempty"`
	Warmup      *Warmup      `json:"warmup,omitempty"`
	Connections *Connections `json:"connections,omitempty"`
	Outlier     *Outlier     `json:"outlier,omitempty"`
	// Locality prefers endpoints for where they are. Without, what Outlier takes out is replaced by the next locality's.
	Locality    *Locality    `json:"locality,omitempty"`
	RetryBudget *RetryBudget `json:"retryBudget,omitempty"`
	TLS         TLSMode      `json:"tls,omitempty"`
	// TLSFrom is the DestinationRule that says TLS or ClientTLS.
	TLSFrom string `json:"tlsFrom,omitempty"`
	// ClientTLS is TLS to servers that are none of the mesh's; nil without. TLS is empty then.
	ClientTLS *ClientTLS `json:"clientTls,omitempty"`
	// ServerName is what a gateway of the mesh is asked for by TLSMutual; empty for nothing.
	ServerName string `json:"serverName,omitempty"`
}

// LocalityLabel of a workload is where it is: region, zone and subzone with slashes or dots between them, of which the last may
// be missing (https://istio.io/latest/docs/tasks/traffic-management/locality-load-balancing/).
const LocalityLabel = "istio-locality"

// Locality says which endpoints are preferred for where they are, as seen from the proxy that sends.
type Locality struct {
	// Off makes all alike.
	Off bool `json:"off,omitempty"`
	// Distribute is by the first whose From the proxy is in. Failover and Priority are not used then.
	Distribute []Distribute `json:"distribute,omitempty"`
	// Failover names the region that is next to one, where there is more than one other.
	Failover []Failover `json:"failover,omitempty"`
	// Priority are labels, key or key=value: an endpoint is the nearer the more of the first of them it has as the proxy, or
	// with the value. Localities matter besides where there is a Failover.
	Priority []string `json:"priority,omitempty"`
}

// Distribute shares requests from one locality among others: region, region/zone or region/zone/subzone, of which the last
// may be *. The rest gets none.
type Distribute struct {
	From string          `json:"from"`
	To   []LocalityShare `json:"to"` // the most specific first
}

// LocalityShare is a locality and its weight.
type LocalityShare struct {
	Locality string `json:"locality"`
	Weight   uint32 `json:"weight"`
}

// Failover is a region and the one that stands in for it.
type Failover struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// PortPolicy is the policy for one port.
type PortPolicy struct {
	Port uint16 `json:"port"`
	Policy
}

// LoadBalancer names a balancing algorithm; empty is LeastRequest.
type LoadBalancer string

// The load balancers.
const (
	LeastRequest LoadBalancer = "LEAST_REQUEST"
	RoundRobin   LoadBalancer = "ROUND_ROBIN"
	Random       LoadBalancer = "RANDOM"
	// Passthrough goes to the very address that the client dialled.
	Passthrough LoadBalancer = "PASSTHROUGH"
)

// TLSMode says whether endpoints are dialled with the mesh's mutual TLS; empty is wherever they have a proxy.
type TLSMode string

// The modes.
const (
	TLSDisable TLSMode = "DISABLE" // plain text to all
	TLSMutual  TLSMode = "MUTUAL"  // mutual TLS to all: an endpoint without a proxy can't be reached
)

// Hash is consistent hashing: exactly one of Header, Cookie, SourceIP and QueryParam is the key. A request without the
// key goes anywhere.
type Hash struct {
	Header     string  `json:"header,omitempty"` // lower-case
	Cookie     *Cookie `json:"cookie,omitempty"`
	SourceIP   bool    `json:"sourceIp,omitempty"`
	QueryParam string  `json:"queryParam,omitempty"`
	// RingSize is the least number of points on the ring; 0 is 1024. It is not used with MaglevSize.
	RingSize uint32 `json:"ringSize,omitempty"`
	// MaglevSize, a prime, asks for a Maglev table of this size instead of a ring.
	MaglevSize uint32 `json:"maglevSize,omitempty"`
}

// Cookie is a key in a cookie.
type Cookie struct {
	Name string `json:"name"`
	Path string `json:"path,omitempty"`
	// TTL is how long a cookie lives that the proxy makes for a client without one; 0 is the browser's session. Nil makes
	// none.
	TTL        *Duration `json:"ttl,omitempty"`
	Attributes []string  `json:"attributes,omitempty"` // as they are written: Secure, SameSite=Strict
}

// Warmup gives an endpoint that has come to others a growing share of the requests.
type Warmup struct {
	Duration Duration `json:"duration"`
	// MinimumPercent is the share to begin with, of that of a warm endpoint; 0 is 10.
	MinimumPercent float64 `json:"minimumPercent,omitempty"`
	// Aggression bends the growth; 0 is 1, a straight line.
	Aggression float64 `json:"aggression,omitempty"`
}

// Connections bounds what one proxy asks of a service or subset at one port. 0 is no bound, or the default.
type Connections struct {
	MaxConnections uint32 `json:"maxConnections,omitempty"`
	// MaxPending is how many requests may wait for a connection.
	MaxPending uint32 `json:"maxPending,omitempty"`
	// MaxRequests is how many may be under way.
	MaxRequests uint32 `json:"maxRequests,omitempty"`
	// MaxRetries is how many may be under way for at least the second time.
	MaxRetries uint32 `json:"maxRetries,omitempty"`
	// MaxPerConnection is how many requests one connection carries.
	MaxPerConnection uint32   `json:"maxPerConnection,omitempty"`
	ConnectTimeout   Duration `json:"connectTimeout,omitempty"`
	// IdleTimeout is how long a connection is kept that carries nothing.
	IdleTimeout Duration `json:"idleTimeout,omitempty"`
	// SessionIdle is how long a connection that is passed on as bytes may be silent on both sides; default 1 h.
	SessionIdle Duration `json:"sessionIdle,omitempty"`
	// MaxAge is how long after it was opened a connection may carry another request.
	MaxAge    Duration   `json:"maxAge,omitempty"`
	KeepAlive *KeepAlive `json:"keepAlive,omitempty"`
	// ProxyProtocol is the version, 1 or 2, of the PROXY header that each connection begins with; 0 is none. A connection
	// carries one request then.
	ProxyProtocol uint8 `json:"proxyProtocol,omitempty"`
}

// KeepAlive is TCP's; 0 is the kernel's own.
type KeepAlive struct {
	Probes   uint32   `json:"probes,omitempty"`
	Idle     Duration `json:"idle,omitempty"`
	Interval Duration `json:"interval,omitempty"`
}

// Outlier takes endpoints out that fail again and again.
type Outlier struct {
	// Consecutive5xx, gateway errors (502, 503, 504) and local origin failures take an endpoint out; 0 is never.
	Consecutive5xx          uint32 `json:"consecutive5xx,omitempty"`
	ConsecutiveGateway      uint32 `json:"consecutiveGateway,omitempty"`
	ConsecutiveLocalFailure uint32 `json:"consecutiveLocalFailure,omitempty"`
	// SplitLocal counts failures to connect, resets and timeouts as ConsecutiveLocalFailure only; else they are 5xx.
	SplitLocal bool `json:"splitLocal,omitempty"`
	// Interval is how often a healthy endpoint is forgiven one of its ejections.
	Interval Duration `json:"interval"`
	// BaseTime times the number of ejections is how long an endpoint stays out.
	BaseTime Duration `json:"baseTime"`
	// MaxPercent of the endpoints may be out, but always one, and never the last unless it is 100.
	MaxPercent uint32 `json:"maxPercent"`
	// MinHealthPercent: with fewer left, all are used.
	MinHealthPercent uint32 `json:"minHealthPercent,omitempty"`
}

// RetryBudget bounds retries under way by a share of the requests under way.
type RetryBudget struct {
	Percent float64 `json:"percent"`
	// MinConcurrency may be under way whatever the share.
	MinConcurrency uint32 `json:"minConcurrency"`
}
