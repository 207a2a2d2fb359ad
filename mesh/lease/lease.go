// Package lease is the contract between a proxy and mixer about rate limits that all proxies share: a proxy tells what
// has passed, and fetches tokens ahead of need, POST /v1/leases at mixer; and it hears when a counter is used up, GET
// /v1/leases. No request waits for it.
package lease

// Request is what one proxy has to tell and to ask.
type Request struct {
	Workload string `json:"workload"`
	Asks     []Ask  `json:"asks"`
}

// MaxAsks bounds a Request.
const MaxAsks = 256

// Ask is about one counter.
type Ask struct {
	// Limit is the RateLimit's Name, Key what tells its counters apart.
	Limit string `json:"limit"`
	Key   []byte `json:"key,omitempty"`
	// Override is one more than the index of the override that the key fits; 0 is none.
	Override int `json:"override,omitempty"`
	// Used has passed without a token: it is counted in any case.
	Used int64 `json:"used,omitempty"`
	// Back are tokens of the grant At, which were not used.
	Back int64 `json:"back,omitempty"`
	At   int64 `json:"at,omitempty"`
	// Want are tokens to be had ahead.
	Want int64 `json:"want,omitempty"`
}

// Answer has a Grant for each Ask, in order.
type Answer struct {
	Grants []Grant `json:"grants"`
}

// Grant is mixer's answer to an Ask.
type Grant struct {
	// Tokens may pass until TTL milliseconds have gone.
	Tokens int64 `json:"tokens,omitempty"`
	TTL    int64 `json:"ttlMs,omitempty"`
	// At is when this was so, by the counter's clock in nanoseconds: for giving tokens back, and for telling news from what is older.
	At int64 `json:"at,omitempty"`
	// Left is how many there are besides.
	Left int64 `json:"left,omitempty"`
	// Wait is in how many milliseconds there will be enough for a request again, where Left is not.
	Wait int64 `json:"waitMs,omitempty"`
	// Unknown says that mixer has no such limit: its configuration has changed.
	Unknown bool `json:"unknown,omitempty"`
}

// Count is what all proxies that have a limit are told of one of its counters: that there is not enough left for a request,
// or that there is again. GET /v1/leases?workload=NAME at mixer is a stream of them, one a line, with an empty line now and
// then. What a slow proxy has no room for is left out: its own asks tell it the same.
type Count struct {
	// Limit, Key and Override name the counter as in an Ask.
	Limit    string `json:"limit"`
	Key      []byte `json:"key,omitempty"`
	Override int    `json:"override,omitempty"`
	// At, Left and Wait are as in a Grant.
	At   int64 `json:"at,omitempty"`
	Left int64 `json:"left,omitempty"`
	Wait int64 `json:"waitMs,omitempty"`
}
