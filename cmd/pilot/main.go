// Pilot is the plane of discovery and routing.
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
	"github.com/composure-mesh/composure/pilot"
)

func main() {
	component.Main("pilot", map[string]component.Command{"": run, "dial": component.Dial})
}

func run(ctx context.Context, log *slog.Logger, _ []string) error {
	plane.SaveMemory()
	trustDomain := cmp.Or(os.Getenv("COMPOSURE_TRUST_DOMAIN"), mesh.DefaultTrustDomain)
	agent, err := identity.NewAgent(identity.AgentConfig{
		KeeperSocket: mesh.Socket(mesh.RoleKeeper), CitadelSocket: mesh.Socket(mesh.RoleCitadel), BundleFile: mesh.TrustBundle,
		StateDir: filepath.Join(mesh.StateDir, "identity"), TrustDomain: trustDomain, Role: mesh.RolePilot, Log: log,
	})
	if err != nil {
		return err
	}
	p, err := pilot.New(pilot.Config{
		TrustDomain: trustDomain, KeeperSocket: mesh.Socket(mesh.RoleKeeper),
		MixerSocket: mesh.Socket(mesh.RoleMixer), MeshSocket: mesh.Socket(mesh.RolePilot), AdminSocket: mesh.AdminSocket,
		StoreFile: filepath.Join(mesh.StateDir, "pilot.db"), Identity: agent, Version: component.Version, Log: log,
	})
	if err != nil {
		return err
	}
	return lifecycle.Run(ctx, agent.Run, p.Run)
}
