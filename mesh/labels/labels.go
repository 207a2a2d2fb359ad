// Package labels names the Docker labels of Composure. inject writes them, the keeper reads them; users set
// those of the first group in their compose file.
package labels

import "strings"

// Labels that users write on a compose service.
const (
	// Inject "false" leaves a service out of the mesh; "true" forces one in that would be left out.
	Inject = "composure.inject"
	// Service is the service's canonical mesh name; several compose services with one value are one service.
	Service = "composure.service"
	// Version is the value of the subset label "version".
	Version = "composure.version"
	// Namespace and ServiceAccount override the parts of the workload's identity.
	Namespace      = "composure.namespace"
	ServiceAccount = "composure.service-account"

	// ExcludeInboundPorts and ExcludeOutboundPorts are comma-separated ports that are not captured;
	// ExcludeOutboundCIDRs are comma-separated networks.
	ExcludeInboundPorts  = "composure.exclude-inbound-ports"
	ExcludeOutboundPorts = "composure.exclude-outbound-ports"
	ExcludeOutboundCIDRs = "composure.exclude-outbound-cidrs"

	// ProxyLogLevel is debug, info, warn or error; ProxyMemory is a compose memory limit such as 64m.
	ProxyLogLevel = "composure.proxy.log-level"
	ProxyMemory   = "composure.proxy.memory"
	// ProxyPrefix, followed by a setting's name, sets that of the service's proxy: composure.proxy.drain: 10s.
	ProxyPrefix = "composure.proxy."

	// ProtocolPrefix, followed by a port, declares that port's protocol: composure.protocol.9080: grpc.
	ProtocolPrefix = "composure.protocol."
)

// Prefix begins every label of Composure.
const Prefix = "composure."

// User reports whether a label is one that users write, and not one by which the keeper knows the mesh's own containers. The
// settings below ProxyPrefix are not among them: package settings has those, and the sandbox, which an upgrade leaves alone as
// long as nothing in it has changed, has no use for it.
func User(key string) bool {
	switch key {
	case Inject, Service, Version, Namespace, ServiceAccount, ExcludeInboundPorts, ExcludeOutboundPorts, ExcludeOutboundCIDRs,
		ProxyLogLevel, ProxyMemory:
		return true
	}
	return strings.HasPrefix(key, ProtocolPrefix)
}

// Labels that inject writes on the mesh's own containers.
const (
	// Role is a mesh.Role.
	Role = "composure.role"
	// Mesh is the name of the mesh a container belongs to: the compose project, unless the control plane is
	// external. The keeper sees only containers of its own mesh.
	Mesh = "composure.mesh"
	// Workload is mesh.Workload.Name, on a workload's sandbox, proxy and application.
	Workload = "composure.workload"
	// Services is mesh.Workload.Services, comma-separated, canonical name first.
	Services = "composure.services"
	// Ports is the workload's known ports, comma-separated <port>[/<protocol>].
	Ports = "composure.ports"
	// SubsetPrefix, followed by a label's name, carries one of mesh.Workload.Labels.
	SubsetPrefix = "composure.label."
	// Job is "true" on the sandbox of a service that others wait for to end (condition:
	// service_completed_successfully): its sandbox and proxy end with it, however it ends.
	Job = "composure.job"
	// Shared marks the planes of a mesh that belongs to no one project. Its value is the flags of `meshctl install`
	// that they were made with, a JSON array.
	Shared = "composure.shared"
	// Content is the digest of an image's content, which tells whether an engine already has it.
	Content = "composure.content"
)
