package mesh

import "path"

// Ports inside a workload's namespace. They are Istio's numbers, because people know them
// (https://istio.io/latest/docs/ops/deployment/application-requirements/#ports-used-by-istio).
const (
	PortAdmin    = 15000 // proxy admin, loopback only
	PortOutbound = 15001 // captured outbound connections
	PortInbound  = 15006 // captured inbound connections
	PortMerged   = 15020 // merged application and proxy metrics
	PortReady    = 15021 // readiness over HTTP
	PortDNS      = 15053 // DNS
	PortMetrics  = 15090 // proxy metrics
)

// User and group ids of the mesh's own processes. Applications must not use UIDProxy:
// its traffic is not captured.
const (
	UIDProxy   = 1337
	UIDSandbox = 1339
	UIDKeeper  = 1340
	UIDPilot   = 1341
	UIDCitadel = 1342
	UIDMixer   = 1343
)

// SelfTestIP is the loopback address that the capture rules redirect to PortOutbound and that is never
// forwarded: a connection to it that arrives at the outbound listener proves that capture is live.
const SelfTestIP = "127.0.0.77"

// HandoverSocket is the abstract unix socket, one per network namespace, at which the sandbox hands the
// capture listeners to the proxy. The leading "@" is Go's spelling of the abstract namespace.
const HandoverSocket = "@composure/listeners"

// DNSSocket is the abstract unix socket at which the sandbox lends the proxy the sockets at PortDNS.
const DNSSocket = "@composure/dns"

// DockerDNS is the address of Docker's resolver in each namespace on a user-defined network
// (https://docs.docker.com/engine/network/#dns-services).
const DockerDNS = "127.0.0.11"

// VirtualNetwork is where the addresses are that stand for services which have none of their own: the network of Istio's
// automatic allocation. Nothing is there; the proxy knows what is meant.
const VirtualNetwork = "240.240.0.0/16"

// RunDir is where the mesh's shared volume is mounted in the mesh's own containers. Each plane owns one
// directory below it and is the only writer there; proxies mount the whole read-only.
const RunDir = "/run/composure"

// Role is what one container of the mesh is there for.
type Role string

// The roles. A container carries its role in labels.Role.
const (
	RoleApp     Role = "app"
	RoleSandbox Role = "sandbox"
	RoleProxy   Role = "proxy"
	RoleGateway Role = "gateway"
	RoleKeeper  Role = "keeper"
	RolePilot   Role = "pilot"
	RoleCitadel Role = "citadel"
	RoleMixer   Role = "mixer"
)

// Dir is the directory below RunDir that the plane r alone writes.
func Dir(r Role) string { return path.Join(RunDir, string(r)) }

// Socket is the unix socket that r serves to the mesh's other containers: mutual TLS for a plane, plain
// HTTP with SO_PEERCRED attestation for the keeper.
func Socket(r Role) string { return path.Join(Dir(r), string(r)+".sock") }

// Paths below Dir(RoleKeeper): what the keeper publishes. Both are replaced atomically.
var (
	// TrustBundle is the PEM file of the root certificates to trust in this mesh.
	TrustBundle = path.Join(Dir(RoleKeeper), "bundle.pem")
	// AttestKey is the keeper's Ed25519 public key, PEM of a SubjectPublicKeyInfo, with which citadel
	// checks attestation statements.
	AttestKey = path.Join(Dir(RoleKeeper), "attest.pub")
)

// AdminSocket is the unix socket inside a plane's own container at which people reach its HTTP API. It is
// not in the shared volume: the way to it is an exec in the container, so whoever may use the engine may
// administer the mesh.
const AdminSocket = "/run/admin/admin.sock"

// StateDir is where a component keeps what must survive a restart of its container: a volume for the
// planes, the container's own writable layer for a proxy.
const StateDir = "/var/lib/composure"

// ALPN protocol ids of mutual TLS between sidecars. An inbound listener terminates TLS only for a ClientHello
// that offers one of them; every other TLS is the application's own and passes untouched.
const (
	ALPNHTTP1 = "composure-http/1.1"
	ALPNHTTP2 = "composure-h2"
	ALPNTCP   = "composure-tcp"
)
