// Package snapshot is the contract between the planes and a proxy: plain data that says everything one proxy must
// know. pilot compiles the Snapshot, citadel its Security, mixer its Usage; the proxy builds its tables from the three,
// meshctl explains with them. Equal documents are equal bytes, so their Version is a digest.
package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/composure-mesh/composure/mesh"
)

// Snapshot is what one proxy must know. Slices are sorted by the key that their comment names.
type Snapshot struct {
	// Version is the digest of everything else; Seal sets it.
	Version     string `json:"version,omitzero"`
	TrustDomain string `json:"trustDomain,omitzero"`
	// Proxy is the workload whose proxy this is for. In Workloads it stands too.
	Proxy Workload `json:"proxy,omitzero"`
	// Workloads are all that share a network with this one, itself included, by Name: peers to be told by
	// address, and endpoints of Services.
	Workloads []Workload `json:"workloads,omitempty"`
	// Services are what this proxy can reach, by Host.
	Services []Service `json:"services,omitempty"`
	// VirtualHosts route a sidecar's outbound HTTP by authority, by Name. Every domain stands in one of them
	// only. A service without rules has a virtual host with one catch-all route.
	VirtualHosts []VirtualHost `json:"virtualHosts,omitempty"`
	// TLSRoutes and TCPRoutes route what leaves a sidecar's application and is not HTTP, in order.
	TLSRoutes []TLSRoute `json:"tlsRoutes,omitempty"`
	TCPRoutes []TCPRoute `json:"tcpRoutes,omitempty"`
	// RegistryOnly keeps a sidecar's application from what is no service: HTTP gets 502, other connections are reset.
	RegistryOnly bool `json:"registryOnly,omitempty"`
	// Gateways are the servers of a gateway proxy, by Port. Empty for a sidecar.
	Gateways []GatewayServer `json:"gateways,omitempty"`
	// Secrets are those that the proxy needs, by Name. One that is named and missing here is nowhere.
	Secrets []Secret `json:"secrets,omitempty"`
	// Security and Usage come from citadel and mixer, each with a Version of its own; pilot leaves them out, and so
	// they are no part of Version.
	Security *Security `json:"security,omitempty"`
	Usage    *Usage    `json:"usage,omitempty"`
}

// Workload is one workload as a proxy needs to know it.
type Workload struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	// Identity is the SPIFFE ID that it shows; empty where there is no proxy. It is dialled with mutual TLS that
	// expects this identity, unless PlainText says otherwise.
	Identity string `json:"identity,omitempty"`
	// PlainText says that its listeners take what anybody sends, as a gateway's do: its identity is that of a client.
	PlainText bool `json:"plainText,omitempty"`
	// Service is the canonical service: what metrics call it.
	Service string `json:"service"`
	// Services are the Hosts of all services it answers to, also while it is unhealthy and so no endpoint of them:
	// they tell a proxy that a client which dials its address by such a name wants that service. Sorted.
	Services []string          `json:"services,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Addresses are its IPs, the one to dial from this proxy first. All of them tell it as a peer.
	Addresses []string `json:"addresses,omitempty"`
	// Resolve is the DNS name whose addresses are those of this workload, which has none then: the proxy finds them itself.
	// ResolveFirst says that the first alone counts.
	Resolve      string `json:"resolve,omitempty"`
	ResolveFirst bool   `json:"resolveFirst,omitempty"`
	// Ports are the declared ones. Others may be served too.
	Ports []Port `json:"ports,omitempty"`
	// PlainPorts are ports that its sidecar does not take: they are dialled in plain text.
	PlainPorts []uint16 `json:"plainPorts,omitempty"`
	// TLS is what its listeners take, from citadel's part: the proxy joins the two. Nil is PERMISSIVE.
	TLS *Modes `json:"-"`
}

// Port is a declared port.
type Port struct {
	Number   uint16        `json:"number"`
	Protocol mesh.Protocol `json:"protocol,omitempty"`
	// Target is the port at the endpoints, where that is another. For a Service.
	Target uint16 `json:"target,omitempty"`
}

// Service is a name that clients dial, and the workloads behind it.
type Service struct {
	Host      string `json:"host"` // fully qualified: reviews.default.svc.cluster.local
	Name      string `json:"name"` // reviews
	Namespace string `json:"namespace"`
	Ports     []Port `json:"ports,omitempty"` // by Number: the union of its workloads' declared ports
	// Endpoints are names of Workloads that run and are not unhealthy, sorted. All the service's workloads
	// where every one of them is unhealthy: some answer beats none.
	Endpoints []string `json:"endpoints,omitempty"`
	Subsets   []Subset `json:"subsets,omitempty"` // by Name
	// Places say more of some of the endpoints, by Workload.
	Places []Place `json:"places,omitempty"`
	Policy Policy  `json:"policy,omitzero"`
	// PortPolicies stand in the place of Policy for requests to their ports, by Port.
	PortPolicies []PortPolicy `json:"portPolicies,omitempty"`
}

// Place is what a service's endpoint is besides a workload at the service's ports. What is zero is as for one without.
type Place struct {
	Workload string `json:"workload"`
	// Address stands in the place of the workload's own: several workloads outside of Docker may share one.
	Address string `json:"address,omitempty"`
	// Weight is its share of the requests, as against those of the other endpoints; 0 is 1.
	Weight uint32 `json:"weight,omitempty"`
	// Ports are those that are others there than the service's, by Number.
	Ports []PlacePort `json:"ports,omitempty"`
	// Identity is the SPIFFE ID that it shows by the mesh's mutual TLS; empty is the workload's.
	Identity string `json:"identity,omitempty"`
}

// PlacePort is the port of an endpoint for one of its service.
type PlacePort struct {
	Number uint16 `json:"number"`
	Target uint16 `json:"target"`
}

// Subset is the endpoints with given labels. It may be empty: 503 UH then.
type Subset struct {
	Name      string   `json:"name"`
	Endpoints []string `json:"endpoints,omitempty"`
	// Policy and PortPolicies are complete: nothing of the service's is added.
	Policy       Policy       `json:"policy,omitzero"`
	PortPolicies []PortPolicy `json:"portPolicies,omitempty"`
}

// VirtualHost routes the requests for some domains.
type VirtualHost struct {
	// Name is the first of the hosts it was made for; with the port it stands in the access log.
	Name string `json:"name"`
	// Domains are lower-case, without port: exact names, "*.suffix", or "*".
	Domains []string `json:"domains"`
	// Addresses are what DNS answers for its domains, some of mesh.VirtualNetwork among them. Without any, those of
	// Service are answered with its endpoints'.
	Addresses []string `json:"addresses,omitempty"`
	// Service is the Host of the service this virtual host belongs to; empty for a host that is no service.
	Service string `json:"service,omitempty"`
	// Routes are tried in order; the first that matches decides. None matches: 404 NR.
	Routes []Route `json:"routes"`
}

// Route is one rule. A route without Matches matches everything.
type Route struct {
	Name    string  `json:"name,omitempty"`
	Matches []Match `json:"matches,omitempty"` // any of them
	// Destinations are where its requests go; none where Redirect or DirectResponse answers them.
	Destinations []Destination `json:"destinations,omitempty"`
	// Resource is the object that this rule was written in, such as virtualservice/default/reviews, with the
	// path of the rule: for explain and errors.
	Resource string `json:"resource,omitempty"`
	RouteRules
}

// Match is a conjunction: every field that is set must match.
type Match struct {
	URI           *StringMatch  `json:"uri,omitempty"` // the path without query
	Method        *StringMatch  `json:"method,omitempty"`
	Authority     *StringMatch  `json:"authority,omitempty"`
	Scheme        *StringMatch  `json:"scheme,omitempty"`
	Headers       []HeaderMatch `json:"headers,omitempty"`       // by Name
	QueryParams   []HeaderMatch `json:"queryParams,omitempty"`   // by Name; the first value counts
	IgnoreURICase bool          `json:"ignoreUriCase,omitempty"` // exact and prefix only
	Port          uint16        `json:"port,omitempty"`          // the port that the client dialled
}

// HeaderMatch is a match on one header or query parameter, or on a claim. Without Value it asks for presence.
type HeaderMatch struct {
	Name string `json:"name"` // headers: lower-case
	// Claim are the names that lead to a claim of the request's verified token, whose text, or one of whose texts, is then
	// what matches; Name is how the rule names it.
	Claim  []string     `json:"claim,omitempty"`
	Value  *StringMatch `json:"value,omitempty"`
	Invert bool         `json:"invert,omitempty"` // a missing one matches then
}

// StringMatch has exactly one field set. Regex is RE2 and must match the whole string.
type StringMatch struct {
	Exact  string `json:"exact,omitempty"`
	Prefix string `json:"prefix,omitempty"`
	Regex  string `json:"regex,omitempty"`
}

// Destination is one target of a route.
type Destination struct {
	Service string `json:"service"` // Service.Host; one that is not in Services answers 503 NC
	Subset  string `json:"subset,omitempty"`
	// Port 0 is the port that the client dialled.
	Port   uint16 `json:"port,omitempty"`
	Weight uint32 `json:"weight"` // share of the sum; never all zero
	// Headers are done after the route's own, so that they win.
	Headers *Headers `json:"headers,omitempty"`
}

// GatewayServer is one port that a gateway listens on.
type GatewayServer struct {
	Port         uint16        `json:"port"`
	Protocol     mesh.Protocol `json:"protocol"`
	VirtualHosts []VirtualHost `json:"virtualHosts,omitempty"` // by Name
	// TLSRoutes and TCPRoutes are those of a port that is not HTTP: protocol tls or tcp. What none of them matches is
	// reset.
	TLSRoutes []TLSRoute `json:"tlsRoutes,omitempty"`
	TCPRoutes []TCPRoute `json:"tcpRoutes,omitempty"`
	// TLSServers are those of a port of protocol tls that end TLS, by Name. A TLS route with a more specific server name
	// goes before them.
	TLSServers []TLSServer `json:"tlsServers,omitempty"`
}

// Seal sets s.Version to the digest of the rest.
func (s *Snapshot) Seal() error {
	shared, err := s.Share()
	if err != nil {
		return err
	}
	s.Version, err = shared.Version(&s.Proxy)
	return err
}

// Shared is a snapshot without what is one proxy's own, encoded: proxies that are to know the same share it.
type Shared struct {
	encoded []byte
	digest  [sha256.Size]byte
}

// Share encodes what proxies with the same snapshot share.
func (s *Snapshot) Share() (*Shared, error) {
	rest := *s
	rest.Version, rest.Proxy = "", Workload{}
	b, err := json.Marshal(&rest)
	if err != nil {
		return nil, fmt.Errorf("encode snapshot: %w", err)
	}
	return &Shared{encoded: b, digest: sha256.Sum256(b)}, nil
}

// Version is that of the snapshot for proxy.
func (s *Shared) Version(proxy *Workload) (string, error) {
	b, err := json.Marshal(proxy)
	if err != nil {
		return "", fmt.Errorf("encode snapshot: %w", err)
	}
	sum := sha256.Sum256(append(b, s.digest[:]...))
	return hex.EncodeToString(sum[:8]), nil
}

// Line is the whole snapshot for proxy as one line of a stream, in parts of which the big one is shared.
func (s *Shared) Line(version string, proxy *Workload) ([][]byte, error) {
	return line(version, "", proxy, s.encoded)
}

// Digest is the Version.
func (s *Snapshot) Digest() string { return s.Version }

func digest(document any) (string, error) {
	b, err := json.Marshal(document)
	if err != nil {
		return "", fmt.Errorf("encode snapshot: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8]), nil
}

// Ack is a proxy's answer to a document of a plane, POST /v1/acks there.
type Ack struct {
	Workload string `json:"workload"`
	// Version is the snapshot that is answered for.
	Version string `json:"version"`
	// Error is empty where the snapshot is in force; else it says why it was refused, and the one before
	// stays in force.
	Error string `json:"error,omitempty"`
	// Build is the proxy's own version.
	Build string `json:"build"`
}
