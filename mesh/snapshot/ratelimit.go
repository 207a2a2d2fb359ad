package snapshot

// RateLimit bounds how many of a workload's requests pass in a window of time, for each key.
type RateLimit struct {
	// Name is that of its counters, which all proxies that have it share where it is Global. The resource that it was
	// made of, such as ratelimit/default/per-user.
	Name string `json:"name"`
	// Match is what requests it counts: BOOL. All where it is nil. A request that it can't be evaluated for is not
	// counted.
	Match *Expression `json:"match,omitempty"`
	// Key is what the counters are told apart by: STRINGs. None is one counter for all.
	Key []RateLimitKey `json:"key,omitempty"`
	// Charge is what one request counts.
	Charge int64 `json:"charge"`
	Rate
	// Overrides stand in the place of Rate where the key fits: the first that does.
	Overrides []RateOverride `json:"overrides,omitempty"`
	// Global says that mixer counts, for all proxies; else each proxy counts for itself.
	Global bool `json:"global,omitempty"`
	// OnFailure is what a proxy does while mixer does not answer: open, closed or local. For Global ones.
	OnFailure OnFailure `json:"onFailure,omitempty"`
	// Shadow counts and records what it would refuse, and refuses nothing.
	Shadow bool `json:"shadow,omitempty"`
	// Message is the body of a refusal.
	Message string `json:"message,omitempty"`
}

// RateLimitKey is one part of a key.
type RateLimitKey struct {
	Name  string     `json:"name"`
	Value Expression `json:"value"`
}

// Rate is how much passes.
type Rate struct {
	Limit int64 `json:"limit"`
	// Window is in milliseconds, positive.
	Window    int64     `json:"windowMs"`
	Algorithm Algorithm `json:"algorithm"`
}

// RateOverride is a rate for the keys whose parts have the given values, whatever the other parts have.
type RateOverride struct {
	Key map[string]string `json:"key,omitempty"`
	Rate
}

// Algorithm is how a window is counted.
type Algorithm string

// The algorithms.
const (
	// FixedWindow counts from one multiple of the window to the next: up to twice the limit may pass around such a
	// moment.
	FixedWindow Algorithm = "FIXED_WINDOW"
	// SlidingWindow never lets more than the limit pass in any window. What was used comes back a thirty-second of the
	// window late at most.
	SlidingWindow Algorithm = "SLIDING_WINDOW"
	// TokenBucket is filled evenly, and holds no more than the limit.
	TokenBucket Algorithm = "TOKEN_BUCKET"
)

// OnFailure is what happens while mixer does not answer.
type OnFailure string

// The choices.
const (
	FailOpen   OnFailure = "OPEN"   // everything passes
	FailClosed OnFailure = "CLOSED" // nothing passes
	FailLocal  OnFailure = "LOCAL"  // each proxy counts for itself
)
