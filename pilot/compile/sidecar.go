package compile

import (
	"maps"
	"slices"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/mesh"
)

// sidecar is the Sidecar for the proxy: one that selects its workload before one for all of its namespace, this before one
// for the mesh, in the root namespace, and of several the oldest. Nil is none.
func (c *compiler) sidecar() *networking.Sidecar {
	var all, root *networking.Sidecar
	if c.proxy.Role == mesh.RoleGateway {
		return nil
	}
	for _, o := range c.sidecars {
		s := o.Spec.(*networking.Sidecar)
		switch {
		case o.Meta.Namespace == api.RootNamespace && s.WorkloadSelector == nil && root == nil:
			root = s
		case o.Meta.Namespace != c.proxy.Namespace:
		case s.WorkloadSelector != nil:
			if mesh.Selects(s.WorkloadSelector.Labels, c.proxy.Labels) {
				return s
			}
		case all == nil:
			all = s
		}
	}
	if all == nil {
		return root
	}
	return all
}

// scope leaves in the catalog what the egress of a Sidecar names. Without egress all stays.
func (c *catalog) scope(s *networking.Sidecar) {
	if len(s.GetEgress()) == 0 {
		return
	}
	c.hosts = slices.DeleteFunc(c.hosts, func(host string) bool {
		if c.named(s, c.services[host]) {
			return false
		}
		delete(c.services, host)
		return true
	})
	maps.DeleteFunc(c.aliases, func(_, host string) bool { return c.services[host] == nil })
}

func (c *catalog) named(sidecar *networking.Sidecar, s *service) bool {
	for _, e := range sidecar.Egress {
		for _, pattern := range e.Hosts {
			namespace, host := api.SplitGatewayHost(pattern)
			if namespace == "." {
				namespace = c.namespace
			}
			if (namespace == "*" || namespace == s.namespace) && covers(c.resolve(host, c.namespace), s.host) {
				return true
			}
		}
	}
	return false
}
