package compile

import (
	"hash/fnv"
	"net/netip"
	"strings"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
)

// addNames gives addresses to the virtual hosts that DNS is to answer for otherwise than with their endpoints': the ones
// that a ServiceEntry lists, or a virtual one where there is none.
func (c *compiler) addNames(hosts []snapshot.VirtualHost) {
	for i := range hosts {
		h := &hosts[i]
		if s := c.catalog.services[h.Service]; s != nil {
			h.Addresses = c.addressesOfService(s)
		} else if h.Service == "" && strings.HasSuffix(h.Name, "."+mesh.DomainSuffix) && !strings.HasPrefix(h.Name, "*") {
			// Rules for a name that nobody serves, such as a service scaled to zero.
			h.Addresses = []string{c.virtual(h.Name)}
		}
	}
}

// addressesOfService are what clients dial to reach s, if not its endpoints. A ServiceEntry's CIDRs are nothing to dial, and
// with resolution NONE a client is to find the real address.
func (c *compiler) addressesOfService(s *service) []string {
	if s.entry == nil {
		var waiting []string // of workloads that have an address already, as Docker says it too
		for _, w := range s.workloads {
			switch addresses := addressesOf(w, c.proxy); {
			case len(addresses) == 0:
			case w.Running:
				return nil
			default:
				waiting = append(waiting, addresses[0])
			}
		}
		if waiting == nil {
			return []string{c.virtual(s.host)}
		}
		return waiting
	}
	var exact []string
	for _, a := range s.entry.Addresses {
		if ip, err := netip.ParseAddr(a); err == nil {
			exact = append(exact, ip.Unmap().String())
		}
	}
	if len(s.entry.Addresses) > 0 || passthrough(s.entry) || strings.HasPrefix(s.host, "*") {
		return exact
	}
	return []string{c.virtual(s.host)}
}

// dialled are the addresses and CIDRs that tell connections to a ServiceEntry from others.
func (c *compiler) dialled(s *service) []string {
	if len(s.entry.Addresses) > 0 {
		return s.entry.Addresses
	}
	return c.addressesOfService(s)
}

// virtual is the virtual address of a host. It is made of the host's name, so that it is the same in every proxy and after
// every restart; of two hosts that would have the same one, the later in the snapshot has the next.
func (c *compiler) virtual(host string) string {
	if a, ok := c.virtuals[host]; ok {
		return a.String()
	}
	if c.virtuals == nil {
		c.virtuals, c.taken = map[string]netip.Addr{}, map[netip.Addr]bool{}
	}
	network := netip.MustParsePrefix(mesh.VirtualNetwork)
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(host)) // it never fails
	base := network.Addr().As4()
	for n := hash.Sum32(); ; n++ {
		a := netip.AddrFrom4([4]byte{base[0], base[1], byte(n >> 8), byte(n)})
		if low := byte(n); low == 0 || low == 255 || c.taken[a] {
			continue // the first and the last of a network look like no host's
		}
		c.virtuals[host], c.taken[a] = a, true
		return a.String()
	}
}
