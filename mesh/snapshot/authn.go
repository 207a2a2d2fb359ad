package snapshot

// Authentication is how a proxy finds out who sends to it: the peer by mutual TLS, the user by a token.
type Authentication struct {
	// TLS is what the proxy's own listeners take.
	TLS ServerTLS `json:"tls,omitzero"`
	// Peers are what the listeners of workloads take that it can reach, by Workload. One that is not listed is PERMISSIVE.
	Peers []PeerTLS `json:"peers,omitempty"`
	// Tokens are the issuers whose tokens are taken, in order.
	Tokens []TokenRule `json:"tokens,omitempty"`
	// TokenRequired refuses a request without a token, as Policy of Istio 1.0 does.
	TokenRequired bool `json:"tokenRequired,omitempty"`
}

// MutualTLS says whether a listener takes plain text, mutual TLS or both; empty is PERMISSIVE.
type MutualTLS string

// The modes (https://istio.io/latest/docs/reference/config/security/peer_authentication/#PeerAuthentication-MutualTLS-Mode).
const (
	Permissive MutualTLS = "PERMISSIVE"
	Strict     MutualTLS = "STRICT"
	Disable    MutualTLS = "DISABLE"
)

// Modes are the modes of a workload's ports, each with what has decided it: an object, or how the mesh was injected.
type Modes struct {
	Mode   MutualTLS  `json:"mode,omitempty"`
	Source string     `json:"source,omitempty"`
	Ports  []PortMode `json:"ports,omitempty"` // by Port
}

// PortMode stands in the place of the workload's mode at one port.
type PortMode struct {
	Port   uint16    `json:"port"`
	Mode   MutualTLS `json:"mode"`
	Source string    `json:"source,omitempty"`
}

// At is the mode at a port, and what has decided it.
func (m *Modes) At(port uint16) (mode MutualTLS, source string) {
	for i := range m.Ports {
		if m.Ports[i].Port == port {
			return m.Ports[i].Mode, m.Ports[i].Source
		}
	}
	if m.Mode == "" {
		return Permissive, m.Source
	}
	return m.Mode, m.Source
}

// ServerTLS is what a proxy's own listeners take. Where a port is STRICT, plain text is taken only if the port is published,
// and only from a network's gateway or from outside every network that the workload is attached to: from the host and the
// outside world, but from no neighbour.
type ServerTLS struct {
	Modes
	Published []uint16 `json:"published,omitempty"` // ports of the workload, sorted
	Gateways  []string `json:"gateways,omitempty"`  // IPs, sorted
	Subnets   []string `json:"subnets,omitempty"`   // CIDR, sorted
}

// PeerTLS is what a workload's listeners take.
type PeerTLS struct {
	Workload string `json:"workload"`
	Modes
}

// TokenRule is an issuer of JSON Web Tokens, and where its tokens stand in a request.
type TokenRule struct {
	// Source is the object that the rule is of, and its path there.
	Source    string   `json:"source"`
	Issuer    string   `json:"issuer"`
	Audiences []string `json:"audiences,omitempty"` // one of them must be in aud; empty takes any
	// Keys is the issuer's JWK set. While it is empty, since it could not be fetched yet, every token is refused.
	Keys string `json:"keys,omitempty"`
	// KeysFrom is the URI that Keys is fetched from; empty where it stands in the object.
	KeysFrom string `json:"keysFrom,omitempty"`
	// Headers, Params of the query and Cookies are where a token may stand.
	Headers []TokenHeader `json:"headers,omitempty"`
	Params  []string      `json:"params,omitempty"`
	Cookies []string      `json:"cookies,omitempty"`
	// PayloadHeader gets the payload of a verified token, base64url.
	PayloadHeader string `json:"payloadHeader,omitempty"`
	// ClaimHeaders get single claims.
	ClaimHeaders []ClaimHeader `json:"claimHeaders,omitempty"`
	// Forward leaves the token in the request.
	Forward bool `json:"forward,omitempty"`
	// SpaceDelimited are claims of which each word is a value, as a.b where nested, beside scope and permission.
	SpaceDelimited []string `json:"spaceDelimited,omitempty"`
}

// TokenHeader is a header with a token behind a prefix.
type TokenHeader struct {
	Name   string `json:"name"` // lower-case
	Prefix string `json:"prefix,omitempty"`
}

// ClaimHeader is a header for a claim that is a text, a number or a truth value.
type ClaimHeader struct {
	Name  string `json:"name"`  // lower-case
	Claim string `json:"claim"` // its name, or names separated by dots where it is nested
}

// MissedKeys is what a proxy tells citadel, POST /v1/missed-keys: URIs of keys, where tokens have named some that are not
// there.
type MissedKeys struct {
	URIs []string `json:"uris"`
}
