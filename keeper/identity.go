package keeper

import (
	"cmp"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/labels"
)

// identityOf is an identity with its parts.
type identityOf struct {
	id                 spiffeid.ID
	namespace, account string
}

// workloadIdentity is the identity of the workload whose proxy or gateway carries the given labels. Facts and
// attestation both ask here, so what peers expect is what the certificate says.
func workloadIdentity(trustDomain string, l map[string]string) (identityOf, error) {
	who := identityOf{
		namespace: cmp.Or(l[labels.Namespace], mesh.DefaultNamespace),
		account:   cmp.Or(l[labels.ServiceAccount], l[labels.Workload]),
	}
	if who.namespace == mesh.SystemNamespace {
		return who, fmt.Errorf("label %s: %q is kept for the mesh's own planes", labels.Namespace, who.namespace)
	}
	if who.account == "" {
		return who, fmt.Errorf("label %s is missing", labels.Workload)
	}
	var err error
	who.id, err = mesh.IdentityID(trustDomain, who.namespace, who.account)
	return who, err
}
