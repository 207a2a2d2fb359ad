package table

import (
	"net/netip"
	"strings"

	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mesh/snapshot"
	"github.com/composure-mesh/composure/proxy/dns"
)

// name is what DNS answers for a domain.
type name struct {
	addresses []netip.Addr
	meaning   dns.Meaning
}

var virtualNetwork = netip.MustParsePrefix(mesh.VirtualNetwork)

// IsVirtual reports whether an address stands for a service: nothing is to be found there.
func IsVirtual(ip netip.Addr) bool { return virtualNetwork.Contains(ip.Unmap()) }

// Resolve implements dns.Names.
func (t *Table) Resolve(domain []byte) ([]netip.Addr, dns.Meaning) {
	n := t.names[string(domain)]
	return n.addresses, n.meaning
}

// names makes the domains of a virtual host known to DNS. Docker knows the short name of a service with endpoints, on all
// their networks: it is left to Docker. One of no service may be that of a container which the mesh does not know: it is
// ours only if Docker has none.
func (b *builder) names(object string, s *snapshot.VirtualHost, vh *VirtualHost) {
	addresses := make([]netip.Addr, 0, len(s.Addresses))
	for _, text := range s.Addresses {
		ip, err := netip.ParseAddr(text)
		if err != nil {
			b.refuse("%s: addresses: %w", object, err)
			return
		}
		if addresses = append(addresses, ip); !IsVirtual(ip) {
			continue
		}
		if other := b.t.virtual[ip]; other != nil {
			b.refuse("%s: address %s is also that of virtual host %s", object, ip, other.Name)
			return
		}
		b.t.virtual[ip] = vh
	}
	own := len(addresses) > 0
	if !own {
		if vh.Service == nil {
			return
		}
		for _, e := range vh.Service.clusters[""].Endpoints {
			addresses = append(addresses, e.Addr)
		}
		if len(addresses) == 0 {
			return
		}
	}
	for _, domain := range s.Domains {
		n := name{addresses, dns.Known}
		switch short := !strings.Contains(domain, "."); {
		case strings.HasPrefix(domain, "*"), short && !own:
			continue
		case short && vh.Service == nil:
			n.meaning = dns.Fallback
		}
		b.t.names[strings.ToLower(domain)] = n
	}
}
