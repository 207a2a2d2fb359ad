package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1"

	"github.com/composure-mesh/composure/api"
	"github.com/composure-mesh/composure/internal/analysis"
	"github.com/composure-mesh/composure/mesh"
)

// checkEntry finds hosts of a ServiceEntry that another service has.
func (c *compiler) checkEntry(o *api.Object, entry *networking.ServiceEntry) {
	for i, name := range entry.Hosts {
		host := strings.ToLower(name)
		if s := c.catalog.services[c.catalog.aliases[host]]; s != nil && s.entry != entry {
			c.problem(o, api.Path{"spec", "hosts", i}.String(), host+" is a service's already; this entry is not used for it")
		}
	}
}

// checkUnusedEntry finds what nothing comes of.
func (c *compiler) checkUnusedEntry(o *api.Object, entry *networking.ServiceEntry) {
	unused := api.UnusedEntry(entry)
	for _, field := range slices.Sorted(maps.Keys(unused)) {
		c.problem(o, "spec."+field, unused[field])
	}
	for i, e := range entry.Endpoints {
		c.checkNetwork(o, fmt.Sprintf("spec.endpoints[%d]", i), e)
	}
	if s := entry.WorkloadSelector; s != nil && len(s.Labels) == 0 && unused["workloadSelector"] == "" {
		c.problem(o, "spec.workloadSelector", "it has no labels: it selects all workloads of namespace "+o.Meta.Namespace)
	}
}

// checkNetwork finds workloads that are said to be in another network: all that have an address are dialled.
func (c *compiler) checkNetwork(o *api.Object, path string, e *networking.WorkloadEntry) {
	switch {
	case e.Address == "":
		c.problem(o, path+".address", "there is none, so nothing is sent there: gateways between networks are not known")
	case e.Network != "":
		c.problem(o, path+".network", "it is not used: the address is dialled from everywhere")
	}
}

// checkEntryAddresses finds ports of bytes that nothing but their number tells from another entry's.
func (c *compiler) checkEntryAddresses(o *api.Object, entry *networking.ServiceEntry) {
	if !passthrough(entry) || len(entry.Addresses) > 0 {
		return
	}
	for i, p := range entry.Ports {
		if entryProtocol(p) == mesh.ProtocolTCP {
			c.report(analysis.EntryAddressesRequired, o, "spec.addresses", fmt.Sprintf("spec.ports[%d] is of protocol %s: without addresses, whatever is sent to port %d is taken for it",
				i, cmp.Or(strings.ToUpper(p.GetProtocol()), "TCP"), p.GetNumber()))
		}
	}
}

// checkSidecar finds Sidecars that nothing comes of: for no workload, or beside an older one for the same; and hosts that
// name no service.
func (c *compiler) checkSidecar(o *api.Object, s *networking.Sidecar) {
	selects := func(labels map[string]string, w *mesh.Workload) bool {
		return w.Namespace == o.Meta.Namespace && w.Role != mesh.RoleGateway && mesh.Selects(labels, w.Labels)
	}
	var selected []*mesh.Workload
	for _, w := range c.sorted {
		if selects(s.WorkloadSelector.GetLabels(), w) {
			selected = append(selected, w)
		}
	}
	if s.WorkloadSelector != nil {
		c.checkSelector(analysis.ReferencedResourceNotFound, o, "spec.workloadSelector", s.WorkloadSelector.Labels, func(w *mesh.Workload) bool { return selects(nil, w) })
	}
	for _, other := range c.sidecars {
		spec := other.Spec.(*networking.Sidecar)
		if other.String() == o.String() || other.Meta.Namespace != o.Meta.Namespace {
			continue
		}
		switch {
		case s.WorkloadSelector == nil && spec.WorkloadSelector == nil:
			c.report(analysis.MultipleSidecars, o, "spec", fmt.Sprintf("%s is for all workloads of namespace %s, too: the older is used", other, o.Meta.Namespace))
		case s.WorkloadSelector != nil && spec.WorkloadSelector != nil:
			if i := slices.IndexFunc(selected, func(w *mesh.Workload) bool { return selects(spec.WorkloadSelector.Labels, w) }); i >= 0 {
				c.report(analysis.ConflictingSidecars, o, "spec.workloadSelector", fmt.Sprintf("%s selects workload %s, too: the older is used", other, selected[i].Name))
			}
		}
	}
	for i, e := range s.Egress {
		for j, pattern := range e.Hosts {
			one := &networking.Sidecar{Egress: []*networking.IstioEgressListener{{Hosts: []string{pattern}}}}
			namespace, host := api.SplitGatewayHost(pattern)
			if namespace != "~" && host != "*" && !slices.ContainsFunc(c.catalog.hosts, func(h string) bool { return c.catalog.named(one, c.catalog.services[h]) }) {
				c.report(analysis.ReferencedResourceNotFound, o, fmt.Sprintf("spec.egress[%d].hosts[%d]", i, j), "no service is "+pattern)
			}
		}
	}
}
