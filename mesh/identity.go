package mesh

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Defaults of identities and names.
const (
	DefaultTrustDomain = "cluster.local"
	DefaultNamespace   = "default"
	// SystemNamespace holds the identities of the mesh's own planes.
	SystemNamespace = "composure-system"
	// DomainSuffix ends the fully qualified name of a service, as in Kubernetes.
	DomainSuffix = "svc.cluster.local"
)

// IdentityID is the SPIFFE ID of a workload,
// spiffe://<trustDomain>/ns/<namespace>/sa/<serviceAccount>, in Istio's form
// (https://istio.io/latest/docs/concepts/security/#istio-identity).
func IdentityID(trustDomain, namespace, serviceAccount string) (spiffeid.ID, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("trust domain %q: %w", trustDomain, err)
	}
	id, err := spiffeid.FromSegments(td, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("identity of service account %q in namespace %q: %w", serviceAccount, namespace, err)
	}
	return id, nil
}

// PlaneID is the SPIFFE ID of one of the mesh's own planes.
func PlaneID(trustDomain string, r Role) (spiffeid.ID, error) {
	return IdentityID(trustDomain, SystemNamespace, string(r))
}

// FQDN is the fully qualified name of service name in namespace, such as reviews.default.svc.cluster.local.
func FQDN(name, namespace string) string { return name + "." + namespace + "." + DomainSuffix }
