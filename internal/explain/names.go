package explain

import (
	"net/netip"
	"slices"

	"github.com/composure-mesh/composure/mesh/snapshot"
)

// standIns is s with an address for each workload that has a name to resolve, which only a proxy does: one that nobody has
// (RFC 3849), and the names that they stand for.
func standIns(s *snapshot.Snapshot) (*snapshot.Snapshot, map[netip.Addr]string) {
	names := map[netip.Addr]string{}
	next := netip.MustParseAddr("2001:db8::")
	out := *s
	for i := range s.Workloads {
		if s.Workloads[i].Resolve == "" {
			continue
		}
		if len(names) == 0 {
			out.Workloads = slices.Clone(s.Workloads)
		}
		next = next.Next()
		out.Workloads[i].Addresses = []string{next.String()}
		names[next] = s.Workloads[i].Resolve
	}
	return &out, names
}
