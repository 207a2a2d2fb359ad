package mesh

import "slices"

// Facts is what the keeper knows about the running containers of one mesh: plain data, complete at each
// Revision, sorted so that equal facts are equal bytes.
type Facts struct {
	// Revision grows with each change that the keeper has seen since it started.
	Revision  uint64     `json:"revision"`
	Project   string     `json:"project"`
	Workloads []Workload `json:"workloads"`
	Networks  []Network  `json:"networks"`
}

// Network is one Docker network that a workload is attached to.
type Network struct {
	Name     string   `json:"name"` // the engine's name, such as shop_default
	ID       string   `json:"id"`
	Subnets  []string `json:"subnets,omitempty"`  // CIDR
	Gateways []string `json:"gateways,omitempty"` // IP: published ports arrive from here
	Internal bool     `json:"internal,omitempty"`
}

// Workload is one application container, with its sandbox and proxy where it is meshed, or one gateway.
type Workload struct {
	// Name is unique in the mesh: the compose service's name, or <service>-<n> for a replica.
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	// Identity is the SPIFFE ID that its proxy holds; empty for a workload without a proxy.
	Identity string `json:"identity,omitempty"`
	// Role is RoleApp or RoleGateway.
	Role Role `json:"role"`
	// Services are the names that clients dial and this workload answers: the compose service's name and its
	// network aliases, canonical name first.
	Services []string `json:"services"`
	// Labels choose subsets: app, version and the user's own plain labels.
	Labels map[string]string `json:"labels,omitempty"`
	// Meshed says that its traffic passes a sidecar. Such an endpoint is dialled with mutual TLS.
	Meshed bool `json:"meshed"`
	// Running says that the application container runs; an endpoint that does not gets no traffic.
	Running bool `json:"running"`
	// Health is Docker's word: "", "starting", "healthy" or "unhealthy".
	Health    string    `json:"health,omitempty"`
	Addresses []Address `json:"addresses,omitempty"`
	Ports     []Port    `json:"ports,omitempty"`
	// PlainPorts are ports that its sidecar does not take, by the user's word: they are dialled in plain text.
	PlainPorts []uint16 `json:"plainPorts,omitempty"`
}

// Address is a workload's place in one network.
type Address struct {
	Network string `json:"network"` // Network.Name
	IPv4    string `json:"ipv4,omitempty"`
	IPv6    string `json:"ipv6,omitempty"`
}

// Port is a port that a workload is known to serve. A port that is not listed may be served all the same.
type Port struct {
	Number   uint16   `json:"number"`
	Protocol Protocol `json:"protocol,omitempty"` // empty: not declared
	// Published are the host ports, for a gateway's and an application's published ports.
	Published []string `json:"published,omitempty"` // "8080" or "127.0.0.1:8080"
}

// Protocol is an application protocol as Istio's appProtocol names it.
type Protocol string

// The protocols that matter to the proxy. Every other declared one is treated as ProtocolTCP.
const (
	ProtocolAuto  Protocol = ""
	ProtocolHTTP  Protocol = "http"
	ProtocolHTTP2 Protocol = "http2"
	ProtocolGRPC  Protocol = "grpc"
	ProtocolHTTPS Protocol = "https"
	ProtocolTLS   Protocol = "tls"
	ProtocolTCP   Protocol = "tcp"
)

// CanonicalService is the first of the workload's services: what metrics call it.
func (w *Workload) CanonicalService() string {
	if len(w.Services) == 0 {
		return w.Name
	}
	return w.Services[0]
}

// Version is the workload's version label, or "" where it has none.
func (w *Workload) Version() string { return w.Labels["version"] }

// Serves reports whether clients may reach w by the given service name.
func (w *Workload) Serves(service string) bool { return slices.Contains(w.Services, service) }
