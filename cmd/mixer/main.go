// Mixer is the mesh's telemetry plane.
package main

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/composure-mesh/composure/internal/component"
	"github.com/composure-mesh/composure/internal/identity"
	"github.com/composure-mesh/composure/internal/lifecycle"
	"github.com/composure-mesh/composure/internal/plane"
	"github.com/composure-mesh/composure/mesh"
	"github.com/composure-mesh/composure/mixer"
)

func main() {
	component.Main("mixer", map[string]component.Command{"": run, "dial": component.Dial})
}

func run(ctx context.Context, log *slog.Logger, _ []string) error {
	plane.SaveMemory()
	trustDomain := cmp.Or(os.Getenv("COMPOSURE_TRUST_DOMAIN"), mesh.DefaultTrustDomain)
	agent, err := identity.NewAgent(identity.AgentConfig{
		KeeperSocket:  mesh.Socket(mesh.RoleKeeper),
		CitadelSocket: mesh.Socket(mesh.RoleCitadel),
		BundleFile:    mesh.TrustBundle,
		TrustDomain:   trustDomain,
		Role:          mesh.RoleMixer,
		Log:           log,
	})
	if err != nil {
		return err
	}
	srv, err := mixer.New(mixer.Config{
		Socket:       mesh.Socket(mesh.RoleMixer),
		AdminSocket:  mesh.AdminSocket,
		KeeperSocket: mesh.Socket(mesh.RoleKeeper),
		StoreFile:    filepath.Join(mesh.StateDir, "mixer.db"),
		Identity:     agent,
		TrustDomain:  trustDomain,
		Version:      component.Version,
		Log:          log,
	})
	if err != nil {
		return err
	}
	return lifecycle.Run(ctx, agent.Run, srv.Run)
}
