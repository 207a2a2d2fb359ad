package compose

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/composure-mesh/composure/mesh"
)

// EgressNetwork is the way out of the planes that fetch, keys of issuers and lists, and of the egress gateway. The planes listen
// on nothing there, and no workload is on it.
const EgressNetwork = "mesh-egress"

// Join puts a plane on a network, besides its way out: where the server of an issuer's keys is, or a Redis.
type Join struct {
	Plane   mesh.Role // mesh.RoleCitadel or mesh.RoleMixer
	Network string
}

// Joins are sorted, and each is there once.
type Joins []Join

// ParseJoin reads <plane>=<network>.
func ParseJoin(text string) (Join, error) {
	role, network, _ := strings.Cut(text, "=")
	if network == "" || !slices.ContainsFunc(planes, func(p plane) bool { return p.fetches && string(p.role) == role }) {
		return Join{}, fmt.Errorf("--join %q: want citadel=<network> or mixer=<network>", text)
	}
	return Join{mesh.Role(role), network}, nil
}

// String is the form that ParseJoin reads.
func (j Join) String() string { return string(j.Plane) + "=" + j.Network }

func (joins Joins) of(role mesh.Role) (networks []string) {
	for _, j := range joins {
		if j.Plane == role {
			networks = append(networks, j.Network)
		}
	}
	slices.Sort(networks)
	return slices.Compact(networks)
}

// checkJoins says what is not a project's to say of the planes, or can't be.
func (s *Source) checkJoins(cfg Config) error {
	if cfg.External != "" && cfg.MutualTLS != "" {
		return fmt.Errorf("--mtls: citadel is that of mesh %s: want it with meshctl install", cfg.External)
	}
	for _, j := range cfg.Joins {
		if cfg.External != "" {
			return fmt.Errorf("--join %s: the planes are those of mesh %s: want it with meshctl install", j, cfg.External)
		}
		if _, ok := s.project.Networks[j.Network]; !ok {
			return fmt.Errorf("--join %s: the project has no network %q, want one of its `networks`", j, j.Network)
		}
	}
	return nil
}

// ownNetworks are those that inject adds.
func (e *emitter) ownNetworks() *yaml.Node {
	n := mapping()
	n.Content = append(n.Content, keyNode(EgressNetwork), &yaml.Node{Kind: yaml.MappingNode, Style: yaml.FlowStyle})
	return n
}
