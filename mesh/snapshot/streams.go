package snapshot

// TCPRoute sends connections that are passed on as bytes. Of the routes, in their order, the first that matches decides;
// where none does, a connection goes where its client dialled
// (https://istio.io/latest/docs/reference/config/networking/virtual-service/#TCPRoute).
type TCPRoute struct {
	Name string `json:"name,omitempty"`
	// Service is the Host of the service whose addresses are dialled; empty for any destination.
	Service string `json:"service,omitempty"`
	// Port is the one that the client dialled; 0 for any.
	Port uint16 `json:"port,omitempty"`
	// Subnets are addresses and CIDRs, of which one must hold the destination; empty for any.
	Subnets []string `json:"subnets,omitempty"`
	// Destinations are chosen from by weight, for each connection. They have no Headers.
	Destinations []Destination `json:"destinations"`
	// Resource is the object that this rule was written in, with the path of the rule.
	Resource string `json:"resource,omitempty"`
}

// TLSRoute is a TCPRoute for TLS that passes through untouched, chosen by the server name that its client asks for. TLS
// routes are tried before TCP routes. A port that is declared tcp is not looked at, so none applies there.
type TLSRoute struct {
	// ServerNames are lower-case: exact names, "*.suffix", or "*", which also takes a client that names none. One of
	// them must match.
	ServerNames []string `json:"serverNames"`
	TCPRoute
}
