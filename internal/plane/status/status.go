// Package status is what pilot tells people about its proxies, at GET /debug/proxies.
package status

import "time"

// Report is the answer of GET /debug/proxies.
type Report struct {
	// FactsRevision is that of the facts in force; 0 before the keeper has sent any.
	FactsRevision uint64 `json:"factsRevision"`
	// Keeper says that the stream of facts is connected.
	Keeper bool `json:"keeper"`
	// Proxies are all that the facts know and all that have called, by Workload.
	Proxies []Proxy `json:"proxies"`
	// Resources are the objects of the configuration, by Resource.
	Resources []Resource `json:"resources"`
	// Problems are what in the configuration can't be done as it is written.
	Problems []string `json:"problems,omitempty"`
}

// State is how a proxy stands to the newest snapshot.
type State string

// The states, as istioctl proxy-status names them.
const (
	Synced  State = "SYNCED"   // the newest is in force
	Stale   State = "STALE"    // the newest was sent and not answered yet
	Nack    State = "NACK"     // the newest was refused; an older one is in force
	NotSent State = "NOT SENT" // there is nothing to send, or nobody to send it to
)

// Proxy is one proxy.
type Proxy struct {
	Workload  string `json:"workload"`
	Namespace string `json:"namespace,omitempty"`
	State     State  `json:"state"`
	// Connected is when its stream began, zero while it has none.
	Connected time.Time `json:"connected,omitzero"`
	// Wanted is the version it should have, Sent the last that was sent, Acked the one in force as far as known.
	Wanted  string    `json:"wanted,omitempty"`
	Sent    string    `json:"sent,omitempty"`
	SentAt  time.Time `json:"sentAt,omitzero"`
	Acked   string    `json:"acked,omitempty"`
	AckedAt time.Time `json:"ackedAt,omitzero"`
	// Refused is the version that it refused last, since the last it took, with Error its reason.
	Refused string `json:"refused,omitempty"`
	Error   string `json:"error,omitempty"`
	// Build is the proxy's version.
	Build string `json:"build,omitempty"`
}

// Resource is one object, and how many of the connected proxies have what was made of it in force.
type Resource struct {
	Resource        string `json:"resource"` // virtualservice/default/reviews
	ResourceVersion string `json:"resourceVersion"`
	Applied         int    `json:"applied"`
	Proxies         int    `json:"proxies"`
}
